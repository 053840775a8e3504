"""The recurrent encoder-decoder: rows alone and together, attention by hand, generation against brute force, and what
it can learn."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForSeq2SeqLM

from llmkit.data.examples import IGNORE
from llmkit.errors import RecipeError
from llmkit.models.heads import SEQ2SEQ_LM
from llmkit.models.load import load_model
from llmkit.models.rnn_seq2seq import Attention
from llmkit.models.seq2seq import Seq2SeqModule
from llmkit.recipe.sections import ModelSection
from tests.fakes import byte_tokenizer

PAD, START, END = 0, 1, 2
KINDS = [
    {"cell": cell, "attention": attention, "input_feeding": feeding}
    for cell in ("lstm", "gru")
    for attention, feeding in (("additive", True), ("multiplicative", True), ("additive", False), ("none", None))
]
MODES = {
    "greedy": {},
    "beams": {"num_beams": 4, "num_return_sequences": 2},
    "sampling": {"do_sample": True},
    "beam sampling": {"num_beams": 3, "do_sample": True},
}


def name_of(keys) -> str:
    return "-".join(str(value) for value in keys.values())


def make(seed: int = 0, scale: float = 1.0, **keys):
    torch.manual_seed(seed)
    wanted = {"vocab_size": 20, "hidden_size": 12, "num_layers": 2, "dropout": 0.0, **keys}
    config = CONFIG_MAPPING["rnn_seq2seq"](
        pad_token_id=PAD, bos_token_id=START, eos_token_id=END, decoder_start_token_id=START, **wanted
    )
    model = AutoModelForSeq2SeqLM.from_config(config)
    for parameter in model.parameters():
        parameter.data.mul_(scale)
    return model


def batch_of(pairs: list[tuple[list[int], list[int]]], *, extra: int = 0) -> dict[str, torch.Tensor]:
    """Padded by `extra` more than needed, with random tokens under the mask."""
    source, target = max(len(s) for s, _ in pairs) + extra, max(len(t) for _, t in pairs) + extra
    batch = {
        "input_ids": torch.randint(3, 10, (len(pairs), source)),
        "attention_mask": torch.zeros(len(pairs), source, dtype=torch.long),
        "labels": torch.full((len(pairs), target), IGNORE),
    }
    for line, (s, t) in enumerate(pairs):
        batch["input_ids"][line, : len(s)] = torch.tensor(s)
        batch["attention_mask"][line, : len(s)] = 1
        batch["labels"][line, : len(t)] = torch.tensor(t)
    return batch


def some_pairs(number: int = 5) -> list[tuple[list[int], list[int]]]:
    draw = random.Random(4)
    return [tuple(draw.choices(range(3, 20), k=draw.randint(1, 9)) for _ in range(2)) for _ in range(number)]


def loss_and_gradient(module: Seq2SeqModule, batch) -> tuple[float, torch.Tensor]:
    module.zero_grad(set_to_none=True)
    loss = module(batch)["loss"]
    loss.backward()
    assert all(parameter.grad is not None for parameter in module.parameters()), "every parameter is used"
    return loss.item(), torch.cat([parameter.grad.flatten() for parameter in module.parameters()])


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("keys", KINDS, ids=name_of)
def test_a_batch_is_the_sum_of_its_rows(keys, bidirectional):
    module = Seq2SeqModule(make(bidirectional=bidirectional, **keys).double().eval())
    pairs = some_pairs()
    value, gradient = loss_and_gradient(module, batch_of(pairs, extra=3))
    rows = [loss_and_gradient(module, batch_of([pair])) for pair in pairs]
    assert abs(value - sum(loss for loss, _ in rows)) < 1e-10
    assert (gradient - sum(part for _, part in rows)).abs().max() < 1e-10
    batch = batch_of(pairs, extra=2)
    mean = module.model(**batch).loss.item()
    assert abs(mean * int((batch["labels"] != IGNORE).sum()) - value) < 1e-10


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("keys", KINDS, ids=name_of)
def test_saved_and_loaded_it_is_the_same_model(keys, tied, tmp_path):
    model = make(tie_word_embeddings=tied, **keys).eval()
    model.save_pretrained(str(tmp_path))
    again = AutoModelForSeq2SeqLM.from_pretrained(str(tmp_path)).eval()
    assert (again.lm_head.weight is again.get_input_embeddings().weight) == tied
    batch = batch_of(some_pairs())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert torch.allclose(model(**batch).logits, again(**batch).logits, atol=1e-6)  # rounding follows memory alignment
    assert again.config.input_feeding == model.config.input_feeding


@pytest.mark.parametrize("keys", KINDS, ids=name_of)
def test_a_state_changes_no_output(keys):
    model = make(scale=3.0, **keys).double().eval()
    batch = batch_of(some_pairs(), extra=1)
    ids = model.prepare_decoder_input_ids_from_labels(batch.pop("labels"))
    whole = model(**batch, decoder_input_ids=ids).logits
    step = model(**batch, decoder_input_ids=ids[:, :1], use_cache=True)
    for place in range(1, ids.shape[1]):
        step = model(
            attention_mask=batch["attention_mask"],
            encoder_outputs=model.get_encoder()(batch["input_ids"], batch["attention_mask"]),
            decoder_input_ids=ids[:, place : place + 1],
            past_key_values=step.past_key_values,
            use_cache=True,
        )
        assert torch.allclose(step.logits[:, 0], whole[:, place], atol=1e-12)
    assert step.past_key_values.get_seq_length() == ids.shape[1]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("keys", KINDS, ids=name_of)
def test_completions_need_no_state_and_no_company(keys, mode):
    model = make(scale=3.0, **keys).double().eval()
    batch = batch_of(some_pairs(), extra=2)
    del batch["labels"]
    found = []
    for use_cache in (True, False):
        torch.manual_seed(2)
        found.append(model.generate(**batch, max_new_tokens=8, use_cache=use_cache, **MODES[mode]))
    assert torch.equal(found[0], found[1])
    if not MODES[mode].get("do_sample"):
        source = batch["input_ids"][:1, : int(batch["attention_mask"][0].sum())]
        alone = model.generate(input_ids=source, max_new_tokens=8, **MODES[mode])
        assert torch.equal(found[0][: len(alone), : alone.shape[1]], alone)
        assert (found[0][: len(alone), alone.shape[1] :] == PAD).all()


def test_beam_search_finds_what_exhaustive_search_finds():
    longest, vocabulary = 4, 4
    for seed in range(6):
        model = make(seed, scale=4.0, vocab_size=vocabulary, num_layers=1).double().eval()
        source = torch.tensor([[3, 3, 0, 2]])
        best = max(
            (score(model, source, [*middle, *end]), [*middle, *end])
            for length in range(longest + 1)
            for middle in itertools.product([0, 1, 3], repeat=length)
            for end in ([END],) * (length < longest) + ((),) * (length == longest)
        )
        found = model.generate(
            input_ids=source, num_beams=80, max_new_tokens=longest, length_penalty=0.0, early_stopping="never"
        )
        assert found[0, 1:].tolist() == best[1]


@torch.no_grad()
def score(model, source: torch.Tensor, target: list[int]) -> float:
    return -Seq2SeqModule(model)(
        {
            "input_ids": source,
            "attention_mask": torch.ones_like(source),
            "labels": torch.tensor([target]),
        }
    )["loss"].item()


@pytest.mark.parametrize("kind", ["additive", "multiplicative"])
def test_attention_is_its_formula_and_so_is_its_gradient(kind):
    torch.manual_seed(1)
    attention = Attention(kind, 5).double()
    query, values = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(2, 4, 5, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    context, weights = attention(query, attention.key(values), values, mask)
    for row, step in itertools.product(range(2), range(3)):
        scores = []
        for place in range(int(mask[row].sum())):
            key = attention.key.weight @ values[row, place]
            if kind == "additive":
                inside = key + attention.query.weight @ query[row, step] + attention.query.bias
                scores.append(attention.score.weight[0] @ torch.tanh(inside))
            else:
                scores.append(query[row, step] @ key)
        shares = torch.softmax(torch.stack(scores), 0)
        assert torch.allclose(weights[row, step, : len(shares)], shares, atol=1e-12)
        assert (weights[row, step, len(shares) :] == 0).all()
        assert torch.allclose(context[row, step], shares @ values[row, : len(shares)], atol=1e-12)
    inputs = (query.requires_grad_(), values.requires_grad_())
    assert torch.autograd.gradcheck(lambda q, v: attention(q, attention.key(v), v, mask), inputs)


def test_attention_weights_are_shown_when_asked():
    model = make().eval()
    batch = batch_of(some_pairs(), extra=1)
    assert model(**batch).cross_attentions is None
    (weights,) = model(**batch, output_attentions=True).cross_attentions
    assert weights.shape == (5, 1, batch["labels"].shape[1], batch["input_ids"].shape[1])
    assert (weights[batch["attention_mask"][:, None, None].expand_as(weights) == 0] == 0).all()


def test_the_recipe_reaches_it(tmp_path):
    from llmkit.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(byte_tokenizer(tmp_path, special=("<|endoftext|>", "<pad>")))

    def load(dropout=None, **keys):
        section = ModelSection(config={"model_type": "rnn_seq2seq", **keys}, dropout=dropout)
        return load_model(section, tokenizer, seed=1, max_length=32, head=SEQ2SEQ_LM)

    model = load(dropout=0.25, hidden_size=8, attention="multiplicative")
    assert (model.config.dropout, model.dropout.p, model.model.dropout.p, model.model.encoder.dropout.p) == (0.25,) * 4
    assert model.config.decoder_start_token_id == tokenizer.eos_token_id
    for keys, words in (
        ({"attention": "luong"}, "attention"),
        ({"hidden_size": 7}, "must be even"),
        ({"attention": "none", "input_feeding": True}, "leave it out"),
        ({"attn": "none"}, "did you mean attention"),
    ):
        with pytest.raises(RecipeError, match=words):
            load(**keys)


MONTHS = "January February March April May June July August September October November December".split()  # noqa: SIM905
SYMBOLS = {symbol: 3 + i for i, symbol in enumerate(sorted({*"".join(MONTHS), *"0123456789-年月日, "}))}


def a_date(draw: random.Random) -> tuple[str, str]:
    year, month, day = draw.randint(1950, 2049), draw.randint(1, 12), draw.randint(1, 28)
    english, chinese = f"{day} {MONTHS[month - 1]} {year}", f"{year}年{month}月{day}日"
    return draw.choice([english, chinese]), f"{year}-{month:02}-{day:02}"


def digits_reversed(draw: random.Random) -> tuple[str, str]:
    digits = "".join(draw.choices("0123456789", k=draw.randint(14, 16)))
    return digits, digits[::-1]


def made_batch(task, size: int, seed: int) -> dict[str, torch.Tensor]:
    draw = random.Random(seed)
    pairs = [task(draw) for _ in range(size)]
    return batch_of([([SYMBOLS[c] for c in s], [*(SYMBOLS[c] for c in t), END]) for s, t in pairs])


def learn(task, steps: int, **keys):
    """Trained by Adam on batches of `made_batch`, the rate falling over the second half."""
    torch.manual_seed(0)
    module = Seq2SeqModule(make(vocab_size=3 + len(SYMBOLS), hidden_size=64, num_layers=1, **keys)).train()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 2 * (steps - step) / steps))
    for step in range(steps):
        batch = made_batch(task, 64, step)
        optimizer.zero_grad()
        (module(batch)["loss"] / (batch["labels"] != IGNORE).sum()).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return module.eval()


def token_accuracy(module: Seq2SeqModule, task) -> float:
    """Of greedy completions against the targets, held out, place by place."""
    batch = made_batch(task, 200, 10**6)
    labels = batch.pop("labels")
    with torch.no_grad():
        found = module.model.generate(**batch, max_new_tokens=labels.shape[1])[:, 1:]
    found = torch.nn.functional.pad(found, (0, labels.shape[1] - found.shape[1]), value=PAD)
    kept = labels != IGNORE
    return float((found == labels)[kept].float().mean())


def test_it_learns_dates_of_two_languages():
    assert token_accuracy(learn(a_date, 240, cell="gru", input_feeding=False), a_date) >= 0.99


def test_attention_learns_to_reverse_what_is_too_long_without():
    assert token_accuracy(learn(digits_reversed, 300, attention="additive"), digits_reversed) >= 0.99
    assert token_accuracy(learn(digits_reversed, 300, attention="none"), digits_reversed) < 0.7
