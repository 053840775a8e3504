"""Encoder-decoders: a completion depends on its source alone, equals transformers' own, and streams."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
)

from llmkit.errors import DataError
from llmkit.generate.chat import chat
from llmkit.generate.prompts import prompt_encoder
from llmkit.writing.engine import Prompt, TransformersEngine
from llmkit.writing.stopping import decode
from tests.generate.conftest import engine_of
from tests.generate.test_engines import SETTINGS, TEXTS

EOS, PAD = 0, 1


def make_seq2seq(kind: str, vocab_size: int) -> PreTrainedModel:
    """Two layers with wide logits, so that rounding turns no choice."""
    torch.manual_seed(5)
    ids = {"eos_token_id": EOS, "pad_token_id": PAD, "decoder_start_token_id": 7}
    if kind == "t5":
        config = T5Config(
            vocab_size=vocab_size,
            d_model=32,
            d_ff=64,
            d_kv=16,
            num_layers=2,
            num_heads=2,
            tie_word_embeddings=False,
            **ids,
        )
        model: PreTrainedModel = T5ForConditionalGeneration(config)
    else:
        sides = {f"{side}_{name}": value for side in ("encoder", "decoder")
                 for name, value in (("layers", 2), ("ffn_dim", 64), ("attention_heads", 2))}  # fmt: skip
        config = BartConfig(
            vocab_size=vocab_size, d_model=32, max_position_embeddings=40, forced_eos_token_id=None, **sides, **ids
        )
        model = BartForConditionalGeneration(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    return model.double().eval()


@pytest.fixture(scope="module", params=["t5", "bart"])
def model(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return make_seq2seq(request.param, len(tokenizer))


def sources(tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    return [Prompt((*tokenizer(text)["input_ids"], EOS), row, text) for row, text in enumerate(TEXTS)]


@pytest.mark.parametrize("name", SETTINGS)
def test_result_does_not_depend_on_the_batch(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompts = sources(tokenizer)
    together = engine_of(model, tokenizer, batch_size=16, **SETTINGS[name]).generate(prompts)
    alone = [c for p in prompts for c in engine_of(model, tokenizer, batch_size=1, **SETTINGS[name]).generate([p])]
    assert together == alone
    assert len({c.text for c in together}) > 2


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3, "length_penalty": 0.6}, {"repetition_penalty": 1.4}])
def test_it_equals_transformers(
    settings: dict[str, float], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    engine = engine_of(model, tokenizer, **settings)
    for prompt in sources(tokenizer):
        config = GenerationConfig(
            max_new_tokens=12, eos_token_id=EOS, pad_token_id=PAD, decoder_start_token_id=7, **settings
        )
        ids = torch.tensor([prompt.ids])
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[0, 1:]  # type: ignore[operator]
        found = engine.generate([prompt])[0]
        assert found.text == decode(tokenizer, expected.tolist())
        assert found.prompt_tokens == len(prompt.ids)
        assert found.completion_tokens == len(expected)


def test_limits_are_each_side_s_own(tokenizer: PreTrainedTokenizerBase) -> None:
    bart = engine_of(make_seq2seq("bart", len(tokenizer)), tokenizer, max_new_tokens=100)
    assert bart.allowance(Prompt((5,) * 40, 0, "p")) == 39, "the decoder's 40 positions less its start"
    with pytest.raises(DataError, match="p has 41 tokens, and the model reads at most 40; shorten it"):
        bart.allowance(Prompt((5,) * 41, 0, "p"))
    t5 = engine_of(make_seq2seq("t5", len(tokenizer)), tokenizer, max_new_tokens=100)
    assert t5.allowance(Prompt((5,) * 500, 0, "p")) == 100


def test_lines_are_answered_and_streamed(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    engine: TransformersEngine = engine_of(model, tokenizer)
    encode = prompt_encoder(tokenizer, None, "translation", lambda text: [*tokenizer(text)["input_ids"], EOS])
    lines = iter(["今天天气", "the"])
    written: list[str] = []
    notes: list[str] = []
    answered = chat(
        engine, encode, history=False, read_line=lambda: next(lines, None), write=written.append, note=notes.append
    )
    assert answered == 2
    prompts = [p for p in sources(tokenizer) if p.name in ("今天天气", "the")][::-1]
    assert "".join(written) == "".join(c.text + "\n" for c in engine.generate(prompts))
