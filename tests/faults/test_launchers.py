"""Real launchers: `--num-processes`, torchrun, accelerate launch, and two hosts, all lead to the same weights."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmkit.files import read_json
from llmkit.train.peers import BEAT_SECONDS
from tests.faults.table import FaultTable
from tests.faults.test_ranks import PLAIN
from tests.faults.tiny import TinyRun, sha256
from tests.faults.zygote import ROOT

pytestmark = pytest.mark.faults
SHORT = (*PLAIN, "training.max_steps=10")
BIN = Path(sys.executable).parent
LLMKIT = [sys.executable, "-m", "llmkit"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def model_of(tiny: TinyRun, name: str, *prefix: str, after: tuple[str, ...] = ()) -> str:
    """Runs the short recipe by a launcher's command line; the hash of the model that came out."""
    run = tiny.directory / name
    command = [*prefix, *tiny.command(run, *SHORT), *after]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT, timeout=280)
    assert ended.returncode == 0, ended.stderr
    assert read_json(run / "run.json")["resolved"]["num_processes"] == 2
    return sha256(run / "model" / "model.safetensors")


@pytest.fixture(scope="session")
def expected(tiny_run: TinyRun) -> str:
    return model_of(tiny_run, "ours", *LLMKIT, after=("--num-processes", "2"))


def test_torchrun(tiny_run: TinyRun, expected: str, fault_table: FaultTable) -> None:
    command = [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "2", "-m", "llmkit"]
    assert model_of(tiny_run, "torchrun", *command) == expected
    fault_table.record("launchers with the same bytes", 1, 1)


def test_accelerate_launch(tiny_run: TinyRun, expected: str, fault_table: FaultTable) -> None:
    """`--multi_gpu` is how it starts several processes on a machine; with `--cpu` it starts one, whatever is asked."""
    command = [str(BIN / "accelerate"), "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += ["--num_cpu_threads_per_process", "1", "-m", "llmkit"]
    assert model_of(tiny_run, "accelerate", *command) == expected
    fault_table.record("launchers with the same bytes", 1, 1)


@pytest.mark.parametrize("launcher", ["ours", "torchrun"])
def test_a_killed_rank_is_named_whoever_launched_it(tiny_run: TinyRun, launcher: str, fault_table: FaultTable) -> None:
    """run.json has the status where a launcher swallows it, and no process is left."""
    run = tiny_run.directory / f"killed-under-{launcher}"
    settings = (*PLAIN, "training.max_steps=100000", "evaluation.eval_steps=100000")
    torchrun = [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "2", "-m", "llmkit"]
    command = [*(LLMKIT if launcher == "ours" else torchrun), *tiny_run.command(run, *settings)]
    command += ["--num-processes", "2"] if launcher == "ours" else []
    log = tiny_run.log(run)
    with log.open("w") as file, subprocess.Popen(command, env=ENVIRONMENT, stdout=file, stderr=file) as process:
        deadline = time.monotonic() + 200
        while process.poll() is None and not (run / "metrics.jsonl").is_file() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1.5 * BEAT_SECONDS)
        ranks = {rank: pid for pid, rank in ranks_under(process.pid).items()}
        if sorted(ranks) != [0, 1]:
            process.kill()
            raise AssertionError(log.read_text())
        begun = time.monotonic()
        os.kill(ranks[1], signal.SIGKILL)
        assert process.wait(timeout=120) == (6 if launcher == "ours" else 1), log.read_text()
    assert time.monotonic() - begun < 60
    record = read_json(run / "run.json")
    assert (record["status"], record["exit_code"]) == ("failed", 6), log.read_text()
    assert "rank 1 of 2" in record["exit_reason"]
    for pid in ranks.values():
        assert not Path(f"/proc/{pid}").exists()
    fault_table.record("a rank killed under a real launcher", 1, 1)


def ranks_under(pid: int) -> dict[int, int]:
    """pid -> rank of the processes below `pid`."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (place / "environ").read_bytes().split(b"\0")
        except (OSError, IndexError):
            continue
        ranks = [int(entry[5:]) for entry in environment if entry.startswith(b"RANK=")]
        if parent == pid and ranks:
            found[int(place.name)] = ranks[0]
    return found


TWO_HOSTS = """\
set -e
ip link set lo up
ip link add left type veth peer name right
unshare -n sleep {seconds} & other=$!
sleep 0.5
ip link set right netns $other
ip addr add 10.77.0.1/24 dev left; ip link set left up
inside="nsenter -t $other -n"
$inside ip link set lo up; $inside ip addr add 10.77.0.2/24 dev right; $inside ip link set right up
export WORLD_SIZE=2 LOCAL_WORLD_SIZE=1 LOCAL_RANK=0 MASTER_ADDR=10.77.0.1 MASTER_PORT=29500
GLOO_SOCKET_IFNAME=right RANK=1 $inside "$@" > {log} 2>&1 & second=$!
status=0; GLOO_SOCKET_IFNAME=left RANK=0 "$@" || status=$?
wait $second || status=$?
kill $other
exit $status
"""


def may_have_two_hosts() -> bool:
    if not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        return False
    probe = "ip link add left type veth peer name right && unshare -n true"
    return subprocess.run(["unshare", "-rn", "sh", "-c", probe], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not may_have_two_hosts(), reason="needs unshare, nsenter, ip, and network namespaces of our own")
def test_two_hosts_as_network_namespaces(tiny_run: TinyRun, expected: str, fault_table: FaultTable) -> None:
    """A process in each of two network namespaces that a pair of virtual interfaces joins; one disk."""
    script = TWO_HOSTS.format(seconds=300, log=tiny_run.directory / "second-host.log")
    prefix = ["unshare", "-rn", "bash", "-c", script, "two-hosts", *LLMKIT]
    assert model_of(tiny_run, "hosts", *prefix) == expected
    fault_table.record("launchers with the same bytes", 1, 1)
