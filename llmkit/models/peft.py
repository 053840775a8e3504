"""Adapters through peft (LoRA, DoRA, rsLoRA, IA3, prompt tuning): put on, merged back with proof, or saved beside a
pin of the base model.

peft costs seconds to import, so it is imported where an adapter is asked for.
"""

from __future__ import annotations

import copy
import difflib
import fnmatch
import hashlib
import inspect
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.errors import ModelError, RecipeError
from llmkit.files import read_object, sha256_file, write_json
from llmkit.models.heads import Head
from llmkit.models.source import locate
from llmkit.recipe.check import LORA_TYPES
from llmkit.recipe.sections import ModelSection, PeftSection

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PIN_FILE = "base_model.json"
"""Beside adapter_config.json, whose keys are peft's: the base's name, commit, and hash over its weight files."""

ADDED_ROWS = "llmkit_added_rows"
"""Attribute that the loader leaves on a model: the rows of its embeddings that pretraining did not see."""

FRESH = "llmkit_fresh"
"""Attribute that the loader leaves on a model: the tensors that its weights lacked, new from the run's seed."""

HEAD_KEYS = "llmkit_head"
"""Attribute of a model with an adapter: the keys of its config that the task decided, which its base does not know."""

LABELLED = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
"""Kinds of tasks, in peft's words, whose head is new: it is trained whole and saved with the adapter."""

MERGE_TOLERANCE = 1e-3
"""Largest change of a logit by merging, as a share of the largest logit (float32 rounding is about 1e-6)."""


def add_adapter(
    model: PreTrainedModel,
    section: PeftSection,
    *,
    name: str,
    revision: str | None,
    seed: int,
    head: Head,
    max_length: int | None = None,
) -> nn.Module:
    """`model` with an adapter; all else is frozen but the head of a labelled task and what pretraining left without
    weights. Tokens added since pretraining get trained embeddings, which only a merged LoRA can carry.

    max_length: of the text, in tokens; a tuned prompt comes on top. Raises RecipeError for what the type cannot do, and
    for patterns in `target_modules` that match nothing; ModelError where the architecture does not have it.
    """
    from peft import get_peft_model

    from llmkit.models.load import quiet, seeded

    added = list(getattr(model, ADDED_ROWS, range(0)))
    lora = section.type in LORA_TYPES
    if added and not (section.merge and lora):
        message = (
            f"{len(added)} tokens are new to {name} (special tokens, or those of the chat template), and "
            + ("an unmerged adapter" if lora else section.type)
            + f" cannot carry their embeddings; {'set' if lora else 'use type: lora with'} peft.merge: true, or use "
            "chat_template alpaca or plain"
        )
        raise RecipeError(message, key="peft.merge")
    common = {
        "task_type": head.peft_type,
        "base_model_name_or_path": name,
        "revision": revision,
        "modules_to_save": trained_whole(model, head) or None,
    }
    setattr(model, HEAD_KEYS, list(head.config))
    with quiet(), seeded(seed):
        return get_peft_model(model, _config(model, section, common, added, head, max_length))


def _config(
    model: Any, section: PeftSection, common: dict[str, Any], added: list[int], head: Head, max_length: int | None
) -> PeftConfig:
    from peft import IA3Config, LoraConfig, PromptTuningConfig

    from llmkit.models.soft_prompt import check_prompt

    skip = common["modules_to_save"] or []
    if section.type == "prompt_tuning":
        check_prompt(model.config, section.num_virtual_tokens, head, max_length)
        return PromptTuningConfig(
            num_virtual_tokens=section.num_virtual_tokens,
            prompt_tuning_init="SAMPLE_VOCAB",
            num_transformer_submodules=1,  # an encoder-decoder reads it in the encoder
            token_dim=model.get_input_embeddings().weight.shape[1],
            **common,
        )
    if section.type == "ia3":
        targets, inputs = ia3_modules(model, section.target_modules, skip)
        return IA3Config(target_modules=targets, feedforward_modules=inputs, **common)
    return LoraConfig(
        r=section.r,
        lora_alpha=section.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=section.lora_dropout,
        target_modules=target_modules(model, section.target_modules or "all-linear", skip),
        use_dora=section.type == "dora",
        use_rslora=section.type == "rslora",
        trainable_token_indices=added or None,
        **common,
    )


