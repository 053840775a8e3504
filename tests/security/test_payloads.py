"""A hundred hostile models, templates, tokenizers, recipes, archives and data files: refused or inert, and a canary.

A payload is put into a place, and the place is used as llmkit uses it. It ends well or with one of our own errors;
the canary hears unpickling, shells, sockets, imports of the payload's code and reads of the machine's own files.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import lzma
import os
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from llmkit.data import reading, sources
from llmkit.data.prepared import open_prepared
from llmkit.data.rolespecs import TEXT
from llmkit.data.tokenizer import load_tokenizer
from llmkit.data.tokenizer_files import import_tokenizer, tokenizer_source
from llmkit.errors import LlmkitError, ModelError, RecipeError
from llmkit.manifest import seal
from llmkit.models.load import load_model, max_length
from llmkit.recipe.load import load_recipe
from llmkit.recipe.sections import Recipe, SourceSection
from llmkit.tasks.chat import ChatFormat
from llmkit.tasks.templates import Template
from llmkit.train import checkpoint
from tests.fakes import byte_tokenizer, tiny_model
from tests.faults.fuzzing import bounded
from tests.security.canary import TOKEN, Boom, canary

Payload = Callable[[Path, Path], None]
"""Given the place to poison and the canary's file."""

PYTHON = "open({file!r}, 'w').close()\nclass Evil: pass\nEvilConfig = EvilModel = EvilTokenizer = Evil\n"


# --- what is used -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clean_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("clean") / "model"
    tiny_model("gpt2", vocab_size=257).save_pretrained(place)
    byte_tokenizer(place)
    return place


def use_model(place: Path) -> None:
    """What preprocess, training and generate do with a model's directory."""
    values = {"output_dir": "x", "task": {"type": "instruction"}, "model": {"name_or_path": str(place)}}
    recipe = Recipe.model_validate({**values, "data": {"train": [{"path": "x"}]}})
    max_length(recipe)
    source = tokenizer_source(recipe)
    assert source is not None
    target = place.parent / "tokenizer"
    import_tokenizer(source, recipe.tokenizer, target)
    load_model(recipe.model, load_tokenizer(target), seed=1, max_length=64)


def use_template(place: Path, text: str) -> None:
    chat = ChatFormat(byte_tokenizer(place), Template("evil", text))
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x"}]
    assert TOKEN not in chat.render(turns, prompt=False)


def use_data(path: Path, **keys: Any) -> list[str]:
    section = SourceSection.model_validate({"path": str(path), **keys})
    [source] = sources.resolve_sources([section], TEXT, split="train")
    return [text for batch in reading.read(source, TEXT) for text in batch.columns.get("text", [])]


# --- models -----------------------------------------------------------------------------------------------------------


def edit(name: str, **changes: Any) -> Payload:
    """Keys of a JSON file in the model's directory."""

    def poison(place: Path, file: Path) -> None:
        path = place / name
        old = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**old, **changes}))
        for module in ("modeling_evil", "configuration_evil", "tokenization_evil", "evil"):
            (place / f"{module}.py").write_text(PYTHON.format(file=str(file)))

    return poison


def pickled(name: str, *, alone: bool = True, torch_format: bool = True) -> Payload:
    """A pickle that fires under a name by which some loader would take it; `alone`: there are no other weights."""

    def poison(place: Path, file: Path) -> None:
        if alone:
            (place / "model.safetensors").unlink()
        if torch_format:
            torch.save({"w": Boom(file)}, place / name)
        else:
            (place / name).write_bytes(pickle.dumps(Boom(file)))

    return poison


def index(shard: str) -> Payload:
    def poison(place: Path, file: Path) -> None:
        torch.save({"w": Boom(file)}, place / "evil.bin")
        (place / "model.safetensors").rename(place / "kept")
        names = dict.fromkeys(("transformer.wte.weight", "lm_head.weight"), shard)
        text = json.dumps({"metadata": {"total_size": 1}, "weight_map": names})
        (place / "model.safetensors.index.json").write_text(text)
        (place / "pytorch_model.bin.index.json").write_text(text)

    return poison


