"""The output directory of a run: one owner at a time, `run.json`, and what may be deleted there.

The lock is the kernel's (`flock` on `.lock`), so it is free the moment its holder dies. `run.json` is replaced as a
whole at every change; it names the run's identity, so that another run's directory is refused and never mixed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import socket
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from llmkit.errors import CheckpointError, DataError, EnvironmentFailure, RecipeError
from llmkit.files import environment_errors, fsync_directory, read_json, write_atomic
from llmkit.manifest import hash_file, seal

RUN, RECIPE, METRICS, RESULTS, REPORT = "run.json", "recipe.yaml", "metrics.jsonl", "results.json", "report.html"
CHECKPOINTS, MODEL, EVALUATION, PREPARED, LOCK = "checkpoints", "model", "evaluation", "prepared", ".lock"
TRACKING, DIVERGED = "tracking", "diverged"

OURS = (RECIPE, METRICS, RESULTS, REPORT, CHECKPOINTS, MODEL, EVALUATION, TRACKING, DIVERGED)
"""What --overwrite deletes, run.json last. Prepared data stays: it depends on the data, not on the run."""
BESIDE = (PREPARED, EVALUATION)
"""What other commands may have written before any run is here."""
LOG_SUFFIXES = (".log", ".out", ".err")
"""Files into which a shell or a scheduler sends our output: they may stand in a new directory."""
DISCARDED = "discarded"
"""Status of a run whose deletion has begun; a kill in between must not leave half of it looking whole."""

Status = Literal["running", "completed", "failed", "stopped"]
Found = Literal["absent", "unfinished", "finished"]


def now() -> str:
    """UTC time as ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@dataclass(frozen=True)
class Existing:
    """What an output directory holds: no run, an unfinished or a finished one; `record` is its run.json."""

    found: Found
    record: dict[str, Any]


def inspect(output_dir: Path) -> Existing:
    """Looks, changes nothing. RecipeError for a directory that is not ours, CheckpointError for a bad run.json."""
    if output_dir.exists() and not output_dir.is_dir():
        raise RecipeError(f"{output_dir} is a file, not a directory", key="output_dir")
    path = output_dir / RUN
    if path.exists():
        record = read_run(output_dir)
        if record.get("status") == DISCARDED:
            return Existing("absent", record)
        return Existing("finished" if record.get("status") == "completed" else "unfinished", record)
    foreign = _foreign(output_dir)
    if foreign:
        names = ", ".join(foreign[:5]) + (" ..." if len(foreign) > 5 else "")
        raise RecipeError(
            f"{output_dir} is not empty and holds no llmkit run ({names}); choose a new directory", key="output_dir"
        )
    return Existing("absent", {})


def read_run(output_dir: Path) -> dict[str, Any]:
    """run.json of a run. Raises CheckpointError naming it where it cannot be read or is not ours."""
    path = output_dir / RUN
    try:
        record = read_json(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{path} cannot be read ({reason}); delete the directory or restore the file") from None
    if not isinstance(record, dict) or "status" not in record:
        raise RecipeError(f"{path} is not the run.json of an llmkit run; choose another directory", key="output_dir")
    return record


def _foreign(output_dir: Path) -> list[str]:
    if not output_dir.is_dir():
        return []
    with environment_errors(output_dir, "read"):
        names = sorted(path.name for path in output_dir.iterdir())
    return [
        name for name in names if name not in BESIDE and not name.startswith(".") and not name.endswith(LOG_SUFFIXES)
    ]


def probe_writable(directory: Path) -> None:
    """Creates `directory` where it is missing, and a file in it: a read-only place fails before anything heavy."""
    with environment_errors(directory, "write into"):
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".probe.") as file:
            file.write(b"llmkit")


class Lock:
    """`flock` on `<directory>/.lock`; its content (pid, host, command, since) is for the message alone."""

    def __init__(self, directory: Path, command: str):
        """Takes the lock at once, or raises EnvironmentFailure naming its holder."""
        self.path = directory / LOCK
        with environment_errors(self.path, "open"):
            self._handle: int | None = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._close()
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise EnvironmentFailure(
                    f"in use by {self._holder()}; wait for it or choose another output_dir", file=str(directory)
                ) from None
            raise EnvironmentFailure(f"cannot lock: {error.strerror or error}", file=str(self.path)) from error
        # A forked child (a data worker) must not keep the lock alive when its parent is killed.
        os.register_at_fork(after_in_child=self._close)
        content = {"pid": os.getpid(), "host": socket.gethostname(), "command": command, "started_at": now()}
        with environment_errors(self.path):
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, json.dumps(content, ensure_ascii=False).encode(), 0)

    def _holder(self) -> str:
        holder = "another process"
        for _ in range(10):  # it may have locked and not yet written its name: nobody's is there, or that of one killed
            try:
                told = json.loads(self.path.read_bytes())
                holder = f"process {told['pid']} on {told['host']} since {told['started_at']} ({told['command']})"
                if told["host"] != socket.gethostname() or os.path.exists(f"/proc/{told['pid']}"):
                    break
            except (OSError, ValueError, KeyError, TypeError):
                pass
            time.sleep(0.02)
        return holder

    def _close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def release(self) -> None:
        """Gives the lock back; a second call does nothing."""
        if self._handle is not None:
            with environment_errors(self.path):
                os.ftruncate(self._handle, 0)
        self._close()