def trained_whole(model: Any, head: Head) -> list[str]:
    """Modules that are trained and saved whole, beside the adapter: the head of a labelled task, a pooler that the
    weights lack. Raises ModelError where a language model's head is lacking: it shares the embeddings."""
    fresh = [name.rpartition(".")[0] for name in getattr(model, FRESH, ())]
    if head.peft_type not in LABELLED:
        if fresh:
            raise ModelError(f"the weights lack {fresh[0]}, which an adapter cannot train; leave peft out", key="peft")
        return []
    children = [name for name, child in model.named_children() if any(True for _ in child.parameters())]
    chosen = [name for name in children if name != model.base_model_prefix]
    for name in dict.fromkeys(fresh):
        if not any(name == whole or name.startswith(whole + ".") for whole in chosen):
            chosen.append(name)
    return chosen


def ia3_modules(model: Any, wanted: str | list[str] | None, skip: Sequence[str]) -> tuple[list[str], list[str]]:
    """(layers that IA3 scales, those of them whose input it scales): keys, values and the feed-forward's last layer
    (arXiv:2205.05638) by peft's tables, or the layers `wanted`. Raises RecipeError."""
    from peft.utils import constants

    kind = model.config.model_type
    if wanted is None:
        wanted = constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING.get(kind)
    if wanted is None:
        message = f"the layers of {kind} that ia3 scales are not known to peft; name them: those of keys and values"
        raise RecipeError(message, key="peft.target_modules")
    forward = constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(kind, [])
    targets = target_modules(model, wanted, skip)
    return targets, [name for name in targets if any(name.endswith(f".{last}") for last in forward)]


def target_modules(model: Any, wanted: str | list[str], skip: Sequence[str] = ()) -> list[str]:
    """Full names of the linear layers that an adapter goes on; `all-linear` is all of them but the head. Layers in the
    modules `skip` are none: they are trained whole.

    Patterns are shell patterns over full names, or the last parts of names (`q_proj`). Raises RecipeError.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
        and module is not head
        and not any(name == whole or name.startswith(whole + ".") for whole in skip)
    ]
    if wanted == "all-linear":
        return linear
    patterns = [wanted] if isinstance(wanted, str) else wanted
    chosen: dict[str, None] = {}
    for pattern in patterns:
        hits = [name for name in linear if fnmatch.fnmatchcase(name, pattern) or name.endswith("." + pattern)]
        if not hits:
            leaves = sorted({name.rsplit(".", 1)[-1] for name in linear})
            near = difflib.get_close_matches(pattern, leaves, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            message = f"{pattern!r} matches no linear layer; {hint}The model has {', '.join(leaves)}"
            raise RecipeError(message, key="peft.target_modules")
        chosen.update(dict.fromkeys(hits))
    return list(chosen)


def merged(model: Any) -> PreTrainedModel:
    """A plain transformers model whose weights hold the adapter; `model` stays as it is.

    Raises ModelError where the merged logits differ: nothing is exported that answers otherwise than what was trained.
    """
    import torch
    from peft.utils import ModulesToSaveWrapper

    from llmkit.models.wrapping import base_of

    whole = copy.deepcopy(model).eval()
    dtype = whole.get_input_embeddings().weight.dtype
    base = base_of(whole)
    with torch.no_grad():
        before = _answers(base)
        for name, part in list(base.named_modules()):  # peft's IA3 cannot unwrap a head of several layers
            if isinstance(part, ModulesToSaveWrapper):
                base.set_submodule(name, next(iter(part.modules_to_save.values())))
        plain = whole.merge_and_unload(safe_merge=True)
        after = _answers(plain)
    difference = float((before - after).abs().max() / (before.abs().max() + 1e-30))
    tolerance = MERGE_TOLERANCE if dtype in (torch.float32, torch.float64) else 0.05
    if not difference <= tolerance:
        raise ModelError(f"merging the adapter changes the logits by {difference:.2g}; set peft.merge: false")
    plain.train(model.training)
    return plain  # type: ignore[no-any-return]


def _answers(model: Any) -> torch.Tensor:
    """A model's logits on random tokens, whatever its head: (..., V), (B, labels), or start and end of answers."""
    import torch

    table, eos = model.get_input_embeddings().weight, model.config.eos_token_id
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, table.shape[0], (2, 8), generator=draw)
    if isinstance(eos, int):  # some encoder-decoders classify by it: one a text, at its end
        ids[ids == eos] = 0 if eos else 1
        ids[:, -1] = eos
    inputs = {"input_ids": ids.to(table.device), "use_cache": False}
    if model.config.is_encoder_decoder and "decoder_input_ids" in inspect.signature(model.forward).parameters:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    if "use_cache" not in inspect.signature(model.forward).parameters:
        del inputs["use_cache"]
    found = model(**inputs)
    logits = [found.logits] if "logits" in found else [found.start_logits, found.end_logits]
    return torch.cat([part.float() for part in logits])


