"""A completion depends on its prompt, row and sample alone, and ends where it should."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from llmkit.errors import DataError, ModelError
from llmkit.writing import engine as engine_module
from llmkit.writing.engine import Completion, Prompt, TransformersEngine, stop_ids
from llmkit.writing.stopping import decode
from tests.generate.conftest import engine_of, make_model, prompts_of

TEXTS = ("the", "def add(a, b):\n    return", "今天天气", "fox jumps over", "a", "lazy dog lazy dog")

SETTINGS: dict[str, dict[str, object]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 1.3, "top_k": 40, "top_p": 0.9},
    "samples": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.7, "early_stopping": True},
    "beam sampling": {"num_beams": 2, "do_sample": True, "num_return_sequences": 2},
    "penalties": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 1},
    "stop strings": {"stop_strings": ["e", "好"], "max_new_tokens": 20},
    "minimum": {"min_new_tokens": 5},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_result_does_not_depend_on_the_batch(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompts = prompts_of(tokenizer, *TEXTS)
    together = engine_of(model, tokenizer, batch_size=16, **SETTINGS[name]).generate(prompts)
    alone = [c for p in prompts for c in engine_of(model, tokenizer, batch_size=1, **SETTINGS[name]).generate([p])]
    backwards = engine_of(model, tokenizer, batch_size=4, **SETTINGS[name]).generate(prompts[::-1])
    assert together == alone
    assert sorted(backwards, key=lambda c: (c.row, c.sample)) == together
    assert len({c.text for c in together}) > 3


def test_greedy_equals_transformers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    engine = engine_of(model, tokenizer)
    for prompt in prompts_of(tokenizer, *TEXTS):
        expected = model.generate(  # type: ignore[operator]
            torch.tensor([prompt.ids]), generation_config=GenerationConfig(max_new_tokens=12, do_sample=False)
        )[0, len(prompt.ids) :].tolist()
        found = engine.generate([prompt])[0]
        assert found.text == decode(tokenizer, expected)
        assert found.prompt_tokens == len(prompt.ids)
        assert found.completion_tokens == len(expected)


def test_samples_differ_and_follow_the_seed(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    prompts = prompts_of(tokenizer, "the", "the")
    settings = {"do_sample": True, "num_return_sequences": 2}
    first = engine_of(model, tokenizer, **settings).generate(prompts)
    assert len({c.text for c in first}) == 4
    assert [(c.row, c.sample) for c in first] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert engine_of(model, tokenizer, **settings).generate(prompts) == first
    assert engine_of(model, tokenizer, seed=8, **settings).generate(prompts) != first


def test_global_random_state_is_untouched(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for name in ("sampling", "beam sampling"):
        engine_of(model, tokenizer, **SETTINGS[name]).generate(prompts_of(tokenizer, "the"))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_models_own_generation_config_does_not_leak_in(tokenizer: PreTrainedTokenizerBase) -> None:
    plain, with_defaults = make_model("gpt2", len(tokenizer)), make_model("gpt2", len(tokenizer))
    with_defaults.generation_config = GenerationConfig(
        do_sample=True, temperature=3.0, repetition_penalty=5.0, eos_token_id=[0], pad_token_id=1
    )
    prompts = prompts_of(tokenizer, *TEXTS)
    expected = engine_of(plain, tokenizer).generate(prompts)
    assert engine_of(with_defaults, tokenizer).generate(prompts) == expected


def forced(tokenizer: PreTrainedTokenizerBase, *ids: int, eos: int | list[int] = 0) -> PreTrainedModel:
    """A GPT-2 that says `ids` after any one-token prompt: position t asks for ids[t]."""
    model = make_model("gpt2", len(tokenizer))
    for parameter in model.parameters():
        parameter.data.zero_()
    model.transformer.ln_f.weight.data.fill_(1.0)
    for position, token in enumerate(ids):
        model.transformer.wpe.weight.data[position, position % 32] = 1.0
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        model.lm_head.weight.data[token, position % 32] = 1.0
    model.generation_config.eos_token_id = eos
    return model


def say(tokenizer: PreTrainedTokenizerBase, text: str, eos: int | list[int] = 0, **settings: object) -> Completion:
    """What the engine makes of a model that says `text` and then its end token."""
    ids = tokenizer(text)["input_ids"]
    model = forced(tokenizer, *ids, eos=eos)
    return engine_of(model, tokenizer, max_new_tokens=len(ids), **settings).generate([Prompt((5,), 0, "p")])[0]


def test_finish_reasons_and_counts(tokenizer: PreTrainedTokenizerBase) -> None:
    ended = say(tokenizer, "the dog<|eos|>")
    assert (ended.text, ended.finish_reason) == ("the dog", "stop")
    assert ended.completion_tokens == len(tokenizer("the dog")["input_ids"]) + 1
    cut = say(tokenizer, "the dog")
    assert (cut.text, cut.finish_reason) == ("the dog", "length")


def test_several_end_tokens_of_the_model_count(tokenizer: PreTrainedTokenizerBase) -> None:
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert say(tokenizer, "dog<|end|>the", eos=[0, end]).text == "dog"
    assert say(tokenizer, "dog<|end|>the", eos=[0, end]).finish_reason == "stop"
    assert say(tokenizer, "dog<|end|>the").finish_reason == "length"


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("the lazy dog", ["zy d"], "the la"),
        ("the lazy dog", ["dog", "lazy"], "the "),
        ("今天天气很好", ["气"], "今天天"),
        ("the dog", ["t"], ""),
        ("fox<|end|>dog", ["<|end|>"], "fox"),
        ("fox over<|end|>dog", ["r<|end|>"], "fox ove"),
    ],
)
def test_text_ends_before_the_stop_string(
    text: str, stops: list[str], expected: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    found = say(tokenizer, text, stop_strings=stops)
    assert (found.text, found.finish_reason) == (expected, "stop_string")
    whole = len(tokenizer(text)["input_ids"])
    assert 0 < found.completion_tokens <= whole


def test_generation_stops_at_the_stop_string(tokenizer: PreTrainedTokenizerBase) -> None:
    found = say(tokenizer, "fox jumps over the lazy dog", stop_strings=["jumps"])
    assert found.completion_tokens <= len(tokenizer("fox jumps")["input_ids"])


def test_finished_neighbour_does_not_change_a_row_without_end_token(tokenizer: PreTrainedTokenizerBase) -> None:
    model = make_model("gpt2", len(tokenizer))
    model.generation_config.eos_token_id = None
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)  # type: ignore[attr-defined]
    assert stop_ids(model, tokenizer) == []
    prompts = prompts_of(tokenizer, *TEXTS)
    settings = {"stop_strings": ["a"], "max_new_tokens": 24}
    together = engine_of(model, tokenizer, **settings).generate(prompts)
    assert together == [c for p in prompts for c in engine_of(model, tokenizer, **settings).generate([p])]


def test_context_limits(tokenizer: PreTrainedTokenizerBase) -> None:
    model = make_model("gpt2", len(tokenizer), positions=16)
    engine = engine_of(model, tokenizer, max_new_tokens=12)
    long, short = Prompt((5,) * 13, 0, "in.jsonl:3: the prompt"), Prompt((6,), 1, "p")
    first, second = engine.generate([long, short])
    assert first.completion_tokens <= 3
    assert second.completion_tokens <= 12
    assert (first.finish_reason, second) == ("length", engine.generate([short])[0])
    with pytest.raises(DataError, match=r"in\.jsonl:3: the prompt has 16 tokens.* at most 16"):
        engine.generate([Prompt((5,) * 16, 0, "in.jsonl:3: the prompt")])


def test_damaged_weights_are_a_model_error(tokenizer: PreTrainedTokenizerBase) -> None:
    model = make_model("gpt2", len(tokenizer))
    model.transformer.ln_f.weight.data.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        engine_of(model, tokenizer, do_sample=True).generate(prompts_of(tokenizer, "the"))


def test_sampling_follows_the_distribution(tokenizer: PreTrainedTokenizerBase) -> None:
    """1,500 draws of one token against the model's own probabilities."""
    model = make_model("gpt2", len(tokenizer))
    prompt = prompts_of(tokenizer, "the")[0]
    with torch.inference_mode():
        p = model(torch.tensor([prompt.ids])).logits[0, -1].softmax(-1)
    engine = engine_of(model, tokenizer, do_sample=True, max_new_tokens=1, num_return_sequences=1500, batch_size=500)
    drawn = [c.text for c in engine.generate([prompt])]
    whole = [i for i in p.argsort(descending=True).tolist() if decode(tokenizer, [i]).isprintable() and i > 5]
    whole = [i for i in whole if "\ufffd" not in decode(tokenizer, [i])]  # half characters all look alike
    for token in whole[:8]:
        probability = float(p[token])
        expected, spread = 1500 * probability, (1500 * probability * (1 - probability)) ** 0.5
        assert abs(drawn.count(decode(tokenizer, [token])) - expected) < 4 * spread + 3


