"""A process that has imported everything once and forks a real `llmkit` for each request: a start costs no seconds.

Reads a JSON request a line on stdin, answers a JSON line on stdout. `{"argv", "log", ...}` starts a child and answers
its pid; `{"wait": pid}` answers its exit status, negative for a signal. `Zygote` is the harness's end of it.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]


class Zygote:
    """The harness's end. Starting it takes as long as importing torch and transformers; `start` then milliseconds."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.zygote"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # on a busy machine two threads wait for each other far longer than so small a model computes
            env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"},
        )
        assert self._answer() == {"ready": True}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.wait()
        self.process.stdout.close()  # type: ignore[union-attr]

    def start(
        self,
        argv: list[str],
        log: Path,
        *,
        die_at_call: int | None = None,
        mount: dict[str, Any] | None = None,
        sabotage: Sequence[str | int] = (),
        env: dict[str, str] | None = None,
    ) -> int:
        """Starts `llmkit ARGV`, its output going to `log`; returns its pid.

        die_at_call: it is killed in the middle of its n-th call that changes the disk. mount: arguments of
        `mounts.mount`, for a small or read-only place that this child alone sees; its status is NOT_PERMITTED where the
        machine does not allow that. sabotage: a function of `sabotage`, and its arguments. env: what is added.
        """
        request = {"argv": argv, "log": str(log), "die_at_call": die_at_call, "mount": mount}
        request |= {"sabotage": list(sabotage), "env": env or {}}
        return int(self._ask(request)["pid"])

    def wait(self, pid: int) -> int:
        """Exit status of a started child, negative for a signal."""
        return int(self._ask({"wait": pid})["status"])

    def run(
        self, argv: list[str], log: Path, *, die_at_call: int | None = None, mount: dict[str, Any] | None = None
    ) -> int:
        return self.wait(self.start(argv, log, die_at_call=die_at_call, mount=mount))

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self.process.stdin.write(json.dumps(request) + "\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        assert line, "the preloaded process died"
        answer: dict[str, Any] = json.loads(line)
        return answer


def serve() -> Callable[[], object] | None:
    """Answers requests until stdin ends. In a child, returns what it is to run."""
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = {"status": os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])}
        else:
            child = os.fork()
            if child == 0:
                return lambda request=request: become(request)  # type: ignore[misc]
            answer = {"pid": child}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    return None


def become(request: dict[str, Any]) -> None:
    """In the child: llmkit with these arguments, and with the fault where one is asked for."""
    from llmkit.cli import main
    from tests.faults import sabotage
    from tests.faults.injection import Fault, dies, injected
    from tests.faults.mounts import NOT_PERMITTED, mount

    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    if request["mount"] is not None:
        try:
            mount(**request["mount"])
        except OSError:
            os._exit(NOT_PERMITTED)
    faulthandler.register(signal.SIGUSR2)  # says where a child hangs
    os.environ |= request["env"]
    if request["sabotage"]:
        name, *arguments = request["sabotage"]
        getattr(sabotage, name)(*arguments)
    sys.argv = ["llmkit", *request["argv"]]
    with injected(Fault(request["die_at_call"] or 0, dies)):
        main()


def preload() -> None:
    import torch
    import transformers

    import llmkit.cli
    import llmkit.train.command
    import llmkit.train.execute

    assert torch
    assert transformers
    assert llmkit


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    preload()
    print(json.dumps({"ready": True}), flush=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    work = serve()
    if work is not None:
        work()
