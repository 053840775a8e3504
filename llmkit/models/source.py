"""Where a recipe's model is and what its config says, without torch: so that a wrong path or length is told at once."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.errors import ModelError, RecipeError
from llmkit.files import read_object
from llmkit.recipe.paths import HUB, is_hub_id
from llmkit.recipe.sections import ModelSection, Recipe

DEFAULT_MAX_LENGTH = 1024
POSITION_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length")
"""How configs call the longest sequence they are made for."""

ENCODER_DECODERS = frozenset(
    [
        *("t5", "mt5", "umt5", "longt5", "switch_transformers", "t5gemma", "t5gemma2", "bart", "mbart", "plbart"),
        *("bigbird_pegasus", "blenderbot", "blenderbot-small", "encoder-decoder", "fsmt", "led", "m2m_100", "marian"),
        *("mvp", "nllb-moe", "pegasus", "pegasus_x", "prophetnet", "rnn_seq2seq"),
    ]
)
"""Architectures with an encoder and a text decoder: those of transformers' AutoModelForSeq2SeqLM, and our own. A table,
because asking transformers imports torch."""
AFTER_PADDING = frozenset(
    [
        *("camembert", "data2vec-text", "esm", "ibert", "jina-embeddings-v3", "layoutlmv3", "lilt"),
        *("longformer", "luke", "markuplm", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta"),
        *("xlm-roberta-xl", "xmod"),
    ]
)
"""Architectures whose positions begin after the padding token's id (`create_position_ids_from_input_ids`)."""
ROBERTA_PAD = 1

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class ModelSource:
    """A directory on disk (`is_local`) or a Hub id without its scheme."""

    name: str
    is_local: bool
    revision: str | None = None


def locate(name: str, *, revision: str | None = None, key: str = "model.name_or_path") -> ModelSource:
    """Looks on disk first: a path that does not exist must not be taken for a Hub id. Raises ModelError."""
    if name.startswith(HUB):
        return ModelSource(name.removeprefix(HUB), False, revision)
    path = Path(name)
    if path.is_dir():
        return ModelSource(str(path), True)
    if path.exists():
        raise ModelError(f"{name} is a file; a model directory (config.json, *.safetensors) was expected", key=key)
    if is_hub_id(name):
        return ModelSource(name, False, revision)
    near = _nearest_path(path)
    hint = f"; did you mean {near}?" if near else ""
    hub = "" if path.is_absolute() or name.count("/") > 1 else f" (a model of the Hub is written hf://{name})"
    raise ModelError(f"there is no model directory {name}{hint}{hub}", key=key)


def check_remote_code(section: ModelSection, *, allowed: bool) -> bool:
    """Whether code of the model's own may run: the recipe's key, the flag and a pinned commit are all needed."""
    if not section.trust_remote_code:
        return False
    if not allowed:
        message = "running a model's own code needs the flag --trust-remote-code as well"
        raise RecipeError(message, key="model.trust_remote_code")
    if section.revision is None or not _COMMIT.fullmatch(section.revision):
        message = "running a model's own code needs model.revision to be a full commit hash (40 hex digits)"
        raise RecipeError(message, key="model.revision")
    return True


def read_config(source: ModelSource) -> dict[str, Any]:
    """The model's config.json; an adapter's is its base model's, with its own labels. Raises ModelError."""
    path = Path(source.name) if source.is_local else None
    if path is not None and not (path / "config.json").exists() and (path / "adapter_config.json").exists():
        base = read_object(path / "adapter_config.json", ModelError).get("base_model_name_or_path")
        if isinstance(base, str):
            pin = path / "base_model.json"
            own = read_object(pin, ModelError).get("config") if pin.exists() else None
            return {**read_config(locate(base)), **(own or {})}
    if path is None:
        from huggingface_hub import hf_hub_download

        try:
            file = Path(hf_hub_download(source.name, "config.json", revision=source.revision))
        except Exception as error:  # the Hub client raises a dozen kinds; each means that there is no config
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            message = f"cannot get {source.name} from the Hub: {first}"
            raise ModelError(message, key="model.name_or_path") from error
    else:
        file = path / "config.json"
        if not file.exists():
            message = f"{path} has no config.json: it is not a model directory of transformers"
            raise ModelError(message, key="model.name_or_path")
    return read_object(file, ModelError)


def config_of(section: ModelSection) -> dict[str, Any]:
    """The model's config as it is written: config.json of its directory, or the recipe's own. Raises ModelError."""
    if section.name_or_path is not None:
        return read_config(locate(section.name_or_path, revision=section.revision))
    return section.config or {}


def model_type(section: ModelSection) -> str | None:
    """The architecture's name in transformers; None where nothing says it."""
    return type_of(config_of(section))


def type_of(config: dict[str, Any]) -> str | None:
    """`model_type` of a config that may be anybody's."""
    found = config.get("model_type")
    return found if isinstance(found, str) else None


def is_encoder_decoder(section: ModelSection) -> bool:
    """Whether the model has an encoder and a decoder. False where that is not known: loading it will say more."""
    config = config_of(section)
    given = config.get("is_encoder_decoder")
    return bool(given) if isinstance(given, bool) else type_of(config) in ENCODER_DECODERS


def model_limit(recipe: Recipe) -> int | None:
    """Longest sequence (tokens) that the recipe's model is made for; None where it has no limit or follows the data."""
    config = config_of(recipe.model)
    inner = config.get("text_config")
    config = inner if isinstance(inner, dict) else config
    limits: list[int] = [config[key] for key in POSITION_KEYS if isinstance(config.get(key), int)]
    if not limits:
        return None
    # OPT's table has 2 rows more than positions and says the positions; RoBERTa's kin say the rows of their table
    return min(limits) - (padding_rows(config) if type_of(config) in AFTER_PADDING else 0)


def padding_rows(config: dict[str, Any]) -> int:
    """Rows of a position table before the first token's, where positions count from the padding's id on."""
    pad = config.get("pad_token_id", ROBERTA_PAD)
    return (pad if isinstance(pad, int) else ROBERTA_PAD) + 1


def max_length(recipe: Recipe) -> int:
    """`data.max_length`, or min(1024, the model's limit). Raises RecipeError where the recipe asks for more."""
    limit = model_limit(recipe)
    wanted = recipe.data.max_length
    if wanted is None:
        return min(DEFAULT_MAX_LENGTH, limit or DEFAULT_MAX_LENGTH)
    if limit is not None and wanted > limit:
        message = f"{wanted} tokens are more than the {limit} that the model is made for"
        raise RecipeError(message, key="data.max_length")
    return wanted


def _nearest_path(path: Path) -> Path | None:
    parent = path.parent
    while not parent.exists():
        path, parent = parent, parent.parent
    try:
        names = [entry.name for entry in parent.iterdir() if entry.is_dir()]
    except OSError:
        return None
    near = difflib.get_close_matches(path.name, names, 1)
    return parent / near[0] if near else None
