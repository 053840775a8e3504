"""Loading: seeded weights, refusals that name the way out, no pickle, adapters pinned to their base."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from llmkit.errors import ModelError, RecipeError
from llmkit.models import load as models_load
from llmkit.models.heads import CAUSAL_LM, SEQ2SEQ_LM
from llmkit.models.load import load_model, locate, model_limit
from llmkit.models.load import max_length as recipe_max_length
from llmkit.models.peft import add_adapter, merged, save_adapter, target_modules, weights_sha256
from llmkit.models.source import check_remote_code, is_hub_id
from llmkit.recipe.sections import DataSection, ModelSection, PeftSection, Recipe
from llmkit.recipe.tasks import CausalLM
from tests.fakes import TINY, byte_tokenizer


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    return byte_tokenizer(tmp_path_factory.mktemp("tokenizer"), special=("<|endoftext|>", "<pad>"))


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir):
    from llmkit.data.tokenizer import load_tokenizer

    return load_tokenizer(tokenizer_dir)


def section(kind: str = "gpt2", **keys) -> ModelSection:
    return ModelSection(config={"model_type": kind, **TINY[kind], **keys})


def load(model: ModelSection, tokenizer, seed: int = 1, max_length: int = 48):
    return load_model(model, tokenizer, seed=seed, max_length=max_length)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer):
    directory = tmp_path_factory.mktemp("model")
    load(section("llama"), tokenizer).save_pretrained(str(directory))
    return directory


def recipe(model: ModelSection, max_length: int | None = None) -> Recipe:
    return Recipe(output_dir="x", task=CausalLM(type="causal_lm"), model=model, data=DataSection(max_length=max_length))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2", "opt"])
def test_from_config_follows_the_tokenizer_and_the_seed(kind, tokenizer):
    one = load(section(kind), tokenizer)
    torch.manual_seed(999)
    torch.rand(7)
    before = torch.random.get_rng_state()
    same, other = load(section(kind), tokenizer), load(section(kind), tokenizer, seed=2)
    assert (torch.random.get_rng_state() == before).all(), "the global generator is left alone"
    assert one.config.vocab_size == len(tokenizer) == one.get_input_embeddings().weight.shape[0]
    assert one.config.max_position_embeddings == 48
    assert one.config.eos_token_id == tokenizer.eos_token_id
    pairs = list(zip(one.parameters(), same.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("config", "key", "words"),
    [
        ({"model_type": "gpt2", "n_layers": 2}, "model.config.n_layers", "did you mean n_layer?"),
        ({"model_type": "lama"}, "model.config.model_type", "did you mean llama?"),
        ({"n_layer": 2}, "model.config.model_type", "missing"),
        ({"model_type": "gpt2", "vocab_size": 5}, "model.config.vocab_size", "follows the tokenizer"),
        ({"model_type": "bart", "forced_eos_token_id": 2}, "model.config.forced_eos_token_id", "follows the tokenizer"),
        ({"model_type": "bart", "decoder_start_token_id": 0}, "model.config.decoder_start_token_id", "the tokenizer"),
        ({"model_type": "gpt2", "n_embd": 30, "n_head": 4}, "model.config", "gpt2"),
        ({"model_type": "gpt2", "n_layer": "two"}, "model.config", "n_layer"),
    ],
)
def test_a_wrong_config_is_told_by_key(config, key, words, tokenizer):
    with pytest.raises(RecipeError) as caught:
        load(ModelSection(config=config), tokenizer)
    assert caught.value.key == key
    assert words in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("kind", ["bart", "mbart"])
def test_no_id_of_another_tokenizer_is_left(kind, tokenizer):
    """BART's config forces id 2 at the end of a text that is cut short: any token here."""
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model_section = ModelSection(config={"model_type": kind, **sizes, **heads})
    model = load_model(model_section, tokenizer, seed=1, max_length=48, head=SEQ2SEQ_LM)
    for settings in (model.config.to_dict(), model.generation_config.to_dict()):
        ids = {value for key, value in settings.items() if key.endswith("_token_id") and value is not None}
        assert ids <= set(tokenizer.all_special_ids)


@pytest.mark.parametrize(
    ("kind", "word"), [("t5", "encoder-decoder"), ("bert", "an encoder"), ("vit", "not made for it")]
)
def test_other_families_are_refused(kind, word, tokenizer):
    with pytest.raises(ModelError, match=word):
        load(ModelSection(config={"model_type": kind}), tokenizer)


