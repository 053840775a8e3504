"""Adapters of every type on every head: what is trained, what is saved, and that merging and loading change nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from llmkit.data.tokenizer import load_tokenizer
from llmkit.errors import ModelError, RecipeError
from llmkit.models import heads
from llmkit.models.lm import CausalLMModule
from llmkit.models.load import load_model
from llmkit.models.peft import add_adapter, merged, save_adapter
from llmkit.models.seq2seq import Seq2SeqModule
from llmkit.models.source import locate, read_config
from llmkit.recipe.sections import ModelSection, PeftSection
from tests.fakes import TINY, byte_tokenizer
from tests.models.test_dropout import BART, ENCODER

CLASSES = heads.labelled_head("sequence", ["bad", "good", "褒"], "single_label_classification")
TAGS = heads.labelled_head("token", ["O", "B-X", "I-X"])
ENCODER_2 = {**ENCODER, "num_hidden_layers": 2, "max_position_embeddings": 300}
BODIES = {
    "gpt2": (AutoModelForCausalLM, TINY["gpt2"]),
    "llama": (AutoModelForCausalLM, TINY["llama"]),
    "bart": (AutoModelForSeq2SeqLM, BART),
    "t5": (AutoModelForSeq2SeqLM, {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}),
    "bert": (AutoModel, ENCODER_2),
    "roberta": (AutoModel, ENCODER_2),
    "electra": (AutoModel, {**ENCODER_2, "embedding_size": 8}),
    "modernbert": (AutoModel, {**ENCODER_2, "cls_token_id": 1, "sep_token_id": 2}),
}
PAIRS = [
    ("gpt2", heads.CAUSAL_LM),
    ("llama", heads.CAUSAL_LM),
    ("bart", heads.SEQ2SEQ_LM),
    ("t5", heads.SEQ2SEQ_LM),
    ("bert", CLASSES),
    ("roberta", CLASSES),
    ("llama", CLASSES),
    ("bert", TAGS),
    ("bert", heads.QUESTION_ANSWERING),
]
NAMES = [f"{kind}-{head.peft_type}" for kind, head in PAIRS]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    directory = byte_tokenizer(tmp_path_factory.mktemp("tokenizer"), special=("<pad>", "<s>", "</s>"), **names)
    return load_tokenizer(directory)


@pytest.fixture(scope="module")
def bases(tmp_path_factory, tokenizer):
    """A directory a family: an encoder without any head, with weights large enough for differences to show."""
    found = {}
    for number, (kind, (auto, keys)) in enumerate(BODIES.items()):
        pad, start, end = tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id
        ids = {"pad_token_id": pad, "bos_token_id": start, "eos_token_id": end, "decoder_start_token_id": start}
        torch.manual_seed(number)
        network = auto.from_config(CONFIG_MAPPING[kind](**keys, vocab_size=len(tokenizer), **ids))
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.1)
        found[kind] = tmp_path_factory.mktemp(kind)
        network.save_pretrained(str(found[kind]))
    return found


def build(bases, tokenizer, kind, head, **peft):
    name = str(bases[kind])
    model = load_model(ModelSection(name_or_path=name), tokenizer, seed=1, max_length=24, head=head)
    section = PeftSection(**peft)
    return add_adapter(model, section, name=name, revision=None, seed=1, head=head, max_length=24)


def inputs_of(model, head) -> dict[str, torch.Tensor]:
    ids = torch.arange(20).reshape(2, 10) + 40
    mask = torch.ones_like(ids)
    found = {"input_ids": ids, "attention_mask": mask}
    if head is heads.SEQ2SEQ_LM:
        found["decoder_input_ids"] = ids[:, :4]
    return found


def answers(model, head) -> torch.Tensor:
    with torch.no_grad():
        found = model.eval()(**inputs_of(model, head))
    return torch.cat([found.start_logits, found.end_logits]) if "start_logits" in found else found.logits


def shake(model) -> None:
    """Moves whatever is trained, as training would."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.empty_like(parameter).normal_(std=0.2, generator=draw)


@pytest.mark.parametrize("kind", ["lora", "dora", "rslora", "ia3"])
@pytest.mark.parametrize(("base", "head"), PAIRS, ids=NAMES)
def test_merging_and_loading_give_the_same_answers(base, head, kind, bases, tokenizer, tmp_path):
    model = build(bases, tokenizer, base, head, type=kind, **({} if kind == "ia3" else {"r": 2}))
    before = answers(model, head)
    shake(model)
    after = answers(model, head)
    assert (after - before).abs().max() > 1e-3
    plain = merged(model)
    assert (answers(plain, head) - after).abs().max() < 2e-5 * after.abs().max().clamp(min=1)
    assert not any("lora" in name or "ia3" in name or "modules_to_save" in name for name in plain.state_dict())
    plain.save_pretrained(str(tmp_path / "merged"))
    section = ModelSection(name_or_path=str(tmp_path / "merged"))
    whole = replace(head, fresh=False)
    again = load_model(section, tokenizer, seed=9, max_length=24, head=whole)
    assert torch.allclose(answers(again, head), after, atol=1e-4)
    save_adapter(model, tmp_path / "adapter")
    section = ModelSection(name_or_path=str(tmp_path / "adapter"))
    bare = replace(whole, config={}) if head in (CLASSES, TAGS) else whole
    loaded = load_model(section, tokenizer, seed=9, max_length=24, head=bare)
    assert torch.allclose(answers(loaded, head), after, atol=1e-6), "the head comes from the adapter's file"


