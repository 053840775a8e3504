"""`rnn_encoder`: an LSTM or GRU over a text, both ways, for labels of whole texts or of tokens."""

from __future__ import annotations

import torch
from torch import nn
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from llmkit.models.configs import RnnEncoderConfig
from llmkit.models.recurrent import RecurrentPreTrainedModel, make_cells, run_cells


class RnnEncoderModel(RecurrentPreTrainedModel):
    """Tokens in; a vector a token and a vector a text out, hidden_size wide."""

    config_class = RnnEncoderConfig

    def __init__(self, config: RnnEncoderConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.cells = make_cells(config, config.hidden_size, bidirectional=config.bidirectional)
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, return_dict: bool | None = None
    ) -> BaseModelOutputWithPooling | tuple[torch.Tensor, ...]:
        """input_ids, attention_mask: (B, T)."""
        hidden, state = run_cells(self.cells, self.dropout(self.embed_tokens(input_ids)), mask=attention_mask)
        token = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        last = state[0][:, -2:] if self.config.bidirectional else state[0][:, -1:]
        pooled = last.flatten(1) if self.config.pooling == "last" else pool(hidden, token, self.config.pooling)
        output = BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)
        return output if return_dict is not False else output.to_tuple()


def pool(hidden: torch.Tensor, mask: torch.Tensor, how: str) -> torch.Tensor:
    """(B, H) mean or maximum of (B, T, H) over the tokens that `mask` (B, T) marks; zero where it marks none."""
    token = mask.bool().unsqueeze(-1)
    if how == "mean":
        return (hidden * token).sum(1) / token.sum(1).clamp(min=1)
    top = hidden.masked_fill(~token, torch.finfo(hidden.dtype).min).amax(1)
    return top * token.any(1)


class RnnForSequenceClassification(RecurrentPreTrainedModel):
    """A linear classifier of the text's vector."""

    config_class = RnnEncoderConfig

    def __init__(self, config: RnnEncoderConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = RnnEncoderModel(config)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)  # type: ignore[arg-type]
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput | tuple[torch.Tensor, ...]:
        """labels: (B,), or (B, num_labels) for several at once; their loss is transformers' own."""
        logits = self.classifier(self.dropout(self.model(input_ids, attention_mask).pooler_output))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        output = SequenceClassifierOutput(loss=loss, logits=logits)
        return output if return_dict is not False else output.to_tuple()


class RnnForTokenClassification(RecurrentPreTrainedModel):
    """A linear classifier of every token's vector."""

    config_class = RnnEncoderConfig

    def __init__(self, config: RnnEncoderConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = RnnEncoderModel(config)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)  # type: ignore[arg-type]
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> TokenClassifierOutput | tuple[torch.Tensor, ...]:
        """labels: (B, T), -100 where nothing is learned."""
        logits = self.classifier(self.dropout(self.model(input_ids, attention_mask).last_hidden_state))
        loss = None if labels is None else self.loss_function(logits=logits, labels=labels, config=self.config)
        output = TokenClassifierOutput(loss=loss, logits=logits)
        return output if return_dict is not False else output.to_tuple()
