"""What makes two recipes the same run (CONTRACT section 2), as one flat dictionary that run.json stores.

Outside it: where things are written, how many workers, what is only reported, when is saved and logged. Data, local
models, tokenizers and templates count by content, not by path, so that a moved directory still matches.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmkit.errors import RecipeError
from llmkit.files import sha256_json
from llmkit.manifest import MANIFEST, hash_file, unseal
from llmkit.recipe.sections import Recipe

Flat = dict[str, Any]

OUTSIDE = (
    "version",
    "output_dir",
    "data.prepared_dir",
    "data.num_workers",
    "training.max_memory",
    "distributed.ddp_timeout",
    "evaluation.suites",
    "evaluation.baselines",
    "evaluation.fail_if",
    "generation",
    "logging",
    "checkpoint",
)
"""Keys, with all below them, that never matter."""
SELECTION = "evaluation"
"""What matters only where early stopping or the choice of the best model reads it."""
LENGTH = ("training.max_steps", "training.num_train_epochs")
"""Keys that may be raised, where the past allows it."""
SAME_OPTIMIZER = {"adamw_torch": "adamw", "adamw_torch_fused": "adamw"}


def identity(recipe: Recipe, content: Callable[[str], str] | None = None) -> Flat:
    """Dotted keys -> JSON values of everything that counts, from a resolved recipe. Keys that are null are left out.

    content: gives a local path's identity by its content (default: `content_of`).
    """
    content = content or content_of
    flat = flatten(recipe.model_dump(mode="json", by_alias=True))
    best = bool(recipe.checkpoint.save_best)
    selects = best or recipe.training.early_stopping_patience is not None
    kept = {
        key: value
        for key, value in flat.items()
        if not _under(key, OUTSIDE) and (selects or not _under(key, (SELECTION,))) and not _is_data_path(key)
    }
    if best:
        kept["checkpoint.save_best"] = True
    if recipe.training.loss_spike_action == "rollback":  # goes back to such a step
        kept["checkpoint.save_steps"] = recipe.checkpoint.save_steps
    if "training.warmup_ratio" in kept:
        kept["training.warmup_steps"] = kept.pop("training.warmup_ratio")
    if (optim := kept.get("training.optim")) in SAME_OPTIMIZER:
        kept["training.optim"] = SAME_OPTIMIZER[optim]
    named = kept.keys() & {"model.name_or_path", "tokenizer.name_or_path", "tokenizer.chat_template"}
    for key in [*named, *(key for key in kept if key.startswith("data.augment.") and key.endswith(".path"))]:
        if Path(kept[key]).exists():
            kept[key] = content(kept[key])
    return dict(sorted(kept.items()))


def flatten(value: Any, prefix: str = "") -> Flat:
    """Nested dictionaries and lists of them as dotted keys; null, "auto" and empty lists are defaults and left out."""
    if isinstance(value, dict):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        automatic = value == "auto" and not prefix.startswith("model.config.")
        return {} if value is None or automatic or value == [] else {prefix: value}
    flat: Flat = {}
    for key, item in items:
        flat |= flatten(item, f"{prefix}.{key}" if prefix else key)
    return flat


def _under(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(key == prefix or key.startswith(prefix + ".") for prefix in prefixes)


def _is_data_path(key: str) -> bool:
    """`data.train.0.path`, `data.test.1.path.source`, and names of sources, which are names only."""
    parts = key.split(".")
    in_source = parts[0] == "data" and len(parts) > 3 and parts[1] in ("train", "validation", "test")
    return in_source and parts[2].isdigit() and parts[3] in ("path", "id")


def content_of(path: str) -> str:
    """`sha256:...` over a local file, or the names and bytes of a directory's files. A sealed manifest is trusted."""
    place = Path(path)
    if place.is_file():
        return "sha256:" + str(hash_file(place)["sha256"])
    try:
        return "sha256:" + sha256_json(unseal((place / MANIFEST).read_bytes())["files"])
    except (OSError, ValueError, KeyError):
        pass
    files = [file for file in sorted(place.rglob("*")) if file.is_file() and not file.name.startswith(".")]
    return _hash_all(place, tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@functools.cache
def _hash_all(place: Path, files: tuple[tuple[Path, int, int], ...]) -> str:
    """Asked several times in a start, and a large model takes seconds; sizes and times are there for the cache only."""
    digest = hashlib.sha256()
    for file, _, _ in files:
        digest.update(f"{file.relative_to(place).as_posix()}\0{hash_file(file)['sha256']}\n".encode())
    return "sha256:" + digest.hexdigest()


def differences(old: Flat, new: Flat) -> list[tuple[str, Any, Any]]:
    """(key, old value, new value) of every key that differs, in order of the keys; None stands for "not given"."""
    return [
        (key, old.get(key), new.get(key)) for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)
    ]


def may_extend(old_rate: Callable[[int], float], new_rate: Callable[[int], float], steps_done: int) -> bool:
    """Whether every learning rate of the steps done is the same in the longer run, to the bit.

    old_rate, new_rate: learning rate of a step (from 0) under the old and the new length.
    """
    return all(old_rate(step) == new_rate(step) for step in range(steps_done))


def check_same_run(
    old: Flat,
    new: Flat,
    *,
    output_dir: str,
    old_steps: int,
    new_steps: int,
    past_rates_kept: Callable[[], bool],
) -> bool:
    """Whether the run in `output_dir` (`old`) is that of the recipe (`new`). True where the recipe makes it longer.

    old_steps, new_steps: the run's whole length under either. past_rates_kept: see `may_extend`, asked only where the
    run gets longer. Raises RecipeError that lists every key that differs with both values, or says why the length must
    stay.
    """
    different = differences(old, new)
    other = [item for item in different if item[0] not in LENGTH]
    if other:
        raise RecipeError(
            f"{output_dir} holds a run of a different recipe:\n{listing(different)}\n"
            "Set the keys back to go on with it, choose another output_dir, or start afresh with --overwrite.",
            key=other[0][0],
        )
    if not different or new_steps == old_steps:
        return False
    key = different[0][0]
    anew = (
        f"Continue from its model instead: model.name_or_path: {Path(output_dir) / 'model'}, with another output_dir."
    )
    if new_steps < old_steps:
        raise RecipeError(
            f"{output_dir} holds a run of {old_steps:,} steps, the recipe asks for {new_steps:,}: a run cannot be made "
            f"shorter:\n{listing(different)}\n"
            "Set it back, choose another output_dir, or start afresh with --overwrite.",
            key=key,
        )
    if not past_rates_kept():
        raise RecipeError(
            f"{output_dir} holds a run of {old_steps:,} steps; with {new_steps:,} its past learning rates would "
            f"have been others ({new.get('training.lr_scheduler_type')}), so it cannot go on:\n"
            f"{listing(different)}\n{anew}",
            key=key,
        )
    return True


def listing(different: list[tuple[str, Any, Any]]) -> str:
    """A line a key: `  training.learning_rate: the run has 0.0005, the recipe 0.001`."""
    return "\n".join(f"  {key}: the run has {shown(old)}, the recipe {shown(new)}" for key, old, new in different)


def shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)
