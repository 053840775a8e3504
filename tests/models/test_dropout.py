"""`model.dropout` reaches every dropout of each family's networks, the classifier's among them."""

from __future__ import annotations

import pytest
from torch import nn
from transformers import CONFIG_MAPPING

from llmkit.data.tokenizer import load_tokenizer
from llmkit.models.heads import CAUSAL_LM, MASKED_LM, QUESTION_ANSWERING, SEQ2SEQ_LM, labelled_head
from llmkit.models.load import load_model
from llmkit.recipe.sections import ModelSection
from tests.fakes import TINY, byte_tokenizer

CLASSES, TAGS = labelled_head("sequence", ["a", "b", "c"]), labelled_head("token", ["O", "B-X"])
ENCODER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
BART = {
    **{f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in (("layers", 1), ("ffn_dim", 16))},
    **{"d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2},
}
FAMILIES = {
    "bert": (ENCODER, [MASKED_LM, CLASSES, TAGS, QUESTION_ANSWERING]),
    "roberta": ({**ENCODER, "max_position_embeddings": 300}, [MASKED_LM, CLASSES, TAGS]),
    "electra": (ENCODER, [CLASSES, TAGS]),
    "albert": (ENCODER, [CLASSES, TAGS]),
    "deberta-v2": (ENCODER, [MASKED_LM, CLASSES, TAGS]),
    "modernbert": (ENCODER, [MASKED_LM, CLASSES, TAGS]),
    "distilbert": ({"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16}, [MASKED_LM, CLASSES, TAGS]),
    "t5": ({"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}, [SEQ2SEQ_LM, CLASSES, TAGS]),
    "bart": (BART, [SEQ2SEQ_LM, CLASSES]),
    "gpt2": (TINY["gpt2"], [CAUSAL_LM, CLASSES, TAGS]),
    "llama": (TINY["llama"], [CAUSAL_LM, CLASSES, TAGS]),
    "opt": (TINY["opt"], [CAUSAL_LM, CLASSES]),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    special = ("<pad>", "<s>", "</s>")
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return load_tokenizer(byte_tokenizer(tmp_path_factory.mktemp("tokenizer"), special=special, **names))


def load(kind: str, keys: dict, tokenizer, head, dropout: float | None):
    section = ModelSection(config={"model_type": kind, **keys}, dropout=dropout)
    return load_model(section, tokenizer, seed=0, max_length=24, head=head)


def rates(model) -> set[float]:
    """Every dropout probability in the network: of modules, and of attention functions (`attention_dropout`, ...)."""
    found = set()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            found.add(module.p)
        for name, value in vars(module).items():
            if "drop" in name and "layerdrop" not in name and isinstance(value, float):
                found.add(value)
    return found


@pytest.mark.parametrize("value", [0.0, 0.37])
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_dropout_is_set(kind, value, tokenizer):
    keys, heads = FAMILIES[kind]
    assert kind in CONFIG_MAPPING
    for head in heads:
        assert rates(load(kind, keys, tokenizer, head, value)) <= {value}, head.auto_class
    classified = load(kind, keys, tokenizer, heads[-1], value)
    assert rates(classified) == {value}
