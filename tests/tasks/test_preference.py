"""Preference tuning: the papers' formulas in float64, rows of every shape, the reference scored once."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from llmkit import cli
from llmkit.data.readers.messages import Unusable
from llmkit.data.readers.preferences import pair_of_answers, rated_answer, transcript
from llmkit.data.records import RecordBatch
from llmkit.models.lm import CausalLMModule
from llmkit.models.preference import PreferenceModule
from llmkit.tasks.preference_rows import REJECTED, REJECTED_MASK, AnswerEncoder
from llmkit.tasks.reference import cached, score_rows
from llmkit.tasks.templates import resolve_template
from tests.fakes import byte_tokenizer, tiny_model

USER = {"role": "user", "content": "你好"}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def batch_of(seed: int = 0, pairs: int = 3) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 64, (2 * pairs, 9), generator=draw)
    labels = torch.roll(ids, -1, 1)
    labels[:, :3] = -100
    for row in range(2 * pairs):
        labels[row, 5 + row % 4 :] = -100
    reference = -10 * torch.rand(pairs, 2, generator=draw, dtype=torch.float64)
    return {"input_ids": ids, "labels": labels, "reference": reference, "good": torch.tensor([1, 0, 1][:pairs])}


def answers_by_transformers(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Sum and mean of log p, from the model's own loss on each row alone."""
    sums, means = [], []
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        unshifted = torch.cat([torch.tensor([-100]), labels[:-1]])
        mean = -float(model(input_ids=ids[None], labels=unshifted[None]).loss)
        means.append(mean)
        sums.append(mean * int((unshifted != -100).sum()))
    return np.array(sums), np.array(means)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def by_formula(loss: str, beta: float, sums: np.ndarray, means: np.ndarray, batch: dict[str, torch.Tensor]) -> float:
    total, num = 0.0, len(sums) // 2
    reference = batch["reference"].numpy()
    for i in range(num):
        chosen, rejected = sums[i] - reference[i, 0], sums[num + i] - reference[i, 1]
        c, r = means[i], means[num + i]
        odds = [math.exp(m) / (1 - math.exp(m)) for m in (c, r)]
        if loss == "dpo":
            total -= math.log(sigmoid(beta * (chosen - rejected)))
        elif loss == "ipo":
            total += (chosen - rejected - 1 / (2 * beta)) ** 2
        elif loss == "simpo":
            total -= math.log(sigmoid(beta * (c - r) - 0.5 * beta))
        elif loss == "orpo":
            total += -c - beta * math.log(sigmoid(math.log(odds[0]) - math.log(odds[1])))
        else:
            z = beta * max(0.0, rejected)
            good = bool(batch["good"][i])
            total += 1 - sigmoid(beta * chosen - z if good else z - beta * chosen)
    return total


@pytest.mark.parametrize("loss", ["dpo", "ipo", "orpo", "simpo", "kto"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_losses_are_the_papers(kind: str, loss: str) -> None:
    model = tiny_model(kind).double().eval()
    module = PreferenceModule(CausalLMModule(model), loss, 0.3)
    batch = batch_of()
    tolerance = 1e-5  # transformers takes its loss in float32
    with torch.no_grad():
        found = float(module(batch)["loss"])
        sums, means = answers_by_transformers(model, batch)
    assert found == pytest.approx(by_formula(loss, 0.3, sums, means, batch), rel=tolerance)


@pytest.mark.parametrize("loss", ["dpo", "ipo", "orpo", "simpo", "kto"])
def test_samples_do_not_see_each_other(loss: str) -> None:
    module = PreferenceModule(CausalLMModule(tiny_model("gpt2").double()), loss, 0.2).eval()
    whole = batch_of()
    total = 0.0
    for i in range(3):
        rows = torch.tensor([i, 3 + i])
        alone = {name: whole[name][rows] for name in ("input_ids", "labels")}
        alone |= {name: whole[name][i : i + 1] for name in ("reference", "good")}
        total += float(module(alone)["loss"].detach())
    assert float(module(whole)["loss"].detach()) == pytest.approx(total, rel=1e-12)


def test_a_pair_with_a_prompt() -> None:
    made = pair_of_answers({"prompt": "Why?", "chosen": "Because.", "rejected": "No.", "system": "Be kind."}, None)
    assert [m["role"] for m in made["chosen"]] == ["system", "user", "assistant"]
    assert (made["chosen"][-1]["content"], made["rejected"][-1]["content"]) == ("Because.", "No.")
    assert made["answered"] == 0
    shared = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}]
    one, other = {"from": "gpt", "value": "好"}, {"from": "gpt", "value": "坏"}
    made = pair_of_answers({"prompt": shared, "chosen": one, "rejected": other}, None)
    assert made["answered"] == 1
    assert made["rejected"][-1] == assistant("坏")


def test_conversations_are_split_where_they_part() -> None:
    turns = [USER, assistant("a"), USER]
    made = pair_of_answers({"chosen": [*turns, assistant("b")], "rejected": [*turns, assistant("c")]}, None)
    assert made["answered"] == 1
    assert made["chosen"][:3] == made["rejected"][:3] == turns