@pytest.mark.parametrize(
    ("base", "head", "whole"),
    [
        ("bert", CLASSES, {"classifier", "bert.pooler.dense"}),
        ("roberta", CLASSES, {"classifier"}),
        ("modernbert", CLASSES, {"head", "classifier"}),
        ("llama", CLASSES, {"score"}),
        ("bert", TAGS, {"classifier"}),
        ("bert", heads.QUESTION_ANSWERING, {"qa_outputs"}),
    ],
)
@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_a_new_head_is_trained_whole(base, head, whole, kind, bases, tokenizer, tmp_path):
    if base == "bert":  # without a pooler in the weights, as a masked LM saves them
        from transformers import AutoModelForMaskedLM

        stripped = AutoModelForMaskedLM.from_pretrained(str(bases["bert"]))
        stripped.save_pretrained(str(tmp_path / "bert"))
        bases = {**bases, "bert": tmp_path / "bert"}
    peft = {"target_modules": ["Wqkv"]} if (base, kind) == ("modernbert", "ia3") else {}
    model = build(bases, tokenizer, base, head, type=kind, **peft)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    saved = {name.split(".modules_to_save")[0] for name in trained if "modules_to_save" in name}
    assert {name.removeprefix("base_model.model.") for name in saved} == whole
    assert all("modules_to_save" in name or f"{kind}_" in name for name in trained)


@pytest.mark.parametrize(("base", "head"), PAIRS[:4], ids=NAMES[:4])
def test_a_tuned_prompt_stands_before_the_text(base, head, bases, tokenizer, tmp_path):
    """Against the embeddings put together by hand; only the prompt is trained, and it comes back."""
    model = build(bases, tokenizer, base, head, type="prompt_tuning", num_virtual_tokens=3)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert list(trained) == ["prompt_encoder.default.embedding.weight"]
    shake(model)
    seq2seq = head is heads.SEQ2SEQ_LM
    module = (Seq2SeqModule(model) if seq2seq else CausalLMModule(model)).eval()
    ids = torch.arange(20).reshape(2, 10) + 40
    labels = torch.roll(ids, -1, 1)
    batch = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}
    if not seq2seq:
        del batch["attention_mask"]
    loss = module(batch)["loss"]
    inner = model.get_base_model()
    table = (inner.get_encoder() if seq2seq else inner).get_input_embeddings()
    prompt = trained["prompt_encoder.default.embedding.weight"]
    text = torch.cat([prompt[None].expand(2, -1, -1), table(ids)], 1)
    if seq2seq:
        logits = inner(inputs_embeds=text, decoder_input_ids=inner.prepare_decoder_input_ids_from_labels(labels)).logits
    else:
        logits = inner(inputs_embeds=text).logits[:, 3:]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert prompt.grad.abs().sum() > 0
    save_adapter(model, tmp_path)
    loaded = load_model(ModelSection(name_or_path=str(tmp_path)), tokenizer, seed=9, max_length=24, head=head)
    again = (Seq2SeqModule(loaded) if seq2seq else CausalLMModule(loaded)).eval()
    assert again(batch)["loss"].item() == pytest.approx(loss.item(), rel=1e-6)
    losses, _ = again.score(batch)
    assert losses.sum().item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("base", ["bert", "roberta", "electra", "modernbert"])
