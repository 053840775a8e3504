"""The Auto classes know our architectures whichever of llmkit and transformers comes first, and nothing comes early."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llmkit.errors import ModelError
from llmkit.models.heads import CAUSAL_LM, SEQ2SEQ_LM, check_architecture, labelled_head
from llmkit.models.registry import NETWORKS
from tests.fakes import tiny_model

ROOT = Path(__file__).parents[2]
FIRST_LINES = {
    "llmkit first": "import llmkit",
    "transformers first": "import transformers; import llmkit",
    "the models before": "from transformers import AutoModelForCausalLM; import llmkit",
    "modelling code after": "import llmkit; import transformers.modeling_utils, transformers.generation.utils",
}


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("order", FIRST_LINES)
def test_any_order_of_imports(order, tmp_path):
    tiny_model("rnn_lm").save_pretrained(str(tmp_path))
    code = FIRST_LINES[order] + (
        "\nfrom transformers import AutoConfig, AutoModelForCausalLM, AutoModel\n"
        f"print(AutoConfig.from_pretrained({str(tmp_path)!r}).model_type)\n"
        f"print(type(AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})).__name__)\n"
        f"print(type(AutoModel.from_pretrained({str(tmp_path)!r})).__name__)\n"
    )
    assert python(code).split() == ["rnn_lm", "RnnLmForCausalLM", "RnnLmModel"]


def test_importing_llmkit_imports_nothing_heavy():
    code = (
        "import sys, llmkit, llmkit.cli; print(sorted({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)))"
    )
    assert python(code).strip() == "[]"


def test_every_network_is_built_by_its_auto_class():
    import transformers

    for auto_class, paths in NETWORKS.items():
        for path in paths:
            model_type = path.split(".")[0]
            config = transformers.CONFIG_MAPPING[model_type](vocab_size=20, hidden_size=8)
            model = getattr(transformers, auto_class).from_config(config)
            assert type(model).__name__ == path.split(".")[1]
            assert model.get_input_embeddings().weight.shape[0] == 20
            assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("model_type", "head", "words"),
    [
        ("rnn_seq2seq", CAUSAL_LM, "rnn_seq2seq is an encoder-decoder; this task needs a decoder-only model"),
        ("rnn_lm", SEQ2SEQ_LM, "rnn_lm is not made for it; this task needs an encoder-decoder .*rnn_seq2seq"),
        ("text_cnn", labelled_head("token", ["a", "b"]), "text_cnn is not made for it; .*rnn_encoder"),
        ("rnn_seq2seq", labelled_head("sequence", ["a", "b"]), "rnn_seq2seq is not made for it; .*text_cnn"),
        ("rnn_encoder", CAUSAL_LM, "rnn_encoder is not made for it"),
    ],
)
def test_a_wrong_pairing_names_what_fits(model_type, head, words):
    import transformers

    with pytest.raises(ModelError, match=words):
        check_architecture(transformers.CONFIG_MAPPING[model_type](), head)
