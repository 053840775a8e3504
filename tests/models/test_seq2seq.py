"""An encoder-decoder as a TaskModule: label smoothing in training alone, and where its decoder begins."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import BartConfig, BartForConditionalGeneration, MBartConfig, MBartForConditionalGeneration

from llmkit.models.seq2seq import Seq2SeqModule, decoder_start

SMALL = {"vocab_size": 50, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16}
SMALL |= {"decoder_ffn_dim": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "dropout": 0.0}


def batch() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(3, 50, (3, 6), generator=draw)
    labels[1, 4:] = -100
    ids = torch.randint(3, 50, (3, 5), generator=draw)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def test_label_smoothing_is_for_training_alone() -> None:
    module = Seq2SeqModule(BartForConditionalGeneration(BartConfig(**SMALL)), label_smoothing=0.1).double()
    given = batch()
    logits, labels = module.inner()(**given).logits.flatten(0, 1), given["labels"].flatten()
    log_p = logits.log_softmax(-1)[labels >= 0]
    nll = -log_p.gather(1, labels[labels >= 0, None]).sum()
    smoothed = 0.9 * nll - 0.1 * log_p.mean(-1).sum()
    assert module.train()(given)["loss"].item() == pytest.approx(smoothed.item(), abs=1e-9)
    assert module.eval()(given)["loss"].item() == pytest.approx(nll.item(), abs=1e-9)
    losses, _ = module.score(given)
    assert losses.sum().item() == pytest.approx(nll.item(), abs=1e-9)
    assert nll.item() == pytest.approx(F.cross_entropy(logits, labels, reduction="sum").item(), abs=1e-9)


def test_where_a_decoder_begins() -> None:
    """As its config says, or, for mBART, which turns its labels round, at the end of sequence."""
    bart = BartForConditionalGeneration(BartConfig(**SMALL, decoder_start_token_id=7))
    assert decoder_start(bart, 2) == 7
    mbart = MBartForConditionalGeneration(MBartConfig(**SMALL, pad_token_id=1, decoder_start_token_id=7))
    assert decoder_start(mbart, 2) == 2
