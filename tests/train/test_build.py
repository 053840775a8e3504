from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from llmkit.errors import CheckpointError, RecipeError
from llmkit.models.lm import CausalLMModule
from llmkit.recipe.sections import Recipe
from llmkit.train.build import batch_layout, load_model_tensors, model_tensors, wrap


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


def test_compiled_gradients_are_the_same_to_the_bit_every_time():
    """Of few entries and many tokens: without `add_up_in_order` the embedding's differ on two threads."""
    torch.manual_seed(0)
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=64, n_layer=1, n_head=2, n_positions=256, **none))
    compiled = wrap(CausalLMModule(model), SimpleNamespace(torch_compile=True, packing=True), may_fall_back=False)
    ids, found = torch.randint(0, 97, (16, 256)), []
    for _ in range(12):
        model.zero_grad()
        compiled({"input_ids": ids, "labels": ids})["loss"].backward()
        found.append(model.transformer.wte.weight.grad.clone())
    assert all(torch.equal(one, found[0]) for one in found)