def test_transcripts_are_split_after_the_last_shared_assistant_mark() -> None:
    start = "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: tell me\n\nAssistant: "
    made = pair_of_answers({"chosen": start + "Sure, see", "rejected": start + "Sure not"}, None)
    assert [m["content"] for m in made["chosen"]] == ["hi", "yes?", "tell me", "Sure, see"]
    assert made["answered"] == 1
    assert transcript("no marks") == []
    assert transcript("\n\nHuman: a\n\nAssistant:") == [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "the same"),
        ({"chosen": "Human: a", "rejected": "Human: b"}, "no assistant mark"),
        ({"chosen": [USER, assistant("a")], "rejected": [USER, assistant("a"), USER]}, "beginning of the other"),
        ({"chosen": "text", "rejected": [USER]}, "not both"),
        ({"prompt": "a", "chosen": [USER, assistant("x")], "rejected": [assistant("y")]}, "not one answer"),
        ({"prompt": "a", "chosen": "", "rejected": "b"}, "empty completion"),
    ],
)
def test_rows_that_are_no_pair(row: dict, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        pair_of_answers(row, None)


def test_rated_answers() -> None:
    assert rated_answer({"prompt": "a", "completion": "b", "label": "False"}, None)["label"] is False
    assert rated_answer({"messages": [USER, assistant("b")], "label": 1}, None)["label"] is True
    with pytest.raises(Unusable, match="neither true nor false"):
        rated_answer({"prompt": "a", "completion": "b", "label": "maybe"}, None)
    with pytest.raises(Unusable, match="not the assistant's"):
        rated_answer({"messages": [USER, assistant("b"), USER], "label": True}, None)


def encoder(tmp_path, *, rated: bool = False, max_length: int = 64, overflow: str = "truncate") -> AnswerEncoder:
    directory = byte_tokenizer(tmp_path / "tokenizer")
    return AnswerEncoder(directory, resolve_template("plain", directory), rated, max_length, overflow)  # type: ignore[arg-type]


def records(rows: list[dict]) -> RecordBatch:
    made = [pair_of_answers(row, None) for row in rows]
    columns = {name: [row[name] for row in made] for name in made[0]}
    return RecordBatch(0, "x.jsonl", columns, list(range(1, len(rows) + 1)), [None] * len(rows))


def test_only_the_judged_answer_is_supervised(tmp_path) -> None:
    turns = [USER, assistant("first"), {"role": "user", "content": "more"}]
    row = {"prompt": turns, "chosen": "good", "rejected": "bad one"}
    made = encoder(tmp_path)
    found = made.encode(records([row]))
    chosen, mask = found.streams["input_ids"].values, found.streams["loss_mask"].values
    assert bytes(chosen[mask != 0][:-1].tolist()) != b""
    assert mask.sum() == len("good") + 1
    assert found.streams[REJECTED_MASK].values.sum() == len("bad one") + 1
    cut = int(np.argmax(mask))
    assert np.array_equal(chosen[:cut], found.streams[REJECTED].values[:cut])


def test_long_prompts_lose_their_beginning_on_both_sides_alike(tmp_path) -> None:
    row = {"prompt": "x" * 100 + "end?", "chosen": "yes", "rejected": "n" * 50}
    found = encoder(tmp_path, max_length=40).encode(records([row]))
    assert found.truncated == 1
    ids, mask = found.streams["input_ids"].values, found.streams["loss_mask"].values
    rejected, other = found.streams[REJECTED].values, found.streams[REJECTED_MASK].values
    cut = int(np.argmax(mask))
    assert cut == int(np.argmax(other)) == 20
    assert np.array_equal(ids[:cut], rejected[:cut])
    assert len(rejected) == 40
    assert mask.sum() == 4
    assert encoder(tmp_path, max_length=40, overflow="drop").encode(records([row])).rejected[0][0] == 0


def test_the_reference_is_scored_once(tmp_path) -> None:
    calls = []

    def compute() -> np.ndarray:
        calls.append(1)
        return np.arange(6.0).reshape(3, 2)

    path = tmp_path / "reference.scores"
    first, again = cached(path, 3, compute), cached(path, 3, compute)
    assert len(calls) == 1 and np.array_equal(first, again)
    damaged = bytearray(path.read_bytes())
    damaged[5] ^= 1
    path.write_bytes(damaged)
    assert np.array_equal(cached(path, 3, compute), first)
    assert len(calls) == 2, "a flipped bit is found and the scores are made anew"


def test_scores_join_their_rows() -> None:
    sizes = np.array([5, 9, 3, 9000, 7])
    scores = score_rows(lambda rows: np.array([[row, -row] for row in rows], dtype=float), sizes, "cpu")
    assert scores[:, 0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("loss", ["dpo", "kto", "orpo"])
def test_end_to_end(loss: str, tmp_path) -> None:
    data = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"问题 {i}?", "completion": "好" * 3 if i % 2 else "坏" * 3, "label": i % 2 == 1}
        if loss == "kto"
        else {"prompt": f"question {i}?", "chosen": "好" * 3, "rejected": "坏" * 3}
        for i in range(60)
    ]
    data.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"""
version: 1
output_dir: {tmp_path / "run"}
task: {{type: preference, loss: {loss}}}
model:
  config: {{model_type: gpt2, n_embd: 32, n_layer: 1, n_head: 2, n_positions: 64}}
tokenizer: {{name_or_path: {byte_tokenizer(tmp_path / "tok")}, chat_template: plain}}
data: {{train: [{{path: {data}}}], validation_fraction: 0.2, max_length: 64}}
training: {{max_steps: 30, global_batch_size: 8, learning_rate: 3e-3}}
""",
        encoding="utf-8",
    )
    assert cli.run(["finetune", str(recipe)]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["reward_accuracy"] == 1.0
    assert results["reward_margin"] > 0
    assert len(list((tmp_path / "run" / "prepared").glob("reference-*"))) == (0 if loss == "orpo" else 2)
    assert cli.run(["evaluate", str(recipe)]) == 0
    evaluated = json.loads((tmp_path / "run" / "evaluation" / "results.json").read_text())["metrics"]
    assert evaluated["reward_accuracy"]["value"] == 1.0
    assert evaluated["loss"]["value"] == pytest.approx(results["loss"], rel=1e-6)
