"""Where a tokenizer comes from, and how it becomes a directory that AutoTokenizer loads.

Directories without tokenizer_config.json (only vocab.txt, vocab.json + merges.txt, or spiece.model) need their class
named: AutoTokenizer fails on them, and the classes' constructors silently build an empty vocabulary, so
`from_pretrained` of the class does it. A local path that is not there is refused before anything asks the network.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.data.tokenizer_core import num_ids, read_core
from llmkit.errors import ModelError
from llmkit.files import dump_json, environment_errors, read_object, sha256_json
from llmkit.recipe.sections import Recipe, TokenizerSection

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
)
"""Files that make a tokenizer: what its identity hashes, and what is fetched from the Hub."""
VOCABULARIES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
)
KNOWN_BOS = ("<s>", "<|begin_of_text|>", "<bos>", "<|endoftext|>")
KNOWN_EOS = ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>")
GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")
ROLES = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
PLAIN = {*ROLES, "tokenizer_class", "backend", "is_local", "model_max_length", "clean_up_tokenization_spaces"}
"""What a configuration may say that changes no encoding."""
UNBOUNDED = re.compile(rb'"truncation":\s*null,\s*"padding":\s*null,')
ADDING = ("special_tokens_map.json", "added_tokens.json")
MAX_IDS = 1 << 24
"""Far above any real vocabulary."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class TokenizerSource:
    """A tokenizer to load: a local directory, or a Hub id with its revision."""

    name: str
    hub: bool
    revision: str | None = None

    def directory(self) -> Path:
        """The local directory; a Hub id's tokenizer files are fetched into the cache. Raises ModelError."""
        if not self.hub:
            return Path(self.name)
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(self.name, revision=self.revision, allow_patterns=[*FILES, "config.json"]))
        except Exception as error:  # any of the hub's, httpx's and OS's errors: one message
            raise ModelError(f"cannot fetch the tokenizer {self.name!r} from the Hub: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def tokenizer_source(recipe: Recipe) -> TokenizerSource | None:
    """The tokenizer the recipe names, its own or its model's; None where it is trained. Raises ModelError."""
    section = recipe.tokenizer
    if section.train is not None:
        return None
    name = section.name_or_path or recipe.model.name_or_path
    if name is None:
        raise ModelError("no tokenizer: give tokenizer.name_or_path, tokenizer.train or model.name_or_path")
    if name.startswith("hf://"):
        return TokenizerSource(name.removeprefix("hf://"), True, recipe.model.revision)
    path = Path(name)
    if path.is_file():
        path = path.parent
    if path.is_dir():
        if not any((path / file).exists() for file in VOCABULARIES):
            raise ModelError(f"{name} holds no tokenizer: expected one of {', '.join(VOCABULARIES)}")
        return TokenizerSource(str(path), False)
    if (
        path.is_absolute()
        or name.startswith(".")
        or not HUB_ID.fullmatch(name)
        or (path.parent.is_dir() and "/" in name)
    ):
        raise ModelError(f"no tokenizer at {name}{_nearest(path)}")
    return TokenizerSource(name, True, recipe.model.revision)


def _nearest(path: Path) -> str:
    place = path
    while not place.parent.is_dir():
        place = place.parent
    close = difflib.get_close_matches(place.name, [entry.name for entry in place.parent.iterdir()], 1)
    return f"; did you mean {place.parent / close[0]}?" if close else f"; {place.parent} has no {place.name}"


def source_identity(source: TokenizerSource, section: TokenizerSection) -> dict[str, Any]:
    """What a loaded tokenizer is, by content: its files and what the recipe changes about it."""
    import hashlib

    directory = source.directory()
    files = {
        name: hashlib.sha256((directory / name).read_bytes()).hexdigest()
        for name in FILES
        if (directory / name).is_file()
    }
    return {"files": sha256_json(files), **section_identity(section)}


def section_identity(section: TokenizerSection) -> dict[str, Any]:
    identity: dict[str, Any] = {}
    if section.tokenizer_class is not None:
        identity["tokenizer_class"] = section.tokenizer_class
    if section.special_tokens is not None:
        identity["special_tokens"] = list(section.special_tokens.additional)
    return identity


def import_tokenizer(source: TokenizerSource, section: TokenizerSection, target: Path) -> None:
    """Loads the tokenizer and saves it into `target` as AutoTokenizer loads it. Raises ModelError."""
    directory = source.directory()
    if section.tokenizer_class is None and section.special_tokens is None:
        config = _plain_config(directory)
        if config is not None:
            _copy(directory, config, target)
            _check_ids(target)
            return
    if not source.hub:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read at import: nothing local may ask the network
    tokenizer = _load(directory, section.tokenizer_class)
    if not tokenizer.is_fast:
        raise ModelError(f"the tokenizer in {source.name} has no fast form (tokenizer.json); llmkit needs one")
    if section.special_tokens is not None and section.special_tokens.additional:
        tokenizer.add_special_tokens({"additional_special_tokens": list(section.special_tokens.additional)})
    try:
        save(tokenizer, target)
    except (TypeError, ValueError) as error:  # a chat template that is no text, half a surrogate pair
        raise ModelError(f"the tokenizer in {source.name} cannot be written: {error}") from error
    _check_ids(target)


def _check_ids(directory: Path) -> None:
    """A single token with an id in the billions would make tables of that size. Raises ModelError."""
    if (ids := num_ids(directory)) > MAX_IDS:
        raise ModelError(f"the tokenizer's ids go up to {ids - 1:,}; at most {MAX_IDS:,} are accepted")


def _plain_config(directory: Path) -> dict[str, Any] | None:
    """The configuration of a tokenizer that is its tokenizer.json and nothing else; None where transformers must say.

    Importing transformers takes seconds, and its generic class adds nothing to such a file. A bare tokenizer.json names
    no bos and eos: the usual spellings are taken where its special tokens hold them.
    """
    path = directory / "tokenizer_config.json"
    if not (directory / "tokenizer.json").is_file() or any((directory / name).exists() for name in ADDING):
        return None
    core = read_core(directory)
    special = {token.content for token in core.get_added_tokens_decoder().values() if token.special}
    if path.exists():
        config = read_object(path, ModelError)
        if config.get("tokenizer_class") not in GENERIC or not config.keys() <= PLAIN or not _is_json(config):
            return None
    elif (directory / "config.json").exists():
        return None
    else:
        config = {"tokenizer_class": GENERIC[0], "clean_up_tokenization_spaces": False}
        for role, names in (("bos_token", KNOWN_BOS), ("eos_token", KNOWN_EOS), ("unk_token", ("<unk>", "[UNK]"))):
            found = next((name for name in names if name in special), None)
            config |= {role: found} if found is not None else {}
    named = (config.get(role) for role in ROLES)
    contents = [token.get("content") if isinstance(token, dict) else token for token in named if token is not None]
    return config if all(isinstance(content, str) and content in special for content in contents) else None


def _is_json(config: dict[str, Any]) -> bool:
    """Whether it can be written again; Python reads Infinity and half a surrogate pair."""
    try:
        return bool(dump_json(config))
    except ValueError:
        return False


def _copy(directory: Path, config: dict[str, Any], target: Path) -> None:
    data = (directory / "tokenizer.json").read_bytes()
    if UNBOUNDED.search(data, 0, 1000) is None:
        data = json.dumps({**json.loads(data), "truncation": None, "padding": None}).encode()
    with environment_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        (target / "tokenizer.json").write_bytes(data)
        if (directory / "chat_template.jinja").exists():
            shutil.copyfile(directory / "chat_template.jinja", target / "chat_template.jinja")
        (target / "tokenizer_config.json").write_bytes(dump_json(config))


def save(tokenizer: Any, target: Path) -> None:
    # some published tokenizer.json carry a truncation of 50 tokens, or padding, from a demo: they would cut documents
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    with environment_errors(target):
        tokenizer.save_pretrained(str(target))


def check_class(directory: Path) -> None:
    """The class that a directory names is a tokenizer's: transformers would load a model by that name. Raises
    ModelError."""
    path = directory / "tokenizer_config.json"
    name = read_object(path, ModelError).get("tokenizer_class") if path.exists() else None
    if name is not None and "Tokenizer" not in str(name):
        raise ModelError(f"{path} names {name!r}, which is no tokenizer's class")


def _load(directory: Path, class_name: str | None) -> Any:
    import transformers

    transformers.logging.set_verbosity_error()
    check_class(directory)
    name = class_name or _class_of(directory)
    if name is None:
        kind: Any = transformers.AutoTokenizer
    else:
        kind = getattr(transformers, name, None)
        if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedTokenizerBase)):
            names = [entry for entry in dir(transformers) if entry.endswith(("Tokenizer", "TokenizerFast"))]
            close = difflib.get_close_matches(name, names, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ModelError(f"transformers has no tokenizer class {name!r}{hint}", key="tokenizer.tokenizer_class")
    try:
        return kind.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # conversion fails in many ways, with messages that point at pip
        raise ModelError(
            f"cannot load the tokenizer in {directory}{f' as {name}' if name else ''}: {_first_line(error)}; "
            "tokenizer.tokenizer_class names the transformers class where there is no tokenizer_config.json"
        ) from error


def _class_of(directory: Path) -> str | None:
    """The class for a directory that does not say its own; None: AutoTokenizer knows."""
    config = directory / "tokenizer_config.json"
    if config.exists() and "tokenizer_class" in read_object(config, ModelError):
        return None
    if (directory / "tokenizer.json").exists():
        return None
    model = directory / "config.json"
    if model.exists() and "model_type" in read_object(model, ModelError):
        return None
    if (directory / "vocab.txt").exists():
        return "BertTokenizer"
    if (directory / "spiece.model").exists():
        return "T5Tokenizer"
    if (directory / "vocab.json").exists() and (directory / "merges.txt").exists():
        return "GPT2Tokenizer"
    if (directory / "tokenizer.model").exists():
        return "LlamaTokenizer"
    return None
