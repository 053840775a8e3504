"""What a task needs on top of a network, in transformers' terms, and which architectures have it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from llmkit.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Head:
    """auto_class: the Auto class that builds it. wanted: what to use instead, for messages. fresh: pretrained weights
    may lack the head's tensors, which then start from the run's seed. config: keys of the model's config that the task
    decides (labels). peft_type: peft's name of the kind.
    """

    auto_class: str
    wanted: str
    peft_type: str
    fresh: bool = False
    config: dict[str, Any] = field(default_factory=dict)


CAUSAL_LM = Head("AutoModelForCausalLM", "a decoder-only model (gpt2, llama, qwen2, ...)", "CAUSAL_LM")
MASKED_LM = Head(
    "AutoModelForMaskedLM", "an encoder (bert, roberta, modernbert, ...)", "FEATURE_EXTRACTION", fresh=True
)
PRETRAINING = Head("AutoModelForPreTraining", "bert (masked LM and next sentence)", "FEATURE_EXTRACTION", fresh=True)
SEQ2SEQ_LM = Head("AutoModelForSeq2SeqLM", "an encoder-decoder (t5, bart, rnn_seq2seq, ...)", "SEQ_2_SEQ_LM")
QUESTION_ANSWERING = Head(
    "AutoModelForQuestionAnswering", "an encoder (bert, roberta, ...)", "QUESTION_ANS", fresh=True
)


def labelled_head(kind: Literal["sequence", "token"], labels: list[str], problem_type: str | None = None) -> Head:
    """A classifier of whole sequences or of tokens, with the labels' names in its config."""
    config: dict[str, Any] = {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }
    if problem_type is not None:
        config["problem_type"] = problem_type
    auto_class, peft_type = {
        "sequence": ("AutoModelForSequenceClassification", "SEQ_CLS"),
        "token": ("AutoModelForTokenClassification", "TOKEN_CLS"),
    }[kind]
    own = "text_cnn" if kind == "sequence" else "rnn_encoder"
    return Head(auto_class, f"an encoder (bert, roberta, {own}, ...)", peft_type, fresh=True, config=config)


def check_architecture(config: PreTrainedConfig, head: Head) -> None:
    """Raises ModelError where the architecture does not have the head, or reads the other way round."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    kind = config.model_type
    auto = getattr(transformers, head.auto_class)
    encoder = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    has_head = type(config) in auto._model_mapping or bool(getattr(config, "auto_map", None))
    if head.auto_class in ("AutoModelForCausalLM", "AutoModelForMaskedLM") and config.is_encoder_decoder:
        what = "an encoder-decoder"
    elif head.auto_class == "AutoModelForCausalLM" and encoder:
        what = "an encoder"
    elif not has_head:
        what = "not made for it"
    else:
        return
    raise ModelError(f"{kind} is {what}; this task needs {head.wanted}", key="model")


def is_of_head(name: str, base_prefix: str) -> bool:
    """Whether a tensor may be missing in weights that were saved without the head: it is outside the body, or the
    body's pooler, which only some heads read."""
    return not name.startswith(base_prefix + ".") or ".pooler." in name
