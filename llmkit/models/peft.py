"""LoRA, DoRA and rsLoRA through peft: put on, merged back with proof, or saved beside a pin of the base model.

peft costs seconds to import, so it is imported where an adapter is asked for.
"""

from __future__ import annotations

import copy
import difflib
import fnmatch
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.errors import ModelError, RecipeError
from llmkit.files import read_json, sha256_file, write_json
from llmkit.models.heads import Head
from llmkit.models.source import locate
from llmkit.recipe.sections import ModelSection, PeftSection

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PIN_FILE = "base_model.json"
"""Beside adapter_config.json, whose keys are peft's: the base's name, commit, and hash over its weight files."""

ADDED_ROWS = "llmkit_added_rows"
"""Attribute that the loader leaves on a model: the rows of its embeddings that pretraining did not see."""

MERGE_TOLERANCE = 1e-3
"""Largest change of a logit by merging, as a share of the largest logit (float32 rounding is about 1e-6)."""


def add_adapter(
    model: PreTrainedModel, section: PeftSection, *, name: str, revision: str | None, seed: int, head: Head
) -> nn.Module:
    """`model` with an adapter, everything else frozen. Tokens added since pretraining get trained embeddings, which
    only a merged model can carry. Raises RecipeError for that, and for patterns in `target_modules` that match nothing.
    """
    from peft import LoraConfig, get_peft_model

    from llmkit.models.load import quiet, seeded

    added = list(getattr(model, ADDED_ROWS, range(0)))
    if added and not section.merge:
        message = (
            f"{len(added)} tokens are new to {name} (special tokens, or those of the chat template), and an unmerged "
            "adapter cannot carry their embeddings; set peft.merge: true, or use chat_template alpaca or plain"
        )
        raise RecipeError(message, key="peft.merge")
    config = LoraConfig(
        task_type=head.peft_type,
        r=section.r,
        lora_alpha=section.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=section.lora_dropout,
        target_modules=target_modules(model, section.target_modules),
        use_dora=section.type == "dora",
        use_rslora=section.type == "rslora",
        trainable_token_indices=added or None,
        base_model_name_or_path=name,
        revision=revision,
    )
    with quiet(), seeded(seed):
        return get_peft_model(model, config)


def target_modules(model: Any, wanted: str | list[str]) -> list[str]:
    """Full names of the linear layers that an adapter goes on; `all-linear` is all of them but the head.

    Patterns are shell patterns over full names, or the last parts of names (`q_proj`). Raises RecipeError.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
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

    whole = copy.deepcopy(model).eval()
    table = whole.get_input_embeddings().weight
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, table.shape[0], (2, 8), generator=draw).to(table.device)
    with torch.no_grad():
        before = whole(input_ids=ids, use_cache=False).logits.float()
        plain = whole.merge_and_unload(safe_merge=True)
        after = plain(input_ids=ids, use_cache=False).logits.float()
    difference = float((before - after).abs().max() / (before.abs().max() + 1e-30))
    tolerance = MERGE_TOLERANCE if table.dtype in (torch.float32, torch.float64) else 0.05
    if not difference <= tolerance:
        raise ModelError(f"merging the adapter changes the logits by {difference:.2g}; set peft.merge: false")
    plain.train(model.training)
    return plain  # type: ignore[no-any-return]


def save_adapter(model: Any, directory: Path) -> None:
    """The adapter alone, with a pin of its base: a commit of the Hub, or a hash over the weight files."""
    model.save_pretrained(str(directory), safe_serialization=True, save_embedding_layers=False)
    path = directory / "adapter_config.json"
    config = read_json(path)
    source = locate(config["base_model_name_or_path"], revision=config.get("revision"))
    pin = {"name_or_path": config["base_model_name_or_path"], "revision": config.get("revision"), "sha256": None}
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

    config = read_json(directory / "adapter_config.json")
    name = config.get("base_model_name_or_path")
    pin = read_json(directory / PIN_FILE)["sha256"] if (directory / PIN_FILE).exists() else None
    if not name:
        raise ModelError(f"{directory}: adapter_config.json names no base model", key="model.name_or_path")
    source = locate(name, revision=config.get("revision"))
    if pin is not None and source.is_local and weights_sha256(Path(source.name)) != pin:
        raise ModelError(f"the weights in {source.name} are not those that the adapter {directory} was trained on")
    update = {"name_or_path": name, "revision": config.get("revision")}
    base = load_model(
        section.model_copy(update=update), tokenizer, seed=seed, max_length=max_length, dtype=dtype, head=head
    )
    return PeftModel.from_pretrained(base, str(directory), is_trainable=True)  # type: ignore[return-value]


def weights_sha256(directory: Path) -> str:
    """One hash over a model's weight files, by name and content."""
    files = {path.name: sha256_file(path) for path in sorted(directory.glob("*.safetensors"))}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
