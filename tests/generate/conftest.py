"""Tiny models and a tokenizer made on the spot: byte-level, so that a Chinese character is several tokens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from llmkit.models.configs import RnnLmConfig
from llmkit.models.rnn_lm import RnnLmForCausalLM
from llmkit.recipe.sections import GenerationSection
from llmkit.writing.engine import Prompt, TransformersEngine

TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "def add(a, b):\n    return a + b",
    "今天天气很好，我们去公园。",
]
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|eos|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small only wait for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS[:2], trainer)  # no Chinese: its characters stay three bytes, three tokens
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|eos|>", pad_token="<|pad|>")
    made.chat_template = TEMPLATE
    return made


def make_model(kind: str, vocab_size: int, *, positions: int = 64) -> PreTrainedModel:
    torch.manual_seed(11)
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    if kind == "gpt2":
        config = GPT2Config(vocab_size=vocab_size, n_positions=positions, n_embd=32, n_layer=2, n_head=2, **ids)
        model: PreTrainedModel = GPT2LMHeadModel(config)
    elif kind == "rnn_lm":
        model = RnnLmForCausalLM(RnnLmConfig(vocab_size=vocab_size, hidden_size=32, **ids))
    else:
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, max_position_embeddings=positions, **shape, **ids))
    for parameter in model.parameters():  # wide logits: choices that rounding cannot turn
        parameter.data.mul_(4.0 if parameter.dim() > 1 else 1.0)
    return model.double().eval()


@pytest.fixture(scope="session", params=["gpt2", "llama", "rnn_lm"])
def model(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return make_model(request.param, len(tokenizer))


def engine_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **settings: object) -> TransformersEngine:
    section = GenerationSection.model_validate({"max_new_tokens": 12, **settings})
    return TransformersEngine(model, tokenizer, section, seed=7)


def prompts_of(tokenizer: PreTrainedTokenizerBase, *texts: str) -> list[Prompt]:
    return [Prompt(tuple(tokenizer(text)["input_ids"]), row, text) for row, text in enumerate(texts)]
