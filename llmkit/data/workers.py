"""Several things at once without changing their order: threads between stages, processes for Python-bound work."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from llmkit.errors import EnvironmentFailure

T = TypeVar("T")
R = TypeVar("R")
PR_SET_PDEATHSIG = 1
_function: Callable[[Any], Any] | None = None


def prefetch(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """The same items, produced by a thread up to `depth` ahead. An exception in it is raised here, in its place."""
    done = threading.Event()
    line: queue.Queue[tuple[str, Any]] = queue.Queue(depth)

    def put(kind: str, value: Any) -> bool:
        while not done.is_set():
            try:
                line.put((kind, value), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put("item", item):
                    return
            put("end", None)
        except BaseException as error:  # noqa: BLE001 raised again where the items are consumed
            put("error", error)

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = line.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        done.set()
        thread.join()


def _start(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        pass  # not Linux: an orphan ends when its pipe breaks


def _call(item: Any) -> Any:
    assert _function is not None
    return _function(item)


def ordered_map(function: Callable[[T], R], items: Iterable[T], num_workers: int) -> Iterator[R]:
    """`map` over spawned processes: results in order, at most two items a worker under way.

    `function` is pickled once a worker. Raises EnvironmentFailure where a worker dies.
    """
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, context, _start, (function,))
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(_call, item))
            if len(waiting) >= 2 * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise EnvironmentFailure(
            "a preprocessing worker died (out of memory, or killed); run the same command again to go on, with a "
            "smaller data.num_workers if memory is short"
        ) from error
    finally:
        for future in waiting:
            future.cancel()
        pool.shutdown(wait=True, cancel_futures=True)
