"""One section a task type: a discriminated union on `type`. A new task adds its section here and a row in `TASKS`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(gt=0.0, lt=1.0)]


class _Task(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CausalLM(_Task):
    """Next-token prediction on text. `fim_rate`: share of documents in fill-in-the-middle order (arXiv:2207.14255)."""

    type: Literal["causal_lm"]
    fim_rate: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0


class MaskedLM(_Task):
    """Masked tokens from both sides, and whether a second stretch follows the first (arXiv:1810.04805)."""

    type: Literal["masked_lm"]
    mlm_probability: Share = 0.15
    whole_word_mask: bool = False
    next_sentence_prediction: bool = False


class ReplacedTokenDetection(_Task):
    """ELECTRA (arXiv:2003.10555). `generator`: keys of the smaller network that differ from the model's config, or
    {name_or_path: ...}; null: the one saved beside the model's weights, else a fresh one a quarter as wide."""

    type: Literal["replaced_token_detection"]
    generator: dict[str, Any] | None = None
    mlm_probability: Share = 0.15
    detection_weight: Annotated[float, Field(gt=0.0)] = 50.0


class SpanCorruption(_Task):
    """T5's objective (arXiv:1910.10683): spans become sentinels, which the decoder spells out."""

    type: Literal["span_corruption"]
    noise_density: Share = 0.15
    mean_span_length: Annotated[float, Field(ge=1.0)] = 3.0


class Denoising(_Task):
    """BART's objective (arXiv:1910.13461): text infilling and sentence permutation; the decoder restores the text."""

    type: Literal["denoising"]
    mask_ratio: Share = 0.3
    mean_span_length: Annotated[float, Field(gt=0.0)] = 3.0
    permute_sentences: bool = True


class Instruction(_Task):
    """Chat or prompt-completion pairs. `train_on`: which tokens are supervised (EOS always is)."""

    type: Literal["instruction"]
    train_on: Literal["completion", "all"] = "completion"


class SequenceClassification(_Task):
    """A label, several labels or a number a text (or pair). `class_weights`: balanced, or a weight a label."""

    type: Literal["sequence_classification"]
    problem_type: Literal["single_label", "multi_label", "regression"] | None = None
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(ge=0.0)]] | None = None


class TokenClassification(_Task):
    """A tag a token (named entities, parts of speech)."""

    type: Literal["token_classification"]
    tagging_scheme: Literal["auto", "BIO", "IO", "BMES", "BILOU", "none"] = "auto"


class QuestionAnswering(_Task):
    """The answer is a span of the context (SQuAD). Lengths in tokens."""

    type: Literal["question_answering"]
    doc_stride: Annotated[int, Field(ge=1)] = 128
    max_answer_length: Annotated[int, Field(ge=1)] = 30
    n_best_size: Annotated[int, Field(ge=1)] = 20
    null_score_diff_threshold: float = 0.0


class _Written(_Task):
    """`source_prefix` is put before every source; `src_lang`, `tgt_lang`: for models of many languages."""

    source_prefix: str | None = None
    src_lang: str | None = None
    tgt_lang: str | None = None


class Translation(_Written):
    """Source to target text."""

    type: Literal["translation"]


class Summarization(_Written):
    """Long text to short text."""

    type: Literal["summarization"]


class Preference(_Task):
    """Of two answers the better one (DPO and its kin); kto: single answers that are good or bad."""

    type: Literal["preference"]
    loss: Literal["dpo", "ipo", "orpo", "simpo", "kto"] = "dpo"
    beta: Annotated[float, Field(gt=0.0)] | None = None


PREFERENCE_BETA = {"dpo": 0.1, "ipo": 0.1, "orpo": 0.1, "simpo": 2.0, "kto": 0.1}
"""`beta` where the recipe gives none: the papers' values."""

NEEDS_REFERENCE = ("dpo", "ipo", "kto")
"""Preference losses that compare with the model that training started from."""

TaskSection = Annotated[
    CausalLM
    | MaskedLM
    | ReplacedTokenDetection
    | SpanCorruption
    | Denoising
    | Instruction
    | SequenceClassification
    | TokenClassification
    | QuestionAnswering
    | Translation
    | Summarization
    | Preference,
    Field(discriminator="type"),
]

COMMAND_OF_TASK: dict[str, Literal["pretrain", "finetune"]] = {
    "causal_lm": "pretrain",
    "masked_lm": "pretrain",
    "replaced_token_detection": "pretrain",
    "span_corruption": "pretrain",
    "denoising": "pretrain",
    "instruction": "finetune",
    "sequence_classification": "finetune",
    "token_classification": "finetune",
    "question_answering": "finetune",
    "translation": "finetune",
    "summarization": "finetune",
    "preference": "finetune",
}

OVERFLOW: dict[str, tuple[Literal["split", "truncate", "drop", "error"], ...]] = {
    "causal_lm": ("split",),
    "masked_lm": ("split",),
    "replaced_token_detection": ("split",),
    "span_corruption": ("split",),
    "denoising": ("split",),
    "instruction": ("truncate", "drop", "error"),
    "sequence_classification": ("truncate", "drop", "error"),
    "token_classification": ("split", "truncate", "drop", "error"),
    "question_answering": ("split",),
    "translation": ("truncate", "drop", "error"),
    "summarization": ("truncate", "drop", "error"),
    "preference": ("truncate", "drop", "error"),
}
"""What `data.overflow` may be, the default first."""

BASELINES: dict[str, tuple[str, ...]] = {
    "majority": ("sequence_classification",),
    "tfidf_logistic_regression": ("sequence_classification",),
    "ngram": ("causal_lm",),
    "copy": ("translation", "summarization"),
    "lead": ("summarization",),
}
"""The tasks that each of `evaluation.baselines` applies to; a baseline that is not here is to come."""

CHATS = ("instruction", "preference")
"""Tasks whose rows are conversations, put into words by a chat template."""

LABELLED = ("sequence_classification", "token_classification")
"""Tasks whose rows have labels with names."""
