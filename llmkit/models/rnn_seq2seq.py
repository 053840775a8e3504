"""`rnn_seq2seq`: a recurrent encoder-decoder with attention, as transformers has its encoder-decoders.

The decoder's cells start from the encoder's last state, layer by layer. At each step attention looks at the source with
the cells' output s and finds a context c; the head reads h = tanh(W [c; s]), which is also fed back beside the next
token (input feeding). That is the order of Luong et al. 2015 (arXiv:1508.04025); the additive score is Bahdanau's
(arXiv:1409.0473). Without attention the head reads s (Sutskever et al. 2014).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.utils.generic import ModelOutput

from llmkit.models.configs import RnnSeq2SeqConfig
from llmkit.models.recurrent import RecurrentCache, RecurrentPreTrainedModel, State, embed, make_cells, run_cells

IGNORE = -100
"""Labels that teach nothing, as everywhere in transformers."""


@dataclass
class EncoderOutput(ModelOutput):
    """last_hidden_state: (B, S, H). hidden_state and cell_state (LSTM): (B, layers, H), where the decoder starts."""

    last_hidden_state: torch.Tensor | None = None
    hidden_state: torch.Tensor | None = None
    cell_state: torch.Tensor | None = None


class RnnSeq2SeqEncoder(RecurrentPreTrainedModel):
    """The source side, and the embeddings that both sides share."""

    config_class = RnnSeq2SeqConfig

    def __init__(self, config: RnnSeq2SeqConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.dropout = nn.Dropout(config.dropout)
        self.cells = make_cells(config, config.hidden_size, bidirectional=config.bidirectional)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> EncoderOutput:
        """input_ids, attention_mask: (B, S). The rest is what `generate` passes to every encoder."""
        outputs, state = run_cells(self.cells, self.dropout(embed(self.embed_tokens, input_ids)), mask=attention_mask)
        if self.config.bidirectional:  # (B, layers * 2, H / 2) -> (B, layers, H)
            state = tuple(part.unflatten(1, (-1, 2)).flatten(2) for part in state)
        return EncoderOutput(outputs, *state)


class Attention(nn.Module):
    """Weights over source positions by their score with the decoder's output s, for source output h:
    additive: v . tanh(W h + U s); multiplicative: s . W h."""

    def __init__(self, kind: str, width: int):
        super().__init__()
        self.key = nn.Linear(width, width, bias=False)
        self.query = nn.Linear(width, width) if kind == "additive" else None
        self.score = nn.Linear(width, 1, bias=False) if kind == "additive" else None

    def forward(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """query: (B, T, H). keys: `key(values)`, (B, S, H). mask: (B, S). Context (B, T, H) and weights (B, T, S)."""
        if self.query is None or self.score is None:
            scores = query @ keys.transpose(1, 2)
        else:
            scores = self.score(torch.tanh(self.query(query).unsqueeze(2) + keys.unsqueeze(1))).squeeze(-1)
        if mask is not None:
            scores = scores.masked_fill(~mask.bool().unsqueeze(1), torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1)
        return weights @ values, weights


class RnnSeq2SeqModel(RecurrentPreTrainedModel):
    """Encoder and decoder without the head."""

    config_class = RnnSeq2SeqConfig

    def __init__(self, config: RnnSeq2SeqConfig):
        super().__init__(config)
        width = config.hidden_size
        self.encoder = RnnSeq2SeqEncoder(config)
        self.dropout = nn.Dropout(config.dropout)
        self.cells = make_cells(config, width * (2 if config.input_feeding else 1), bidirectional=False)
        self.attention = None if config.attention == "none" else Attention(config.attention, width)
        self.combine = None if config.attention == "none" else nn.Linear(2 * width, width, bias=False)
        self.post_init()

    def decode(
        self, decoder_input_ids: torch.Tensor, source: EncoderOutput, mask: torch.Tensor | None, states: State
    ) -> tuple[torch.Tensor, State, torch.Tensor | None]:
        """(B, T, H) what the head reads, the states after it, and attention weights (B, T, S).

        states: that of the cells and, with input feeding, h of the step before as the last part, (B, 1, H).
        """
        inputs = self.dropout(embed(self.encoder.embed_tokens, decoder_input_ids))
        values = source.last_hidden_state
        assert values is not None
        if self.attention is None or self.combine is None:
            outputs, state = run_cells(self.cells, inputs, state=states)
            return outputs, state, None
        keys = self.attention.key(values)
        if not self.config.input_feeding:
            outputs, state = run_cells(self.cells, inputs, state=states)
            hidden, weights = self._look(outputs, keys, values, mask)
            return hidden, state, weights
        *cell_states, fed = states
        state, found, seen = tuple(cell_states), [], []
        for step in range(inputs.shape[1]):
            outputs, state = run_cells(self.cells, torch.cat([inputs[:, step : step + 1], fed], -1), state=state)
            fed, weights = self._look(outputs, keys, values, mask)
            found.append(fed)
            seen.append(weights)
        return torch.cat(found, 1), (*state, fed), torch.cat(seen, 1)

    def _look(
        self, outputs: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The attentional output h (B, T, H) for the cells' outputs, and the weights."""
        assert self.attention is not None and self.combine is not None
        outputs = self.dropout(outputs)
        context, weights = self.attention(outputs, keys, values, mask)
        return torch.tanh(self.combine(torch.cat([context, outputs], -1))), weights

    def start(self, source: EncoderOutput) -> State:
        """The decoder's states before its first token."""
        states = tuple(part for part in (source.hidden_state, source.cell_state) if part is not None)
        return (*states, torch.zeros_like(states[0][:, :1])) if self.config.input_feeding else states


