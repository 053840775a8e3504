"""Models of many languages: both sides marked as their own tokenizers mark them, and the target's mark forced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    M2M100Config,
    M2M100ForConditionalGeneration,
    NllbTokenizer,
)

from llmkit.data.prepared import open_prepared
from llmkit.models.seq2seq import Seq2SeqModule
from tests.e2e.conftest import Place
from tests.tasks.seq2seq_toy import NUMERALS, jsonl, make_place

LANGUAGES = ["eng_Latn", "zho_Hans", "deu_Latn"]


def many_languages(directory: Path, languages: list[str] = LANGUAGES) -> Path:
    """A tiny network as NLLB's: its architecture, and a tokenizer that marks languages."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *"0123456789", *NUMERALS, "。"]
    tokenizer = NllbTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], additional_special_tokens=languages
    )
    config = M2M100Config(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=64,
        decoder_ffn_dim=64, encoder_attention_heads=2, decoder_attention_heads=2, dropout=0.0, attention_dropout=0.0,
        encoder_layerdrop=0.0, decoder_layerdrop=0.0, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = M2M100ForConditionalGeneration(config)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    base = many_languages(tmp_path / "base")
    task = {"type": "translation", "src_lang": "deu_Latn", "tgt_lang": "zho_Hans"}
    return make_place(tmp_path, "bart", task=task, model={"name_or_path": str(base)}, tokenizer={})


def test_rows_are_marked_as_the_tokenizer_marks_them(place: Place) -> None:
    ended = place.run("finetune", sets={"training.max_steps": 20})
    assert ended.status == 0, ended.err
    reference: Any = NllbTokenizer.from_pretrained(place.directory / "base", src_lang="deu_Latn", tgt_lang="zho_Hans")
    model_dir = place.directory / "run/model"
    exported = AutoTokenizer.from_pretrained(model_dir)
    split = open_prepared(next((place.directory / "run/prepared").glob("*/manifest.json")).parent).splits["test"]
    for i, row in enumerate(jsonl(place.directory / "test.jsonl")):
        target = row["target"] if isinstance(row["target"], str) else row["target"][0]
        wanted = reference(row["source"], text_target=target)
        assert split.row(i).tolist() == wanted["input_ids"]
        assert split.row(i, "labels").tolist() == wanted["labels"]
        assert exported(row["source"])["input_ids"] == wanted["input_ids"]
    model = AutoModelForSeq2SeqLM.from_pretrained(model_dir)
    both = exported("3 1 4", text_target="三一四", return_tensors="pt")
    with torch.no_grad():
        own = Seq2SeqModule(model)({name: both[name] for name in ("input_ids", "attention_mask", "labels")})["loss"]
        assert own == pytest.approx(model(**both).loss.item() * both["labels"].numel(), rel=1e-5)
    mark = reference.convert_tokens_to_ids("zho_Hans")
    assert model.generation_config.forced_bos_token_id == mark
    written = model.generate(**exported("3 1 4", return_tensors="pt"), max_new_tokens=10, num_beams=2)
    assert written[0, 1] == mark
    ended = place.run("generate", "recipe.yaml", "--prompt", "3 1 4")
    assert ended.status == 0, ended.err
    assert ended.out.strip() == exported.decode(written[0], skip_special_tokens=True).strip()


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({}, "name those of source and target in task.src_lang and task.tgt_lang"),
        ({"src_lang": "deu_Latn"}, "name it too"),
        ({"src_lang": "deu_Latn", "tgt_lang": "zho_Hant"}, "did you mean zho_Hans?"),
    ],
)
def test_languages_that_are_missing_or_unknown(place: Place, task: dict[str, str], said: str) -> None:
    sets = {"task": {"type": "translation", **task}}
    ended = place.run("preprocess", sets=sets)
    assert ended.status == 2, ended.err
    assert said in ended.err


def test_a_tokenizer_without_marks_refuses_languages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = make_place(tmp_path, "bart", task={"type": "translation", "src_lang": "deu_Latn", "tgt_lang": "zho_Hans"})
    ended = place.run("preprocess")
    assert ended.status == 2, ended.err
    assert "marks no languages" in ended.err