def test_dropout_is_set_where_there_is_one(tokenizer):
    model = load(section("gpt2").model_copy(update={"dropout": 0.25}), tokenizer)
    assert (model.config.attn_pdrop, model.config.resid_pdrop, model.config.embd_pdrop) == (0.25, 0.25, 0.25)
    assert model.config.summary_first_dropout == 0.1
    with pytest.raises(RecipeError, match="no dropout"):
        load(ModelSection(config={"model_type": "mamba"}, dropout=0.1), tokenizer)


def test_weights_come_back(saved, tokenizer):
    model = load(ModelSection(name_or_path=str(saved)), tokenizer)
    again = load(section("llama"), tokenizer)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert model.dtype == torch.float32


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_weights_are_laid_where_they_will_be_used(kind, tmp_path, tokenizer, monkeypatch):
    """Only those that are all there: what is drawn is drawn on the CPU. The device is one here, the way is the same."""
    from llmkit.data.tokenizer import load_tokenizer

    load(section(kind), tokenizer).save_pretrained(str(tmp_path / "model"))
    pretrained, asked = ModelSection(name_or_path=str(tmp_path / "model")), []
    plain = load(pretrained, tokenizer)
    monkeypatch.setattr(models_load, "gpu_of_process", lambda: asked.append("device") or torch.device("cpu"))
    placed = load(pretrained, tokenizer)
    assert asked == ["device"]
    for (name, one), (other, two) in zip(plain.state_dict().items(), placed.state_dict().items(), strict=True):
        assert name == other and torch.equal(one, two)
    ids = torch.arange(12).reshape(2, 6)
    assert torch.equal(plain.eval()(ids).logits, placed.eval()(ids).logits)
    placed.save_pretrained(str(tmp_path / "again"))
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "model/model.safetensors").read_bytes()
    longer = load_tokenizer(byte_tokenizer(tmp_path / "longer", special=("<|endoftext|>", "<pad>", "<|im_start|>")))
    load(pretrained, longer)
    load_model(pretrained, tokenizer, seed=1, max_length=48, head=replace(CAUSAL_LM, fresh=True))
    assert asked == ["device"]
    monkeypatch.setattr(models_load, "gpu_of_process", lambda: torch.device("meta"))
    assert {p.device.type for p in load(pretrained, tokenizer).parameters()} == {"meta"}


def test_new_tokens_get_embeddings(saved, tmp_path, tokenizer):
    from llmkit.data.tokenizer import load_tokenizer

    longer = load_tokenizer(byte_tokenizer(tmp_path, special=("<|endoftext|>", "<pad>", "<|im_start|>", "<|im_end|>")))
    models = [load(ModelSection(name_or_path=str(saved)), longer) for _ in range(2)]
    tables = [model.get_input_embeddings().weight for model in models]
    assert tables[0].shape[0] == len(longer) == len(tokenizer) + 2
    assert torch.equal(tables[0], tables[1]), "seeded"
    old = load(ModelSection(name_or_path=str(saved)), tokenizer).get_input_embeddings().weight
    assert torch.equal(tables[0][: len(tokenizer)], old)
    with pytest.raises(RecipeError, match=r"peft\.merge: true"):
        add_adapter(models[0], PeftSection(), name=str(saved), revision=None, seed=0, head=CAUSAL_LM)


def test_tied_weights_stay_tied(tmp_path, tokenizer):
    model = load(section("gpt2"), tokenizer)
    model.save_pretrained(str(tmp_path))
    again = load(ModelSection(name_or_path=str(tmp_path)), tokenizer)
    assert again.get_input_embeddings().weight is again.get_output_embeddings().weight


def test_paths_are_looked_up_on_disk_first(saved, tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="did you mean"):
        locate(str(saved) + "x")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(ModelError, match="no model directory runs/gpt"):
        locate("runs/gpt")
    with pytest.raises(ModelError, match=r"hf://gpt2"):
        locate("gpt2")
    assert locate("Qwen/Qwen2-0.5B").is_local is False
    assert locate("hf://gpt2").name == "gpt2"
    assert is_hub_id("Qwen/Qwen2-0.5B")
    assert not is_hub_id(str(saved))
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelError, match="is a file"):
        locate("file")


