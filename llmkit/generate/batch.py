"""`generate --input`: a JSON object a line in, one a line out, in input order, resumable after a kill.

Prompts are taken in blocks; inside a block the engine batches by length. A block's lines are appended and fsynced
together. On a second run the lines that are there are compared with the input and kept; a last line that was cut off is
removed. A small file beside the output holds the settings, so that two settings never mix in one file.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import select
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from llmkit.errors import DataError, EnvironmentFailure, RecipeError
from llmkit.evaluate.results import encode_line
from llmkit.files import environment_errors, read_json, write_json
from llmkit.generate.prompts import EncodePrompt, Item, file_lines, read_items
from llmkit.report.console import Console
from llmkit.writing.engine import Completion, TransformersEngine

BLOCK_BATCHES = 4


@dataclass
class Tally:
    """What a run did: completions written now, tokens of them, completions that were there before."""

    completions: int = 0
    tokens: int = 0
    kept: int = 0


def check_file(path: Path, encode: EncodePrompt, engine: TransformersEngine) -> int:
    """Reads the whole input once, so that a bad line ends the command before hours of work. Returns its items."""
    count = 0
    for item in read_items(file_lines(path), str(path)):
        _ = engine.allowance(encode(item))
        count += 1
    return count


def answers(item: Item, completions: list[Completion]) -> list[dict[str, Any]]:
    """Output objects of one item: its own fields, then the completion's, and `sample` where there are several."""
    several = len(completions) > 1
    return [
        {**item.fields, **completion.as_json(), **({"sample": completion.sample} if several else {})}
        for completion in completions
    ]


def run_batch(
    engine: TransformersEngine,
    encode: EncodePrompt,
    blocks: Iterator[list[Item]],
    sink: Sink,
    console: Console,
    total: int | None,
) -> Tally:
    """Completes every item that `sink` does not hold yet, and appends the results block by block."""
    tally = Tally()
    samples = engine.section.num_return_sequences
    with console.progress("generate", total, "prompts") as advance:
        for block in blocks:
            new = [item for item in block if not sink.holds(item, samples)]
            tally.kept += (len(block) - len(new)) * samples
            advance(len(block) - len(new))
            if not new:
                continue
            found = engine.generate([encode(item) for item in new])
            groups = [found[start : start + samples] for start in range(0, len(found), samples)]
            sink.write([answer for item, group in zip(new, groups, strict=True) for answer in answers(item, group)])
            tally.completions += len(found)
            tally.tokens += sum(completion.completion_tokens for completion in found)
            advance(len(new))
    sink.finish()
    return tally


def file_blocks(path: Path, size: int) -> Iterator[list[Item]]:
    items = read_items(file_lines(path), str(path))
    while block := list(itertools.islice(items, size)):
        yield block


def stream_blocks(descriptor: int, size: int) -> Iterator[list[Item]]:
    """Items of a pipe as they come: a block is what is there, at most `size`, so that a slow writer is answered line by
    line and a fast one in full batches."""
    pending: list[bytes] = []
    items = read_items(_pipe_lines(descriptor, pending), "<stdin>")
    while (first := next(items, None)) is not None:
        block = [first]
        while pending and len(block) < size and (item := next(items, None)) is not None:
            block.append(item)
        yield block


def _pipe_lines(descriptor: int, pending: list[bytes]) -> Iterator[bytes]:
    """Lines of a descriptor; `pending` holds those that were read already, last one first."""
    rest, ended = b"", False
    while pending or not ended:
        if pending:
            yield pending.pop()
        while not ended and (not pending or select.select([descriptor], [], [], 0)[0]) and len(pending) < 4096:
            piece = os.read(descriptor, 1 << 16)
            ended = not piece
            *lines, rest = (rest + piece).split(b"\n")
            if ended and rest:
                lines.append(rest)
            pending[:0] = reversed(lines)


