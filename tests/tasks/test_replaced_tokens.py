"""ELECTRA's two losses against transformers' own in float64, and from recipe to exported networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmkit.errors import ModelError, RecipeError
from llmkit.models.electra import draw_tokens
from llmkit.tasks import build_task
from llmkit.tasks.base import IGNORE
from tests.tasks.masking_data import MASK, documents, recipe, tokenizer
from tests.tasks.test_masked_lm import batches, evaluate, strong

RTD = {"type": "replaced_token_detection"}


@pytest.fixture
def directory(tmp_path):
    return tokenizer(tmp_path / "tokenizer")


def test_both_losses_are_those_of_transformers(directory):
    task = build_task(recipe("electra", RTD), directory)
    module = strong(task.build_model()).eval()
    assert task.loss_weights == {"generator": 1.0, "detection": 50.0}
    batch, _ = next(batches(task, 8))
    losses, counts = module(batch), task.counts(batch)
    shown = {name: batch[name] for name in ("input_ids", "attention_mask")}
    generator = module.generator.inner()(**shown, labels=batch["labels"])
    assert (losses["generator"] / counts["generator"]).item() == pytest.approx(generator.loss.item(), abs=1e-12)
    masked = batch["labels"] != IGNORE
    assert torch.equal(batch["input_ids"] == MASK, masked)
    original = torch.where(masked, batch["labels"], batch["input_ids"])
    filled = original.clone()
    filled[masked] = draw_tokens(generator.logits[masked], batch["uniform"][masked])
    assert (filled != original).any()
    own = module.model(filled, attention_mask=batch["attention_mask"], labels=(filled != original).long())
    seen = batch["attention_mask"] == 1
    exact = torch.nn.functional.binary_cross_entropy_with_logits(
        own.logits[seen], (filled != original)[seen].double()
    ).item()
    assert own.loss.item() == pytest.approx(exact, abs=1e-6)  # its labels are float32
    assert (losses["detection"] / counts["detection"]).item() == pytest.approx(exact, abs=1e-12)
    assert counts["detection"] == int(batch["attention_mask"].sum())


def test_the_generator_is_small_and_shares_its_embeddings(directory):
    module = build_task(recipe("electra", RTD), directory).build_model()
    generator, discriminator = module.generator.inner(), module.model
    assert generator.config.hidden_size == 8 and generator.config.num_attention_heads == 1
    assert generator.electra.embeddings is discriminator.electra.embeddings
    assert generator.generator_lm_head.weight is discriminator.get_input_embeddings().weight
    task = build_task(recipe("electra", {**RTD, "generator": {"num_hidden_layers": 1, "hidden_size": 16}}), directory)
    config = task.build_model().generator.inner().config
    assert (config.num_hidden_layers, config.hidden_size) == (1, 16)


@pytest.mark.parametrize(
    ("generator", "message"),
    [
        ({"embedding_size": 8}, "embeddings are shared"),
        ({"num_layers_hidden": 8}, "no such key"),
        ({"name_or_path": "x", "hidden_size": 8}, "config of its own"),
    ],
)
def test_generators_that_do_not_fit_are_refused(generator, message, directory):
    with pytest.raises(RecipeError, match=message):
        build_task(recipe("electra", {**RTD, "generator": generator}), directory).build_model()


def test_other_architectures_are_refused(directory):
    with pytest.raises(ModelError, match="use model_type electra"):
        build_task(recipe("bert", RTD), directory)


def test_tokens_are_drawn_from_the_distribution():
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0]]).double()
    uniform = (torch.arange(20_000).double() + 0.5) / 20_000
    drawn = draw_tokens(logits.expand(20_000, 4), uniform)
    share = torch.bincount(drawn, minlength=4) / 20_000
    assert torch.allclose(share.double(), logits.softmax(-1)[0], atol=1e-4)
    assert draw_tokens(torch.tensor([[-200.0, 0.0]]), torch.tensor([0.0])).item() == 1


def test_the_layout_of_batches_does_not_show(directory):
    task = build_task(recipe("electra", RTD), directory)
    module = strong(task.build_model()).train()
    found = {}
    for size in (24, 8, 1):
        module.zero_grad()
        parts = list(batches(task, size))
        counts = {name: sum(task.counts(batch)[name] for batch, _ in parts) for name in task.loss_weights}
        for batch, _ in parts:
            losses = module(batch)
            sum(task.loss_weights[name] * losses[name] / counts[name] for name in losses).backward()
        found[size] = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    for size in (8, 1):
        for name, gradient in found[24].items():
            assert torch.allclose(gradient, found[size][name], rtol=0, atol=1e-11), name


def test_detection_is_scored(directory):
    from sklearn.metrics import f1_score

    task = build_task(recipe("electra", RTD), directory)
    module = strong(task.build_model()).eval()
    split = documents(10)
    found, other = (evaluate(task, module, split, size) for size in (4, 1))
    plan = task.eval_plan(split)
    batch = task.collate(plan.samples(0, np.arange(plan.num_samples(0))), seed=0, step=0)
    with torch.no_grad():
        losses, counts = module(batch), task.counts(batch)
        _, _, detected, replaced = module.detect(batch)
    seen = batch["attention_mask"] == 1
    means = {name: (losses[name] / counts[name]).item() for name in losses}
    expected = {
        "loss": means["generator"] + 50 * means["detection"],
        "generator_loss": means["generator"],
        "detection_loss": means["detection"],
        "detection_f1": f1_score(replaced[seen].numpy(), (detected[seen] > 0).numpy()),
    }
    for name, value in expected.items():
        assert found.metrics[name].value == pytest.approx(value, rel=1e-10), name
        assert other.metrics[name].value == pytest.approx(value, rel=1e-10), name
        assert found.metrics[name].low <= value <= found.metrics[name].high
    assert sum(item["tokens"] for item in found.items) == counts["detection"]


def test_exported_networks_load_with_transformers_and_go_on(directory, tmp_path):
    from transformers import AutoModelForMaskedLM, AutoModelForPreTraining

    chosen = recipe("electra", RTD)
    task = build_task(chosen, directory)
    module = task.build_model().eval()
    task.export(module, tmp_path / "model")
    discriminator = AutoModelForPreTraining.from_pretrained(str(tmp_path / "model"), local_files_only=True).eval()
    generator = AutoModelForMaskedLM.from_pretrained(str(tmp_path / "model" / "generator"), local_files_only=True)
    ids = torch.arange(20)[None]
    # to rounding: ours multiplies by another library (`models.linear`)
    torch.testing.assert_close(discriminator(ids).logits, module.model(ids).logits)
    torch.testing.assert_close(generator.eval()(ids).logits, module.generator.inner()(ids).logits)
    again = chosen.model_copy(
        update={"model": chosen.model.model_copy(update={"name_or_path": str(tmp_path / "model"), "config": None})}
    )
    reread = build_task(again, directory, trained=True).build_model().eval()
    assert torch.equal(reread.generator.inner()(ids).logits, module.generator.inner()(ids).logits)
    task = again.task.model_copy(update={"generator": {"name_or_path": str(tmp_path / "model" / "generator")}})
    named = build_task(again.model_copy(update={"task": task}), directory).build_model().eval()
    assert torch.equal(named.generator.inner()(ids).logits, module.generator.inner()(ids).logits)
