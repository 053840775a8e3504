"""Made data in the place of what the shipped recipes read, and small networks in the place of those they name."""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.fakes import byte_tokenizer, tiny_model, wordpiece_tokenizer

ROWS = 48
EN = [
    "the",
    "old",
    "man",
    "in",
    "a",
    "red",
    "hat",
    "walks",
    "his",
    "small",
    "dog",
    "along",
    "the",
    "quiet",
    "river",
    "and",
    "sees",
    "two",
    "boats",
    "near",
    "the",
    "town",
]
ZH = "今天天气很好我们去公园玩昨天下雨了他在家看书酒店服务不错位置方便早餐一般价格便宜"
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
SIDES = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
         "encoder_attention_heads": 2, "decoder_attention_heads": 2}  # fmt: skip
SHRUNK: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "llama": {**SMALL, "num_key_value_heads": 1},
    "qwen2": {**SMALL, "num_key_value_heads": 1},
    "bert": SMALL,
    "modernbert": SMALL,
    "electra": {**SMALL, "embedding_size": 16},
    "t5": {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2},
    "bart": {"d_model": 32, **SIDES},
    "rnn_lm": {"hidden_size": 16},
    "rnn_encoder": {"hidden_size": 16},
    "rnn_seq2seq": {"hidden_size": 16},
    "text_cnn": {"hidden_size": 16, "num_filters": 4},
}
"""Keys of the recipes' own configurations, of a few thousand parameters."""


def english(draw: random.Random, words: int = 12) -> str:
    return " ".join(draw.choices(EN, k=words))


def chinese(draw: random.Random, characters: int = 16) -> str:
    return "".join(draw.choices(ZH, k=characters))


def _write(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{line}\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


Row = Callable[[random.Random, int], Any]


def _jsonl(row: Row) -> Callable[[Path, random.Random], None]:
    def write(path: Path, draw: random.Random) -> None:
        _write(path, (json.dumps(row(draw, i), ensure_ascii=False) for i in range(ROWS)))

    return write


def _lines(row: Row, head: str | None = None) -> Callable[[Path, random.Random], None]:
    def write(path: Path, draw: random.Random) -> None:
        _write(path, ([] if head is None else [head]) + [row(draw, i) for i in range(ROWS)])

    return write


def _turns(draw: random.Random) -> list[dict[str, str]]:
    return [{"role": "user", "content": english(draw)}, {"role": "assistant", "content": english(draw)}]


def _question(text: Callable[[random.Random], str]) -> Row:
    def row(draw: random.Random, i: int) -> dict[str, Any]:
        context = text(draw)
        answers = {"text": [context[4:9]], "answer_start": [4]}
        return {"id": str(i), "title": "t", "context": context, "question": text(draw), "answers": answers}

    return row


def _tagged(separator: str, tokens: list[str], tags: list[str]) -> Row:
    return lambda draw, i: "\n".join(f"{t}{separator}{g}" for t, g in zip(tokens, tags, strict=True)) + "\n"


def _topics(path: Path, draw: random.Random) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "topics"])
        writer.writerows(
            [english(draw), ",".join(draw.sample(["art", "law", "sea"], draw.randint(1, 2)))] for _ in range(ROWS)
        )


def _pages(path: Path, draw: random.Random) -> None:
    _write(
        path,
        (f" = Page {i} = \n\n {english(draw, 8)} . {english(draw, 8)} . {english(draw, 8)} . \n" for i in range(ROWS)),
    )


