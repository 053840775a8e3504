import pytest
import torch
from torch import nn

from llmkit.errors import ModelError
from llmkit.recipe.sections import TrainingSection
from llmkit.train import optim

LOCAL = [name for name in optim.OPTIMIZERS if name != "adamw_8bit"]


def model():
    torch.manual_seed(0)
    return nn.ModuleDict(
        {"embed": nn.Embedding(7, 4), "hidden": nn.Linear(4, 4), "norm": nn.LayerNorm(4), "lm_head": nn.Linear(4, 7)}
    )


def loss_of(module, ids):
    hidden = module["norm"](module["hidden"](module["embed"](ids)))
    return nn.functional.cross_entropy(module["lm_head"](hidden), ids)


def train(module, optimizers, steps):
    ids = torch.arange(7)
    for _ in range(steps):
        loss = loss_of(module, ids)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return loss.item()


def section(name, rate=1e-2):
    return TrainingSection(optim=name, learning_rate=rate, weight_decay=0.1)


@pytest.mark.parametrize("name", LOCAL)
def test_each_optimiser_learns_and_resumes_to_the_bit(name):
    whole = model()
    before = loss_of(whole, torch.arange(7)).item()
    optimizers = optim.build_optimizers(whole, section(name))
    train(whole, optimizers, 8)
    assert loss_of(whole, torch.arange(7)).item() < before

    first = model()
    optimizers = optim.build_optimizers(first, section(name))
    train(first, optimizers, 4)
    saved = {k: v.clone() for k, v in optim.state_tensors(first, optimizers).items()}
    second = model()
    second.load_state_dict(first.state_dict())
    again = optim.build_optimizers(second, section(name))
    optim.load_state_tensors(second, again, saved)
    train(second, again, 4)
    for ours, theirs in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", LOCAL)
def test_norms_and_biases_never_decay(name):
    module = model()
    names = {p: n for n, p in module.named_parameters()}
    for optimizer in optim.build_optimizers(module, section(name)):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                decayed = group["weight_decay"] > 0
                assert decayed == (parameter.ndim == 2), names[parameter]


def test_muon_leaves_embeddings_head_and_vectors_to_adamw():
    module = model()
    muon, adamw = optim.build_optimizers(module, section("muon"))
    assert [p is module["hidden"].weight for p in muon.param_groups[0]["params"]] == [True]
    assert sum(len(g["params"]) for g in adamw.param_groups) == 6


def test_lion_equals_the_papers_algorithm():
    parameter = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    lion = optim.Lion([parameter], lr=0.1, betas=(0.9, 0.99), weight_decay=0.5)
    theta, m = parameter.detach().clone(), torch.zeros(2, dtype=torch.float64)
    for gradient in ([0.3, -0.1], [-0.9, 0.2], [0.1, 0.1]):
        g = torch.tensor(gradient, dtype=torch.float64)
        parameter.grad = g.clone()
        lion.step()
        c = 0.9 * m + 0.1 * g
        theta = theta - 0.1 * (torch.sign(c) + 0.5 * theta)
        m = 0.99 * m + 0.01 * g
        assert torch.allclose(parameter.detach(), theta, atol=1e-15)


def test_nothing_trainable_is_an_error():
    module = model().requires_grad_(False)
    with pytest.raises(ModelError, match="no parameter"):
        optim.build_optimizers(module, section("adamw"))


@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "modernbert", "t5", "bart", "gpt2", "llama"])
def test_real_norms_and_biases_never_decay(kind):
    """Against the modules themselves: everything a norm owns, everything called a bias; all matrices decay."""
    from transformers import CONFIG_MAPPING, AutoModel

    from tests.models.test_dropout import FAMILIES

    keys = {"vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "modernbert":
        keys |= {"cls_token_id": 1, "sep_token_id": 2}
    network = AutoModel.from_config(CONFIG_MAPPING[kind](**{**FAMILIES[kind][0], **keys}))
    norms = {
        id(parameter)
        for module in network.modules()
        if "norm" in type(module).__name__.lower()
        for parameter in module.parameters()
    }
    names = {parameter: name for name, parameter in network.named_parameters()}
    seen = 0
    for group in optim.build_optimizers(network, section("adamw"))[0].param_groups:
        for parameter in group["params"]:
            seen += 1
            plain = id(parameter) in norms or "bias" in names[parameter]
            assert (group["weight_decay"] == 0) is plain, names[parameter]
    assert norms and seen == len(names)
