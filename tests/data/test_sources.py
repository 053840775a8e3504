"""Finding files, compression, archives, Hub ids, the builtin corpus, the content hash."""

from __future__ import annotations

import ast
import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import zstandard

from llmkit.data import reading, sources
from llmkit.data.readers.stdlib import function_pairs
from llmkit.data.rolespecs import INSTRUCTION, TEXT
from llmkit.errors import DataError, LlmkitError
from llmkit.recipe.sections import SourceSection
from tests.data.test_readers_text import assert_resumes, places, read_all, records, rejects, write

LINES = "".join(f'{{"text": "文本 {i}"}}\n' for i in range(2000)).encode()
PACK = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: zstandard.ZstdCompressor().compress(data),
}


@pytest.mark.parametrize("kind", PACK)
def test_compressed_files_by_suffix_and_by_magic(tmp_path: Path, kind: str) -> None:
    packed = PACK[kind](LINES)
    for name in (f"a.jsonl.{kind}", "b.jsonl"):
        path = write(tmp_path / name, packed)
        batches = read_all(path)
        assert len(records(batches)) == 2000
        assert places(batches)[1] == (2, LINES.index(b"\n") + 1)
    two = PACK[kind](LINES[: LINES.index(b"\n") + 5]) + PACK[kind](LINES[LINES.index(b"\n") + 5 :])
    assert len(records(read_all(write(tmp_path / f"c.jsonl.{kind}", two)))) == 2000
    assert_resumes(tmp_path / f"a.jsonl.{kind}", batch_bytes=20_000)


