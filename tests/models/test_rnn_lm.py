"""The recurrent language model in the ecosystem: saved and loaded exactly, generating with its state as without.

Its loss, its gradient and what packing does to them stand beside those of transformers' models in test_lm.py, and what
batches and padding do to completions in tests/generate.
"""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmkit.errors import RecipeError
from llmkit.models.heads import CAUSAL_LM
from llmkit.models.load import load_model
from llmkit.recipe.sections import ModelSection
from tests.fakes import byte_tokenizer, tiny_model

MODES = {
    "greedy": {},
    "beams": {"num_beams": 4, "num_return_sequences": 2},
    "sampling": {"do_sample": True},
    "beam sampling": {"num_beams": 3, "do_sample": True},
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from llmkit.data.tokenizer import load_tokenizer

    return load_tokenizer(byte_tokenizer(tmp_path_factory.mktemp("tokenizer"), special=("<|endoftext|>", "<pad>")))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_saved_and_loaded_it_is_the_same_model(cell, tied, tmp_path):
    model = tiny_model("rnn_lm", cell=cell, tie_word_embeddings=tied).eval()
    model.save_pretrained(str(tmp_path))
    assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]
    assert AutoConfig.from_pretrained(str(tmp_path)).cell == cell
    again = AutoModelForCausalLM.from_pretrained(str(tmp_path)).eval()
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied
    ids = torch.arange(24).reshape(2, 12)
    assert torch.equal(model(ids).logits, again(ids).logits)
    double = AutoModelForCausalLM.from_pretrained(str(tmp_path), dtype=torch.float64).eval()
    assert double(ids).logits.dtype == torch.float64
    assert torch.allclose(double(ids).logits.float(), model(ids).logits, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_state_changes_no_completion(cell, mode):
    model = tiny_model("rnn_lm", cell=cell).double().eval()
    for parameter in model.parameters():
        parameter.data.mul_(4)
    ids = torch.arange(3, 15).reshape(2, 6)
    found = []
    for use_cache in (True, False):
        torch.manual_seed(2)
        found.append(
            model.generate(input_ids=ids, max_new_tokens=8, use_cache=use_cache, pad_token_id=1, **MODES[mode])
        )
    assert torch.equal(found[0], found[1])
    assert len(set(found[0][:, 6:].flatten().tolist())) > 2


def test_a_completion_goes_on_from_a_returned_state():
    model = tiny_model("rnn_lm").double().eval()
    ids = torch.arange(3, 11)[None]
    first = model.generate(input_ids=ids, max_new_tokens=4, return_dict_in_generate=True, pad_token_id=1)
    assert first.past_key_values.get_seq_length() == 11
    rest = model.generate(
        input_ids=first.sequences, past_key_values=first.past_key_values, max_new_tokens=4, pad_token_id=1
    )
    assert torch.equal(rest, model.generate(input_ids=ids, max_new_tokens=8, pad_token_id=1))


def test_the_recipe_reaches_it(tokenizer):
    def load(checkpointing=False, dropout=None, **keys):
        section = ModelSection(config={"model_type": "rnn_lm", "hidden_size": 16, **keys}, dropout=dropout)
        return load_model(
            section, tokenizer, seed=1, max_length=32, head=CAUSAL_LM, gradient_checkpointing=checkpointing
        )

    model = load(cell="gru", dropout=0.4)
    assert model.config.vocab_size == len(tokenizer)
    assert (model.config.dropout, model.model.dropout.p, model.model.cells.dropout) == (0.4, 0.4, 0.4)
    pairs = zip(model.parameters(), load(cell="gru").parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs), "the same seed gives the same weights"
    bias = load().model.cells.bias_ih_l1
    assert bias.tolist() == [0] * 16 + [1] * 16 + [0] * 32, "open forget gates"
    with pytest.raises(RecipeError, match="no gradient checkpointing"):
        load(checkpointing=True)
    for keys, words in (
        ({"cell": "rnn"}, "cell"),
        ({"num_layers": 0}, "num_layers must be at least 1"),
        ({"hidden": 3}, "did you mean hidden_size"),
    ):
        with pytest.raises(RecipeError, match=words):
            load(**keys)
