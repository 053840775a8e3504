"""Data sets of the Hugging Face Hub, streamed by `datasets.load_dataset`. The only reader that uses the network."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from llmkit.data.readers.base import Chunk, Reading
from llmkit.errors import DataError
from llmkit.recipe.sections import SourceSection

_ROWS = 1000


def read_hub(reading: Reading, state: dict[str, Any] | None) -> Iterator[Chunk]:
    """Rows are dicts; line is the row's number. State: rows given."""
    row = state["row"] if state else 0
    stream = _load(reading)
    if row:
        stream = stream.skip(row)
    rows = iter(stream)
    while True:
        try:
            batch = [dict(one) for one in itertools.islice(rows, _ROWS)]
        except Exception as error:  # whatever the builder of that data set raises
            raise reading.fail(f"row {row + 1} and following cannot be read: {_first_line(error)}") from error
        if not batch:
            return
        row += len(batch)
        lines: list[int | None] = list(range(row - len(batch) + 1, row + 1))
        yield Chunk(batch, lines, [None] * len(batch), [], {"row": row})


def _load(reading: Reading) -> Any:
    import datasets

    section = reading.section
    try:
        return datasets.load_dataset(
            reading.file.path, section.name, split=reading.file.member, revision=section.revision, streaming=True
        )
    except Exception as error:  # the Hub, the network and the builder each have exceptions of their own
        hint = "check the id, `name`, `split` and `revision`; for local files give a path that exists"
        raise DataError(
            f"the Hub data set cannot be loaded: {_first_line(error)}; {hint}", file=reading.file.path
        ) from error


def revision_of(path: str, section: SourceSection) -> str:
    """The commit that the data set's revision names now. Raises DataError."""
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(path, revision=section.revision).sha
    except Exception as error:
        raise DataError(f"the Hub data set cannot be found: {_first_line(error)}", file=path) from error
    return str(commit)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
