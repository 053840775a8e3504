"""Small or read-only file systems for one forked child: a mount namespace of its own, gone with it."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.injection import in_fork

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_RDONLY, MS_REC, MS_PRIVATE = 1, 16384, 1 << 18
NOT_PERMITTED = 77


def on_tmpfs(place: Path, work: Callable[[], object], *, size: int, read_only: bool = False) -> None:
    """Runs `work` in a child that sees a tmpfs of `size` bytes at `place`. Skips where that is not permitted."""

    def mounted() -> None:
        try:
            mount(place, size, read_only)
        except OSError:
            os._exit(NOT_PERMITTED)
        work()

    status = in_fork(mounted)
    if status == NOT_PERMITTED:
        pytest.skip("this machine does not let us mount a tmpfs in a namespace of our own")
    assert status == 0


def with_file_size_limit(work: Callable[[], object], limit: int) -> None:
    """Runs `work` in a child where a file that grows beyond `limit` bytes gives EFBIG."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        work()

    assert in_fork(limited) == 0


def mount(place: Path | str, size: int, read_only: bool = False) -> None:
    """A tmpfs of `size` bytes at `place`, for this process alone. Raises OSError where that is not permitted."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    _check(libc.unshare(CLONE_NEWNS | (CLONE_NEWUSER if user else 0)))
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _check(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
    flags = MS_RDONLY if read_only else 0
    _check(libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", flags, f"size={size}".encode()))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
