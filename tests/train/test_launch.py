import os
import signal
import subprocess
import sys
import time

import pytest

from llmkit.errors import EnvironmentFailure, LlmkitError
from llmkit.train.launch import launch

RANK = "import os, sys, time; rank = int(os.environ['RANK']); "


def run(code, num_processes=3):
    notes = []
    started = time.monotonic()
    status = launch(["-c", RANK + code], num_processes, notes.append, program=(sys.executable,))
    return status, notes, time.monotonic() - started


def test_all_ranks_get_their_place(tmp_path):
    code = f"open(f'{tmp_path}/{{rank}}', 'w').write(os.environ['WORLD_SIZE'] + os.environ['OMP_NUM_THREADS'])"
    status, _, _ = run(code)
    assert status == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]
    assert {path.read_text()[0] for path in tmp_path.iterdir()} == {"3"}


def test_the_status_of_the_rank_that_failed_first_wins():
    assert run("time.sleep(0.2 * rank); sys.exit(3 if rank == 1 else 0)")[0] == 3


def test_a_killed_rank_is_named_and_the_others_are_ended(tmp_path):
    code = f"open(f'{tmp_path}/{{rank}}', 'w').write(str(os.getpid())); "
    code += "time.sleep(0.3); os.kill(os.getpid(), 9) if rank == 2 else time.sleep(600)"
    started = time.monotonic()
    with pytest.raises(EnvironmentFailure, match="rank 2 of 3 was killed by SIGKILL"):
        run(code)
    assert time.monotonic() - started < 20
    for path in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)


def test_children_die_with_a_killed_parent(tmp_path):
    child = "from llmkit.train.launch import die_with_parent; die_with_parent(); import time, os; "
    child += f"open('{tmp_path}/' + os.environ['RANK'], 'w').write(str(os.getpid())); time.sleep(600)"
    parent = (
        f"from llmkit.train.launch import launch; import sys; launch(['-c', {child!r}], 2, print, (sys.executable,))"
    )
    process = subprocess.Popen([sys.executable, "-c", parent])
    deadline = time.monotonic() + 20
    while len([p for p in tmp_path.iterdir() if p.read_text()]) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    pids = [int(path.read_text()) for path in tmp_path.iterdir()]
    assert len(pids) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 5
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in pids)


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_a_signal_to_the_parent_reaches_every_rank(tmp_path):
    child = "import signal, sys, time, os; signal.signal(15, lambda *a: sys.exit(75)); "
    child += f"open('{tmp_path}/' + os.environ['RANK'], 'w').close(); time.sleep(600)"
    parent = (
        "from llmkit.train.launch import launch; import sys; "
        f"sys.exit(launch(['-c', {child!r}], 2, print, (sys.executable,)))"
    )
    process = subprocess.Popen([sys.executable, "-c", parent])
    deadline = time.monotonic() + 20
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=20) == 75


TELL = "from llmkit import errors, handover; handover.leave(errors.RecipeError('bad', key='k')"


def told(code):
    with pytest.raises(LlmkitError) as raised:
        run(RANK + code, num_processes=2)
    return raised.value


def test_a_mistake_of_every_rank_is_told_once():
    error = told(TELL + "); sys.exit(2)")
    assert (str(error), error.status, error.code) == ("k: bad", 2, "recipe")


def test_the_mistake_of_one_rank_names_it_and_beats_what_follows_from_it():
    code = "from llmkit import errors, handover\n"
    code += "time.sleep(0.0 if rank else 0.3)\n"
    code += "e = errors.DataError('bad', file='f') if rank else errors.EnvironmentFailure('lost another process')\n"
    code += "handover.leave(e); sys.exit(e.status)"
    error = told(code)
    assert (str(error), error.status) == ("f: rank 1: bad", 3)
