"""The convolutional classifier against Kim's formula written out window by window, in float64."""

from __future__ import annotations

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification

from tests.models.test_rnn_encoder import LENGTHS, make, padded


def by_hand(model, ids: list[int]) -> torch.Tensor:
    """Logits of one text: for each filter, the greatest ReLU(w . window + b) over windows that hold a token."""
    embedded = model.model.embed_tokens.weight[ids]
    features = []
    for (convolution,) in model.model.convolutions:
        width = convolution.kernel_size[0]
        zeros = torch.zeros(width - 1, embedded.shape[1], dtype=embedded.dtype)
        text = torch.cat([zeros, embedded, zeros])
        windows = [text[start : start + width].T.flatten() for start in range(len(ids) + width - 1)]
        values = torch.stack(windows) @ convolution.weight.flatten(1).T + convolution.bias
        features.append(values.relu().amax(0))
    return model.classifier.weight @ torch.cat(features) + model.classifier.bias


@pytest.mark.parametrize("widths", [[3, 4, 5], [1], [2, 9]])
def test_logits_are_the_formula(widths):
    model = make(AutoModelForSequenceClassification, "text_cnn", filter_widths=widths, num_filters=7)
    for parameter in model.parameters():  # biases that a window of padding alone would win by
        torch.nn.init.normal_(parameter)
    for left in (False, True):
        ids, mask = padded(4, left=left)
        logits = model(ids, mask).logits
        for line, length in enumerate(LENGTHS):
            row = ids[line][mask[line].bool()].tolist()
            assert len(row) == length
            assert torch.allclose(logits[line], by_hand(model, row), atol=1e-10)


def test_deeper_stacks_keep_rows_apart():
    model = make(AutoModelForSequenceClassification, "text_cnn", num_layers=3, num_filters=6, filter_widths=[2, 4])
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    ids, mask = padded(5)
    together = model(ids, mask).logits
    for line, length in enumerate(LENGTHS):
        assert torch.allclose(together[line], model(ids[line : line + 1, :length]).logits[0], atol=1e-8)


def test_an_empty_text_gives_the_bias():
    model = make(AutoModelForSequenceClassification, "text_cnn")
    torch.nn.init.normal_(model.classifier.bias)
    ids, mask = padded()
    assert torch.equal(model(ids, mask * 0).logits, model.classifier.bias.expand(4, 3))


def test_the_loss_is_transformers_own_and_uses_every_parameter():
    model = make(AutoModelForSequenceClassification, "text_cnn")
    ids, mask = padded()
    labels = torch.tensor([0, 2, 1, 1])
    output = model(input_ids=ids, attention_mask=mask, labels=labels)
    assert torch.allclose(output.loss, torch.nn.functional.cross_entropy(output.logits, labels))
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("keys", [{"filter_widths": []}, {"filter_widths": [0]}, {"num_filters": 0}, {"dropout": 1.0}])
def test_values_out_of_range(keys):
    with pytest.raises(StrictDataclassClassValidationError, match=next(iter(keys))):
        CONFIG_MAPPING["text_cnn"](**keys)