class RunDirectory:
    """A locked output directory. Rank 0 alone makes one; use as a context manager, the lock goes at its end."""

    def __init__(
        self, output_dir: Path, *, command: str | None = None, overwrite: bool = False, held_by_parent: bool = False
    ):
        """Locks the directory and reads what it holds; `overwrite` deletes a run that is there.

        command: what the lock names as its holder's; default: this process's command line. held_by_parent: the process
        that launched this one holds the lock, and this one does not outlive it.
        Raises EnvironmentFailure (locked by another, not writable), RecipeError (not ours), CheckpointError (run.json).
        """
        self.path = output_dir
        self._updating = threading.Lock()
        inspect(output_dir)
        with environment_errors(output_dir, "create"):
            output_dir.mkdir(parents=True, exist_ok=True)
        self.lock = None if held_by_parent else Lock(output_dir, command or shlex.join(sys.argv))
        try:
            probe_writable(output_dir)
            existing = inspect(output_dir)
            self._clear_leftovers()
            if existing.record and (overwrite or existing.record.get("status") == DISCARDED):
                self._discard(existing.record)
                existing = Existing("absent", {})
        except BaseException:
            self.release()
            raise
        self.started = False
        """Whether `start` was called: only then is what run.json says ours to change."""
        self.found: Found = existing.found
        self.record: dict[str, Any] = existing.record

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        if self.lock is not None:
            self.lock.release()

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def model(self) -> Path:
        return self.path / MODEL

    @property
    def metrics(self) -> Path:
        return self.path / METRICS

    def _clear_leftovers(self) -> None:
        """Files that a killed process was about to put in place of ours; the lock says that it is dead."""
        with environment_errors(self.path, "clear leftovers in"):
            for name in (RUN, RECIPE, METRICS, RESULTS, REPORT, "probe"):
                for path in self.path.glob(f".{name}.*"):
                    path.unlink()

    def _discard(self, record: dict[str, Any]) -> None:
        with environment_errors(self.path, "delete the old run in"):
            write_atomic(self.path / RUN, seal({**record, "status": DISCARDED}))
            for name in OURS:
                path = self.path / name
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path.is_symlink() or path.exists():
                    path.unlink()
            (self.path / RUN).unlink()
            fsync_directory(self.path)

    def start(
        self,
        *,
        command: str,
        recipe_yaml: str,
        identity: dict[str, Any],
        data_fingerprint: str | None,
        sources: dict[str, str],
        seed: int,
    ) -> None:
        """Writes run.json (status running) and recipe.yaml, of a new run or of one that goes on (its history is kept).

        identity: `recipe.identity.identity`. sources: name -> content hash of the data sources.
        """
        first = {
            "started_at": now(),
            "steps": 0,
            "tokens": 0,
            "resolved": {},
            "segments": [],
            "versions": {},
            "hardware": {},
        }
        self.record = {
            **first,
            **{key: value for key, value in self.record.items() if key not in ("files", "checksum")},
            "command": command,
            "status": "running",
            "exit_code": None,
            "exit_reason": None,
            "finished_at": None,
            "recipe_sha256": hashlib.sha256(recipe_yaml.encode()).hexdigest(),
            "data_fingerprint": data_fingerprint,
            "sources": sources,
            "seed": seed,
            "identity": identity,
        }
        # run.json first: it is what makes the directory ours.
        self.update()
        write_atomic(self.path / RECIPE, recipe_yaml.encode())
        self.found = "unfinished"
        self.started = True

    def check_data(self, data_fingerprint: str | None, sources: dict[str, str]) -> None:
        """Raises DataError naming the sources whose content is not what the run began with."""
        if not self.record or self.record.get("data_fingerprint") == data_fingerprint:
            return
        old: dict[str, str] = self.record.get("sources", {})
        changed = [name for name in sources if old.get(name) != sources[name]] + [n for n in old if n not in sources]
        what = f"the content of {', '.join(changed)} has changed" if changed else "the prepared data has changed"
        raise DataError(
            f"{what} since the run in {self.path} began; restore it, choose another output_dir, or start afresh with "
            "--overwrite"
        )

    def update(self, **changes: Any) -> None:
        """Replaces keys of run.json, atomically: `steps`, `tokens`, `resolved`, `versions`, `hardware`, ...

        Training and the thread that saves may both call it."""
        with self._updating:
            self.record = {**self.record, **changes}
            write_atomic(self.path / RUN, seal(self.record))

    def open_segment(self, step: int, layout: dict[str, Any]) -> list[tuple[str, Any, Any]]:
        """Says that the steps from `step` on run under `layout` (JSON: versions, processes, micro-batch, precision).

        A segment is added to run.json where the layout is another than the last one's. Returns (key, before, now) of
        what changed, nothing for a new run: any change ends the bitwise promise and is to be logged.
        """
        layout = json.loads(json.dumps(layout))
        segments: list[dict[str, Any]] = [s for s in self.record["segments"] if s["first_step"] <= step]
        last = segments[-1]["layout"] if segments else None
        changed = (
            []
            if last is None
            else [
                (key, last.get(key), layout.get(key))
                for key in sorted(last.keys() | layout.keys())
                if last.get(key) != layout.get(key)
            ]
        )
        if last is None or changed:
            segments = [s for s in segments if s["first_step"] < step]
            segments.append({"first_step": step, "started_at": now(), "layout": layout})
        self.update(segments=segments)
        return changed

    def finish(self, status: Status, exit_code: int, exit_reason: str, **changes: Any) -> None:
        """Closes the run: its end, and the hashes by which `llmkit verify` proves its files."""
        files = {
            name: hash_file(self.path / name) for name in (RECIPE, METRICS, RESULTS) if (self.path / name).is_file()
        }
        self.update(
            **changes, status=status, exit_code=exit_code, exit_reason=exit_reason, finished_at=now(), files=files
        )
