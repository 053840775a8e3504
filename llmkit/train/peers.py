"""Who of a launch is alive: each process gives a sign of life every second and reads the others', by a thread.

A collective that fails says that somebody is gone, not who; and one that waits says nothing at all. Here the processes
agree, through the key-value store that every launcher provides, on who ended the run and what it was doing, and all end
with that message. A process whose main thread waits in a collective cannot be woken: it is ended by this thread.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from llmkit.errors import EnvironmentFailure

BEAT_SECONDS = 1.0
SILENCE_SECONDS = 90.0
"""Without a sign of life after which a process is given up: with the rest of an end, within two minutes."""
ROLL_CALL_SECONDS = 4.0
"""Once a collective has failed: who is silent for so long is dead, and who has not noticed is what it waited for."""
GRACE_SECONDS = 3.0
"""For the main thread to end by itself."""
VERDICT = "llmkit/verdict"
AGAIN = "run the same command again to go on from the last checkpoint"


class Peers:
    """This process's part. `doing` tells what it is at; `abandon(error)` ends it and does not return; after
    `ignore_signals()` none interrupts it."""

    def __init__(
        self,
        rank: int,
        world_size: int,
        timeout: float | None,
        *,
        doing: Callable[[], str],
        abandon: Callable[[EnvironmentFailure], None],
        ignore_signals: Callable[[], None],
    ):
        self.rank, self.world_size, self.doing = rank, world_size, doing
        self.abandon, self.ignore_signals = abandon, ignore_signals
        self.silence = min(timeout or SILENCE_SECONDS, SILENCE_SECONDS)
        self._store = _get_default_store().clone()  # type: ignore[attr-defined]  # of our own: the main thread may be waiting on the other
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="peers")
        self._exchange: Future[list[bytes]] | None = None
        self._decided = ""
        self._told: dict[int, dict[str, Any]] = {}
        self._seen = dict.fromkeys(range(world_size), time.monotonic())
        self._lost_at: float | None = None
        self._ended = threading.Event()
        self._verdict: EnvironmentFailure | None = None
        self._judged = threading.Event()
        self._beat = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within, the others see this process. What ends it badly is told to them; a lost peer is named to us."""
        self._store.set(self._key(self.rank), self._sign("running"))
        dist.barrier()  # every sign is there, and so reading them never waits
        thread = threading.Thread(target=self._watch, name="peers-watch", daemon=True)
        thread.start()
        try:
            yield
        except RuntimeError as error:
            if not _is_lost_peer(error):
                self._leave(f"{type(error).__name__}: {error}")
                raise
            self.ignore_signals()  # a launcher that has seen it too sends SIGTERM
            raise self._lost() from error
        except BaseException as error:
            self._leave(str(error))
            raise
        else:
            self._leave("")
        finally:
            self._ended.set()

    def _lost(self) -> EnvironmentFailure:
        """A collective has failed: waits until it is settled who is to blame."""
        self._lost_at = time.monotonic()
        self._judged.wait(3 * ROLL_CALL_SECONDS)
        if self.rank == 0:
            time.sleep(2 * BEAT_SECONDS)  # the store may be ours: the others read the verdict there first
        return self._verdict or EnvironmentFailure(f"rank {self.rank} lost another process; {AGAIN}")

    def _leave(self, told: str) -> None:
        self._ended.set()
        sign = self._sign("failed" if told else "done", told)
        try:  # by the pool, since a store whose keeper is gone may not answer
            self._pool.submit(self._store.set, self._key(self.rank), sign).result(BEAT_SECONDS)
        except (RuntimeError, TimeoutError):
            return

    # --- the thread -------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            self._read()
            culprit = self._culprit()
            if culprit is not None and self._verdict is None:
                self._verdict = EnvironmentFailure(f"{self._agree(culprit)}; {AGAIN}")
                self._judged.set()
                if not self._ended.wait(GRACE_SECONDS):  # else the main thread ends by itself
                    self.abandon(self._verdict)

    def _read(self) -> None:
        """One exchange with the store, begun where the last one has been answered."""
        if self._exchange is None:
            self._exchange = self._pool.submit(self._talk)
        try:
            signs = self._exchange.result(BEAT_SECONDS)
        except TimeoutError:
            return
        except RuntimeError:  # the store is gone
            self._exchange = None
            return
        self._exchange = None
        for rank, sign in enumerate(signs):
            told = json.loads(sign)
            if told != self._told.get(rank) or told["state"] == "done":
                self._told[rank], self._seen[rank] = told, time.monotonic()

    def _talk(self) -> list[bytes]:
        self._beat += 1
        self._store.set(self._key(self.rank), self._sign("running" if self._lost_at is None else "lost"))
        if self._store.check([VERDICT]):
            self._decided = bytes(self._store.get(VERDICT)).decode()
        signs: list[bytes] = self._store.multi_get([self._key(rank) for rank in range(self.world_size)])
        return signs

    def _culprit(self) -> str | None:
        if self._decided:
            return self._decided
        now = time.monotonic()
        lost = None if self._lost_at is None else now - self._lost_at
        bound = self.silence if lost is None else min(self.silence, ROLL_CALL_SECONDS - BEAT_SECONDS)
        failed = [rank for rank, told in self._told.items() if told["state"] == "failed"]
        if lost is not None and failed:
            rank = failed[0]
            return f"rank {rank} of {self.world_size} failed{self._last_doing(rank)}: {self._told[rank]['told']}"
        silent = [rank for rank in range(self.world_size) if now - self._seen[rank] > bound]
        if self.rank in silent:  # nobody is heard, not even ourselves through the store
            keeper = "the launcher" if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else "rank 0"
            return f"{keeper} is gone or out of reach{self._last_doing(0) if keeper == 'rank 0' else ''}"
        if silent:
            return f"rank {silent[0]} of {self.world_size} is dead or frozen{self._last_doing(silent[0])}"
        late = [rank for rank, told in self._told.items() if told["state"] == "running"]
        if lost is not None and lost > ROLL_CALL_SECONDS and late:
            return f"rank {late[0]} of {self.world_size} is stalled{self._last_doing(late[0])}"
        return None

    def _agree(self, culprit: str) -> str:
        """The first verdict in the store is everybody's."""
        try:
            decided = self._pool.submit(self._store.compare_set, VERDICT, "", culprit).result(2 * BEAT_SECONDS)
        except (RuntimeError, TimeoutError):
            return culprit
        return bytes(decided).decode()

    def _last_doing(self, rank: int) -> str:
        return f" (last seen at {self._told[rank]['doing']})" if rank in self._told else ""

    def _key(self, rank: int) -> str:
        return f"llmkit/rank/{rank}"

    def _sign(self, state: str, told: str = "") -> str:
        return json.dumps({"beat": self._beat, "state": state, "told": told, "doing": self.doing()})


def _is_lost_peer(error: RuntimeError) -> bool:
    """Whether a collective failed because a process is gone or late. gloo has no exception type of its own."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