def test_top_k_of_one_is_greedy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    prompts = prompts_of(tokenizer, *TEXTS)
    sampled = engine_of(model, tokenizer, do_sample=True, top_k=1).generate(prompts)
    assert sampled == engine_of(model, tokenizer).generate(prompts)


def test_engine_has_a_batch_size_of_its_own(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    assert isinstance(engine_of(model, tokenizer), TransformersEngine)
    assert engine_of(model, tokenizer).batch_size > 1
    assert engine_of(model, tokenizer, batch_size=3).batch_size == 3


def test_out_of_memory_halves_the_batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = prompts_of(tokenizer, *TEXTS)
    expected = engine_of(model, tokenizer).generate(prompts)
    engine, sizes = engine_of(model, tokenizer), []
    engine.decodes, call = False, engine._call

    def small(batch: list[Prompt], *rest: Any) -> list[list[int]]:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("full")
        return call(batch, *rest)

    monkeypatch.setattr(engine, "_call", small)
    assert engine.generate(prompts) == expected
    assert sizes[0] == 6
    assert min(sizes) <= 2


def test_out_of_memory_halves_the_lines_of_the_loop(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("gpt2", len(tokenizer))
    prompts = prompts_of(tokenizer, *TEXTS)
    expected = engine_of(model, tokenizer).generate(prompts)
    sizes: list[int] = []
    loop, fits = engine_module.decode, 2

    def small(*given: Any, batch_size: int, **more: Any) -> list[list[int]]:
        sizes.append(batch_size)
        if batch_size > fits:
            raise torch.OutOfMemoryError("full")
        return loop(*given, batch_size=batch_size, **more)

    monkeypatch.setattr(engine_module, "decode", small)
    engine = engine_of(model, tokenizer, batch_size=16)
    assert engine.decodes
    assert engine.generate(prompts) == expected
    assert sizes == [16, 3, 1]
    assert engine.generate(prompts) == expected and sizes[3:] == [1], "it remembers"
    fits = 0
    with pytest.raises(torch.OutOfMemoryError):
        engine.generate(prompts)
