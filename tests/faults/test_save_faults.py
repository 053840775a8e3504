"""A save killed or failing at every single call it makes: the newest valid checkpoint always loads, nothing is lost."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llmkit.errors import EnvironmentFailure
from llmkit.train import checkpoint
from llmkit.train.rundir import RunDirectory, inspect
from tests.faults.injection import CALLS, Fault, dies, dies_after, fails, in_fork, injected
from tests.faults.table import FaultTable

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)
MAX_CALLS = 400
KILLED = "kill -9 at every call of a save, retention, resume, run.json"


def tensors(step: int, salt: str = "") -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(step + len(salt))
    weight = torch.randn(16, 9, generator=generator)
    return {"model": {"weight": weight, "tied": weight}, "optimizer": {"m": weight * 2, "v": weight.double()}}


def save(root: Path, step: int, salt: str = "", keep: int = 2) -> Path:
    return checkpoint.save(root, step, tensors(step, salt), {"step": step, "salt": salt}, keep=keep)


def assert_loads(path: Path | None, *allowed: tuple[int, str]) -> tuple[int, str]:
    """The checkpoint is, bit for bit, one of the `allowed` (step, salt); returns which."""
    assert path is not None, "every checkpoint is lost"
    found, state = checkpoint.load(path)
    which = (state["step"], state["salt"])
    assert which in allowed
    for stem, part in tensors(*which).items():
        for name, tensor in part.items():
            assert torch.equal(found[stem][name], tensor), (path, stem, name)
    return which


def failure_of(work: Callable[[], object]) -> EnvironmentFailure | None:
    """The exit-6 failure that `work` ends with, if it does; any other comes through."""
    try:
        work()
    except EnvironmentFailure as error:
        return error
    return None


def plain_world(root: Path) -> None:
    """Two good checkpoints: saving 30 with keep=2 deletes 10."""
    save(root, 10)
    save(root, 20)


def damaged_world(root: Path) -> None:
    """20 is damaged and comes again; the leftovers of a killed save and of a killed deletion lie about."""
    save(root, 10)
    bad = save(root, 20, "bad")
    shutil.copytree(bad, root / ".step-00000020.partial-1")
    shutil.copytree(bad, root / ".step-00000005.deleted-1")
    (bad / "model.safetensors").write_bytes(b"garbled")


WORLDS: dict[str, tuple[Callable[[Path], None], int, tuple[int, str]]] = {
    "plain": (plain_world, 30, (20, "")),
    "damaged": (damaged_world, 20, (10, "")),
}
"""name -> (what is there, step that is saved, newest checkpoint that is valid before)."""


@pytest.mark.parametrize("die", [dies, dies_after])
@pytest.mark.parametrize("world", sorted(WORLDS))
def test_killed_at_every_call_of_a_save(
    ram: Path, world: str, die: Callable[..., object], fault_table: FaultTable
) -> None:
    make, step, before = WORLDS[world]
    make(ram / "template")
    outcomes = []
    for at in range(1, MAX_CALLS):
        root = ram / str(at)
        shutil.copytree(ram / "template", root)

        def killed_save(root: Path = root, at: int = at) -> None:
            with injected(Fault(at, die)):
                save(root, step)

        status = in_fork(killed_save)
        said: list[str] = []
        outcomes.append(assert_loads(checkpoint.newest_valid(root, said.append), before, (step, "")))
        assert world == "damaged" or not said
        # The run goes on: the same save now succeeds and leaves exactly what it should.
        save(root, step)
        assert_loads(checkpoint.newest_valid(root, pytest.fail), (step, ""))
        assert len(checkpoint.published(root)) == 2
        assert not list(root.glob(".*"))
        shutil.rmtree(root)
        if status == 0:
            break
        assert status == -9
    assert status == 0, "the save never came to its end"
    assert len(outcomes) > 20
    assert outcomes[0] == before
    assert outcomes[-1] == (step, "")
    assert outcomes == sorted(outcomes), "once published, the new checkpoint stays"
    fault_table.record(KILLED, at, at)


@pytest.mark.parametrize("number", FULL, ids=lambda number: errno.errorcode[number])
@pytest.mark.parametrize("world", sorted(WORLDS))
def test_a_failing_disk_at_every_call_of_a_save(ram: Path, world: str, number: int, fault_table: FaultTable) -> None:
    make, step, before = WORLDS[world]
    make(ram / "template")
    failures = 0
    for at in range(1, MAX_CALLS):
        root = ram / str(at)
        shutil.copytree(ram / "template", root)
        with injected(Fault(at, fails(number))) as fault:
            error = failure_of(lambda root=root: save(root, step))  # type: ignore[misc]
        if error is not None:
            failures += 1
            assert str(root) in str(error)
            assert os.strerror(number) in str(error)
            assert "bytes" in str(error) or "is saved and valid" in str(error) or "latest" in str(error)
            assert not list(root.glob(f".*.partial-{os.getpid()}"))
        said: list[str] = []
        assert_loads(checkpoint.newest_valid(root, said.append), before, (step, ""))
        save(root, step)
        assert_loads(checkpoint.newest_valid(root, pytest.fail), (step, ""))
        shutil.rmtree(root)
        if len(fault.seen) < at:
            break
    assert len(fault.seen) < at, "the save never came to its end"
    assert failures > 20
    fault_table.record(f"{errno.errorcode[number]} at every call of a save", at - 1, at - 1)


def test_killed_at_every_call_of_a_resume(ram: Path, fault_table: FaultTable) -> None:
    """Finding the newest checkpoint clears leftovers; dying there loses nothing."""
    template = ram / "template"
    plain_world(template)
    shutil.copytree(template / "step-00000010", template / ".step-00000030.partial-1")
    (template / "step-00000020").rename(template / ".step-00000020.replaced-1")
    for at in range(1, MAX_CALLS):
        root = ram / str(at)
        shutil.copytree(template, root)

        def killed_resume(root: Path = root, at: int = at) -> None:
            with injected(Fault(at, dies)):
                checkpoint.newest_valid(root, pytest.fail)

        status = in_fork(killed_resume)
        assert_loads(checkpoint.newest_valid(root, pytest.fail), (20, ""))
        if status == 0:
            break
    assert status == 0
    assert at > 5
    fault_table.record(KILLED, at, at)


def test_killed_at_every_call_of_run_json(ram: Path, fault_table: FaultTable) -> None:
    """run.json is the old one or the new one at every moment, from the first start to an overwrite."""

    def start(run: RunDirectory) -> None:
        run.start(
            command="pretrain", recipe_yaml="a: 1", identity={"seed": 1}, data_fingerprint=None, sources={}, seed=1
        )

    def life(path: Path) -> None:
        with RunDirectory(path) as run:
            start(run)
            (path / "checkpoints").mkdir()
            run.update(steps=10)
            run.finish("completed", 0, "done")
        with RunDirectory(path, overwrite=True) as run:
            start(run)

    for at in range(1, MAX_CALLS):
        path = ram / str(at)

        def killed_life(path: Path = path, at: int = at) -> None:
            with injected(Fault(at, dies)):
                life(path)

        status = in_fork(killed_life)
        existing = inspect(path)
        assert existing.found in ("absent", "unfinished", "finished")
        if existing.found != "absent":
            assert existing.record["identity"] == {"seed": 1}
        with RunDirectory(path, overwrite=True) as run:
            assert run.found == "absent"
        assert [child.name for child in path.iterdir()] == [".lock"]
        if status == 0:
            break
    assert status == 0
    assert at > 20
    fault_table.record(KILLED, at, at)


def test_every_call_that_changes_the_disk_is_among_those_that_fail(ram: Path) -> None:
    with injected(Fault(0, dies)) as fault:
        for step in (10, 20, 30):
            save(ram, step)
    assert set(fault.seen) == set(CALLS)
