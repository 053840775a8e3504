"""Configs of the project's own architectures. Apart from the networks, because AutoConfig needs them at a time when
transformers' modelling code may not be importable yet (see `registry`).

Values are checked against their annotations, so these must be types, not strings: no postponed evaluation here.
"""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from llmkit.models.ngram_config import NgramConfig


def _check_sizes(config: Any, *names: str) -> None:
    """Raises ValueError for a size below one, a dropout outside [0, 1), or an odd width that two directions share."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    if not 0 <= config.dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, got {config.dropout}")
    if getattr(config, "bidirectional", False) and config.hidden_size % 2:
        raise ValueError(f"hidden_size must be even: two directions share it, got {config.hidden_size}")


@strict
class RnnLmConfig(PreTrainedConfig):
    """`rnn_lm`: a recurrent language model. hidden_size is the width of embeddings and cells, so that they can tie."""

    model_type = "rnn_lm"
    attribute_map: ClassVar[dict[str, str]] = {"num_hidden_layers": "num_layers"}
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    vocab_size: int = 32000
    hidden_size: int = 256
    num_layers: int = 2
    cell: Literal["lstm", "gru"] = "lstm"
    dropout: float | int = 0.1
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = True
    use_cache: bool = True

    def validate_sizes(self) -> None:
        _check_sizes(self, "hidden_size", "num_layers")


@strict
class RnnSeq2SeqConfig(PreTrainedConfig):
    """`rnn_seq2seq`: a recurrent encoder-decoder over one vocabulary, whose embeddings both sides share.

    num_layers is that of the encoder and of the decoder. input_feeding None: with attention on.
    """

    model_type = "rnn_seq2seq"
    attribute_map: ClassVar[dict[str, str]] = {"num_hidden_layers": "num_layers"}
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    vocab_size: int = 32000
    hidden_size: int = 256
    num_layers: int = 1
    cell: Literal["lstm", "gru"] = "lstm"
    bidirectional: bool = True
    attention: Literal["additive", "multiplicative", "none"] = "additive"
    input_feeding: bool | None = None
    dropout: float | int = 0.1
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    decoder_start_token_id: int | None = None
    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = True
    use_cache: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if self.input_feeding is None:
            self.input_feeding = self.attention != "none"
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]

    def validate_sizes(self) -> None:
        _check_sizes(self, "hidden_size", "num_layers")
        if self.input_feeding and self.attention == "none":
            raise ValueError("input_feeding feeds back what attention found; leave it out where attention is none")


@strict
class RnnEncoderConfig(PreTrainedConfig):
    """`rnn_encoder`: a recurrent encoder for classification. pooling: of tokens into one vector, for whole texts."""

    model_type = "rnn_encoder"
    attribute_map: ClassVar[dict[str, str]] = {"num_hidden_layers": "num_layers"}

    vocab_size: int = 32000
    hidden_size: int = 256
    num_layers: int = 1
    cell: Literal["lstm", "gru"] = "lstm"
    bidirectional: bool = True
    pooling: Literal["max", "mean", "last"] = "max"
    dropout: float | int = 0.3
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = False

    def validate_sizes(self) -> None:
        _check_sizes(self, "hidden_size", "num_layers")


@strict
class TextCnnConfig(PreTrainedConfig):
    """`text_cnn`: convolutions and max over time (Kim 2014). hidden_size is the width of the embeddings; num_filters is
    that of each filter width; num_layers convolutions lie above each other (Kim's has one)."""

    model_type = "text_cnn"
    attribute_map: ClassVar[dict[str, str]] = {"num_hidden_layers": "num_layers"}

    vocab_size: int = 32000
    hidden_size: int = 128
    num_layers: int = 1
    filter_widths: list[int] | tuple[int, ...] = (3, 4, 5)
    num_filters: int = 100
    dropout: float | int = 0.5
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = False

    def validate_sizes(self) -> None:
        _check_sizes(self, "hidden_size", "num_layers", "num_filters")
        if not self.filter_widths or min(self.filter_widths) < 1:
            raise ValueError(f"filter_widths must be a list of positive widths, got {list(self.filter_widths)}")


CONFIGS: tuple[type[PreTrainedConfig], ...] = (
    RnnLmConfig,
    RnnSeq2SeqConfig,
    RnnEncoderConfig,
    TextCnnConfig,
    NgramConfig,
)
