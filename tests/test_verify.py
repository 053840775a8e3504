"""`verify` finds one flipped bit in any file of a run, and says which file it is in."""

from __future__ import annotations

import io
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from llmkit.errors import CheckpointError, DataError, RecipeError
from llmkit.evaluate import results
from llmkit.manifest import unseal, write_manifest
from llmkit.report.console import Console
from llmkit.train import checkpoint, metricslog
from llmkit.train.rundir import RunDirectory
from llmkit.verify import verify


def quiet() -> Console:
    return Console(stdout=io.StringIO(), stderr=io.StringIO(), terminal=False)


def make_model(path: Path) -> Path:
    (path / "nested").mkdir(parents=True)
    (path / "config.json").write_text('{"model_type": "gpt2"}')
    (path / "model.safetensors").write_bytes(bytes(range(200)))
    (path / "nested" / "template.jinja").write_text("{{ 模板 }}")
    write_manifest(path)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with two checkpoints, a model and an evaluation."""
    with RunDirectory(tmp_path / "run", command="test") as directory:
        directory.start(
            command="pretrain", recipe_yaml="seed: 1\n", identity={}, data_fingerprint="f", sources={}, seed=1
        )
        log = metricslog.MetricsLog(directory.metrics)
        for step in (10, 20):
            log.write({"step": step, "loss": 1.5})
            checkpoint.save(directory.checkpoints, step, {"model": {"w": torch.ones(3)}}, {"step": step}, keep=2)
        log.close()
        make_model(directory.model)
        (directory.path / "results.json").write_text('{"loss": 1.5}')
        results.write(directory.path / "evaluation", {"metrics": {"f1": {3: 0.1}}}, [{"id": 1}])
        directory.finish("completed", 0, "done", steps=20)
    return tmp_path / "run"


def test_a_whole_run(run: Path) -> None:
    result = verify(run, quiet())
    assert (result["kind"], result["path"]) == ("run", str(run))
    assert [Path(thing["path"]).name for thing in result["checked"]] == [
        "run",
        "step-00000010",
        "step-00000020",
        "model",
        "evaluation",
    ]
    assert result["files"] == 4 + 3 + 3 + 4 + 2
    assert result["bytes"] > 200


def test_its_parts(run: Path) -> None:
    assert verify(run / "checkpoints" / "step-00000010", quiet())["kind"] == "checkpoint"
    assert verify(run / "checkpoints", quiet())["kind"] == "checkpoints"
    assert verify(run / "model", quiet())["files"] == 4


def test_one_line_on_stdout_or_nothing_with_json(run: Path) -> None:
    for as_json in (False, True):
        stdout, stderr = io.StringIO(), io.StringIO()
        verify(run, Console(json=as_json, stdout=stdout, stderr=stderr, terminal=False))
        assert stdout.getvalue().count("\n") == (0 if as_json else 1)
        assert as_json or "the run is whole" in stdout.getvalue()


def test_a_flipped_bit_in_any_file_is_found_and_named(run: Path, tmp_path: Path) -> None:
    dice = random.Random(1)
    files = [path.relative_to(run) for path in sorted(run.rglob("*")) if path.is_file()]
    files = [path for path in files if path.name not in (".lock", "latest")]
    assert len(files) == 16
    for name in files * 5:
        bad = tmp_path / "bad"
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(run, bad)
        data = bytearray((bad / name).read_bytes())
        bit = dice.randrange(len(data) * 8)
        data[bit // 8] ^= 1 << bit % 8
        (bad / name).write_bytes(data)
        with pytest.raises(CheckpointError) as caught:
            verify(bad, quiet())
        assert str(bad / name) in str(caught.value)
        assert caught.value.status == 4


@pytest.mark.parametrize(
    "name",
    [
        "run.json",
        "recipe.yaml",
        "results.json",
        "model",
        "model/manifest.json",
        "checkpoints/step-00000010/state.json",
        "evaluation/predictions.jsonl",
    ],
)
def test_a_missing_file_is_named(run: Path, name: str) -> None:
    path = run / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(CheckpointError) as caught:
        verify(run, quiet())
    assert str(path) in str(caught.value)


def test_a_broken_line_of_metrics_is_named_while_the_run_goes_on(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as directory:
        directory.start(command="pretrain", recipe_yaml="", identity={}, data_fingerprint=None, sources={}, seed=1)
        (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"ste')
        verify(tmp_path, quiet())  # the last line is being written
        (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"ste\n{"step": 2}\n')
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl:2: it is damaged"):
            verify(tmp_path, quiet())


def test_what_is_not_ours(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is not there"):
        verify(tmp_path / "none", quiet())
    with pytest.raises(RecipeError, match="holds no run"):
        verify(tmp_path, quiet())
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing"):
        verify(tmp_path, quiet())


def test_a_prepared_dataset_without_its_manifest_is_data(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(DataError, match=r"manifest\.json is missing"):
        verify(tmp_path, quiet())


def test_a_dataset_of_a_run_without_its_manifest_is_missed(run: Path) -> None:
    (run / "prepared" / ("0a" * 32)).mkdir(parents=True)
    with pytest.raises(DataError, match=r"manifest\.json is missing"):
        verify(run, quiet())


def test_the_manifest_names_every_file_but_hidden_ones(tmp_path: Path) -> None:
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x").write_text("x")
    make_model(tmp_path / "model")
    manifest: dict[str, Any] = unseal((tmp_path / "model" / "manifest.json").read_bytes())
    assert sorted(manifest["files"]) == ["config.json", "model.safetensors", "nested/template.jinja"]
    assert manifest["files"]["model.safetensors"]["bytes"] == 200
    assert json.loads((tmp_path / "model" / "manifest.json").read_text())["checksum"] == manifest["checksum"]
    assert write_manifest(tmp_path)["files"].keys() == {
        f"model/{name}" for name in [*manifest["files"], "manifest.json"]
    }
