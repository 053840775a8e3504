"""Recurrent classifiers: rows alone and together, pooling by hand, the ecosystem's loss and pipelines."""

from __future__ import annotations

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, AutoModelForTokenClassification, pipeline

from llmkit.errors import RecipeError
from llmkit.models.heads import labelled_head
from llmkit.models.load import load_model
from llmkit.models.rnn_encoder import pool
from llmkit.recipe.sections import ModelSection
from tests.fakes import byte_tokenizer

LENGTHS = (3, 7, 1, 5)
KINDS = [
    {"cell": cell, "pooling": pooling, "bidirectional": both}
    for cell, pooling, both in (
        ("lstm", "max", True),
        ("gru", "mean", True),
        ("lstm", "last", True),
        ("gru", "last", False),
    )
]


def name_of(keys) -> str:
    return "-".join(str(value) for value in keys.values())


def make(auto_class, kind: str = "rnn_encoder", **keys):
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**{"vocab_size": 20, "hidden_size": 12, "dropout": 0.0, "num_labels": 3, **keys})
    return auto_class.from_config(config).double().eval()


def padded(extra: int = 0, *, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """ids and mask (B, T), the ids under the mask random."""
    width = max(LENGTHS) + extra
    ids, mask = torch.randint(0, 20, (len(LENGTHS), width)), torch.zeros(len(LENGTHS), width, dtype=torch.long)
    draw = torch.Generator().manual_seed(1)
    for line, length in enumerate(LENGTHS):
        places = slice(width - length, width) if left else slice(0, length)
        ids[line, places] = torch.randint(0, 20, (length,), generator=draw)
        mask[line, places] = 1
    return ids, mask


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("keys", KINDS, ids=name_of)
def test_a_batch_is_its_rows_alone(keys, left):
    sequences = make(AutoModelForSequenceClassification, num_layers=2, **keys)
    tokens = make(AutoModelForTokenClassification, num_layers=2, **keys)
    ids, mask = padded(2, left=left)
    together, each = sequences(ids, mask).logits, tokens(ids, mask).logits
    for line in range(len(LENGTHS)):
        row = ids[line][mask[line].bool()][None]
        assert torch.allclose(together[line], sequences(row).logits[0], atol=1e-10)
        assert torch.allclose(each[line][mask[line].bool()], tokens(row).logits[0], atol=1e-10)


@pytest.mark.parametrize("keys", KINDS, ids=name_of)
def test_losses_are_transformers_own_and_use_every_parameter(keys):
    ids, mask = padded()
    labels = torch.tensor([0, 2, 1, 1])
    model = make(AutoModelForSequenceClassification, **keys)
    output = model(input_ids=ids, attention_mask=mask, labels=labels)
    assert torch.allclose(output.loss, torch.nn.functional.cross_entropy(output.logits, labels))
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    several = make(AutoModelForSequenceClassification, problem_type="multi_label_classification", **keys)
    targets = torch.nn.functional.one_hot(labels, 3).double()
    output = several(input_ids=ids, attention_mask=mask, labels=targets)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(output.logits, targets)
    assert torch.allclose(output.loss, expected)
    model = make(AutoModelForTokenClassification, **keys)
    labels = torch.where(mask.bool(), ids % 3, -100)
    output = model(input_ids=ids, attention_mask=mask, labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), labels.flatten())
    assert torch.allclose(output.loss.double(), expected, atol=1e-6)  # transformers takes it in float32
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_pooling_by_hand():
    hidden = torch.randn(2, 3, 4) - 5
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    assert torch.allclose(pool(hidden, mask, "mean")[0], hidden[0, :2].mean(0))
    assert torch.equal(pool(hidden, mask, "max")[0], hidden[0, :2].amax(0))
    assert (pool(hidden, mask, "mean")[1] == 0).all()
    assert (pool(hidden, mask, "max")[1] == 0).all()


def test_last_is_the_end_of_either_direction():
    model = make(AutoModelForSequenceClassification, pooling="last").model
    ids, mask = padded(1)
    output = model(ids, mask)
    for line, length in enumerate(LENGTHS):
        hidden = output.last_hidden_state[line]
        expected = torch.cat([hidden[length - 1, :6], hidden[0, 6:]])
        assert torch.allclose(output.pooler_output[line], expected, atol=1e-12)


@pytest.mark.parametrize("kind", ["rnn_encoder", "text_cnn"])
def test_from_a_recipe_to_a_pipeline(kind, tmp_path):
    """With labels, saved, and read again by plain transformers; a body goes under a new head."""
    from llmkit.data.tokenizer import load_tokenizer

    directory = byte_tokenizer(tmp_path / "tokenizer", special=("<|endoftext|>", "<pad>"), pad_token="<pad>")
    tokenizer = load_tokenizer(directory)

    def load(head, dropout=None, **section):
        return load_model(ModelSection(dropout=dropout, **section), tokenizer, seed=1, max_length=32, head=head)

    config = {"model_type": kind, "hidden_size": 8}
    head = labelled_head("sequence", ["bad", "good", "so-so"], "single_label_classification")
    model = load(head, 0.45, config=config).eval()
    assert (model.config.dropout, model.dropout.p) == (0.45, 0.45)
    saved = tmp_path / "model"
    model.save_pretrained(str(saved))
    tokenizer.save_pretrained(str(saved))
    texts = ["a", "你好，世界", "some longer text of several words"]
    found = pipeline("text-classification", str(saved), top_k=None)(texts, batch_size=3)
    for text, scores in zip(texts, found, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        expected = model(ids).logits[0].softmax(0).detach()
        for one in scores:
            assert abs(one["score"] - float(expected[model.config.label2id[one["label"]]])) < 1e-6
    other = load(labelled_head("sequence", ["x", "y", "z"]), name_or_path=str(saved))
    assert torch.equal(other.model.embed_tokens.weight, model.model.embed_tokens.weight)
    assert other.config.id2label == {0: "x", 1: "y", 2: "z"}
    with pytest.raises(RecipeError, match="hidden_size must be at least 1"):
        load(head, config={**config, "hidden_size": 0})