ALPACA = _jsonl(lambda draw, i: {"instruction": english(draw), "input": "", "output": english(draw), "text": "unused"})
TEXTS = _jsonl(lambda draw, i: {"id": str(i), "title": "t", "text": f"{english(draw, 40)}. {english(draw, 30)}."})
TEXTS_ZH = _jsonl(lambda draw, i: {"id": str(i), "title": "t", "text": f"{chinese(draw, 70)}。{chinese(draw, 40)}。"})
WRITERS: dict[str, Callable[[Path, random.Random], None]] = {
    "stanfordnlp/imdb": _jsonl(lambda draw, i: {"text": english(draw), "label": i % 2}),
    "trl-lib/ultrafeedback_binarized": _jsonl(
        lambda draw, i: {"chosen": (turns := _turns(draw)), "rejected": [turns[0], _turns(draw)[1]]}
    ),
    "tatsu-lab/alpaca": ALPACA,
    "shibing624/alpaca-zh": _jsonl(
        lambda draw, i: {"instruction": chinese(draw), "input": "", "output": chinese(draw)}
    ),
    "rajpurkar/squad": _jsonl(_question(lambda draw: english(draw, 20))),
    "hfl/cmrc2018": _jsonl(_question(chinese)),
    "sentence-transformers/stsb": _jsonl(
        lambda draw, i: {"sentence1": english(draw), "sentence2": english(draw), "score": round(draw.random(), 3)}
    ),
    "knkarthick/dialogsum": _jsonl(
        lambda draw, i: {"id": str(i), "dialogue": f"#Person1#: {english(draw)}.\n#Person2#: {english(draw)}.",
                         "summary": english(draw, 6), "topic": "t"}
    ),
    "bentrevett/multi30k": _jsonl(lambda draw, i: {"en": english(draw), "de": english(draw)}),
    "20231101.en": TEXTS,
    "20231101.zh": TEXTS_ZH,
    "data/chats.jsonl": _jsonl(lambda draw, i: {"messages": _turns(draw)}),
    "rated.jsonl": _jsonl(lambda draw, i: {"prompt": chinese(draw), "completion": chinese(draw), "label": bool(i % 2)}),
    "data/wnut17": _lines(
        _tagged("\t", ["ann", "sat", "in", "new", "york"], ["B-person", "O", "O", "B-location", "I-location"])
    ),
    "data/resume_ner_zh": _lines(_tagged(" ", list("王明住北京"), ["B-NAME", "E-NAME", "O", "B-LOC", "E-LOC"])),
    "data/chnsenticorp": _lines(lambda draw, i: f"{i % 2}\t{chinese(draw)}", "label\ttext_a"),
    "data/sst2": _lines(lambda draw, i: f"{english(draw)}\t{i % 2}"),
    "data/csl": _lines(lambda draw, i: f"to title\t{chinese(draw, 30)}\t{chinese(draw, 6)}"),
    "data/topics": _topics,
    "data/tatoeba": _lines(lambda draw, i: f"{english(draw)}\t{chinese(draw)}\tCC-BY"),
    "data/multi30k": _lines(lambda draw, i: english(draw)),
    "data/corpus-zh": TEXTS_ZH,
    "data/corpus": TEXTS,
    "wiki.txt": _pages,
    "honglou.txt": _lines(lambda draw, i: f"{chinese(draw, 60)}。\n"),
    "my_book.txt": _lines(lambda draw, i: f"{english(draw, 30)}.\n"),
}  # fmt: skip
"""By the beginning of a source's path, its Hub id, or its Hub configuration."""


def stand_in(source: Any, place: Path, draw: random.Random) -> dict[str, Any]:
    """Writes rows in the form that the recipe's source has; what `--set` must change in it."""
    if isinstance(source.path, str) and source.path.startswith("hf://"):
        write = WRITERS[source.name or source.path.removeprefix("hf://")]
        path = place / "hub" / f"{source.path.split('/')[-1]}-{source.name}-{source.split}.jsonl"
        write(path, draw)
        return {"path": str(path), "name": None, "split": None}
    paths = source.path if isinstance(source.path, str) else [source.path.source, source.path.target]
    for name in [paths] if isinstance(paths, str) else paths:
        write = next(write for beginning, write in WRITERS.items() if name.startswith(beginning))
        file = place / name.replace("*", "part")
        write(file if file.suffix else file / "part.jsonl", draw)
    return {}


def network(name: str, directory: Path) -> Path:
    """A directory with a small network of the family of a Hub model, and a tokenizer of its kind."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModel, AutoModelForSeq2SeqLM

    family = next(kind for kind in ("Qwen", "ModernBERT", "nllb", "bart", "t5", "bert", "MiniLM") if kind in name)
    if family == "nllb":
        from tests.tasks.test_languages import many_languages

        return many_languages(directory, ["eng_Latn", "zho_Hans"])
    special = ("<pad>", "<s>", "</s>", "[CLS]", "[SEP]", "[MASK]", "[UNK]")
    torch.manual_seed(0)
    if family == "Qwen":
        byte_tokenizer(directory, special=("<|endoftext|>",))
        tiny_model("qwen2", vocab_size=320).save_pretrained(directory)
        return directory
    if family in ("bert", "MiniLM"):
        wordpiece_tokenizer(directory)
        kind, config = "bert", SMALL
    elif family == "ModernBERT":
        names = {f"{name.lower()}_token": f"[{name}]" for name in ("CLS", "SEP", "MASK", "UNK")}
        byte_tokenizer(directory, special=special, pad_token="<pad>", **names)
        kind, config = "modernbert", {**SMALL, "pad_token_id": 256, "cls_token_id": 259, "sep_token_id": 260}
    else:
        byte_tokenizer(directory, special=special, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
        kind, config = (
            family,
            {**SHRUNK[family], "decoder_start_token_id": 256, "pad_token_id": 256, "eos_token_id": 258},
        )
    auto: Any = AutoModelForSeq2SeqLM if kind in ("bart", "t5") else AutoModel
    auto.from_config(CONFIG_MAPPING[kind](vocab_size=320, **config)).save_pretrained(directory)
    return directory