@pytest.mark.parametrize("kind", PACK)
def test_truncated_and_damaged_compression(tmp_path: Path, kind: str) -> None:
    packed = PACK[kind](LINES)
    for size in (len(packed) // 2, len(packed) - 1):
        with pytest.raises(DataError, match=rf"{kind} data .*byte \d+") as caught:
            read_all(write(tmp_path / f"a.jsonl.{kind}", packed[:size]))
        assert str(caught.value.file).endswith(f"a.jsonl.{kind}")
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 0x10
    try:
        batches = read_all(write(tmp_path / f"a.jsonl.{kind}", bytes(flipped)))
    except DataError:
        pass  # zstd written without a checksum can decode to something else
    else:
        assert kind == "zst", batches
    with pytest.raises(DataError, match="not gz data"):
        read_all(write(tmp_path / "b.jsonl.gz", LINES))


def make_tar(path: Path, members: list[tuple[str, bytes]], mode: Any = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for kind, name in ((tarfile.SYMTYPE, "link.jsonl"), (tarfile.CHRTYPE, "device.jsonl")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    return path


def test_archives_are_streamed_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    rows = [("../../evil.jsonl", b'{"text": "up"}\n'), ("dir/a.jsonl.gz", gzip.compress('{"text": "一"}\n'.encode()))]
    rows += [("README.md", b"# not data"), ("/abs.jsonl", b'{"text": "abs"}'), ("__MACOSX/._a.jsonl", b"x")]
    tar = make_tar(tmp_path / "a.tar.gz", rows)
    plain = make_tar(tmp_path / "b.tar", rows, "w")
    with zipfile.ZipFile(tmp_path / "c.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in rows:
            file.writestr(name, data)
        link = zipfile.ZipInfo("link.jsonl")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc/passwd")
    zst = write(tmp_path / "d.tar.zst", PACK["zst"](plain.read_bytes()))
    for path in (tar, plain, tmp_path / "c.zip", zst):
        batches = read_all(path)
        assert records(batches) == ["up", "一", "abs"], path
        assert batches[0].file == f"{path}!../../evil.jsonl"
    assert list(work.iterdir()) == []
    assert {one.name for one in tmp_path.iterdir()} == {"work", "a.tar.gz", "b.tar", "c.zip", "d.tar.zst"}


def test_archive_members_without_suffix_are_text(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "news.tar.gz", [(f"group/{i}", f"post {i}".encode()) for i in range(50)])
    assert records(read_all(tar)) == [f"post {i}" for i in range(50)]


def test_damaged_archives(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "a.tar.gz", [("a.jsonl", LINES)])
    with pytest.raises(DataError):
        read_all(write(tmp_path / "b.tar.gz", tar.read_bytes()[:-200]))
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as file:
        file.writestr("a.jsonl", LINES)
    data = bytearray((tmp_path / "c.zip").read_bytes())
    data[LINES.index(b"\n") + 100] ^= 1
    with pytest.raises(DataError, match="damaged"):
        read_all(write(tmp_path / "c.zip", bytes(data)))
    with pytest.raises(DataError, match="archive"):
        read_all(write(tmp_path / "d.zip", b"PK\x03\x04 nonsense"))


def test_directories_globs_and_lists(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl", ".hidden.jsonl"):
        write(tmp_path / name, f'{{"text": "{name}"}}\n')
    write(tmp_path / "README", "read me")
    os.symlink("/etc/passwd", tmp_path / "passwd.jsonl")
    assert records(read_all(tmp_path)) == ["a.jsonl", "b.jsonl", "sub/c.jsonl"]
    assert records(read_all(f"{tmp_path}/*.jsonl", limit=2)) == ["a.jsonl", "b.jsonl"]
    assert records(read_all(f"{tmp_path}/**/c*")) == ["sub/c.jsonl"]
    both = [f"{tmp_path}/b.jsonl", f"{tmp_path}/[ab].jsonl"]
    assert records(read_all(both)) == ["b.jsonl", "a.jsonl"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no data files"):
        read_all(tmp_path / "empty")


def test_missing_paths_name_the_nearest_and_stay_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmkit.data.reading.READERS", {})  # nothing may be read, the Hub least of all
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "train.jsonl", LINES)
    (tmp_path / "data").mkdir()
    for path, nearest in [
        ("trian.jsonl", "did you mean 'train.jsonl'"),
        ("./trian", "did you mean 'train.jsonl'"),
        ("dta/train.jsonl", "did you mean 'data'"),
        ("data/train", "data holds nothing"),
        (f"{tmp_path}/trainn.jsonl", f"did you mean '{tmp_path}/train.jsonl'"),
        ("*.csv", "no file matches"),
    ]:
        with pytest.raises(DataError, match=r"no such file|no file") as caught:
            sources.resolve_sources([SourceSection(path=path)], TEXT, split="train")
        assert nearest in str(caught.value)
    with pytest.raises(DataError, match="builtin:python-stdlib"):
        sources.resolve_sources([SourceSection(path="builtin:python")], TEXT, split="train")


class FakeStream:
    def __init__(self, rows: list[dict[str, Any]]):
        self.rows = rows

    def skip(self, count: int) -> FakeStream:
        return FakeStream(self.rows[count:])

    def __iter__(self) -> Any:
        return iter(self.rows)


def test_hub_ids_are_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load_dataset(path: str, name: str | None = None, **keys: Any) -> FakeStream:
        asked.append((path, name, keys))
        return FakeStream([{"text": f"行 {i}", "id": i} for i in range(2500)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for path in ("org/name", "hf://org/name", "hf://datasets/org/name"):
        section = SourceSection(path=path, name="zh", revision="abc")
        [source] = sources.resolve_sources([section], TEXT, split="validation")
        batches = list(reading.read(source, TEXT))
        assert len(records(batches)) == 2500
        assert asked[-1] == ("org/name", "zh", {"split": "validation", "revision": "abc", "streaming": True})
    rest = list(reading.read(source, TEXT, resume=batches[0].resume))
    assert records(batches[:1]) + records(rest) == records(batches)
    assert places(rest)[0] == (1001, None)


def test_hub_failures_are_data_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(*args: Any, **keys: Any) -> FakeStream:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match="ConnectionError: no route; check the id"):
        read_all("org/name")


def test_standard_library_as_text() -> None:
    [source] = sources.resolve_sources([SourceSection(path="builtin:python-stdlib")], TEXT, split="train")
    batches = list(reading.read(source, TEXT))
    total = sum(len(text.encode()) for text in records(batches))
    assert 5_000_000 < total < 20_000_000
    assert all(ast_ok(text) for text in records(batches)[:20])
    assert not any("site-packages" in batch.file or "/test/" in batch.file for batch in batches)
    middle = len(batches) // 2
    rest = reading.read(source, TEXT, resume=batches[middle].resume)
    assert next(rest).file == batches[middle + 1].file


def ast_ok(text: str) -> bool:
    ast.parse(text)
    return True


def test_standard_library_as_instructions() -> None:
    section = SourceSection(path="builtin:python-stdlib", limit=300)
    [source] = sources.resolve_sources([section], INSTRUCTION, split="train")
    messages = records(list(reading.read(source, INSTRUCTION)), "messages")
    assert len(messages) == 300
    for question, answer in messages:
        assert (question["role"], answer["role"]) == ("user", "assistant")
        assert question["content"].startswith(("def ", "async def "))
        ast.parse(question["content"] + "\n" + answer["content"])
    functions = read_all("builtin:python-stdlib", name="functions", limit=5)
    assert all(text.startswith(("def ", "async def ")) for text in records(functions))
    with pytest.raises(LlmkitError, match="functions"):
        read_all("builtin:python-stdlib", name="methods")


def test_function_pairs() -> None:
    source = '''class A:
    @property
    def both(self, a,
             b):
        """Doc.

        More."""

        # why
        x = """
text
"""
        return x

    def abstract(self):
        """Doc."""
        raise NotImplementedError("no")

    def short(self):
        """Doc."""
        return 1

    def none(self):
        return 1 + \\
            2
'''
    assert function_pairs(source) == [
        (
            3,
            'def both(self, a,\n         b):\n    """Doc.\n\n    More."""',
            '    # why\n    x = """\ntext\n"""\n    return x',
        )
    ]


def test_content_hash_is_of_content_not_of_place(tmp_path: Path) -> None:
    def digest(path: Path) -> str:
        [source] = sources.resolve_sources([SourceSection(path=str(path))], TEXT, split="train")
        return sources.content_hash(source)

    a = write(tmp_path / "a.jsonl", LINES)
    (tmp_path / "moved").mkdir()
    b = write(tmp_path / "moved" / "other.jsonl", LINES)
    assert digest(a) == digest(b)
    write(b, LINES + b"\n")
    assert digest(a) != digest(b)
    make_tar(tmp_path / "x.tar.gz", [("a.jsonl", LINES), ("b.jsonl", LINES)])
    assert len(digest(tmp_path / "x.tar.gz")) == 64
    [builtin] = sources.resolve_sources([SourceSection(path="builtin:python-stdlib")], TEXT, split="train")
    assert sources.content_hash(builtin) == sources.content_hash(builtin)


def test_names_of_sources(tmp_path: Path) -> None:
    path = str(write(tmp_path / "a.jsonl", LINES))
    entries = [SourceSection(path=path), SourceSection(path=path, weight=2.0), SourceSection(path=path, id="mine")]
    names = [one.id for one in sources.resolve_sources(entries, TEXT, split="train")]
    assert names == [path, f"{path}#1", "mine"]
    with pytest.raises(LlmkitError, match="two sources"):
        sources.resolve_sources([entries[2], entries[2]], TEXT, split="train")


def test_web_formats(tmp_path: Path) -> None:
    prose = "这是一个足够长的段落,用来说明正文应当保留下来,而导航链接应当去掉。" * 3
    page = f"""<html><head><title>题目</title><meta charset="gb2312"><style>x{{}}</style></head><body>
    <nav><a href=1>home</a> <a href=2>about</a></nav><h1>Heading</h1><p>{prose}</p>
    <script>var hidden = 1</script><ul><li><a href=3>link one</a></li></ul></body></html>"""
    write(tmp_path / "a.html", page.encode("gb18030"))
    [text] = records(read_all(tmp_path / "a.html"))
    assert text == f"Heading\n{prose}"
    body = page.replace("gb2312", "utf-8").encode()
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(body)

    def record(kind: str, content_type: str, payload: bytes) -> bytes:
        head = (
            f"WARC/1.0\r\nWARC-Type: {kind}\r\nContent-Type: {content_type}\r\nContent-Length: {len(payload)}\r\n\r\n"
        )
        return head.encode() + payload + b"\r\n\r\n"

    parts = [
        record("request", "application/http", b"GET /"),
        record("response", "application/http; msgtype=response", http),
        record("conversion", "text/plain", "纯文本".encode()),
    ]
    path = write(tmp_path / "a.warc.gz", b"".join(map(gzip.compress, parts)))
    batches = read_all(path)
    assert records(batches) == [f"Heading\n{prose}", "纯文本"]
    assert places(batches) == [(None, len(parts[0])), (None, len(parts[0]) + len(parts[1]))]
    with pytest.raises(DataError, match="cut off"):
        read_all(write(tmp_path / "b.warc", b"".join(parts)[:-6]))


def test_mediawiki(tmp_path: Path) -> None:
    text = (
        "{{Infobox|a={{b}}}}'''Wiki''' is [[page|a page]]&lt;ref&gt;x&lt;/ref&gt; in [[text]]."
        "\n[[File:x.png|thumb|A [[caption]]]]\n== 历史 ==\n* 第一\n{|\n|cell\n|}\n[http://x.org outside]"
    )
    dump = (
        '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/"><siteinfo/>\n'
        f"<page><title>T</title><ns>0</ns><id>7</id><revision><id>9</id><text>{text}</text></revision></page>\n"
        "<page><title>R</title><ns>0</ns><redirect title='T'/><revision><text>#R</text></revision></page>\n"
        "<page><title>Talk:T</title><ns>1</ns><revision><text>talk</text></revision></page></mediawiki>"
    )
    path = write(tmp_path / "dump.xml.bz2", bz2.compress(dump.encode()))
    batches = read_all(path)
    assert records(batches) == ["Wiki is a page in text.\n\n历史\n第一\n\noutside"]
    assert places(batches) == [(2, dump.index("<page>"))]
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>' + dump.replace("Wiki", "&b;")
    with pytest.raises(DataError, match="entities"):
        read_all(write(tmp_path / "bomb.xml", bomb), format="mediawiki")
    with pytest.raises(DataError, match="not valid XML"):
        read_all(write(tmp_path / "cut.xml", dump[:-30]))
    assert rejects(batches) == []


def test_compression_bombs_stay_small(tmp_path: Path) -> None:
    zeros = b"\0" * 50_000_000
    for kind in PACK:
        write(tmp_path / f"a.jsonl.{kind}", PACK[kind](zeros) + PACK[kind](b'\n{"text": "end"}\n'))
        batches = read_all(tmp_path / f"a.jsonl.{kind}")
        assert records(batches) == ["end"]
        assert places(batches) == [(2, 50_000_001)]


def test_names_that_are_not_utf8_can_be_reported(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jsonl")
    write(Path(path), "broken\n" + LINES.decode())
    batches = read_all(str(tmp_path))
    assert batches[0].file.endswith("\\xff.jsonl")
    assert batches[0].rejects[0].file.encode()


@pytest.mark.parametrize("mark", ["<ref>", "{{", "[[", "<!--", "[http://", "'", "{|\n", "=", "=\n", "* "])
def test_hostile_wikitext_takes_linear_time(mark: str) -> None:
    import time

    from llmkit.data.readers.mediawiki import plain_text

    start = time.process_time()
    plain_text(mark * 100_000 + "x")
    assert time.process_time() - start < 3


@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip", "a.warc", "a.xml", "a.html"])
def test_stopping_in_other_formats_loses_nothing(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.tar.gz":
        make_tar(path, [(f"{i}.jsonl", b'{"text": "a"}\n{"text": "bbbbbbb"}\nbad\n' * 5) for i in range(4)])
    elif name == "a.zip":
        with zipfile.ZipFile(path, "w") as file:
            for i in range(4):
                file.writestr(f"{i}.txt", f"text {i}")
    elif name == "a.warc":
        one = b"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n\r\ntext\r\n\r\n"
        write(path, one * 20)
    elif name == "a.xml":
        pages = "".join(f"<page><ns>0</ns><text>page {'x' * (i * i % 17)} {i}</text></page>" for i in range(20))
        write(path, f"<mediawiki>{pages}</mediawiki>")
    else:
        prose = "one two three four five six seven eight nine ten eleven twelve"
        for i in range(4):
            write(tmp_path / f"{i}.html", f"<html><p>{prose} {i}</p></html>")
        path = tmp_path
    assert_resumes(path, batch_bytes=40)


def test_parallel_resumes(tmp_path: Path) -> None:
    from tests.data.test_readers_text import PAIRS

    pair = {"source": str(tmp_path / "a.en"), "target": str(tmp_path / "a.zh.gz")}
    write(tmp_path / "a.en", "".join(f"line {i}\n" for i in range(30)))
    write(tmp_path / "a.zh.gz", gzip.compress("".join(f"第 {i} 行\n" for i in range(30)).encode()))
    section = SourceSection.model_validate({"path": pair})
    [source] = sources.resolve_sources([section], PAIRS, split="train")
    whole = list(reading.read(source, PAIRS, batch_bytes=50))
    assert len(whole) > 3
    for stop, batch in enumerate(whole):
        assert list(reading.read(source, PAIRS, resume=batch.resume, batch_bytes=50)) == whole[stop + 1 :]
