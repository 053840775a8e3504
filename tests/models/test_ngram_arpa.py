"""The ARPA file, read by a reader of its own that knows the format only, gives the model's probabilities."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import pytest

from llmkit.models.ngram_arpa import escape, vocabulary, write_arpa
from tests.models.test_ngram import costs, fit, model_of, random_rows
from tests.models.toy_corpus import END, SCORED, START, TRAINING, UNKNOWN, VOCABULARY


class Arpa:
    """p(word | context) as KenLM reads it: the longest n-gram there is, and the backoffs of the contexts above it."""

    def __init__(self, path: Path) -> None:
        self.log10: dict[tuple[str, ...], float] = {}
        self.backoff: dict[tuple[str, ...], float] = {}
        promised: dict[int, int] = {}
        section, ended = 0, False
        for line in gzip.decompress(path.read_bytes()).decode().split("\n"):
            if line.startswith("ngram "):
                n, size = line.removeprefix("ngram ").split("=")
                promised[int(n)] = int(size)
            elif line.endswith("-grams:"):
                section = int(line[1:].split("-")[0])
            elif line == "\\end\\":
                ended = True
            elif "\t" in line:
                log10, words, *rest = line.split("\t")
                gram = tuple(words.split(" "))
                assert len(gram) == section and gram not in self.log10 and float(log10) <= 0
                self.log10[gram] = float(log10)
                self.backoff[gram] = float(rest[0]) if rest else 0.0
        assert ended
        assert promised == {n: sum(len(gram) == n for gram in self.log10) for n in promised}
        self.order = max(promised)

    def cost(self, context: list[str], word: str) -> float:
        """-log p, natural."""
        history = tuple(context[max(0, len(context) - self.order + 1) :])
        paid = 0.0
        while (*history, word) not in self.log10:
            paid += self.backoff.get(history, 0.0)
            history = history[1:]
        return -(paid + self.log10[(*history, word)]) * math.log(10)


@pytest.mark.parametrize("prune", [(), (0, 1)])
def test_the_file_gives_the_models_probabilities(prune: tuple[int, ...], tmp_path: Path) -> None:
    model = model_of(fit(TRAINING, 4, len(VOCABULARY), tmp_path / "w", prune=prune), len(VOCABULARY))
    words = vocabulary(VOCABULARY, START, END, UNKNOWN)
    write_arpa(tmp_path / "a.arpa.gz", model.table, 4, words, START, END)
    arpa = Arpa(tmp_path / "a.arpa.gz")
    assert arpa.log10["<s>",] < -90
    for row in SCORED:
        names = [words[i] for i in row]
        expected = [arpa.cost(names[:i], names[i]) for i in range(1, len(row))]
        assert costs(model, row) == pytest.approx(expected, abs=2e-6)
    write_arpa(tmp_path / "b.arpa.gz", model.table, 4, words, START, END)
    assert (tmp_path / "a.arpa.gz").read_bytes() == (tmp_path / "b.arpa.gz").read_bytes()


@pytest.mark.parametrize("order", [1, 3])
def test_one_token_that_begins_and_ends_documents_is_two_words(order: int, tmp_path: Path) -> None:
    rows = random_rows(80, 20, 5, 1, 1)
    model = model_of(fit(rows, order, 24, tmp_path / "w", start=1, end=1), 24)
    words = vocabulary([f"t{i}" for i in range(24)], 1, 1, None)
    write_arpa(tmp_path / "a.arpa.gz", model.table, order, words, 1, 1)
    arpa = Arpa(tmp_path / "a.arpa.gz")
    assert not any("</s>" in gram[:-1] or "<s>" in gram[1:] for gram in arpa.log10)
    for row in random_rows(20, 20, 6, 1, 1):
        names = ["<s>", *(words[i] for i in row[1:])]
        expected = [arpa.cost(names[:i], names[i]) for i in range(1, len(row))]
        assert costs(model, row) == pytest.approx(expected, abs=2e-6)


def test_tokens_are_single_words() -> None:
    tokens = [
        "",
        " ",
        "\n",
        "a b",
        "\\",
        "\\u0020",
        "<s>",
        "</s>",
        "<unk>",
        "\u3000",
        "Ġthe",
        "中文",
        "\ud800",
        "\x85",
        "\\e",
    ]
    escaped = [escape(token) for token in tokens]
    assert len(set(escaped)) == len(tokens)
    assert all(word and len(word.split()) == 1 and word.encode() for word in escaped)
    assert not {"<s>", "</s>", "<unk>"} & set(escaped)
    assert escape("Ġthe") == "Ġthe" and escape("中文") == "中文" and escape(" ") == "\\u0020"