def link(name: str, target: str) -> Payload:
    def poison(place: Path, file: Path) -> None:
        (place / name).unlink(missing_ok=True)
        os.symlink(target, place / name)

    return poison


def fifo(name: str) -> Payload:
    def poison(place: Path, file: Path) -> None:
        (place / name).unlink(missing_ok=True)
        os.mkfifo(place / name)

    return poison


def adapter(weights: str = "adapter_model.safetensors", **changes: Any) -> Payload:
    def poison(place: Path, file: Path) -> None:
        base = place.parent / "base"
        shutil.copytree(place, base)
        (place / "config.json").unlink()
        config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": 2}
        (place / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["c_attn"], **changes}))
        (place / "evil.py").write_text(PYTHON.format(file=str(file)))
        torch.save({"w": Boom(file)}, place / weights)

    return poison


def tokenizer_part(**changes: Any) -> Payload:
    def poison(place: Path, file: Path) -> None:
        path = place / "tokenizer.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return poison


EVIL_CODE = {"AutoConfig": "configuration_evil.EvilConfig", "AutoModelForCausalLM": "modeling_evil.EvilModel"}
DEEP = json.loads("[" * 300 + "]" * 300)
MODELS: dict[str, Payload] = {
    **{
        f"pickle {name}": pickled(name)
        for name in ("pytorch_model.bin", "model.bin", "model.pt", "weights.ckpt", "model.pkl")
    },
    **{
        f"pickle {name}": pickled(name, torch_format=False)
        for name in ("tf_model.h5", "flax_model.msgpack", "model.safetensors")
    },
    **{
        f"pickle beside: {name}": pickled(name, alone=False, torch_format=False)
        for name in (
            "pytorch_model.bin",
            "training_args.bin",
            "optimizer.pt",
            "vocab.pkl",
            "tokenizer.model",
            "spiece.model",
        )
    },
    "pickled adapter": adapter("adapter_model.bin"),
    "adapter that imports": adapter(megatron_config={"a": 1}, megatron_core="evil"),
    "adapter of another type": adapter(peft_type="XLORA", adapters={"a": "evil/adapter"}),
    "adapter with a tokenizer's code": adapter(
        peft_type="PROMPT_TUNING",
        prompt_tuning_init="TEXT",
        tokenizer_name_or_path="evil/x",
        tokenizer_kwargs={"trust_remote_code": True},
        num_virtual_tokens=2,
    ),
    "adapter of a base with code": adapter(auto_mapping={"base_model_class": "Evil", "parent_library": "evil"}),
    "adapter of a base elsewhere": adapter(base_model_name_or_path="../../../../etc"),
    **{
        f"shard {shard}": index(shard)
        for shard in ("evil.bin", "../evil.bin", "/etc/passwd", "../../etc/passwd", "evil.safetensors", "")
    },
    "auto_map": edit("config.json", auto_map=EVIL_CODE),
    "auto_map of an unknown type": edit("config.json", model_type="evil", auto_map=EVIL_CODE),
    "auto_map of the Hub": edit(
        "config.json", model_type="evil", auto_map={"AutoConfig": "evil/repo--evil.EvilConfig"}
    ),
    "auto_map, a module path": edit("config.json", auto_map={"AutoModelForCausalLM": "../../evil.Evil"}),
    "auto_map of a tokenizer": edit(
        "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_evil.EvilTokenizer", None]}
    ),
    "tokenizer class": edit(
        "tokenizer_config.json", tokenizer_class="EvilTokenizer", auto_map=["tokenization_evil.EvilTokenizer", None]
    ),
    "tokenizer class of another kind": edit("tokenizer_config.json", tokenizer_class="AutoModel"),
    "tokenizer file elsewhere": edit(
        "tokenizer_config.json", tokenizer_file="/etc/passwd", vocab_file="/etc/passwd", name_or_path="/etc"
    ),
    "attention of the Hub": edit("config.json", attn_implementation="evil/kernel"),
    "attention of the Hub, hidden": edit("config.json", _attn_implementation_internal="evil/kernel"),
    "quantized by code": edit("config.json", quantization_config={"quant_method": "evil", "modules": "evil"}),
    "custom pipeline": edit(
        "config.json", custom_pipelines={"text-generation": {"impl": "evil.Evil", "pt": ["AutoModel"]}}
    ),
    "custom generate": edit("generation_config.json", custom_generate="evil/repo", trust_remote_code=True),
    "trust in its own config": edit("config.json", trust_remote_code=True, auto_map=EVIL_CODE),
    "name that is a path": edit("config.json", _name_or_path="/etc", architectures=["os.system"]),
    "dtype that is a name": edit("config.json", dtype="os.system", torch_dtype="os"),
    "activation that is a name": edit("config.json", activation_function="os.system"),
    "labels that are scripts": edit("config.json", id2label={"0": "<script>x</script>", "x": "\x1b[2J"}),
    "huge": edit("config.json", n_embd=2**40, n_layer=2**40),
    "config that is a list": lambda place, _: (place / "config.json").write_text("[1]") and None,
    "config nested deeply": lambda place, _: (place / "config.json").write_text('{"a":' * 10**5) and None,
    **{
        f"link {name} to {target}": link(name, target)
        for name, target in (
            ("config.json", "../secret"),
            ("config.json", "/dev/zero"),
            ("tokenizer_config.json", "/dev/zero"),
            ("generation_config.json", "../secret"),
            ("chat_template.jinja", "../secret"),
            ("config.json", "config.json"),
        )
    },
    "fifo config.json": fifo("config.json"),
    "fifo tokenizer_config.json": fifo("tokenizer_config.json"),
    "ids in the billions": tokenizer_part(
        added_tokens=[
            {
                "id": 2**31,
                "content": "x",
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ]
    ),
    "tokenizer nested deeply": tokenizer_part(normalizer={"type": "Sequence", "normalizers": DEEP}),
    "tokenizer whose pattern is endless": tokenizer_part(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "(x+x+)+y" * 50}, "behavior": "Isolated", "invert": False}
    ),
    "chat template that is a list": edit("tokenizer_config.json", chat_template=[1, {"name": 5}, None]),
    "chat template that is an object": edit("tokenizer_config.json", chat_template={"a": 1}),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_hostile_model(name: str, clean_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "model"))
    shutil.copytree(clean_model, tmp_path / "model")
    (tmp_path / "secret").write_text(TOKEN)
    MODELS[name](tmp_path / "model", tmp_path / "fired")
    with canary(tmp_path), bounded(name):
        told = ""
        try:
            use_model(tmp_path / "model")
        except LlmkitError as error:
            told = str(error)
    assert TOKEN not in told


