import pytest
import torch
from torch import nn

from llmkit.errors import CheckpointError, RecipeError
from llmkit.recipe.sections import Recipe
from llmkit.train.build import autocast_of, batch_layout, load_model_tensors, model_tensors


def recipe(**training):
    return Recipe(output_dir="x", task={"type": "causal_lm"}, training=training)


def test_layout_follows_the_recipe_where_it_says_so():
    asked = recipe(global_batch_size=12, per_device_train_batch_size=3)
    assert batch_layout(asked, 2) == (12, 3)
    assert batch_layout(recipe(global_batch_size=32), 1) == (32, 32)
    assert batch_layout(recipe(global_batch_size=32), 4) == (32, 8)


@pytest.mark.parametrize(("training", "world"), [({"global_batch_size": 9}, 2), ({"global_batch_size": 8}, 3)])
def test_a_batch_that_does_not_divide_is_refused(training, world):
    with pytest.raises(RecipeError, match="no multiple of") as caught:
        batch_layout(recipe(**training), world)
    assert caught.value.key == "training.global_batch_size"


def test_a_batch_that_its_micro_batch_does_not_divide_is_refused():
    with pytest.raises(RecipeError, match="per_device_train_batch_size 3 x 2 processes"):
        batch_layout(recipe(global_batch_size=8, per_device_train_batch_size=3), 2)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(2, 2)
        self.frozen.requires_grad_(False)
        self.embed = nn.Embedding(3, 2)
        self.head = nn.Linear(2, 3, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("seen", torch.zeros(1))


def test_checkpoints_hold_what_is_trained_and_ties_survive_loading():
    source, target = Tied(), Tied()
    source.seen += 2
    tensors = model_tensors(source)
    assert set(tensors) == {"embed.weight", "head.weight", "seen"}
    load_model_tensors(target, {name: tensor.clone() for name, tensor in tensors.items()})
    assert torch.equal(target.embed.weight, source.embed.weight) and target.seen == 2
    assert target.head.weight is target.embed.weight


@pytest.mark.parametrize("change", [lambda t: t.pop("seen"), lambda t: t.update(strange=torch.zeros(1))])
def test_a_checkpoint_of_another_model_is_refused(change):
    module = Tied()
    tensors = model_tensors(module)
    change(tensors)
    with pytest.raises(CheckpointError, match="not of this model"):
        load_model_tensors(module, tensors)


def test_autocast_is_nothing_in_float32():
    with autocast_of("no", torch.device("cpu"))():
        assert not torch.is_autocast_enabled("cpu")
    with autocast_of("bf16", torch.device("cpu"))():
        assert torch.is_autocast_enabled("cpu")
