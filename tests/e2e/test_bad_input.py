"""Bad input of every kind: one message, the right status, no traceback, nothing half-written taken for whole."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import RECIPE, Place, environment, rows

GOOD = '{"text": "a good line of text"}\n'


def assert_one_message(err: str) -> None:
    assert len(err.splitlines()) == 1, err


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("task:", "loging: {}\ntask:"), "recipe.yaml:2: loging: unknown key; did you mean logging?"),
        (("max_steps: 4", "max_stepz: 4"), "recipe.yaml:16: training.max_stepz: unknown key; did you mean max_steps?"),
        (("max_steps: 4", "max_steps: true"), "training.max_steps: expected a whole number"),
        (("max_steps: 4", "max_steps: four"), "recipe.yaml:16: training.max_steps: expected a whole number"),
        (("max_steps: 4", "max_steps: 4\n  max_steps: 5"), "recipe.yaml:17: training.max_steps: "),
        (("  max_length", "\tmax_length"), "recipe.yaml:13: "),
        (("output_dir: run", "output_dir: [run"), "recipe.yaml:"),
        (("output_dir: run\n", ""), "output_dir: required key is missing"),
        (("output_dir: run", "output_dir: null"), "recipe.yaml:1: output_dir: required key is missing in the recipe"),
        (("output_dir: run", "output_dir: r\0n"), "recipe.yaml:1"),
        (("type: causal_lm", "type: causal"), "recipe.yaml:2: task.type: expected one of causal_lm, masked_lm"),
        ((RECIPE, "- a\n- b\n"), "recipe.yaml:1"),
        ((RECIPE, ""), "recipe.yaml"),
        (("5e-3", "&a [*a]"), "recipe.yaml:18: "),
    ],
    ids=lambda value: repr(value[1][:20]) if isinstance(value, tuple) else "",
)
def test_recipes(place: Place, change: tuple[str, str], expected: str) -> None:
    assert change[0] in RECIPE
    place.write("recipe.yaml", RECIPE.replace(*change))
    ended = place.run("pretrain")
    assert_one_message(ended.told(2, expected))
    assert_one_message(ended.err)
    error = place.run("pretrain", "recipe.yaml", "--json").json["error"]
    assert set(error) == {"code", "message", "file", "line", "key"}
    assert (error["code"], error["file"]) == ("recipe", "recipe.yaml")
    assert not (place.directory / "run").exists()


def test_a_recipe_that_is_not_utf8(place: Place) -> None:
    place.write("recipe.yaml", RECIPE.encode().replace(b"run", b"r\xff\xfe", 1))
    assert_one_message(place.run("pretrain").told(2, "recipe.yaml", "UTF-8"))


@pytest.mark.parametrize(
    ("name", "content", "sets", "expected"),
    [
        ("no_such.jsonl", None, {}, "did you mean"),
        ("empty.jsonl", b"", {}, "empty.jsonl"),
        ("columns.jsonl", GOOD.encode() * 40, {"data.train.0.columns": {"text": "txt"}}, "text"),
        ("rows.csv", b"label,number\n1,abc\n", {}, "number"),
        ("latin.jsonl", b'{"text": "caf\xe9"}\n' * 30 + GOOD.encode() * 30, {}, "max_bad_fraction"),
        ("nul.jsonl", b"\0" * 5000 + b"\n", {}, "nul.jsonl"),
        ("list.jsonl", b"[1, 2]\n" * 5 + GOOD.encode() * 5, {}, "max_bad_fraction"),
        ("cut.jsonl.gz", gzip.compress(rows(300, 4).encode())[:-200], {}, "cut.jsonl.gz"),
        ("not.jsonl.gz", b"this is no gzip", {}, "not.jsonl.gz"),
        ("bad.parquet", b"PAR1 and no more", {}, "bad.parquet"),
        ("one.jsonl", (GOOD * 50 + "{half").encode(), {"data.on_bad_record": "error"}, "one.jsonl:51"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_data(place: Place, name: str, content: bytes | None, sets: dict[str, object], expected: str) -> None:
    """Status 3, and after the repair the same command ends well with all of the data."""
    if content is not None:
        place.write(name, content)
    sets = {"data.train.0.path": name, **sets}
    message = place.run("preprocess", sets=sets).told(3, expected)
    assert name in message
    again = place.run("preprocess", "recipe.yaml", "--json", sets=sets)
    error = again.json["error"]
    assert (again.status, error["code"]) == (3, "data")
    assert not list(place.directory.glob("run/prepared/*/manifest.json"))
    if name.endswith("jsonl"):
        place.write(name, rows(60, 9))
        done = place.run("preprocess", "recipe.yaml", "--json", sets={"data.train.0.path": name})
        assert done.status == 0, done.err
        assert (done.json["records"], done.json["bad"]) == (60 + 24, 0)


def test_few_bad_records_are_quarantined_with_their_place(place: Place) -> None:
    good = rows(300, 5).encode()
    bad = b'{"text": "caf\xe9"}\n' + b'{"text": "a\n' + b'["no object"]\n'
    place.write("train.jsonl", good + bad)
    done = place.run("preprocess", "recipe.yaml", "--json")
    assert done.status == 0, done.err
    assert (done.json["records"], done.json["bad"]) == (327, 3)
    (file,) = place.directory.glob("run/prepared/*/rejected.jsonl")
    told = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(one["line"], one["offset"]) for one in told] == [
        (301, len(good)),
        (302, len(good) + 17),
        (303, len(good) + 29),
    ]
    assert all(one["reason"] and one["source"].endswith("train.jsonl") for one in told)


def test_a_line_of_100_megabytes_is_rejected_in_bounded_memory(place: Place) -> None:
    """A line over 64 MiB is never held: the process gets by with far less than the line and its JSON would take."""
    with (place.directory / "train.jsonl").open("wb") as file:
        file.write(rows(60, 6).encode() + b'{"text": "')
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n' + rows(60, 7).encode())
    code = (
        "import sys; from llmkit import cli; code = cli.run(['preprocess', 'recipe.yaml', '--json']); "
        # not ru_maxrss, which begins with the peak of the process that forked us
        "peak = open('/proc/self/status').read().split('VmHWM:')[1].split()[0]; "
        "print(peak, file=sys.stderr); sys.exit(code)"
    )
    command = [sys.executable, "-c", code]
    options = {"capture_output": True, "text": True, "env": environment(), "check": False, "timeout": 100}
    done = subprocess.run(command, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bad"] == 1
    assert int(done.stderr.splitlines()[-1]) < 450_000  # kB
    (file_of_rejects,) = place.directory.glob("run/prepared/*/rejected.jsonl")
    (told,) = [json.loads(line) for line in file_of_rejects.read_text().splitlines()]
    assert told["line"] == 61


class TestCheckpoints:
    def steps(self, place: Place) -> list[Path]:
        return sorted((place.directory / "run" / "checkpoints").glob("step-*"))

    def test_a_flipped_bit_falls_back_to_the_one_before(self, trained: Place, flip: Callable[[Path], None]) -> None:
        old, new = self.steps(trained)
        flip(new / "model.safetensors")
        ended = trained.run("pretrain", sets={"training.max_steps": 5})
        assert ended.status == 0, ended.err
        assert "model.safetensors" in ended.err
        assert f"going on from {old.name}" in ended.err

    def test_none_left_is_refused(self, trained: Place, flip: Callable[[Path], None]) -> None:
        for step in self.steps(trained):
            flip(step / "optimizer.safetensors")
        ended = trained.run("pretrain", sets={"training.max_steps": 5})
        ended.told(4, "checkpoint")

    def test_a_damaged_model_is_not_scored(self, trained: Place, flip: Callable[[Path], None]) -> None:
        flip(trained.directory / "run" / "model" / "model.safetensors")
        for arguments in (("evaluate", "recipe.yaml"), ("generate", "recipe.yaml", "--prompt", "the")):
            trained.run(*arguments).told(4, "model.safetensors")
        assert trained.run("verify", "run").status in (3, 4)

    def test_a_damaged_shard_is_not_trained_on(self, trained: Place, flip: Callable[[Path], None]) -> None:
        (shard,) = (trained.directory / "run" / "prepared").glob("*/train/shard-00000.bin")
        flip(shard)
        sets = {"output_dir": "other", "data.prepared_dir": "run/prepared"}
        trained.run("pretrain", sets=sets).told(3, "shard-00000.bin is damaged in bytes 0 to", "delete the directory")
        trained.run("evaluate").told(3, "shard-00000.bin is damaged")
        shutil.rmtree(shard.parents[1])
        assert trained.run("pretrain", sets=sets).status == 0


@pytest.mark.parametrize(("options", "expected"), [("size=100k", "No space left"), ("ro", "Read-only")])
def test_a_full_or_read_only_disk(place: Place, options: str, expected: str) -> None:
    """preprocess on a file system of its own; then, on a sound one, the same command ends well."""
    if shutil.which("unshare") is None:
        pytest.skip("this system has no unshare")
    (place.directory / "run").mkdir()
    script = (
        f"mount -t tmpfs -o {options} none run || exit 99; {sys.executable} -m llmkit preprocess recipe.yaml; "
        'code=$?; test -z "$(ls run/prepared/*/manifest.json 2>/dev/null)" || exit 98; exit $code'
    )
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
        timeout=60,
    )
    if done.returncode in (1, 99):
        pytest.skip("this machine does not let us mount a tmpfs in a namespace of our own")
    assert done.returncode == 6, done.stderr
    assert "Traceback" not in done.stderr
    assert expected in done.stderr.splitlines()[-1]
    assert place.run("preprocess").status == 0
