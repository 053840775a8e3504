"""A transformers model with the head a task needs: from a directory or Hub id with its weights, or from a config with
seeded weights.

safetensors only, never a pickle; no code from a model's directory unless recipe, flag and a pinned commit say so; no
network unless a Hub id is named. Importing this module does not import torch: see `source` for what needs none.
"""

from __future__ import annotations

import difflib
import inspect
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.errors import ModelError, RecipeError
from llmkit.files import read_object
from llmkit.manifest import safe_name
from llmkit.models.heads import CAUSAL_LM, Head, check_architecture, is_of_head
from llmkit.models.peft import ADDED_ROWS, FRESH
from llmkit.models.source import (
    AFTER_PADDING,
    POSITION_KEYS,
    ModelSource,
    check_remote_code,
    locate,
    max_length,
    model_limit,
    padding_rows,
    read_config,
)
from llmkit.recipe.sections import ModelSection

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["load_model", "locate", "max_length", "model_limit", "quiet", "read_config"]

SPECIAL = ("bos", "eos", "pad", "cls", "sep", "mask", "decoder_start", "forced_eos")
"""Whose ids are the tokenizer's, whatever the config would make of them."""
_DROPOUT = re.compile(r"^(?!classifier|summary|final_dropout|layer).*(dropout|pdrop)(_prob|_rate|_ratio)?$")
"""Config keys of dropout inside a language model; not those of classification heads, nor of whole layers."""


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers' progress bars, notes and warnings off stderr; what matters is checked and told by us."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers of the CPU from `seed`, without a trace on the global generator."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def load_model(
    section: ModelSection,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    max_length: int,
    dtype: torch.dtype | None = None,
    head: Head = CAUSAL_LM,
    gradient_checkpointing: bool = False,
    allow_remote_code: bool = False,
) -> PreTrainedModel:
    """The model in `dtype` (float32 where None), with an embedding for every token of `tokenizer`: on the CPU where
    some of it is drawn, so that a seed gives the same weights on any machine; else where it will be used.

    The same seed gives the same weights, a new head's among them, whatever ran before. Raises ModelError, or
    RecipeError for the section. An adapter's directory (adapter_config.json) gives its base with
    the adapter on it.
    """
    import torch

    from llmkit.models.fused import fuse_activations
    from llmkit.models.linear import fast_linears

    trust = check_remote_code(section, allowed=allow_remote_code)
    dtype = dtype or torch.float32
    model: Any
    with quiet(), seeded(seed):
        if section.name_or_path is not None:
            source = locate(section.name_or_path, revision=section.revision)
            if source.is_local and (Path(source.name) / "adapter_config.json").exists():
                from llmkit.models.peft import load_adapter

                return load_adapter(
                    Path(source.name), section, tokenizer, seed=seed, max_length=max_length, dtype=dtype, head=head
                )
            config = _pretrained_config(source, section, trust, head)
            drawn = head.fresh or len(tokenizer) > getattr(config.get_text_config(), "vocab_size", 0)
            model = _from_pretrained(source, config, section, dtype, trust, head, None if drawn else gpu_of_process())
        else:
            config = _new_config(section, tokenizer, max_length, head)
            model = _from_config(config, section, dtype, head)
        num_rows = model.get_input_embeddings().weight.shape[0]
        if len(tokenizer) > num_rows:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=section.name_or_path is not None)
            setattr(model, ADDED_ROWS, range(num_rows, len(tokenizer)))
    fuse_activations(model)
    fast_linears(model)
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = True
    if gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            message = f"{config.model_type} has no gradient checkpointing in transformers"
            raise RecipeError(message, key="training.gradient_checkpointing")
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    loaded: PreTrainedModel = model
    return loaded


def _attention(section: ModelSection) -> str | None:
    return None if section.attn_implementation in (None, "auto") else section.attn_implementation


def _pretrained_config(source: ModelSource, section: ModelSection, trust: bool, head: Head) -> PreTrainedConfig:
    from transformers import AutoConfig

    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            source.name, revision=source.revision, trust_remote_code=trust, local_files_only=source.is_local
        )
    except Exception as error:  # OSError, ValueError, and whatever a config's own checks raise
        raise ModelError(f"{source.name}: {_first_line(error)}", key="model.name_or_path") from error
    if "/" in str(config._attn_implementation):  # transformers would fetch code by that name
        raise ModelError(f"{source.name}: its config names attention code of the Hub", key="model.name_or_path")
    check_architecture(config, head)
    _set_dropout(config, section, head)
    for key, value in head.config.items():
        setattr(config, key, value)
    return config


def _from_pretrained(
    source: ModelSource,
    config: PreTrainedConfig,
    section: ModelSection,
    dtype: torch.dtype,
    trust: bool,
    head: Head,
    device: torch.device | None,
) -> PreTrainedModel:
    """device: where the weights are laid as they are read, without a copy on the CPU; None: the CPU."""
    import transformers

    if source.is_local:
        _check_shards(Path(source.name) / "model.safetensors.index.json")
    try:
        loaded: Any = getattr(transformers, head.auto_class).from_pretrained(
            source.name,
            config=config,
            revision=source.revision,
            dtype=dtype,
            attn_implementation=_attention(section),
            device_map=None if device is None else {"": device},
            use_safetensors=True,
            trust_remote_code=trust,
            local_files_only=source.is_local,
            output_loading_info=True,
        )
    except Exception as error:
        if source.is_local and not list(Path(source.name).glob("*.safetensors")):
            message = f"{source.name} has no *.safetensors file (a pickle is never loaded): convert its weights first"
            raise ModelError(message, key="model.name_or_path") from error
        raise ModelError(f"{source.name}: {_first_line(error)}", key="model.name_or_path") from error
    model: PreTrainedModel = loaded[0]
    report = loaded[1]
    setattr(model, FRESH, sorted(report["missing_keys"]))
    prefix = model.base_model_prefix
    missing = sorted(name for name in report["missing_keys"] if not (head.fresh and is_of_head(name, prefix)))
    mismatched = sorted(str(key[0] if isinstance(key, tuple) else key) for key in report["mismatched_keys"])
    if missing or mismatched:
        names = ", ".join([*missing, *mismatched][:3])
        message = f"the weights in {source.name} lack {len(missing) + len(mismatched)} of the model's tensors ({names})"
        raise ModelError(message, key="model.name_or_path")
    return model