def test_a_tuned_prompt_for_a_classifier(base, bases, tokenizer, tmp_path):
    model = build(bases, tokenizer, base, CLASSES, type="prompt_tuning", num_virtual_tokens=4)
    shake(model)
    after = answers(model, CLASSES)
    assert after.shape == (2, 3)
    save_adapter(model, tmp_path)
    bare = replace(CLASSES, fresh=False, config={})
    loaded = load_model(ModelSection(name_or_path=str(tmp_path)), tokenizer, seed=9, max_length=24, head=bare)
    assert torch.allclose(answers(loaded, CLASSES), after, atol=1e-6)
    assert loaded.config.id2label == {0: "bad", 1: "good", 2: "褒"}
    assert read_config(locate(str(tmp_path)))["id2label"]["2"] == "褒"


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bart", "t5"])
def test_generation_with_a_tuned_prompt_is_greedy_over_its_logits(kind, bases, tokenizer, tmp_path):
    """Prompts of different length padded together, with the cache, against one token at a time without."""
    from llmkit.recipe.sections import GenerationSection
    from llmkit.writing.engine import Prompt, TransformersEngine

    seq2seq = kind in ("bart", "t5")
    head = heads.SEQ2SEQ_LM if seq2seq else heads.CAUSAL_LM
    model = build(bases, tokenizer, kind, head, type="prompt_tuning", num_virtual_tokens=3)
    shake(model)
    save_adapter(model, tmp_path)
    section = ModelSection(name_or_path=str(tmp_path))
    loaded = load_model(section, tokenizer, seed=9, max_length=24, head=head).eval()
    engine = TransformersEngine(loaded, tokenizer, GenerationSection(max_new_tokens=6), seed=0)
    prompts = [Prompt((60, 61, 62, 63, 64, 65), 0, "a"), Prompt((70, 71), 1, "b"), Prompt((80,), 2, "c")]
    texts = [completion.text for completion in engine.generate(prompts)]
    module = (Seq2SeqModule(loaded) if seq2seq else CausalLMModule(loaded)).eval()
    for prompt, text in zip(prompts, texts, strict=True):
        given, ids = torch.tensor([prompt.ids]), [] if seq2seq else list(prompt.ids)
        start = len(ids)
        for _ in range(6):
            batch = {"input_ids": torch.tensor([ids])}
            if seq2seq:  # the label that is asked for is never read
                batch = {
                    "input_ids": given,
                    "attention_mask": torch.ones_like(given),
                    "labels": torch.tensor([[*ids, 0]]),
                }
            with torch.no_grad():
                token = int(module.logits(batch)[0, -1].argmax())
            if token == tokenizer.eos_token_id:
                break
            ids.append(token)
        assert text == tokenizer.decode(ids[start:], skip_special_tokens=True)


@pytest.mark.parametrize(
    ("base", "head", "kind"),
    [
        ("llama", heads.CAUSAL_LM, "prompt_tuning"),
        ("bart", heads.SEQ2SEQ_LM, "prompt_tuning"),
        ("gpt2", heads.CAUSAL_LM, "ia3"),
        ("roberta", CLASSES, "ia3"),
        ("bert", CLASSES, "prompt_tuning"),
        ("bert", TAGS, "lora"),
        ("bert", heads.QUESTION_ANSWERING, "lora"),
    ],
)
def test_peft_itself_loads_the_adapter(base, head, kind, bases, tokenizer, tmp_path):
    import peft

    model = build(bases, tokenizer, base, head, type=kind)
    shake(model)
    save_adapter(model, tmp_path)
    auto = getattr(peft, head.auto_class.replace("AutoModel", "AutoPeftModel"))
    keys = {"num_labels": head.config["num_labels"]} if head.config else {}
    theirs = auto.from_pretrained(str(tmp_path), **keys)
    assert torch.allclose(answers(theirs, head), answers(model, head), atol=1e-6)


def test_what_a_type_cannot_do_is_refused(bases, tokenizer):
    def fails(base, head, error, match, **peft):
        with pytest.raises(error, match=match):
            build(bases, tokenizer, base, head, **peft)

    prompt = {"type": "prompt_tuning"}
    fails("llama", CLASSES, ModelError, "by a text's last token", **prompt)
    fails("bert", TAGS, ModelError, "shifts the positions", **prompt)
    fails("bert", heads.QUESTION_ANSWERING, ModelError, "shifts the positions", **prompt)
    fails("bert", heads.MASKED_LM, ModelError, "which an adapter cannot train", type="lora")
    fails("electra", CLASSES, RecipeError, "not known to peft; name them", type="ia3")
    fails("llama", heads.CAUSAL_LM, RecipeError, "matches no linear layer", type="ia3", target_modules=["key"])
    long = ModelSection(name_or_path=str(bases["bert"]))
    model = load_model(long, tokenizer, seed=1, max_length=290, head=CLASSES)
    with pytest.raises(RecipeError, match=r"set data\.max_length to 280 or less") as caught:
        add_adapter(model, PeftSection(**prompt), name="x", revision=None, seed=1, head=CLASSES, max_length=290)
    assert caught.value.key == "peft.num_virtual_tokens"


def test_packing_is_off_with_a_tuned_prompt(bases, tokenizer):
    from llmkit.tasks.language_model import settle_packing

    module = CausalLMModule(build(bases, tokenizer, "llama", heads.CAUSAL_LM, type="prompt_tuning"))
    assert settle_packing(None, module, None) is False
    with pytest.raises(ModelError, match="packed documents"):
        settle_packing(True, module, None)
