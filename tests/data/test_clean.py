"""Cleaning steps on English and Chinese, dedup's memory on disk, and word counts."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from llmkit.data.clean.dedup import Seen
from llmkit.data.clean.html import strip_html
from llmkit.data.clean.steps import CLEANERS, build_cleaners
from llmkit.data.process import KEPT, clean_batch
from llmkit.data.records import RecordBatch
from llmkit.data.text import count_words, in_validation
from llmkit.errors import RecipeError
from llmkit.recipe.sections import (
    CleanStep,
    ExactDedup,
    FixUnicode,
    LanguageFilter,
    LengthFilter,
    Normalize,
    StripHtml,
)


def test_table_and_schema_name_the_same_steps() -> None:
    union = get_args(get_args(CleanStep)[0])
    assert {get_args(section.model_fields["step"].annotation)[0] for section in union} == set(CLEANERS)


def change(section: object, text: str) -> str:
    cleaner = build_cleaners([section])[0]  # type: ignore[list-item]
    assert cleaner.change is not None
    return cleaner.change(text)


def test_fix_unicode_mends_mojibake_and_leaves_chinese_alone() -> None:
    section = FixUnicode(step="fix_unicode")
    assert change(section, "schÃ¶n") == "schön"
    assert change(section, "你好，“世界”！１２３") == "你好，“世界”！１２３"


def test_normalize() -> None:
    assert change(Normalize(step="normalize"), "e\u0301  a\t b \r\n\n\n\n c  ") == "é a b\n\nc"
    assert change(Normalize(step="normalize", form="NFKC", whitespace=False), "Ａ  b") == "A  b"


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<p>Hello &amp; <b>world</b></p><script>x()</script><p>two<br>lines", "Hello & world\n\ntwo\nlines"),
        ("<style>p {}</style><ul><li>一</li><li>二</li></ul>", "一\n二"),
        ("<pre>a\n  b</pre>", "a\nb"),
        ("if a < b and c > d", "if a < b and c > d"),
        ("AT&amp;T", "AT&T"),
        ("<!-- only a comment -->", ""),
        ("<div>" * 3000 + "deep" + "</div>" * 3000, "deep"),
    ],
)
def test_strip_html(page: str, text: str) -> None:
    assert strip_html(page) == text


def test_length_counts_chinese_by_characters() -> None:
    reason = build_cleaners([LengthFilter(step="length", min_words=4)])[0].reason
    assert reason is not None
    assert reason("今天天气") is None
    assert reason("three words only") == "3 words, fewer than 4"


def test_language_knows_chinese() -> None:
    reason = build_cleaners([LanguageFilter(step="language", keep=["zh", "en"])])[0].reason
    assert reason is not None
    assert reason("今天天气很好，我们一起去公园散步，然后回家吃饭。") is None
    assert reason("This is an English sentence, quite long enough to be recognised.") is None
    assert reason("Das ist ein deutscher Satz, der lang genug ist, um erkannt zu werden.") == "language de"
    with pytest.raises(RecipeError, match="klingon"):
        build_cleaners([LanguageFilter(step="language", keep=["klingon"])])


def batch_of(**columns: list[object]) -> RecordBatch:
    count = len(next(iter(columns.values())))
    return RecordBatch(0, "f", dict(columns), list(range(1, count + 1)), [None] * count)


def test_steps_act_on_every_text_of_a_conversation() -> None:
    messages = [{"role": "user", "content": "caf\u0065\u0301"}, {"role": "assistant", "content": "  yes "}]
    batch = batch_of(messages=[messages, [{"role": "assistant", "content": "<!-- gone -->"}]], tools=[None, None])
    done = clean_batch(
        batch, build_cleaners([Normalize(step="normalize"), StripHtml(step="strip_html")]), ("messages",)
    )
    assert [m["content"] for m in batch.columns["messages"][0]] == ["café", "yes"]
    assert done.dropped.tolist() == [KEPT, 1]
    assert done.reasons[1] == "strip_html: nothing is left of the text"
    assert messages[1]["content"] == "  yes "  # the caller's row is left alone


def test_counts_a_step() -> None:
    batch = batch_of(text=["one two", "x", "三个字"])
    done = clean_batch(
        batch, build_cleaners([LengthFilter(step="length", min_words=2), ExactDedup(step="exact_dedup")]), ("text",)
    )
    assert done.dropped.tolist() == [KEPT, 0, KEPT]
    assert done.sizes[0].tolist() == [7, 1, 9]
    assert done.dedup[1][1] is None
    assert done.dedup[1][0] is not None


def test_dedup_forgets_what_came_after_the_last_checkpoint(tmp_path: Path) -> None:
    seen = Seen(tmp_path / "seen.sqlite", 1)
    assert seen.add(0, [b"a", b"b", b"a"], 0) == [True, True, False]
    seen.commit()
    assert seen.add(0, [b"c"], 1) == [True]
    seen.commit()
    seen.close()
    again = Seen(tmp_path / "seen.sqlite", 1)
    again.rewind(1)
    assert again.add(0, [b"a", b"c"], 1) == [False, True]
    again.close()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hello world  x", 3),
        ("你好，世界 hello世界", 7),
        ("", 0),
        (" a ", 1),
        ("　　“满纸荒唐言”", 5),
        ("naïve café", 2),
        ("カタ", 2),
    ],
)
def test_words(text: str, words: int) -> None:
    assert count_words([text])[0].tolist() == [words]
    assert count_words(["a b", text, "中", text])[0].tolist() == [2, words, 1, words]


def test_held_out_share_is_near_its_fraction() -> None:
    held = sum(in_validation(i.to_bytes(16, "big"), 0.25) for i in range(4000))
    assert 900 < held < 1100
