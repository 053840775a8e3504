"""Every reader on real files, English and Chinese, with the row counts that the files' own documentation states."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llmkit.data.rolespecs import INSTRUCTION, TEXT, RoleSpec
from tests.data.test_readers_text import TAGS, read_all, records, rejects

DATA = Path(__file__).parents[2].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"the shared data is not at {DATA}")

LABELLED = RoleSpec(required=(("text", "label"),), optional=(), synonyms={"text": ("text_a", "review", "sentence")})
QUESTIONS = RoleSpec(required=(("question", "context", "answers"),), optional=("id",), synonyms={})
PAIRS = RoleSpec(required=(("source", "target"),), optional=(), synonyms={})
WORDS = {"text": {"columns": [0], "join": " "}}


@pytest.mark.parametrize(
    ("path", "roles", "used", "rejected", "keys"),
    [
        ("tinyshakespeare/input.txt", TEXT, 1, 0, {}),
        ("tinyshakespeare/input.txt", TEXT, 7222, 0, {"sample_by": "paragraph"}),
        ("wikitext-2/valid.txt", TEXT, 60, 0, {"document_start": r" = [^=].* = $"}),
        ("wikitext-2/test.txt", TEXT, 62, 0, {"document_start": r" = [^=].* = $"}),
        ("lm_samples/wiki_demo.txt", TEXT, 30, 0, {"sample_by": "line"}),
        ("lm_samples/c4_demo.jsonl", TEXT, 300, 0, {}),
        ("lm_zh/hongloumeng.txt", TEXT, 121, 0, {"document_start": "第.{1,6}回"}),
        ("sst2/train.tsv", LABELLED, 6920, 0, {"header": False, "columns": {"text": 0, "label": 1}}),
        ("chnsenticorp/train.tsv", LABELLED, 9600, 0, {}),
        ("waimai_10k/waimai_10k.csv", LABELLED, 11987, 0, {}),
        ("multi30k_en-de/train", PAIRS, 29000, 0, {}),
        (
            "tatoeba_en-zh/cmn.txt",
            PAIRS,
            22075,
            0,
            {"format": "tsv", "header": False, "columns": {"source": 0, "target": 1}},
        ),
        ("squad_subset/xquad.en.json", QUESTIONS, 1190, 0, {}),
        ("cmrc2018/cmrc2018_dev.json", QUESTIONS, 3219, 0, {}),
        ("wnut17/wnut17train.conll", TAGS, 3394, 0, {}),
        ("wnut17/emerging.test.annotated", TAGS, 1287, 0, {"format": "conll"}),
        ("wikigold/wikigold.conll.txt", TAGS, 1841 - 145, 0, {}),
        ("resume_ner_zh/train.char.bmes", TAGS, 3821, 0, {}),
        ("scitldr/train.jsonl", TEXT, 1992, 0, {"columns": {"text": "source"}}),
        ("csl_zh/ts_dev.tsv", PAIRS, 1000, 0, {"header": False, "columns": {"source": 1, "target": 2}}),
        ("alpaca/en", INSTRUCTION, 9401, 6, {}),
        ("alpaca/zh", INSTRUCTION, 9245, 6, {}),
        ("code_alpaca/code_alpaca_2k.json", INSTRUCTION, 2015, 2, {}),
        ("llamafactory_demo/glaive_toolcall_zh_demo.json", INSTRUCTION, 300, 0, {}),
        ("llamafactory_demo/glaive_toolcall_en_demo.json", INSTRUCTION, 300, 0, {}),
        ("llamafactory_demo/reason_tool_use_demo_50.jsonl", INSTRUCTION, 50, 0, {}),
        ("kdconv_zh", INSTRUCTION, 300, 0, {"message_keys": {"list": "messages", "content": "message"}}),
        ("self_instruct/seed_tasks.jsonl", INSTRUCTION, 175, 0, {"explode": "instances"}),
        ("t0_prompted", INSTRUCTION, 2000, 0, {}),
        ("gsm8k/train.jsonl", INSTRUCTION, 7473, 0, {}),
        ("gsm8k/test.parquet", TEXT, 1319, 0, {"columns": {"text": "prompt.1.content"}}),
        ("preference/hh_harmless_base_test_first1500.jsonl.gz", TEXT, 1500, 0, {"columns": {"text": "chosen"}}),
        ("crows_pairs/crows_pairs_anonymized.csv", TEXT, 1508, 0, {"columns": {"text": "sent_more"}}),
        ("hellaswag/hellaswag_val_full.txt.bz2", TEXT, 60252, 0, {"sample_by": "line"}),
        ("cmmlu/test", TEXT, 1247, 0, {"columns": {"text": "Question"}}),
        ("messy_web/mini_newsgroups.tar.gz", TEXT, 1994, 6, {}),
        ("messy_web/article_html/ground-truth.json", TEXT, 90, 0, {}),
        ("messy_web/cc_en_head", TEXT, 20, 0, {}),
        ("messy_web/dolma_documents/000.json.gz", TEXT, 10, 0, {}),
        ("messy_web/warc", TEXT, 41, 0, {}),
        ("messy_web/enwiki-pages-articles-shortened.xml.bz2", TEXT, 106, 0, {}),
    ],
)
def test_rows_of_real_files(path: str, roles: RoleSpec, used: int, rejected: int, keys: dict[str, Any]) -> None:
    place: Any = str(DATA / path)
    if roles is PAIRS and not keys:
        place = {"source": f"{place}.en.gz", "target": f"{place}.de.gz"}
    batches = read_all(place, roles, **keys)
    assert (sum(map(len, batches)), len(rejects(batches))) == (used, rejected)


def test_extracted_articles_are_close_to_the_truth() -> None:
    """Shared words of 90 real pages and their articles, extracted by hand."""
    truth = read_all(str(DATA / "messy_web/article_html/ground-truth.json"), columns={"text": "articleBody"})
    pages = read_all(str(DATA / "messy_web/article_html/html"))
    known = [Counter(one.split()) for one in records(truth)]
    scores = []
    for page in records(pages):
        words = Counter(page.split())
        scores.append(max(2 * (words & one).total() / (words.total() + one.total()) for one in known))
    assert len(scores) == 90
    assert sum(scores) / 90 > 0.88


def test_conversations_of_real_rows() -> None:
    [messages, *_] = records(
        read_all(
            str(DATA / "kdconv_zh/film_dev.json"), INSTRUCTION, message_keys={"list": "messages", "content": "message"}
        ),
        "messages",
    )
    assert messages[0] == {"role": "user", "content": "知道恋恋笔记本这部电影吗？"}
    calls = records(read_all(str(DATA / "llamafactory_demo/glaive_toolcall_zh_demo.json"), INSTRUCTION), "messages")
    assert calls[0][1]["tool_calls"][0]["function"]["name"] == "generate_invoice"
