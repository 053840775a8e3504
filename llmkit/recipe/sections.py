"""The recipe's sections: small frozen models that refuse unknown keys. Every default of llmkit lives in this file.

`None` means off or automatic. Checks that span sections are in `check.py`; keys whose capability is not here yet are
listed in `later.py` and refused there, never ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from llmkit.recipe.tasks import TaskSection

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Ratio = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]

Format = Literal[
    "jsonl", "json", "csv", "tsv", "txt", "parquet", "arrow", "conll", "squad", "parallel", "html", "warc", "mediawiki"
]
Scheduler = Literal[
    "cosine", "cosine_with_min_lr", "linear", "constant", "warmup_stable_decay", "inverse_sqrt", "polynomial"
]
Optimizer = Literal["adamw", "adamw_torch", "adamw_torch_fused", "adafactor", "lion", "muon", "sgd", "adamw_8bit"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), populate_by_name=True)


class ModelSection(Section):
    name_or_path: str | None = None
    revision: str | None = None
    config: dict[str, Any] | None = None
    attn_implementation: Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"] | None = "auto"
    dropout: Fraction | None = None
    freeze: list[str] | None = None
    probe: Literal["logistic_regression"] | None = None
    trust_remote_code: bool = False


class TokenizerTrain(Section):
    algorithm: Literal["bpe", "wordpiece", "unigram", "word", "char"] = "bpe"
    vocab_size: Annotated[int, Field(ge=2, le=4_000_000)] = 8192
    pre_tokenizer: Literal["jieba"] | None = None


class SpecialTokens(Section):
    additional: list[str] = []


class TokenizerSection(Section):
    name_or_path: str | None = None
    tokenizer_class: str | None = None
    train: TokenizerTrain | None = None
    chat_template: str | None = None
    special_tokens: SpecialTokens | None = None


class PeftSection(Section):
    type: Literal["lora", "dora", "rslora", "ia3", "prompt_tuning"] = "lora"
    r: PositiveInt = 16
    lora_alpha: Positive = 32.0
    lora_dropout: Fraction = 0.05
    num_virtual_tokens: PositiveInt = 20
    target_modules: str | list[str] | None = None
    merge: bool = False


class ColumnJoin(Section):
    columns: list[str | int]
    join: str = "\n"


class MessageKeys(Section):
    list_: str | None = Field(default=None, alias="list")
    role: str | None = None
    content: str | None = None
    roles: dict[str, Literal["system", "user", "assistant", "tool"]] | None = None


class ParallelPath(Section):
    source: str
    target: str


class SourceSection(Section):
    """One entry of `data.train`, `data.validation` or `data.test`."""

    path: str | list[str] | ParallelPath
    id: str | None = None
    format: Format | None = None
    name: str | None = None
    split: str | None = None
    revision: str | None = None
    columns: dict[str, str | int | list[str | int] | ColumnJoin] | None = None
    header: bool = True
    delimiter: str | None = None
    quoting: bool = True
    encoding: str = "utf-8"
    field: str | None = None
    explode: str | None = None
    sample_by: Literal["line", "paragraph", "document"] | None = None
    document_start: str | None = None
    label_names: list[str] | str | None = None
    label_separator: str | None = None
    message_keys: MessageKeys | None = None
    weight: Positive = 1.0
    limit: PositiveInt | None = None


class FixUnicode(Section):
    step: Literal["fix_unicode"]


class Normalize(Section):
    step: Literal["normalize"]
    form: Literal["NFC", "NFKC"] = "NFC"
    whitespace: bool = True


class StripHtml(Section):
    step: Literal["strip_html"]


class LengthFilter(Section):
    """Keeps texts within the bounds. A word of Chinese is counted by its characters."""

    step: Literal["length"]
    min_characters: NonNegativeInt | None = None
    max_characters: PositiveInt | None = None
    min_words: NonNegativeInt | None = None
    max_words: PositiveInt | None = None


class LanguageFilter(Section):
    step: Literal["language"]
    keep: Annotated[list[str], Field(min_length=1)]
    min_probability: Ratio | None = None


class ExactDedup(Section):
    step: Literal["exact_dedup"]


CleanStep = Annotated[
    FixUnicode | Normalize | StripHtml | LengthFilter | LanguageFilter | ExactDedup, Field(discriminator="step")
]


class WordDropout(Section):
    """Each word is left out with probability `p`; one stays."""

    step: Literal["word_dropout"]
    p: Ratio = 0.1


class Swap(Section):
    """Two random words change places, `p` times the number of words on average (arXiv:1901.11196)."""

    step: Literal["swap"]
    p: Ratio = 0.1


class Synonyms(Section):
    """Each word of the table becomes another of its line with probability `p`."""

    step: Literal["synonyms"]
    path: str
    p: Ratio = 0.1


class SpanCutoff(Section):
    """With probability `p` a stretch of `ratio` of the words is left out (arXiv:2009.13818)."""

    step: Literal["span_cutoff"]
    ratio: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    p: Ratio = 0.5


AugmentStep = Annotated[WordDropout | Swap | Synonyms | SpanCutoff, Field(discriminator="step")]


class DataSection(Section):
    train: list[SourceSection] = []
    validation: list[SourceSection] = []
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    test: list[SourceSection] = []
    clean: list[CleanStep] = []
    augment: list[AugmentStep] = []
    on_bad_record: Literal["quarantine", "error"] = "quarantine"
    max_bad_fraction: Ratio = 0.01
    max_length: Annotated[int, Field(ge=2)] | None = None
    overflow: Literal["split", "truncate", "drop", "error"] | None = None
    packing: bool | None = None
    prepared_dir: str | None = None
    num_workers: PositiveInt | None = None


class TrainingSection(Section):
    num_train_epochs: Positive | None = None
    max_steps: PositiveInt | None = None
    global_batch_size: PositiveInt | None = None
    per_device_train_batch_size: PositiveInt | None = None
    learning_rate: NonNegative | None = None
    lr_scheduler_type: Scheduler | None = None
    min_lr_ratio: Ratio | None = None
    warmup_steps: NonNegative | None = None
    warmup_ratio: Fraction | None = None
    optim: Optimizer | None = None
    weight_decay: NonNegative | None = None
    adam_beta1: Fraction | None = None
    adam_beta2: Fraction | None = None
    adam_epsilon: Positive | None = None
    max_grad_norm: Positive | None = 1.0
    label_smoothing_factor: Fraction | None = None
    neftune_noise_alpha: NonNegative | None = None
    layerwise_lr_decay: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    early_stopping_patience: PositiveInt | None = None
    gradient_checkpointing: bool | None = None
    max_nonfinite_steps: PositiveInt | None = 10
    loss_spike_action: Literal["skip", "rollback"] | None = None
    max_memory: str | PositiveInt | None = None
    torch_compile: bool | Literal["auto"] | None = "auto"


class DistributedSection(Section):
    strategy: Literal["auto", "ddp", "fsdp", "hybrid"] | None = "auto"
    mixed_precision: Literal["auto", "no", "bf16", "fp16", "fp8"] | None = "auto"
    ddp_timeout: PositiveInt | None = 1800


class CheckpointSection(Section):
    save_steps: PositiveInt | None = None
    save_minutes: Positive | None = 15.0
    save_total_limit: PositiveInt | None = 2
    save_best: bool | None = None


class InterpolateSection(Section):
    ngram: str


class EvaluationSection(Section):
    eval_steps: PositiveInt | None = None
    per_device_eval_batch_size: PositiveInt | None = None
    max_samples: PositiveInt | None = None
    predict_with_generate: bool | None = None
    metrics: list[str] | None = None
    metric_for_best_model: str | None = None
    interpolate: InterpolateSection | None = None
    suites: list[dict[str, Any]] = []
    baselines: list[Literal["majority", "tfidf_logistic_regression", "ngram", "copy", "lead"]] = []
    fail_if: dict[str, str] = {}


class GenerationSection(Section):
    max_new_tokens: PositiveInt = 128
    min_new_tokens: NonNegativeInt | None = None
    do_sample: bool = False
    temperature: Positive | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    top_k: PositiveInt | None = None
    num_beams: PositiveInt = 1
    length_penalty: float | None = None
    early_stopping: bool | None = None
    repetition_penalty: Positive | None = None
    no_repeat_ngram_size: PositiveInt | None = None
    stop_strings: list[str] = []
    num_return_sequences: PositiveInt = 1
    batch_size: PositiveInt | None = None
    seed: NonNegativeInt | None = None
    engine: Literal["transformers"] = "transformers"


class LoggingSection(Section):
    logging_steps: PositiveInt = 10
    report_to: list[str] = []


class Recipe(Section):
    """One run. `extends` has been merged away by the time this exists."""

    version: Literal[1] = 1
    seed: NonNegativeInt = 42
    output_dir: str
    task: TaskSection
    model: ModelSection = ModelSection()
    tokenizer: TokenizerSection = TokenizerSection()
    peft: PeftSection | None = None
    data: DataSection = DataSection()
    training: TrainingSection = TrainingSection()
    distributed: DistributedSection = DistributedSection()
    checkpoint: CheckpointSection = CheckpointSection()
    evaluation: EvaluationSection = EvaluationSection()
    generation: GenerationSection = GenerationSection()
    logging: LoggingSection = LoggingSection()
