"""Lines, documents, delimited text, conll and parallel files: places, boundaries, bad records, resuming."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Any

import pytest

from llmkit.data import reading, sources
from llmkit.data.records import RecordBatch
from llmkit.data.rolespecs import INSTRUCTION, TEXT, RoleSpec
from llmkit.errors import DataError, LlmkitError
from llmkit.recipe.sections import SourceSection

PAIRS = RoleSpec(required=(("source", "target"),), optional=(), synonyms={})
TAGS = RoleSpec(required=(("tokens", "labels"),), optional=(), synonyms={})


def read_all(path: Any, roles: RoleSpec = TEXT, batch_bytes: int = 4_000_000, **keys: Any) -> list[RecordBatch]:
    path = str(path) if isinstance(path, Path) else path
    section = SourceSection.model_validate({"path": path, **keys})
    [source] = sources.resolve_sources([section], roles, split="train")
    return list(reading.read(source, roles, batch_bytes=batch_bytes))


def records(batches: list[RecordBatch], role: str = "text") -> list[Any]:
    return [value for batch in batches for value in batch.columns.get(role, [])]


def places(batches: list[RecordBatch]) -> list[tuple[int | None, int | None]]:
    return [place for batch in batches for place in zip(batch.lines, batch.offsets, strict=True)]


def rejects(batches: list[RecordBatch]) -> list[tuple[int | None, int | None, str]]:
    return [(one.line, one.offset, one.reason) for batch in batches for one in batch.rejects]


def write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def assert_resumes(path: Path, roles: RoleSpec = TEXT, batch_bytes: int = 64, role: str = "text", **keys: Any) -> None:
    """Stopping after any batch and going on gives the batches of one pass, each with the same bounds."""
    [source] = sources.resolve_sources(
        [SourceSection.model_validate({"path": str(path), **keys})], roles, split="train"
    )
    whole = list(reading.read(source, roles, batch_bytes=batch_bytes))
    assert len(whole) > 2
    for stop in range(len(whole)):
        rest = list(reading.read(source, roles, resume=whole[stop].resume, batch_bytes=batch_bytes))
        assert rest == whole[stop + 1 :], stop


def test_text_file_is_one_document_for_language_models(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\ufeff第一行\r\nsecond line\r\n\r\nend")
    batches = read_all(path)
    assert records(batches) == ["第一行\nsecond line\n\nend"]
    assert places(batches) == [(1, 0)]


def test_text_by_line_has_places_and_skips_blanks(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\ufeff甲乙\r\n\r\n  \nthird\nlast without newline")
    batches = read_all(path, sample_by="line")
    assert records(batches) == ["甲乙", "third", "last without newline"]
    assert places(batches) == [(1, 3), (4, 16), (5, 22)]


def test_text_by_paragraph(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\n\none\ntwo\n\n \nthree\n")
    batches = read_all(path, sample_by="paragraph")
    assert records(batches) == ["one\ntwo", "three"]
    assert places(batches) == [(3, 2), (7, 13)]


def test_document_start_keeps_what_stands_before_the_first(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "preface\n = One = \ntext\n = = Part = = \nmore\n = Two = \nend\n")
    batches = read_all(path, document_start=r" = [^=].* = $")
    assert records(batches) == ["preface", " = One = \ntext\n = = Part = = \nmore", " = Two = \nend"]
    assert [line for line, _ in places(batches)] == [1, 2, 6]


def test_invalid_utf8_rejects_the_line_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"good\nb\xffd\n\xe4\xbd\xa0\xe5\xa5\xbd\nnul\x00here\n")
    batches = read_all(path, sample_by="line")
    assert records(batches) == ["good", "你好"]
    assert [(line, offset) for line, offset, _ in rejects(batches)] == [(2, 5), (4, 16)]
    assert "invalid UTF-8 at byte 1" in rejects(batches)[0][2]
    assert "NUL" in rejects(batches)[1][2]


def test_invalid_utf8_in_a_document_names_its_line(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", b"one\ntwo\nth\xffee\n")
    write(tmp_path / "b.txt", "好")
    batches = read_all(tmp_path)
    assert records(batches) == ["好"]
    assert rejects(batches)[0][:2] == (3, 10)


@pytest.mark.parametrize("encoding", ["gb18030", "big5", "utf-16", "utf-32-le", "latin-1"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    text = "café\nline\n" if encoding == "latin-1" else "中文文本\n第二行\n"
    path = write(tmp_path / "a.txt", text.encode(encoding))
    assert records(read_all(path, sample_by="line", encoding=encoding)) == text.split()


def test_utf16_that_is_not_named_is_explained(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", codecs.BOM_UTF16_LE + "hello".encode("utf-16-le"))
    for by in ("line", "document"):
        with pytest.raises(DataError, match="encoding: utf-16"):
            read_all(path, sample_by=by)


def test_a_huge_line_is_rejected_without_being_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmkit.data.readers.lines.MAX_RECORD_BYTES", 1000)
    for size in (1001, 5000, 123_456):
        path = write(tmp_path / "a.txt", b"first\n" + b"x" * size + b"\nlast\n")
        for block in (100, 900, 10_000, 1_000_000):
            batches = read_all(path, sample_by="line", batch_bytes=block)
            assert records(batches) == ["first", "last"], (size, block)
            assert places(batches) == [(1, 0), (3, 7 + size)]
            assert [one[:2] for one in rejects(batches)] == [(2, 6)]
            assert "limit" in rejects(batches)[0][2]


def test_csv_with_quotes_line_feeds_and_bom(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", '\ufefflabel,review\r\n1,"很好, ""真的""\r\n第二行"\r\n\r\n0,plain\r\n')
    batches = read_all(path)
    assert records(batches) == ['很好, "真的"\n第二行', "plain"]
    assert [line for line, _ in places(batches)] == [2, 5]
    assert places(batches)[0][1] == 3 + len("label,review\r\n")


def test_csv_rows_of_the_wrong_width_and_bad_bytes_are_rejected(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"text,label\ngood,1\nlonely\na,b,c\nb\xff,1\nfine,0\n")
    batches = read_all(path)
    assert records(batches) == ["good", "fine"]
    assert [line for line, _, _ in rejects(batches)] == [3, 4, 5]
    assert "1 fields where the header names 2" in rejects(batches)[0][2]


def test_csv_unclosed_quote_names_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\na,1\n"open,0\nb,1\n')
    with pytest.raises(DataError, match="never closed") as caught:
        read_all(path)
    assert caught.value.line == 3
    assert records(read_all(path, quoting=False)) == ["a", '"open', "b"]


def test_tsv_quotes_that_are_text_swallow_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", 'label\ttext\n1\t"quoted" start\n0\t"open\n1\tmiddle\n0\tclose"\n1\t"whole"\n')
    batches = read_all(path)
    assert records(batches) == ['"quoted" start', '"open', "middle", 'close"', "whole"]
    assert [line for line, _ in places(batches)] == [2, 3, 4, 5, 6]
    multi = write(tmp_path / "b.tsv", 'label\ttext\n1\t"two\nlines"\n')
    assert records(read_all(multi)) == ["two\nlines"]


def test_positions_without_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "to title\t摘要\t标题\n")
    [messages] = records(
        read_all(path, INSTRUCTION, header=False, columns={"instruction": 0, "input": 1, "output": -1}), "messages"
    )
    assert [one["content"] for one in messages] == ["to title\n摘要", "标题"]
    with pytest.raises(DataError, match="positions 0 to 2"):
        read_all(path, header=False, columns={"text": 7})


def test_header_that_is_data_is_suspected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="header: false"):
        read_all(write(tmp_path / "a.tsv", "a fine film\t1\nnot so\t0\n"))
    with pytest.raises(DataError, match="delimiter"):
        read_all(write(tmp_path / "b.csv", "text;label\na;1\n"))


def test_conll_sentences(tmp_path: Path) -> None:
    text = "-DOCSTART- O\n\nEU B-ORG\nrejects O\n\n\n吴 B-NAME\n重 E-NAME\n \n"
    batches = read_all(write(tmp_path / "a.conll", text), TAGS)
    assert records(batches, "tokens") == [["EU", "rejects"], ["吴", "重"]]
    assert records(batches, "labels") == [["B-ORG", "O"], ["B-NAME", "E-NAME"]]
    assert [line for line, _ in places(batches)] == [3, 7]
    tabs = read_all(write(tmp_path / "b.conll.txt", "New York\tB\nis\tO\n"), TAGS)
    assert records(tabs, "tokens") == [["New York", "is"]]


def test_conll_uneven_sentence_is_rejected(tmp_path: Path) -> None:
    batches = read_all(write(tmp_path / "a.conll", "a X O\nb O\n\nc Y O\n"), TAGS, limit=5)
    assert records(batches, "tokens") == [["c"]]
    assert rejects(batches) == [(2, 6, "2 columns where the sentence has 3")]


def test_parallel_lines(tmp_path: Path) -> None:
    source, target = write(tmp_path / "a.en", "one\n\nthree\nfour"), write(tmp_path / "a.zh", "一\n\n三\n \n")
    batches = read_all({"source": str(source), "target": str(target)}, PAIRS)
    assert records(batches, "target") == ["一", "三"]
    assert rejects(batches)[0][0] == 4
    write(target, "一\n")
    with pytest.raises(DataError, match="differ in length"):
        read_all({"source": str(source), "target": str(target)}, PAIRS)


@pytest.mark.parametrize(
    ("name", "line", "keys"),
    [
        ("a.txt", "文本 {}\n", {"sample_by": "line"}),
        ("a.txt", "paragraph {}\nmore\n\n", {"sample_by": "paragraph"}),
        ("a.txt", "# {}\nmore\n", {"document_start": "#"}),
        ("a.csv", '"text\n{}",label\n', {"header": False, "columns": {"text": 0}}),
        ("a.csv", '"{}"\n', {"header": False, "columns": {"text": 0}}),
        ("a.tsv", 'text\t5" {}\n"label\t"\n', {"header": False, "columns": {"text": 0}}),
        ("a.jsonl", '{{"text": "行 {}"}}\nbroken\n', {}),
        ("a.conll", "token{} O\n\n", {"columns": {"text": {"columns": [0], "join": " "}}}),
    ],
)
@pytest.mark.parametrize("batch_bytes", [20, 64, 300])
@pytest.mark.parametrize("max_rows", [3, 10_000])
def test_stopping_anywhere_loses_nothing_and_moves_no_boundary(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    line: str,
    keys: dict[str, Any],
    batch_bytes: int,
    max_rows: int,
) -> None:
    from llmkit.data.readers import lines

    monkeypatch.setattr(lines, "MAX_ROWS", max_rows)
    text = "".join(line.format("好x" * (i * i * 7 % 23) + str(i)) for i in range(40))
    for mark, ending in (("", ""), ("\ufeff", "")) if name.endswith("jsonl") else (("", ""), ("", "last")):
        assert_resumes(write(tmp_path / name, mark + text + ending), batch_bytes=batch_bytes, **keys)


def test_limit_counts_usable_records_and_ends(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", 'bad\n{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n')
    batches = read_all(path, limit=2)
    assert records(batches) == ["a", "b"]
    [source] = sources.resolve_sources([SourceSection(path=str(path), limit=2)], TEXT, split="train")
    assert list(reading.read(source, TEXT, resume=batches[-1].resume)) == []


def test_keys_of_another_format_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "a"}\n')
    for keys, name in [
        ({"sample_by": "line"}, "sample_by"),
        ({"header": False}, "header"),
        ({"field": "x"}, "field"),
        ({"columns": {"txt": "a"}}, "columns.txt"),
        ({"encoding": "utf8000"}, "encoding"),
        ({"message_keys": {"list": "x"}}, "message_keys"),
    ]:
        with pytest.raises(LlmkitError) as caught:
            read_all(path, **keys)
        assert caught.value.status == 2
        assert caught.value.key == f"data.train.0.{name}"