class RnnForSeq2SeqLM(RecurrentPreTrainedModel, GenerationMixin):
    """RnnSeq2SeqModel with a head, tied to the embeddings unless the config says otherwise."""

    config_class = RnnSeq2SeqConfig
    _tied_weights_keys = {"lm_head.weight": "model.encoder.embed_tokens.weight"}  # noqa: RUF012 - read as is

    def __init__(self, config: RnnSeq2SeqConfig):
        super().__init__(config)
        self.model = RnnSeq2SeqModel(config)
        self.dropout = nn.Dropout(config.dropout)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.model.encoder.embed_tokens
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.encoder.embed_tokens = value

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Labels (B, T) shifted right behind the start token; ignored ones become padding, which nothing reads."""
        start = self.config.decoder_start_token_id
        if start is None:
            raise ValueError("config.decoder_start_token_id is needed to shift labels")
        pad = self.config.pad_token_id if self.config.pad_token_id is not None else start
        shifted = torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1]], 1)
        return shifted.masked_fill(shifted == IGNORE, pad)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        encoder_outputs: EncoderOutput | None = None,
        past_key_values: RecurrentCache | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> Seq2SeqLMOutput | tuple[torch.Tensor, ...]:
        """input_ids, attention_mask: (B, S). decoder_input_ids: (B, T), after those in `past_key_values`. labels:
        (B, T), -100 where nothing is learned; the loss is the mean over the others."""
        if decoder_input_ids is None:
            if labels is None:
                raise ValueError("decoder_input_ids or labels are needed")
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        source = encoder_outputs if encoder_outputs is not None else self.model.encoder(input_ids, attention_mask)
        states = self.model.start(source) if past_key_values is None else past_key_values.states
        hidden, states, weights = self.model.decode(decoder_input_ids, source, attention_mask, states)
        logits = self.lm_head(self.dropout(hidden))
        cache = None
        if use_cache if use_cache is not None else self.config.use_cache and not self.training:
            seen = decoder_input_ids.shape[1] + (0 if past_key_values is None else past_key_values.seen)
            cache = RecurrentCache(states, seen)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
        shown = weights is not None and (
            self.config.output_attentions if output_attentions is None else output_attentions
        )
        output = Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=cache,  # type: ignore[arg-type]
            cross_attentions=(weights.unsqueeze(1),) if shown and weights is not None else None,
            encoder_last_hidden_state=source.last_hidden_state,
        )
        return output if return_dict is not False else output.to_tuple()