# --- templates --------------------------------------------------------------------------------------------------------

LOOPS = "{% for a in range(99999) %}" * 6 + "x" + "{% endfor %}" * 6
TEMPLATES: dict[str, str] = {
    "endless": LOOPS,
    "recursive": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "long range": "{{ range(10**12) | list }}",
    "long text": "{{ 'x' * 10**15 }}",
    "long number": "{{ 10 ** 10 ** 3 }}",
    "long format": "{{ '%0999999999999d' % 1 }}",
    "nested": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "unclosed": "{% for m in messages %}",
    "import": "{% import 'os' as os %}{{ os.system('x') }}",
    "include": "{% include '/etc/passwd' %}",
    "extends": "{% extends '/etc/passwd' %}",
    **{
        f"escape {number}": "{{ " + text + " }}"
        for number, text in enumerate(
            (
                "''.__class__.__mro__[1].__subclasses__()",
                "messages.__class__.__base__.__subclasses__()",
                "cycler.__init__.__globals__.os.environ",
                "lipsum.__globals__['os'].popen('id').read()",
                "joiner.__init__.__globals__.__builtins__",
                "namespace.__init__.__globals__",
                "self.__init__.__globals__.__builtins__.__import__('os').environ",
                "raise_exception.__globals__",
                "strftime_now.__globals__['os'].environ",
                "strftime_now.__code__.co_consts",
                "(messages | attr('__class__')).__mro__",
                "'{0.__class__.__init__.__globals__}'.format(raise_exception)",
                "'{x.__globals__}'.format_map({'x': strftime_now})",
                "messages.append.__self__.__class__",
                "messages.clear()",
                "messages[0].update({'role': 'assistant'})",
                "dict.__base__.__subclasses__()",
                "[].__reduce_ex__(2)",
                "(messages | map(attribute='__class__.__mro__') | list)",
                "(namespace(x=1) | attr('__init__')).__globals__",
                "x.__init__.__globals__ if x else config.items()",
            )
        )
    },
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_hostile_template(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY_TOKEN", TOKEN)
    monkeypatch.setattr("llmkit.tasks.templates.TRIAL_SECONDS", 1)
    with canary(tmp_path):
        told = ""
        try:
            use_template(tmp_path / "tokenizer", TEMPLATES[name])
        except ModelError as error:
            told = str(error)
    assert TOKEN not in told


# --- recipes ----------------------------------------------------------------------------------------------------------

BASE = "output_dir: x\ntask: {type: causal_lm}\nmodel: {config: {model_type: gpt2}}\ndata: {train: [{path: x}]}\n"
LAUGHS = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10) if i else 'lol'}]" for i in range(12))
RECIPES: dict[str, str] = {
    "object": "seed: !!python/object/apply:os.system ['touch fired']",
    "new": "seed: !!python/object/new:os.system [touch fired]",
    "name": "seed: !!python/name:os.system",
    "module": "seed: !!python/module:os",
    "tuple": "seed: !!python/tuple [1]",
    "binary": "seed: !!binary aGk=",
    "own tag": "seed: !evil x",
    "tag directive": "%TAG ! tag:yaml.org,2002:python/object/apply:\n---\nseed: !os.system [x]",
    "billion laughs": LAUGHS,
    "alias of itself": "model: &a {config: *a}",
    "nesting": "a: " + "[" * 10**4,
    "nested maps": "".join(f"{'  ' * i}a:\n" for i in range(200)),
    "merge key": "<<: {seed: 1}",
    "second document": BASE + "---\nseed: 1",
    "huge": "a: " + "x" * 2_000_000,
    "digits": "seed: " + "9" * 10**5,
    "extends the machine": "extends: /etc/hostname",
    "extends a device": "extends: /dev/urandom",
    "extends the web": "extends: https://example.com/x.yaml",
    "extends itself": "extends: recipe.yaml",
    "class": "__class__: {__init__: {__globals__: {}}}",
    "shell": "output_dir: $(touch fired)",
    "import": "training: {optim: 'os.system'}",
    "metric that is a path": "evaluation: {metrics: [./evil.py]}",
    "tracker that is a module": "logging: {report_to: ['evil.Tracker']}",
    "code without a pin": BASE + "---",
    "remote code": BASE.replace("model: {", "model: {trust_remote_code: true, ") + "",
    "template that is a directory": BASE + "tokenizer: {chat_template: /etc}",
    "control characters": 'seed: "\\e[2J\\u202e"',
    "NUL": 'output_dir: "a\\0b"',
    "surrogate": 'output_dir: "\\ud800"',
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_hostile_recipe(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(PYTHON.format(file=str(tmp_path / "fired")))
    (tmp_path / "recipe.yaml").write_text(RECIPES[name])
    with canary(tmp_path), bounded(name), pytest.raises(RecipeError):
        load_recipe(Path("recipe.yaml"))


@pytest.mark.parametrize(
    ("flag", "revision"), [(False, "a" * 40), (True, None), (True, "main"), (True, "a" * 39), (True, "A" * 40)]
)
def test_remote_code_needs_key_flag_and_pin(tmp_path: Path, flag: bool, revision: str | None) -> None:
    model = {"name_or_path": "hf://org/name", "trust_remote_code": True, "revision": revision}
    recipe = {"output_dir": "x", "task": {"type": "instruction"}, "model": model, "data": {"train": [{"path": "x"}]}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    with pytest.raises(RecipeError, match="trust_remote_code"):
        load_recipe(tmp_path / "recipe.yaml", trust_remote_code=flag)


# --- archives and data ------------------------------------------------------------------------------------------------

ROW = b'{"text": "harmless"}\n'


def tar(*members: tuple[str, bytes | str, Any], mode: Any = "w:gz", **keys: Any) -> bytes:
    """Members: name, content (or what a link points at), type."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as file:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if isinstance(content, str):
                info.linkname = content
                file.addfile(info)
            else:
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return out.getvalue()


def zipped(*members: tuple[str, bytes], attributes: int = 0) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = attributes
            file.writestr(info, content, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def arrow_with_pickle() -> bytes:
    """pyarrow once unpickled the type of such a column (CVE-2023-47248)."""
    data = base64.b64encode(pickle.dumps(Boom(Path("fired"))))
    metadata = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": data}
    schema = pa.schema([pa.field("text", pa.string(), metadata=metadata)])
    out = io.BytesIO()
    with pa.ipc.new_stream(out, schema) as writer:
        writer.write_table(pa.table({"text": ["harmless"]}, schema=schema))
    return out.getvalue()


def npy() -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([Boom(Path("fired"))], dtype=object), allow_pickle=True)
    return out.getvalue()


REG, SYM, LNK, CHR, FIFO = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE
BOMB = 70 << 20
ENTITY = '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
BILLION = (
    "<!DOCTYPE x [<!ENTITY a 'lol'>"
    + "".join(f"<!ENTITY {chr(98 + i)} '{f'&{chr(97 + i)};' * 10}'>" for i in range(9))
    + "]>"
)
DATA: dict[str, tuple[str, Callable[[], bytes], dict[str, Any]]] = {
    "tar slip": ("a.tar.gz", lambda: tar(("../../fired", ROW, REG), ("../fired.jsonl", ROW, REG)), {}),
    "tar absolute": ("a.tar", lambda: tar(("/tmp/fired.jsonl", ROW, REG), mode="w"), {}),
    "tar links": (
        "a.tar",
        lambda: tar(("a.jsonl", "/etc/passwd", SYM), ("b.jsonl", "/etc/passwd", LNK), ("c.jsonl", ROW, REG), mode="w"),
        {},
    ),
    "tar devices": (
        "a.tar",
        lambda: tar(("a.jsonl", "", CHR), ("b.jsonl", "", FIFO), ("c.jsonl", ROW, REG), mode="w"),
        {},
    ),
    "tar link to its parent": ("a.tar", lambda: tar(("d", "..", SYM), ("d/fired.jsonl", ROW, REG), mode="w"), {}),
    "tar with control names": ("a.tar", lambda: tar(("\x1b[2J\u202e.jsonl", ROW, REG), mode="w"), {}),
    "tar in tar": (
        "a.tar",
        lambda: tar(("b.tar", tar(("c.jsonl", ROW, REG), mode="w"), REG), ("a.jsonl", ROW, REG), mode="w"),
        {},
    ),
    "zip slip": ("a.zip", lambda: zipped(("../../fired", ROW), ("..\\fired.jsonl", ROW), ("/fired.jsonl", ROW)), {}),
    "zip link": ("a.zip", lambda: zipped(("a.jsonl", b"/etc/passwd"), attributes=0o120777 << 16), {}),
    "zip bomb": ("a.zip", lambda: zipped(("a.jsonl", b" " * BOMB)), {}),
    "zip in zip": ("a.zip", lambda: zipped(("b.zip", zipped(("a.jsonl", ROW))), ("a.jsonl", ROW)), {}),
    "zip that claims a size": (
        "a.zip",
        lambda: zipped(("a.jsonl", ROW)).replace(len(ROW).to_bytes(4, "little"), b"\xff\xff\xff\x7f"),
        {},
    ),
    "gzip bomb": ("a.jsonl.gz", lambda: gzip.compress(b"x" * BOMB), {}),
    "gzip in gzip": ("a.jsonl.gz", lambda: gzip.compress(gzip.compress(b"x" * BOMB)), {}),
    "xz bomb": ("a.txt.xz", lambda: lzma.compress(b"x" * BOMB, preset=0), {"sample_by": "line"}),
    "formulas": ("a.csv", lambda: b"text\n=cmd|'/c touch fired'!A1\n@SUM(1)\n+1\n-1\n", {}),
    "prototype": ("a.jsonl", lambda: b'{"__proto__": {"a": 1}, "__class__": "x", "text": "harmless"}\n', {}),
    "scripts": (
        "a.html",
        lambda: b"<html><script src=http://evil/x></script><p onload=x>" + b"plain words here " * 9,
        {},
    ),
    "html entities": ("a.html", lambda: (ENTITY + "<html><p>&e; words " + "plain words " * 9).encode(), {}),
    "xml entities": (
        "a.xml",
        lambda: (ENTITY + "<mediawiki><page><title>&e;</title></page></mediawiki>").encode(),
        {"format": "mediawiki"},
    ),
    "xml laughs": (
        "a.xml",
        lambda: (BILLION + "<mediawiki><page><title>&j;</title></page></mediawiki>").encode(),
        {"format": "mediawiki"},
    ),
    "warc bomb": ("a.warc", lambda: _warc(gzip.compress(b"x" * BOMB)), {}),
    "arrow with a pickle": ("a.arrow", arrow_with_pickle, {}),
    "pickle": ("a.pkl", lambda: pickle.dumps(Boom(Path("fired"))), {}),
    "pickle as text": ("a.jsonl", lambda: pickle.dumps(Boom(Path("fired"))), {}),
    "torch": ("a.pt", lambda: pickle.dumps(Boom(Path("fired"))), {}),
    "numpy": ("a.npy", npy, {}),
    "escape sequences": ("a.jsonl", lambda: b'{"text": "\\u001b]0;x\\u0007\\u202e"}\n\x1b[2J\n', {}),
}


def _warc(body: bytes) -> bytes:
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Encoding: gzip\r\n\r\n" + body
    head = f"WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http\r\nContent-Length: {len(http)}\r\n\r\n"
    return head.encode() + http + b"\r\n\r\n"


@pytest.mark.parametrize("name", DATA)
def test_hostile_data(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, make, keys = DATA[name]
    inside = tmp_path / "in" / "side"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    (inside / file).write_bytes(make())
    with canary(inside), bounded(name):
        try:
            texts = use_data(inside / file, **keys)
            assert not any("root:" in text for text in texts)
        except LlmkitError:
            pass
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [file], "something was extracted"


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/stdin", "fifo", "link"])
def test_what_is_no_file_is_no_data(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    os.symlink("/dev/zero", "link")
    with bounded(path), pytest.raises(LlmkitError):
        use_data(Path(path), format="jsonl")


# --- what llmkit wrote itself, changed by somebody else ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["../../fired", "/etc/passwd", "a\0b", "a/../../b", "", "link.safetensors"])
def test_a_manifest_that_points_elsewhere(name: str, tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, {"model": {"w": torch.ones(2)}}, {"step": 1}, keep=None)
    path = tmp_path / checkpoint.name_of(1)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": "0" * 64, "bytes": 10}
    (path / "manifest.json").write_bytes(seal(manifest))
    os.symlink("/etc/passwd", path / "link.safetensors")
    with canary(tmp_path), pytest.raises(LlmkitError):
        checkpoint.load(path)
    with canary(tmp_path), pytest.raises(LlmkitError):
        open_prepared(path)


def test_there_are_a_hundred() -> None:
    assert len(MODELS) + len(TEMPLATES) + len(RECIPES) + len(DATA) >= 100
