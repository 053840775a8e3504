"""Layer-wise learning rates: layers found in real architectures' names, and what optimisers do with them."""

from __future__ import annotations

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from llmkit.errors import RecipeError
from llmkit.recipe.sections import TrainingSection
from llmkit.train import optim
from llmkit.train.layers import EMBEDDING, rate_scales
from tests.train.test_optim import LOCAL
from tests.train.toy import make_run

SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 20}


def classifier(kind: str, **keys):
    return AutoModelForSequenceClassification.from_config(CONFIG_MAPPING[kind](**keys))


def groups(scales: dict[str, float], *parts: str) -> set[float]:
    return {round(scale, 9) for name, scale in scales.items() if all(part in name for part in parts)}


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "deberta-v2", "modernbert"])
def test_encoders(kind):
    keys = {**SMALL, "pad_token_id": 0}
    if kind == "modernbert":
        keys |= {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
    scales = rate_scales(classifier(kind, **keys), 0.5)
    layer = "layers." if kind == "modernbert" else "encoder.layer."
    for k in range(3):
        assert groups(scales, f"{layer}{k}.") == {0.5 ** (3 - k)}
    assert groups(scales, "embeddings") == {0.5**4}
    assert groups(scales, "classifier") == {1.0}
    assert set(scales.values()) <= {1.0, 0.5, 0.25, 0.125, 0.0625}


def test_decoders():
    gpt2 = classifier("gpt2", n_embd=16, n_layer=2, n_head=2, vocab_size=20)
    scales = rate_scales(gpt2, 0.9)
    assert groups(scales, "h.0.") == {0.81} and groups(scales, "h.1.") == {0.9}
    assert groups(scales, "wte") == groups(scales, "wpe") == {0.729}
    assert groups(scales, "ln_f") == groups(scales, "score") == {1.0}
    assert [bool(EMBEDDING.search(name)) for name in ("embed_out.weight", "gpt_neox.embed_in.weight")] == [False, True]


def test_encoder_and_decoder_are_counted_each():
    config = CONFIG_MAPPING["t5"](
        d_model=16, d_kv=8, d_ff=16, num_layers=3, num_decoder_layers=2, num_heads=2, vocab_size=20
    )
    scales = rate_scales(AutoModelForSeq2SeqLM.from_config(config), 0.5)
    assert groups(scales, "encoder.block.0.") == {0.125} and groups(scales, "encoder.block.2.") == {0.5}
    assert groups(scales, "decoder.block.0.") == {0.25} and groups(scales, "decoder.block.1.") == {0.5}
    assert groups(scales, "shared") == {0.0625}
    assert groups(scales, "final_layer_norm") == {1.0}


def test_an_architecture_without_layers_is_refused():
    with pytest.raises(RecipeError, match="no numbered layers") as caught:
        rate_scales(AutoModel.from_config(CONFIG_MAPPING["albert"](**SMALL)), 0.9)
    assert caught.value.key == "training.layerwise_lr_decay"


@pytest.mark.parametrize("name", LOCAL)
def test_every_optimiser_gets_the_scaled_rate(name):
    torch.manual_seed(0)
    model = classifier("bert", **SMALL)
    section = TrainingSection(optim=name, learning_rate=1e-2, weight_decay=0.0, layerwise_lr_decay=0.5)
    scales = rate_scales(model, 0.5)
    names = {parameter: n for n, parameter in model.named_parameters()}
    found = {}
    for optimizer in optim.build_optimizers(model, section):
        for group in optimizer.param_groups:
            assert group["lr"] == 1e-2 * group["lr_scale"]
            found |= {names[parameter]: group["lr_scale"] for parameter in group["params"]}
    assert found == scales


def test_the_loop_scales_each_step():
    """With SGD and a rate per layer, a step moves each parameter by its scale times what one rate would."""
    moved = {}
    for decay in (None, 0.25):
        section = TrainingSection(optim="sgd", learning_rate=0.1, weight_decay=0.0)
        run, state, _ = make_run(section, steps=1)
        for optimizer in run.optimizers:
            for group in optimizer.param_groups:
                assert group["lr_scale"] == 1.0
                group["lr_scale"] = decay or 1.0
        before = run.module.out.weight.detach().clone()
        from llmkit.train.loop import fit

        assert fit(run, state)
        moved[decay] = run.module.out.weight.detach() - before
    assert torch.allclose(moved[0.25], 0.25 * moved[None], atol=1e-14)
    assert moved[None].abs().max() > 0
