"""Labels of rows in the terms of their source: names, numbers, joined text, and the directory of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmkit.data.labels import apply_names, names_of, spell
from llmkit.data.reading import read
from llmkit.data.rolespecs import CLASSIFICATION
from llmkit.data.sources import content_hash, resolve_sources
from llmkit.errors import DataError
from llmkit.recipe.sections import SourceSection


def applied(values: list[Any], **keys: Any) -> tuple[list[Any], dict[int, str]]:
    columns, bad = {"label": list(values)}, {}
    apply_names(SourceSection(path="x", **keys), columns, bad)
    return columns["label"], bad


def test_numbers_count_the_names() -> None:
    found, bad = applied([1, "0", 2.0, "b", 3, "x", None, [0, "c"]], label_names=["a", "b", "c"])
    assert [found[i] for i in (0, 1, 2, 3, 6, 7)] == ["b", "a", "c", "b", None, ["a", "c"]]
    assert bad == {
        4: "label 3 is none of the 3 label_names (0 to 2)",
        5: "label 'x' is not among label_names (a, b, c)",
    }


def test_a_text_that_is_a_name_is_that_name() -> None:
    assert applied(["1", 1], label_names=["1", "2"])[0] == ["1", "2"]


def test_joined_labels() -> None:
    assert applied(["b, a", "", "a"], label_separator=",")[0] == [["b", "a"], [], ["a"]]


def test_names_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("差评\n好评\n\n", encoding="utf-8-sig")
    assert names_of(SourceSection(path="x", label_names=str(tmp_path / "names.txt"))) == ("差评", "好评")
    with pytest.raises(DataError, match=r"label_names: .*none\.txt cannot be read"):
        names_of(SourceSection(path="x", label_names=str(tmp_path / "none.txt")))
    with pytest.raises(DataError, match="a name occurs twice"):
        names_of(SourceSection(path="x", label_names=["a", "a"]))


@pytest.mark.parametrize(
    ("value", "text"), [(1, "1"), (1.0, "1"), (0.25, "0.25"), (True, "true"), (" a ", "a"), (-3, "-3")]
)
def test_one_spelling(value: Any, text: str) -> None:
    assert spell(value) == text


@pytest.mark.parametrize("value", ["", "  ", float("nan"), {"a": 1}])
def test_what_is_no_label(value: Any) -> None:
    with pytest.raises(ValueError, match="label"):
        spell(value)


def test_the_directory_is_the_label(tmp_path: Path) -> None:
    for name, label in (("1.txt", "neg"), ("2.txt", "pos")):
        (tmp_path / label).mkdir()
        (tmp_path / label / name).write_text(f"text {label}\nof two lines", encoding="utf-8")
    section = SourceSection(path=str(tmp_path), sample_by="document", columns={"text": "text", "label": "path"})
    (source,) = resolve_sources([section], CLASSIFICATION, split="train")
    found = [row for batch in read(source, CLASSIFICATION) for row in zip(*batch.columns.values(), strict=True)]
    assert found == [("text neg\nof two lines", "neg"), ("text pos\nof two lines", "pos")]
    before = content_hash(source)
    (tmp_path / "pos").rename(tmp_path / "positive")
    (renamed,) = resolve_sources([section], CLASSIFICATION, split="train")
    assert content_hash(renamed) != before


def test_a_column_called_path_is_itself(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,path\nhello,x/y\n", encoding="utf-8")
    section = SourceSection(path=str(tmp_path / "a.csv"), columns={"label": "path"})
    (source,) = resolve_sources([section], CLASSIFICATION, split="train")
    (batch,) = read(source, CLASSIFICATION)
    assert batch.columns["label"] == ["x/y"]
