"""The source itself: no unpickling, no shell, no code from data, no loader that falls back on any of them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "llmkit"
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "code", "runpy"}
CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "torch.jit.load", "torch_load", "os.system", "os.popen"}
CALLS |= {"yaml.load", "yaml.full_load", "yaml.unsafe_load", "pd.read_pickle", "tar.extractall", "tarfile.extract"}
CALLS |= {"torch.save", "torch.package", "np.fromfile", "torch.distributed.checkpoint.load"}


def name_of(node: ast.expr) -> str:
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_way_from_data_to_code(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not MODULES & {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in MODULES
        elif isinstance(node, ast.Call):
            name = name_of(node.func)
            assert name not in CALLS, f"line {node.lineno}: {name}"
            assert not name.endswith((".extractall", ".extract_all", ".read_pickle")), f"line {node.lineno}: {name}"
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}
            for key in ("allow_pickle", "shell", "weights_only"):
                assert key not in keywords, f"line {node.lineno}: {key}"
            if name.endswith(".from_pretrained") and not name.startswith("PeftModel"):
                assert "trust_remote_code" in keywords, f"line {node.lineno}: code of the model's own may run"


def test_the_files_are_found() -> None:
    assert len(FILES) > 100
