"""Word and sentence boundaries in English and Chinese, and the tokens of real tokenizer kinds that they make first or
last."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from llmkit.data.boundaries import sentence_breaks, sentence_ends, word_breaks, word_starts
from llmkit.data.tokenizer import BatchEncoder
from llmkit.data.tokenizer_train import train_tokenizer
from llmkit.recipe.sections import TokenizerTrain

ENGLISH = "Unbelievable things happened, didn't they? Mr. Smith paid 3.14 dollars - unbelievably cheap. The end."
CHINESE = "今天天气很好，我们去公园玩。“你好吗？”他说：好！"


def pieces(text: str, breaks: np.ndarray) -> list[str]:
    cuts = [0, *(i for i in range(1, len(text)) if breaks[i]), len(text)]
    return [text[a:b] for a, b in pairwise(cuts)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, world", ["Hello", ",", " world"]),
        ("don't stop-now", ["don't", " stop", "-", "now"]),
        ("今天天气很好，我们去公园玩", ["今天天气", "很", "好", "，", "我们", "去", "公园", "玩"]),
        ("用BERT模型 训练", ["用", "BERT", "模型", " 训练"]),
        ("a\n\n b", ["a", "\n\n b"]),
    ],
)
def test_words(text, expected):
    assert pieces(text, word_breaks(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two? Three!", ["One.", " Two?", " Three!"]),
        ("Mr. Smith met J. Doe at 3.14 in the U.S. today. Yes.", None),
        ('He said "Hi!" Then he left.', ['He said "Hi!"', " Then he left."]),
        (" = Title = \n The text . Goes on ... \n", [" = Title = \n", " The text .", " Goes on ... \n"]),
        ("今天很好。我们走吧！“好吗？”他说……完", ["今天很好。", "我们走吧！", "“好吗？”", "他说……", "完"]),
    ],
)
def test_sentences(text, expected):
    found = pieces(text, sentence_breaks(text))
    assert found == (expected or ["Mr. Smith met J. Doe at 3.14 in the U.S. today.", " Yes."])


@pytest.fixture(scope="module", params=["bpe", "wordpiece", "unigram"])
def encoder(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    spec = TokenizerTrain(algorithm=request.param, vocab_size=290 if request.param == "bpe" else 330)
    train_tokenizer(lambda: [ENGLISH, CHINESE] * 3, spec, directory)
    return BatchEncoder(directory)


def test_tokens_of_words_and_sentences(encoder):
    """Whatever the tokenizer, its tokens joined by our marks are the words and the sentences of the text."""
    for text in (ENGLISH, CHINESE):
        ids, places = encoder.encode_with_places([text])
        assert ids.values.tolist() == encoder.encode([text]).values.tolist()
        starts, ends = places[0].T
        marks = word_starts(text, starts, ends)
        assert marks.sum() < len(marks)
        begins = [int(starts[i]) for i in np.flatnonzero(marks)]
        spans = [text[a:b].strip() for a, b in zip(begins, [*begins[1:], len(text)], strict=True)]
        assert [word for word in spans if word] == [word.strip() for word in pieces(text, word_breaks(text))]
        last = np.flatnonzero(sentence_ends(text, starts))
        sentences = [text[a:b].strip() for a, b in zip([0, *ends[last[:-1]]], ends[last], strict=True)]
        assert sentences == [sentence.strip() for sentence in pieces(text, sentence_breaks(text))]


def test_parts_of_a_character_never_begin_a_word(encoder):
    text = "罕见字𠮷野家"
    _, places = encoder.encode_with_places([text])
    starts, ends = places[0].T
    marks = word_starts(text, starts, ends)
    assert not any(marks[i] and starts[i] == starts[i - 1] for i in range(1, len(marks)))
    assert marks[0] == 1 and sentence_ends(text, starts)[-1] == 1