def test_damaged_directories_are_model_errors(saved, tmp_path, tokenizer):
    def fails(match):
        with pytest.raises(ModelError, match=match) as caught:
            load(ModelSection(name_or_path=str(tmp_path)), tokenizer)
        assert "\n" not in caught.value.message

    (tmp_path / "config.json").write_text((saved / "config.json").read_text())
    fails("safetensors")
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    fails("pickle")
    weights = (saved / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    fails("model")
    from safetensors.torch import load_file, save_file

    tensors = load_file(saved / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    fails("lack 1 of the model's tensors")
    (tmp_path / "config.json").write_text("{")
    fails(str(tmp_path))


def test_remote_code_needs_key_flag_and_commit():
    model = ModelSection(name_or_path="a/b", trust_remote_code=True, revision="main")
    with pytest.raises(RecipeError, match="--trust-remote-code"):
        check_remote_code(model, allowed=False)
    with pytest.raises(RecipeError, match="40 hex"):
        check_remote_code(model, allowed=True)
    assert check_remote_code(model.model_copy(update={"revision": "0123456789" * 4}), allowed=True)
    assert not check_remote_code(ModelSection(name_or_path="a/b"), allowed=True)


def test_limits_come_from_the_config(saved):
    assert model_limit(recipe(ModelSection(name_or_path=str(saved)))) == 48
    assert recipe_max_length(recipe(ModelSection(name_or_path=str(saved)))) == 48
    assert recipe_max_length(recipe(ModelSection(name_or_path=str(saved)), 16)) == 16
    with pytest.raises(RecipeError, match="more than the 48"):
        recipe_max_length(recipe(ModelSection(name_or_path=str(saved)), 64))
    assert recipe_max_length(recipe(section("gpt2"))) == 1024
    assert recipe_max_length(recipe(section("gpt2", n_positions=128))) == 128
    assert recipe_max_length(recipe(section("gpt2"), 4096)) == 4096


def test_limit_is_found_without_torch(saved):
    import subprocess
    import sys

    code = (
        "import sys; from llmkit.models.source import read_config, locate; import llmkit.models.load;"
        f"print(read_config(locate({str(saved)!r}))['model_type'], 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["llama", "False"]


def test_gradient_checkpointing_changes_nothing(tokenizer):
    from llmkit.models.lm import CausalLMModule

    ids = torch.arange(24).reshape(2, 12)
    losses = []
    for checkpointing in (False, True):
        model = load_model(section("gpt2"), tokenizer, seed=1, max_length=48, gradient_checkpointing=checkpointing)
        module = CausalLMModule(model.double()).train()
        loss = module({"input_ids": ids, "labels": ids})["loss"]
        loss.backward()
        losses.append((loss.item(), model.get_input_embeddings().weight.grad.clone()))
    assert model.is_gradient_checkpointing
    assert losses[0][0] == pytest.approx(losses[1][0], abs=1e-12)
    assert (losses[0][1] - losses[1][1]).abs().max() < 1e-12


@pytest.mark.parametrize("kind", ["lora", "dora", "rslora"])
def test_adapters_merge_into_the_same_function(kind, saved, tokenizer):
    base = load(ModelSection(name_or_path=str(saved)), tokenizer)
    adapted = add_adapter(base, PeftSection(type=kind, r=4), name=str(saved), revision=None, seed=1, head=CAUSAL_LM)
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    assert not any("lm_head" in name for name in trained)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(3))
    adapted.eval()
    ids = torch.arange(20).reshape(2, 10)
    before = adapted(input_ids=ids, use_cache=False).logits
    plain = merged(adapted)
    assert type(plain).__name__ == "LlamaForCausalLM"
    assert (plain(input_ids=ids, use_cache=False).logits - before).abs().max() < 1e-5
    assert torch.equal(adapted(input_ids=ids, use_cache=False).logits, before), "the trained model stays as it is"


def test_adapter_alone_pins_its_base(saved, tmp_path, tokenizer):
    import shutil

    base_dir, out = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(saved, base_dir)
    base = load(ModelSection(name_or_path=str(base_dir)), tokenizer)
    adapted = add_adapter(
        base, PeftSection(r=4, target_modules=["q_proj"]), name=str(base_dir), revision=None, seed=1, head=CAUSAL_LM
    )
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    save_adapter(adapted, out)
    pin = json.loads((out / "base_model.json").read_text())
    assert pin == {"name_or_path": str(base_dir), "revision": None, "sha256": weights_sha256(base_dir)}
    again = load(ModelSection(name_or_path=str(out)), tokenizer).eval()
    ids = torch.arange(10)[None]
    assert torch.allclose(again(input_ids=ids).logits, adapted.eval()(input_ids=ids).logits)
    data = bytearray((base_dir / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (base_dir / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match="are not those"):
        load(ModelSection(name_or_path=str(out)), tokenizer)


def test_target_modules_that_match_nothing(saved, tokenizer):
    model = load(ModelSection(name_or_path=str(saved)), tokenizer)
    assert len(target_modules(model, "all-linear")) == 14
    assert len(target_modules(model, ["q_proj", "*.1.mlp.*"])) == 5
    with pytest.raises(RecipeError, match=r"did you mean q_proj\? The model has .*up_proj"):
        target_modules(model, ["q_prj"])
