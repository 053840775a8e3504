"""The model that `evaluate` and `generate` use: the run's own, or the one that --model names."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmkit.errors import ModelError
from llmkit.files import read_json, sha256_file, sha256_json
from llmkit.manifest import MANIFEST, read_manifest, verify_files
from llmkit.models.heads import CAUSAL_LM, SEQ2SEQ_LM
from llmkit.models.source import is_encoder_decoder, locate
from llmkit.options import Options
from llmkit.recipe.sections import ModelSection, Recipe
from llmkit.recipe.tasks import COMMAND_OF_TASK

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
PROVEN = (".safetensors", "tokenizer.json")
"""Files that no person edits: compared with the manifest before use."""


@dataclass(frozen=True)
class OpenModel:
    """`tokenizer_dir` holds the tokenizer's files."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    tokenizer_dir: Path


def locate_model(recipe: Recipe, options: Options) -> Path | str:
    """The directory of the model, or a Hub id. Raises ModelError saying how to get one. Torch-free."""
    if options.model is not None:
        return _named(options.model)
    directory = Path(recipe.output_dir) / "model"
    if is_model(directory):
        return directory
    train = f"llmkit {COMMAND_OF_TASK[recipe.task.type]} {options.recipe_path}"
    run = directory.parent / "run.json"
    status = _status(run)
    if status is None:
        raise ModelError(f"{directory.parent} holds no model yet; run `{train}` first, or name one with --model")
    raise ModelError(f"the run in {directory.parent} is {status}, without a final model; run `{train}` to go on")


def _status(run: Path) -> str | None:
    """`status` of a run.json: completed, running, stopped, failed; None where there is none."""
    return (_field(run, "status") or "damaged") if run.is_file() else None


def fingerprint_of_run(output_dir: Path) -> str | None:
    """The fingerprint of the data that the run in a directory was trained on; None where that is not known."""
    return _field(output_dir / "run.json", "data_fingerprint")


def _field(run: Path, name: str) -> str | None:
    try:
        found = json.loads(run.read_text(encoding="utf-8"))[name]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if found is None else str(found)


def _named(name: str) -> Path | str:
    """A model directory, a run directory (its `model`), else a Hub id; a misspelt path is not taken for one."""
    directory = Path(name).expanduser()
    if is_model(directory / "model") and not is_model(directory):
        return directory / "model"
    source = locate(name, key="--model")
    return Path(source.name) if source.is_local else source.name


def is_model(directory: Path) -> bool:
    return any((directory / name).is_file() for name in ("config.json", "adapter_config.json"))


def model_section(recipe: Recipe, place: Path | str) -> ModelSection:
    """The recipe's model section, but for the weights, which are those at `place`."""
    kept = recipe.model
    name = str(place) if isinstance(place, Path) else f"hf://{place}"
    same = name in (kept.name_or_path, f"hf://{kept.name_or_path}")
    return ModelSection(
        name_or_path=name,
        revision=kept.revision if same else None,
        attn_implementation=kept.attn_implementation,
        trust_remote_code=kept.trust_remote_code and same,
    )


WRITER = replace(CAUSAL_LM, wanted=f"one that writes text: {SEQ2SEQ_LM.wanted} or {CAUSAL_LM.wanted}")


def open_model(place: Path | str, recipe: Recipe, options: Options, directory: Path) -> OpenModel:
    """The model in evaluation mode on this process's device, and its tokenizer, which is laid into `directory` where
    it is not on disk as a directory of ours. Raises ModelError."""
    import torch

    from llmkit.data.tokenizer import load_tokenizer
    from llmkit.models.load import load_model, max_length
    from llmkit.train.hardware import keep_freed_memory
    from llmkit.train.precision import AUTOCAST, choose_precision

    keep_freed_memory()
    section = model_section(recipe, place)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = choose_precision(recipe.distributed.mixed_precision, device)
    if isinstance(place, str):
        _fetch_tokenizer(place, section.revision, directory)
    else:
        directory = place
    tokenizer = load_tokenizer(directory)
    model = load_model(
        section,
        tokenizer,
        seed=recipe.seed,
        max_length=max_length(recipe.model_copy(update={"model": section})),
        dtype=AUTOCAST.get(precision),
        head=SEQ2SEQ_LM if is_encoder_decoder(section) else WRITER,
        allow_remote_code=options.trust_remote_code,
    )
    return OpenModel(model.to(device).eval(), tokenizer, directory)  # type: ignore[arg-type]


def _fetch_tokenizer(name: str, revision: str | None, directory: Path) -> None:
    from transformers import AutoTokenizer

    try:
        AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False).save_pretrained(str(directory))
    except (OSError, ValueError, KeyError, ImportError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"cannot get the tokenizer of {name}: {lines[0]}") from error


def prove(place: Path | str) -> None:
    """Compares the weights and the tokenizer with the manifest that llmkit wrote beside them, where there is one: a
    damaged file must not pass for a poor model. Raises CheckpointError naming it."""
    if not _has_manifest(place):
        return
    assert isinstance(place, Path)
    manifest = read_manifest(place)
    binary = {name: entry for name, entry in manifest["files"].items() if name.endswith(PROVEN)}
    for _ in verify_files(place, {**manifest, "files": binary}):
        pass


def _has_manifest(place: Path | str) -> bool:
    """Whether a manifest of ours is there; others call something else so."""
    file = Path(place) / MANIFEST
    return isinstance(place, Path) and file.is_file() and b'"checksum"' in file.read_bytes()


def model_sha256(place: Path | str) -> str | None:
    """Hash over the hashes of the weight files of a model directory, in the order of their names; None for a Hub id.
    The manifest's hashes are taken where there is one: `prove` first."""
    if isinstance(place, str):
        return None
    known = read_manifest(place)["files"] if _has_manifest(place) else {}
    files = sorted(place.glob("*.safetensors"))
    hashes = [known[file.name]["sha256"] if file.name in known else sha256_file(file) for file in files]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def tokenizer_sha256(directory: Path) -> str | None:
    """Hash of what the tokenizer does (its model, its added tokens), not of how its file is laid out; None where
    there is no tokenizer.json."""
    file = directory / "tokenizer.json"
    if not file.is_file():
        return None
    content = read_json(file)
    return sha256_json({key: value for key, value in content.items() if key not in ("padding", "truncation")})
