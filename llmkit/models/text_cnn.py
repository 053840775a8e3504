"""`text_cnn`: convolutions over embeddings and the maximum over time (Kim 2014, arXiv:1408.5882).

The convolutions are wide: a filter also covers the text's edges, with zeros outside, so that a text shorter than the
filter has windows too. A window without a token of the text never wins: ReLU gives no less than zero, and such a window
is set to zero.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput

from llmkit.models.configs import TextCnnConfig
from llmkit.models.recurrent import RecurrentPreTrainedModel


class TextCnnModel(RecurrentPreTrainedModel):
    """Tokens in, one vector a text out: num_filters features of each filter width."""

    config_class = TextCnnConfig

    def __init__(self, config: TextCnnConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.convolutions = nn.ModuleList(
            nn.ModuleList(
                nn.Conv1d(config.num_filters if layer else config.hidden_size, config.num_filters, width)
                for layer in range(config.num_layers)
            )
            for width in config.filter_widths
        )
        self.post_init()

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, return_dict: bool | None = None
    ) -> BaseModelOutputWithPooling | tuple[torch.Tensor, ...]:
        """input_ids, attention_mask: (B, T). pooler_output: (B, num_filters * number of widths)."""
        embedded = self.embed_tokens(input_ids)
        token = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        token = token.unsqueeze(1).to(embedded.dtype)  # (B, 1, T)
        inputs = embedded.transpose(1, 2) * token
        pooled = torch.cat([self._features(stack, inputs, token) for stack in self.convolutions], dim=1)
        output = BaseModelOutputWithPooling(pooler_output=pooled)
        return output if return_dict is not False else output.to_tuple()

    @staticmethod
    def _features(stack: nn.Module, inputs: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        """(B, num_filters) maxima over the windows that hold a token."""
        for convolution in stack.children():
            assert isinstance(convolution, nn.Conv1d)
            (width,) = convolution.kernel_size
            edges = (width - 1, width - 1)
            token = F.max_pool1d(F.pad(token, edges), width, stride=1)
            inputs = F.relu(convolution(F.pad(inputs, edges))) * token
        return inputs.amax(2)


class TextCnnForSequenceClassification(RecurrentPreTrainedModel):
    """A linear classifier of the text's features, with dropout before it."""

    config_class = TextCnnConfig

    def __init__(self, config: TextCnnConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = TextCnnModel(config)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.num_filters * len(config.filter_widths), config.num_labels)  # type: ignore[arg-type]
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