class Sink:
    """Where results go: standard output, or nothing but memory for --json."""

    def __init__(self, stream: BinaryIO | None):
        self.stream = stream
        self.objects: list[dict[str, Any]] = []

    def holds(self, item: Item, samples: int) -> bool:
        """Whether the item's results are there from a run before."""
        return False

    def write(self, objects: list[dict[str, Any]]) -> None:
        if self.stream is None:
            self.objects += objects
            return
        self.stream.write(b"".join(encode_line(value) for value in objects))
        self.stream.flush()

    def finish(self) -> None:
        """Called once after the last item."""


class FileSink(Sink):
    """Appends to a file that may hold the results of the first items already."""

    def __init__(self, path: Path, file: BinaryIO):
        super().__init__(file)
        self.path = path
        self.end = _whole_lines(file)
        self._old = _old_results(path, self.end)
        self._open = True
        self._place = 0

    def holds(self, item: Item, samples: int) -> bool:
        if not self._open:
            return False
        start = self._place
        group = list(itertools.islice(self._old, samples))
        if len(group) < samples:  # the rest of a group that a kill cut off is made again
            self._start_appending(start)
            return False
        for line, (_, found) in enumerate(group):
            made = {"text", "finish_reason", "prompt_tokens", "completion_tokens"} | (
                {"sample"} if samples > 1 else set()
            )
            expected = {name: value for name, value in item.fields.items() if name not in made}
            if {name: value for name, value in found.items() if name not in made} != expected:
                number = item.row * samples + line + 1
                raise DataError(
                    f"line {number} is not a result of input line {item.line}; give another --output, or --overwrite",
                    file=str(self.path),
                    line=number,
                )
        self._place = group[-1][0]
        return True

    def write(self, objects: list[dict[str, Any]]) -> None:
        assert self.stream is not None
        with environment_errors(self.path):
            super().write(objects)
            os.fsync(self.stream.fileno())

    def finish(self) -> None:
        if self._open and next(self._old, None) is not None:
            raise DataError("holds more results than the input has items; give another --output, or --overwrite",
                            file=str(self.path))  # fmt: skip
        if self._open:
            self._start_appending(self._place)

    def _start_appending(self, place: int) -> None:
        assert self.stream is not None
        self._open = False
        with environment_errors(self.path):
            self.stream.truncate(place)
            self.stream.seek(place)


@contextmanager
def open_output(path: Path, settings: dict[str, Any], *, overwrite: bool) -> Iterator[FileSink]:
    """The output, locked against a second writer. Raises RecipeError where it holds results of other settings."""
    state = path.with_name(f".{path.name}.settings.json")
    with environment_errors(path):
        file = path.open("r+b" if path.exists() else "w+b")
    with file:
        _lock(file, path)
        if overwrite:
            file.truncate(0)
        if state.exists() and _whole_lines(file):
            _same_settings(path, read_json(state), settings)
        write_json(state, settings)
        yield FileSink(path, file)


def _same_settings(path: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    differ = [f"{key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in sorted({*old, *new})
              if old.get(key) != new.get(key)]  # fmt: skip
    if differ:
        raise RecipeError(
            f"--output {path}: holds results made with other settings ({'; '.join(differ)}); "
            "give another file, or --overwrite to start afresh"
        )


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise EnvironmentFailure(f"another process is writing {path}") from None


def _whole_lines(file: BinaryIO) -> int:
    """Bytes up to and with the last newline; what follows is a line that was cut off."""
    position = file.seek(0, os.SEEK_END)
    while position > 0:
        start = max(0, position - (1 << 16))
        file.seek(start)
        place = file.read(position - start).rfind(b"\n")
        if place >= 0:
            return start + place + 1
        position = start
    return 0


def _old_results(path: Path, end: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (position after the line, its object) of the whole lines of an output."""
    with path.open("rb") as file:
        position = 0
        for number, raw in enumerate(file, start=1):
            position += len(raw)
            if position > end:
                return
            try:
                value = json.loads(raw)
            except ValueError:
                value = None
            if not isinstance(value, dict):
                raise DataError("not a result of this command; give another --output, or --overwrite",
                                file=str(path), line=number)  # fmt: skip
            yield position, value