def save_adapter(model: Any, directory: Path) -> None:
    """The adapter alone, with a pin of its base: a commit of the Hub, or a hash over the weight files."""
    from llmkit.models.wrapping import base_of

    model.save_pretrained(str(directory), safe_serialization=True, save_embedding_layers=False)
    path = directory / "adapter_config.json"
    config = read_object(path, ModelError)
    source = locate(config["base_model_name_or_path"], revision=config.get("revision"))
    pin = {"name_or_path": config["base_model_name_or_path"], "revision": config.get("revision"), "sha256": None}
    if config["task_type"] in LABELLED:  # a config.json of its own would make transformers look for a whole model
        own, base = model.config.to_dict(), base_of(model)
        pin["config"] = {key: own[key] for key in getattr(base, HEAD_KEYS) if own.get(key) is not None}
        pin["config"]["architectures"] = [type(base).__name__]
    if source.is_local:
        pin["sha256"] = weights_sha256(Path(source.name))
    else:
        pin["revision"] = config["revision"] = model.config._commit_hash or config.get("revision")
        write_json(path, config)
    write_json(directory / PIN_FILE, pin)
    readme = directory / "README.md"
    if readme.exists():
        readme.unlink()  # peft's template; llmkit writes the model card


def load_adapter(
    directory: Path,
    section: ModelSection,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    max_length: int,
    dtype: torch.dtype,
    head: Head,
) -> PreTrainedModel:
    """The base model that the adapter names, checked against its pin, with the adapter on it. Raises ModelError."""
    from peft import PeftModel

    from llmkit.models.load import load_model

    config = read_object(directory / "adapter_config.json", ModelError)
    name = config.get("base_model_name_or_path")
    pinned = read_object(directory / PIN_FILE, ModelError) if (directory / PIN_FILE).exists() else {}
    pin = pinned.get("sha256")
    if not isinstance(name, str) or not name:
        raise ModelError(f"{directory}: adapter_config.json names no base model", key="model.name_or_path")
    _check_adapter(directory, config)
    source = locate(name, revision=config.get("revision"))
    if pin is not None and source.is_local and weights_sha256(Path(source.name)) != pin:
        raise ModelError(f"the weights in {source.name} are not those that the adapter {directory} was trained on")
    update = {"name_or_path": name, "revision": config.get("revision")}
    if head.peft_type in LABELLED:  # the adapter's file holds the head
        head = replace(head, fresh=True, config=head.config or label_keys(pinned["config"]))
    base: Any = load_model(
        section.model_copy(update=update), tokenizer, seed=seed, max_length=max_length, dtype=dtype, head=head
    )
    setattr(base, HEAD_KEYS, list(head.config))
    prompt = config["peft_type"] == "PROMPT_TUNING"  # which peft loads for inference alone
    try:
        model: Any = PeftModel.from_pretrained(base, str(directory), is_trainable=not prompt)
    except Exception as error:  # peft's own checks, safetensors', torch's
        raise ModelError(f"{directory}: the adapter cannot be loaded: {error}", key="model.name_or_path") from error
    for parameter_name, parameter in model.named_parameters() if prompt else ():
        if parameter_name.startswith("prompt_encoder.") or ".modules_to_save." in parameter_name:
            parameter.requires_grad_(True)
    return model  # type: ignore[no-any-return]


def _check_adapter(directory: Path, config: dict[str, Any]) -> None:
    """An adapter of one of our types, in safetensors, that names no module to import. Raises ModelError."""
    if config.get("peft_type") not in ("LORA", "IA3", "PROMPT_TUNING"):
        what = f"an adapter of type {config.get('peft_type')!r}; expected LORA, IA3 or PROMPT_TUNING"
    elif config.get("megatron_config") is not None:
        what = "an adapter_config.json with megatron_config, by which peft would import a module that it names"
    elif not (directory / "adapter_model.safetensors").is_file():
        what = "no adapter_model.safetensors (a pickle is never loaded)"
    else:
        return
    raise ModelError(f"{directory} holds {what}", key="model.name_or_path")


def label_keys(stored: dict[str, Any]) -> dict[str, Any]:
    """A head's keys of a config, as JSON has them, with numbers for the ids of labels."""
    keys = {key: value for key, value in stored.items() if key != "architectures"}
    if "id2label" in keys:
        keys["id2label"] = {int(key): name for key, name in keys["id2label"].items()}
    return keys


def weights_sha256(directory: Path) -> str:
    """One hash over a model's weight files, by name and content."""
    files = {path.name: sha256_file(path) for path in sorted(directory.glob("*.safetensors"))}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
