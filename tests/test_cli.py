"""The program: help without heavy imports, messages without tracebacks, exit statuses, stdout for results only."""

from __future__ import annotations

import errno
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmkit import cli, errors, handover
from llmkit.options import Options
from llmkit.outcome import Interrupted
from llmkit.report.console import Console

ROOT = Path(__file__).parents[1]
RECIPE = """\
output_dir: runs/x
task: {type: causal_lm}
model: {config: {model_type: gpt2, n_layer: 2}}
tokenizer: {train: {vocab_size: 300}}
data: {train: [{path: a.txt}]}
"""
HEAVY = ("torch", "transformers", "numpy", "pydantic.main", "yaml", "datasets")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., dict[str, Any]]], None]:
    """Replaces what `pretrain` runs."""

    def replace(run: Callable[..., dict[str, Any]]) -> None:
        monkeypatch.setattr(cli, "_train", run)

    return replace


def python(code: str, *, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=timeout, check=False, **options
    )


def llmkit(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmkit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False, **options)


def test_help_imports_nothing_heavy_and_lists_the_commands() -> None:
    done = python(
        "import sys; from llmkit.cli import run; code = run(['--help'])\n"
        f"print(code, sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    assert done.stdout.splitlines()[-1] == "0 []"
    for command in ("preprocess", "pretrain", "finetune", "evaluate", "generate", "verify", "compare", "schema"):
        assert f"\n  {command} " in done.stdout


def test_help_and_recipe_errors_are_quick(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(RECIPE + "sed: 1\n")

    def median(*arguments: str) -> float:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            llmkit(*arguments)
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    # the targets are 0.4 and 0.6 s on a quiet machine; the tests share theirs
    assert median("--help") < 1.5
    assert median("pretrain", str(bad)) < 2.0


def test_options_of_every_command_are_in_its_help() -> None:
    common = ["--set", "--dry-run", "--overwrite", "--num-processes", "--json"]
    for command in ("preprocess", "pretrain", "finetune", "evaluate", "generate"):
        text = llmkit(command, "--help").stdout
        assert all(option in text for option in common), command
    assert all(option in text for option in ("--model", "--prompt", "--input", "--output", "--interactive"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["pretran"], "Did you mean 'pretrain'?"),
        (["pretrain"], "Missing argument 'RECIPE'"),
        (["pretrain", "x.yaml", "--dryrun"], "--dry-run"),
        (["pretrain", "x.yaml", "--num-processes", "0"], "--num-processes"),
        (["generate", "x.yaml"], "exactly one of --prompt, --input and --interactive"),
        (["generate", "x.yaml", "--prompt", "a", "--output", "b"], "--output goes with --input"),
        (["pretrain", "no_such.yaml"], "no_such.yaml: no such recipe"),
        ([], "Missing command"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_usage_errors(arguments: list[str], expected: str, as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    # the group itself has no --json
    if as_json and not arguments:
        return
    assert cli.run([*arguments, *(["--json"] if as_json else [])]) == 2
    out, err = capsys.readouterr()
    assert expected in err
    assert "Traceback" not in err
    if as_json:
        told = json.loads(out)["error"]
        assert set(told) == {"code", "message", "file", "line", "key"}
        assert told["code"] in ("usage", "recipe")
    else:
        assert out == ""


def test_a_recipe_error_as_text_and_as_json(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text(RECIPE + "training:\n  lerning_rate: 1\n")
    assert cli.run(["pretrain", str(recipe)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"{recipe}:7: training.lerning_rate: unknown key; did you mean learning_rate?\n"
    assert cli.run(["pretrain", str(recipe), "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "error": {
            "code": "recipe",
            "message": "unknown key; did you mean learning_rate?",
            "file": str(recipe),
            "line": 7,
            "key": "training.lerning_rate",
        }
    }


def test_a_result_is_one_json_object_on_stdout(
    recipe: Path, stub: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Options] = []

    def run(loaded: Any, options: Options, console: Console) -> dict[str, Any]:
        seen.append(options)
        console.note("working")
        return {"loss": loaded.training.learning_rate, "文": "红楼梦"}

    stub(run)
    assert cli.run(["pretrain", str(recipe), "--set", "seed=7", "--set", "data.max_length=64", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"loss": 5e-4, "文": "红楼梦"}
    assert err == "working\n"
    assert seen[0].overrides == ("seed=7", "data.max_length=64")
    assert seen[0].num_processes is None
    assert cli.run(["pretrain", str(recipe)]) == 0
    assert capsys.readouterr().out == ""


def test_other_ranks_print_nothing(
    recipe: Path, stub: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")

    def run(loaded: Any, options: Options, console: Console) -> dict[str, Any]:
        console.note("working")
        return {"loss": 1}

    stub(run)
    assert cli.run(["pretrain", str(recipe), "--json"]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_rank_of_another_launcher_holds_back_and_then_names_itself(
    recipe: Path, stub: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(handover, "hold_back", lambda: held.append(1))

    def run(loaded: Any, options: Options, console: Console) -> dict[str, Any]:
        raise errors.DataError("bad", file="a.txt")

    stub(run)
    assert cli.run(["pretrain", str(recipe), "--json"]) == 3
    assert capsys.readouterr() == ("", "rank 1: a.txt: bad\n")
    assert held == [1]


@pytest.mark.parametrize(
    ("error", "status", "expected"),
    [
        (errors.DataError("bad", file="a.txt", line=3), 3, "a.txt:3: bad"),
        (errors.ModelError("no weights"), 4, "no weights"),
        (errors.ConditionFailed("loss is 3"), 5, "loss is 3"),
        (errors.Diverged("ten steps"), 7, "ten steps"),
        (errors.Stopped(signal.SIGTERM, saved=True, message="saved"), 75, "saved"),
        (errors.Stopped(signal.SIGTERM, saved=False, message="nothing"), 143, "nothing"),
        (Interrupted(signal.SIGTERM), 143, "interrupted by SIGTERM"),
        (KeyboardInterrupt(), 130, "interrupted by SIGINT"),
        (MemoryError(), 6, "out of memory"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA\nmore"), 6, "out of memory: CUDA;"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 6, "cannot use /x/y: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 6, "Permission denied"),
        (RuntimeError("shapes\ndo not match"), 1, "internal error: RuntimeError: shapes (this is a bug"),
        (SystemExit(75), 75, ""),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_every_end_has_its_status_and_one_message(
    error: BaseException,
    status: int,
    expected: str,
    recipe: Path,
    stub: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("LLMKIT_TRACEBACK", raising=False)

    def run(loaded: Any, options: Options, console: Console) -> dict[str, Any]:
        raise error

    stub(run)
    assert cli.run(["pretrain", str(recipe)]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == bool(expected)
    assert expected in err
    if expected and status != 75 and not isinstance(error, KeyboardInterrupt):
        monkeypatch.setenv("LLMKIT_TRACEBACK", "1")
        assert cli.run(["pretrain", str(recipe)]) == status
        assert "Traceback" in capsys.readouterr().err


def test_a_later_recipe_error_gets_its_line(
    recipe: Path, stub: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def run(loaded: Any, options: Options, console: Console) -> dict[str, Any]:
        raise errors.RecipeError("gpt2 has no such key", key="model.config.n_layer")

    stub(run)
    assert cli.run(["pretrain", str(recipe)]) == 2
    assert capsys.readouterr().err == f"{recipe}:3: model.config.n_layer: gpt2 has no such key\n"


def test_the_network_is_off_unless_the_hub_is_named(tmp_path: Path) -> None:
    code = (
        "import os, sys; from llmkit import cli\n"
        "show = lambda *a: print(os.environ.get('HF_HUB_OFFLINE'), os.environ['HF_HUB_DISABLE_TELEMETRY'])\n"
        "cli._train = lambda *a: show() or {}\n"
        "sys.exit(cli.run(['pretrain', sys.argv[1]]))"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    path = tmp_path / "recipe.yaml"
    for text, expected in ((RECIPE, "1 1"), (RECIPE.replace("a.txt", "hf://org/name"), "None 1")):
        path.write_text(text)
        command = [sys.executable, "-c", code, str(path)]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, env=environment, check=True, timeout=60
        )
        assert done.stdout.strip() == expected


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 143)])
def test_signals_before_a_command_takes_them(recipe: Path, number: int, status: int) -> None:
    code = (
        "import sys, time; from llmkit import cli\n"
        "cli._train = lambda *a: print('ready', flush=True) or time.sleep(30)\n"
        f"sys.argv = ['llmkit', 'pretrain', {str(recipe)!r}]; cli.main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(number)
        assert child.wait(timeout=20) == status
        err = child.stderr.read()
    assert err == f"interrupted by {signal.Signals(number).name}\n"


def test_a_closed_pipe_is_quiet() -> None:
    command = f"{sys.executable} -m llmkit schema | head -c 10"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, check=True, timeout=60)
    assert len(done.stdout) == 10
    assert done.stderr == ""


@pytest.mark.parametrize("arguments", [["schema"], ["--help"], ["pretrain", "no_such.yaml", "--json"]])
def test_a_pipe_closed_from_the_start(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "llmkit", *arguments],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=60,
    )
    os.close(write)
    told = "no_such.yaml" in arguments
    assert done.returncode == (2 if told else 128 + signal.SIGPIPE)
    assert len(done.stderr.splitlines()) == told


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_under_stdout_is_told() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "llmkit", "schema"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            check=False,
        )
    assert done.returncode == 6
    assert "No space left" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_schema_and_version() -> None:
    assert json.loads(llmkit("schema").stdout)["title"] == "llmkit recipe"
    assert llmkit("--version").stdout == "llmkit 0.1.0\n"
