"""NEFTune's noise: its bound by the formula, where it is added, and where it is not."""

from __future__ import annotations

import math

import pytest
import torch

from llmkit.models.lm import CausalLMModule
from llmkit.models.seq2seq import Seq2SeqModule
from llmkit.train.noise import install_noise, text_lengths
from tests.fakes import tiny_model

ALPHA, WIDTH = 5.0, 32


def seen(embedding: torch.nn.Module) -> list[torch.Tensor]:
    """What each later call of the embedding gives, its other hooks included."""
    outputs: list[torch.Tensor] = []
    embedding.register_forward_hook(lambda module, args, output: outputs.append(output.detach()))
    return outputs


def test_lengths_are_those_of_the_text():
    ids = torch.ones(2, 5, dtype=torch.long)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    assert text_lengths({"input_ids": ids, "attention_mask": mask}).tolist() == [[3.0], [5.0]]
    labels = torch.tensor([[-100, 4, -100, -100, -100], [-100, -100, 2, 3, 4]])
    assert text_lengths({"input_ids": ids, "labels": labels}).tolist() == [[2.0], [5.0]]
    positions = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 0, 1, 2]])
    packed = {"input_ids": ids, "labels": labels, "position_ids": positions}
    assert text_lengths(packed).tolist() == [[2.0] * 5, [2.0, 2.0, 3.0, 3.0, 3.0]]


def test_the_noise_is_the_papers():
    module = CausalLMModule(tiny_model("gpt2")).train()
    table = module.inner().get_input_embeddings()
    install_noise(module, ALPHA)
    outputs = seen(table)
    ids = torch.arange(60).reshape(2, 30) % 64
    labels = ids.clone()
    labels[0, 7:] = -100
    torch.manual_seed(4)
    module({"input_ids": ids, "labels": labels})
    noise = outputs[0] - table.weight.detach()[ids]
    torch.manual_seed(4)
    expected = torch.rand(2, 30, WIDTH) * 2 - 1
    for row, length in enumerate((7, 30)):
        bound = ALPHA / math.sqrt(length * WIDTH)
        assert torch.allclose(noise[row], expected[row] * bound, atol=1e-6)
        assert 0.9 * bound < noise[row].abs().max() <= bound * (1 + 1e-6)


def test_evaluation_and_scores_have_none():
    torch.manual_seed(0)
    module, plain = CausalLMModule(tiny_model("llama")), CausalLMModule(tiny_model("llama"))
    install_noise(module, ALPHA)
    ids = torch.arange(20).reshape(2, 10)
    batch = {"input_ids": ids, "labels": ids}
    assert module.train()(batch)["loss"] != plain.train()(batch)["loss"]
    module.eval(), plain.eval()
    assert torch.equal(module(batch)["loss"], plain(batch)["loss"])
    assert torch.equal(module.score(batch)[0], plain.score(batch)[0])
    state = torch.random.get_rng_state()
    module(batch)
    assert torch.equal(torch.random.get_rng_state(), state), "nothing is drawn"


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_encoder_decoder_gets_it_in_the_encoder_alone(kind):
    from transformers import AutoModelForSeq2SeqLM, BartConfig, T5Config

    torch.manual_seed(0)
    config = {
        "t5": lambda: T5Config(d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=64),
        "bart": lambda: BartConfig(
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            vocab_size=64,
            max_position_embeddings=32,
        ),
    }[kind]()
    config.decoder_start_token_id = 0
    model = AutoModelForSeq2SeqLM.from_config(config)
    model.resize_token_embeddings(70)  # which makes encoder and decoder read one table
    module = Seq2SeqModule(model).train()
    install_noise(module, ALPHA)
    encoder = seen(model.get_encoder().get_input_embeddings())
    ids = torch.arange(2, 22).reshape(2, 10)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    module(batch)
    clean = [output.clone() for output in encoder]
    assert clean
    module.eval()(batch)
    plain = encoder[len(clean) :]
    assert not torch.equal(clean[0], plain[0])
    assert all(torch.equal(a, b) for a, b in zip(clean[1:], plain[1:], strict=True)), "the decoder's input"
    module.train()(batch)  # and the hooks are ready for the next step
