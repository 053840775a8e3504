"""`rnn_lm`: a recurrent language model, LSTM or GRU (Zaremba et al. 2014), as transformers has its causal ones.

Positions tell documents apart, as in every packed batch: where `position_ids` is 0 the state is zero again.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from llmkit.models.configs import RnnLmConfig
from llmkit.models.recurrent import RecurrentCache, RecurrentPreTrainedModel, embed, make_cells, run_cells


class RnnLmModel(RecurrentPreTrainedModel):
    """Embeddings and cells: tokens in, (B, T, hidden_size) out."""

    config_class = RnnLmConfig

    def __init__(self, config: RnnLmConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.cells = make_cells(config, config.hidden_size, bidirectional=False)
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: RecurrentCache | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPast | tuple[torch.Tensor, ...]:
        """input_ids: (B, T), the tokens after those in `past_key_values`. attention_mask: (B, any), of all tokens so
        far; its last T columns count. position_ids: (B, T) or (1, T)."""
        width = input_ids.shape[1]
        mask = None if attention_mask is None else attention_mask[:, -width:].to(input_ids.device)
        starts = None
        if position_ids is not None and past_key_values is None:
            starts = (position_ids == 0).expand_as(input_ids)
            if not bool(starts[:, 1:].any()):
                starts = None  # one document a row
        hidden, state = run_cells(
            self.cells,
            self.dropout(embed(self.embed_tokens, input_ids)),
            mask=mask,
            starts=starts,
            state=None if past_key_values is None else past_key_values.states,
        )
        hidden = self.dropout(hidden)
        cache = None
        if use_cache if use_cache is not None else self.config.use_cache and not self.training:
            seen = width if past_key_values is None else past_key_values.seen + width
            cache = RecurrentCache(state, seen)
        output = BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=cache)  # type: ignore[arg-type]
        return output if return_dict is not False else output.to_tuple()


class RnnLmForCausalLM(RecurrentPreTrainedModel, GenerationMixin):
    """RnnLmModel with a head, tied to the embeddings unless the config says otherwise."""

    config_class = RnnLmConfig
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 - read as is by transformers

    def __init__(self, config: RnnLmConfig):
        super().__init__(config)
        self.model = RnnLmModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: RecurrentCache | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithPast | tuple[torch.Tensor, ...]:
        """labels: (B, T) not shifted, -100 where nothing is learned; the loss is the mean over the others.
        logits_to_keep: of the last tokens only; 0: all."""
        body = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        logits = self.lm_head(body.last_hidden_state[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        output = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=body.past_key_values)
        return output if return_dict is not False else output.to_tuple()