def gpu_of_process() -> torch.device | None:
    import torch

    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else None


def _check_shards(index: Path) -> None:
    """The files that an index of weights names are safetensors in its own directory. Raises ModelError."""
    shards = read_object(index, ModelError).get("weight_map") if index.exists() else {}
    names = shards.values() if isinstance(shards, dict) else [None]
    if not all(isinstance(name, str) and safe_name(name) and name.endswith(".safetensors") for name in names):
        raise ModelError(f"{index} names weights that are no *.safetensors file beside it", key="model.name_or_path")


def _new_config(
    section: ModelSection, tokenizer: PreTrainedTokenizerBase, max_length: int, head: Head
) -> PreTrainedConfig:
    """The architecture's own config, checked key by key; vocabulary, special ids and positions follow the data."""
    from transformers import CONFIG_MAPPING

    given = dict(section.config or {})
    model_type = given.pop("model_type", None)
    if model_type not in CONFIG_MAPPING:
        near = difflib.get_close_matches(str(model_type), list(CONFIG_MAPPING.keys()), 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        what = f"unknown model type {model_type!r}{hint}" if model_type else "model_type is missing (gpt2, llama, ...)"
        raise RecipeError(what, key="model.config.model_type")
    config_class = CONFIG_MAPPING[model_type]
    known = set(inspect.signature(config_class.__init__).parameters) - {"self", "kwargs"}
    known |= set(config_class.attribute_map)
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise RecipeError(f"{model_type} has no such key{hint}", key=f"model.config.{key}")
    ids = (f"{name}_token_id" for name in SPECIAL)
    follows = {"vocab_size", *ids} & set(given)
    if follows:
        raise RecipeError("follows the tokenizer; leave it out", key=f"model.config.{sorted(follows)[0]}")
    own = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    # an embedding's padding row gets no gradient: a token that is also predicted must not be it
    pad = tokenizer.pad_token_id
    own["pad_token_id"] = None if pad in (tokenizer.eos_token_id, tokenizer.bos_token_id) else pad
    if head.auto_class == "AutoModelForSeq2SeqLM" or config_class().is_encoder_decoder:
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else pad
        own["decoder_start_token_id"] = start if start is not None else tokenizer.eos_token_id
    if "forced_eos_token_id" in known:  # BART's own, 2, is any token of another tokenizer: a text cut short ended in it
        own["forced_eos_token_id"] = None
    positions = next((key for key in POSITION_KEYS if key in known), None)
    own |= {key: value for key, value in _framing_ids(tokenizer).items() if key in known}
    if positions is not None and not any(key in given for key in POSITION_KEYS):
        own[positions] = max_length
    if (
        model_type in AFTER_PADDING and positions is not None
    ):  # a tokenizer's padding may have a larger id than the table has room for
        own[positions] = max(given.pop(positions, 0), max_length + padding_rows(own))
    try:
        config = config_class(**given, **own, **head.config)
    except Exception as error:  # each architecture checks its values in its own way
        raise RecipeError(f"{model_type}: {_first_line(error.__cause__ or error)}", key="model.config") from error
    check_architecture(config, head)
    _set_dropout(config, section, head)
    return config


def _framing_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Ids that some configs name beside the usual ones, where the tokenizer has them."""
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("cls", "sep", "mask")}
    return {key: value for key, value in ids.items() if value is not None}


def _from_config(config: PreTrainedConfig, section: ModelSection, dtype: torch.dtype, head: Head) -> PreTrainedModel:
    import transformers

    try:
        model = getattr(transformers, head.auto_class).from_config(
            config, dtype=dtype, attn_implementation=_attention(section)
        )
    except Exception as error:
        asked = section.attn_implementation not in (None, "auto") and "ttention" in str(error)
        key = "model.attn_implementation" if asked else "model.config"
        raise RecipeError(f"{config.model_type}: {_first_line(error)}", key=key) from error
    return model  # type: ignore[no-any-return]


def _set_dropout(config: PreTrainedConfig, section: ModelSection, head: Head) -> None:
    """Sets every dropout of the body, and of a classifier on it, to `model.dropout`. Raises RecipeError where the
    architecture has none."""
    if section.dropout is None:
        return
    keys = [key for key, value in vars(config).items() if _DROPOUT.match(key) and isinstance(value, int | float)]
    if not keys:
        raise RecipeError(f"{config.model_type} has no dropout; leave it out", key="model.dropout")
    if head.peft_type in ("SEQ_CLS", "TOKEN_CLS"):
        keys += [key for key in ("classifier_dropout", "classifier_dropout_prob") if hasattr(config, key)]
    if head.peft_type == "TOKEN_CLS":
        keys.append("classifier_dropout")  # read where it is there; decoders fall back on 0.1, not on their config
    for key in keys:
        setattr(config, key, section.dropout)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:300] if lines else type(error).__name__
