"""Source and target as tokens: framed as the model's own tokenizer frames them, cut where they are too long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer

from llmkit.data.records import RecordBatch
from llmkit.data.rolespecs import PAIRS
from llmkit.errors import DataError
from llmkit.models.source import ENCODER_DECODERS, is_encoder_decoder
from llmkit.recipe.sections import ModelSection
from llmkit.tasks.pair_encoder import PairEncoder, read_frame
from tests.data.test_readers_text import read_all, records, write
from tests.fakes import byte_tokenizer

SPECIAL = ("<s>", "</s>", "<pad>")
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
STYLES = {"t5": "$A </s>", "bart": "<s> $A </s>", "trained": "<s> $A"}


def tokenizer_dir(tmp_path: Path, style: str) -> Path:
    """A byte-level tokenizer that puts special tokens around a text as `style` does."""
    directory = byte_tokenizer(tmp_path / style, special=SPECIAL, **NAMES)
    core = Tokenizer.from_file(str(directory / "tokenizer.json"))
    ids = [(token, core.token_to_id(token)) for token in SPECIAL]
    core.post_processor = processors.TemplateProcessing(single=STYLES[style], special_tokens=ids)
    core.save(str(directory / "tokenizer.json"))
    return directory


def encoder(directory: Path, **fields: Any) -> PairEncoder:
    settings: dict[str, Any] = {
        "source_prefix": "", "max_length": 40, "overflow": "truncate", "is_encoder_decoder": True,
    }  # fmt: skip
    return PairEncoder(directory, **{**settings, **fields})


def batch(*pairs: tuple[str, Any]) -> RecordBatch:
    columns = {"source": [source for source, _ in pairs], "target": [target for _, target in pairs]}
    return RecordBatch(0, "a.jsonl", columns, list(range(1, len(pairs) + 1)), [None] * len(pairs))


def rows(encoded: Any, name: str) -> list[list[int]]:
    stream = encoded.streams[name]
    return [part.tolist() for part in np.split(stream.values, np.cumsum(stream.lengths)[:-1])]


@pytest.mark.parametrize("style", STYLES)
def test_both_sides_are_framed_as_the_tokenizer_does(style: str, tmp_path: Path) -> None:
    directory = tokenizer_dir(tmp_path, style)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    end = [] if style != "trained" else [tokenizer.eos_token_id]
    made = encoder(directory, source_prefix="zh: ")
    encoded = made.encode(batch(("a b", "今天"), ("</s>", "x")))
    assert rows(encoded, "input_ids")[0] == tokenizer("zh: a b").input_ids + end == made.encode_prompt("a b")
    assert rows(encoded, "labels") == [tokenizer(text).input_ids + end for text in ("今天", "x")]
    assert len(rows(encoded, "input_ids")[1]) > len(tokenizer("zh: ").input_ids) + 3, "a text may spell an end"
    assert encoded.fields == {"source": ["a b", "</s>"], "references": [["今天"], ["x"]]}
    assert encoded.streams["labels"].values.dtype == np.int32


def test_an_end_of_sequence_that_begins_texts_is_left_out(tmp_path: Path) -> None:
    directory = byte_tokenizer(tmp_path / "one", special=("<e>",), bos_token="<e>", eos_token="<e>")
    core = Tokenizer.from_file(str(directory / "tokenizer.json"))
    core.post_processor = processors.TemplateProcessing(single="<e> $A", special_tokens=[("<e>", 256)])
    core.save(str(directory / "tokenizer.json"))
    assert (read_frame(directory).prefix, read_frame(directory).suffix) == ((), (256,))


def test_overflow_of_an_encoder_decoder(tmp_path: Path) -> None:
    directory = tokenizer_dir(tmp_path, "bart")
    end = AutoTokenizer.from_pretrained(directory).eos_token_id
    pairs = batch(("s" * 30, "t"), ("s", "t" * 30), ("s", "t"))
    encoded = encoder(directory, max_length=10).encode(pairs)
    sources, targets = rows(encoded, "input_ids"), rows(encoded, "labels")
    assert encoded.truncated == 2
    assert len(sources[0]) == 10 and sources[0][-1] == end, "a cut source keeps its end"
    assert len(targets[1]) == 10 and targets[1][-1] != end, "the end of a target that is cut is not taught"
    dropped = encoder(directory, max_length=10, overflow="drop").encode(pairs)
    assert dropped.rows.tolist() == [2]
    assert "30 source tokens are more than max_length 10" in dropped.rejected[0][1]
    assert "30 target tokens" in dropped.rejected[1][1]
    with pytest.raises(DataError, match=r"a.jsonl:1.*30 source tokens.*data.overflow"):
        encoder(directory, max_length=10, overflow="error").encode(pairs)


def test_one_sequence_for_decoder_only_models(tmp_path: Path) -> None:
    directory = tokenizer_dir(tmp_path, "bart")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    made = encoder(directory, is_encoder_decoder=False, source_prefix="zh: ")
    encoded = made.encode(batch(("ab", "今"), ("s" * 90, "t" * 90)))
    sequence, mask = rows(encoded, "input_ids")[0], rows(encoded, "loss_mask")[0]
    assert tokenizer.decode(sequence) == "<s>zh: ab</s>今</s>"
    assert tokenizer.decode([i for i, m in zip(sequence, mask, strict=True) if m]) == "今</s>"
    assert made.encode_prompt("ab") == sequence[: mask.index(1)]
    long, mask = rows(encoded, "input_ids")[1], rows(encoded, "loss_mask")[1]
    assert (len(long), sum(mask)) == (40, 10), "a source takes three quarters at most, so that a target has room"
    assert encoded.truncated == 1


def test_several_columns_are_references(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "en,de,de2,de3\nHi,Hallo,Tag,\n")
    batches = read_all(path, PAIRS, columns={"source": "en", "target": ["de", "de2", "de3"]})
    assert records(batches, "target") == [["Hallo", "Tag", ""]]
    encoded = encoder(tokenizer_dir(tmp_path, "t5")).encode(batch(("Hi", ["Hallo", "Tag", ""])))
    assert encoded.fields["references"] == [["Hallo", "Tag"]]
    joined = read_all(path, PAIRS, columns={"source": "en", "target": {"columns": ["de", "de2"], "join": " "}})
    assert records(joined, "target") == ["Hallo Tag"]


def test_targets_that_are_none_are_rejected(tmp_path: Path) -> None:
    made = encoder(tokenizer_dir(tmp_path, "t5")).encode(batch(("a", ""), ("b", [" "]), ("c", {"de": "x"}), ("d", "y")))
    assert made.rejected == [(0, "target is empty"), (1, "target is empty"), (2, "target is not text")]
    assert made.rows.tolist() == [3]


def test_the_architectures_are_those_of_transformers() -> None:
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES as NAMES

    theirs = {name for name in NAMES if getattr(CONFIG_MAPPING[name], "is_encoder_decoder", False)}
    speech = {name for name in theirs if name.startswith("seamless")}
    assert theirs - speech <= ENCODER_DECODERS
    assert not {name for name in ENCODER_DECODERS if not getattr(CONFIG_MAPPING[name], "is_encoder_decoder", False)}
    assert is_encoder_decoder(ModelSection(config={"model_type": "t5"}))
    assert not is_encoder_decoder(ModelSection(config={"model_type": "gpt2"}))
    assert not is_encoder_decoder(ModelSection(config={"model_type": "none such"}))
