"""Tokenizers: trained ones on English and Chinese, imported ones against transformers' own ids, the two engines."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from llmkit.data.tokenizer import BatchEncoder, choose_engine, import_tokenizer, load_tokenizer, read_special_ids
from llmkit.data.tokenizer_files import TokenizerSource
from llmkit.data.tokenizer_make import single_byte_ids
from llmkit.data.tokenizer_merges import learn, learn_exactly
from llmkit.data.tokenizer_train import ALGORITHMS, END, train_tokenizer
from llmkit.errors import RecipeError
from llmkit.recipe.sections import TokenizerSection, TokenizerTrain

DIRECTORIES = Path(__file__).resolve().parents[3] / "shared" / "data"
HAN = [chr(0x4E00 + i * 7) for i in range(1500)]
CHINESE = ["".join(random.Random(i).choices(HAN, k=1 + i % 3)) for i in range(3000)]
SYLLABLES = [a + b for a in "b c d f g h k l m n p r s t v".split() for b in "a e i o u en or ist".split()]  # noqa: SIM905


def made(seed: int, count: int = 400) -> list[str]:
    """English-like and Chinese-like texts by turns, their words with the frequencies of language (Zipf)."""
    draw, texts = np.random.default_rng(seed), []
    for i in range(count):
        if i % 2:
            ranks = np.minimum(draw.zipf(1.3, 150) - 1, len(CHINESE) - 1)
            words = [CHINESE[rank] for rank in ranks]
            words[9::10] = draw.choice(list("，。！"), 15).tolist()
            texts.append("".join(words))
        else:
            words = ("".join(draw.choice(SYLLABLES, 1 + rank % 3)) for rank in draw.zipf(1.3, 80))
            texts.append(" ".join(words) + ".\n")
    return texts


def trained(target: Path, algorithm: str, vocab_size: int, texts: list[str], **keys: Any) -> Any:
    spec = TokenizerTrain.model_validate({"algorithm": algorithm, "vocab_size": vocab_size, **keys})
    train_tokenizer(lambda: texts, spec, target)
    return load_tokenizer(target)


CASES = [*((name, None) for name in ALGORITHMS), ("bpe", "jieba"), ("unigram", "jieba"), ("word", "jieba")]


@pytest.mark.parametrize(("algorithm", "cut"), CASES)
def test_every_kind_trains_loads_and_keeps_its_bound(tmp_path: Path, algorithm: str, cut: str | None) -> None:
    texts = made(1, 120)
    tokenizer = trained(tmp_path, algorithm, 2000, texts, pre_tokenizer=cut)
    assert len(tokenizer) <= 2000
    assert max(tokenizer.get_vocab().values()) < 2000
    assert tokenizer.bos_token == tokenizer.eos_token == END
    assert tokenizer.pad_token is not None
    end = tokenizer.eos_token_id
    for text in texts[:10]:
        ids = BatchEncoder(tmp_path).encode([text]).values.tolist()
        assert tokenizer(text)["input_ids"] == [end, *ids]  # a prompt begins as a stored document does
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids
        unknown = sum(i == tokenizer.unk_token_id for i in ids) if algorithm != "bpe" else 0
        assert unknown < 0.05 * len(ids) + 1 or (algorithm == "word" and text.isascii())
    ids = read_special_ids(tmp_path)
    assert (ids.bos, ids.eos, ids.pad) == (end, end, tokenizer.pad_token_id)


@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece", "unigram", "char"])
def test_no_vocabulary_too_small_to_be_honest(tmp_path: Path, algorithm: str) -> None:
    with pytest.raises(RecipeError, match="needs at least"):
        trained(tmp_path, algorithm, 2, made(1, 10))


def noise(seed: int) -> str:
    draw = random.Random(seed)
    pools = [
        [chr(i) for i in range(0x80)],
        list("中文字符，。　「」" + "".join(HAN[:100])),
        ["😀", "👩‍👩‍👧‍👦", "🇨🇳", "\U0001f9d1\u200d\U0001f680", "e\u0301", "\u200b", "\ufeff", "\u2028"],
        [chr(draw.choice([draw.randrange(0x80, 0xD800), draw.randrange(0xE000, 0x110000)])) for _ in range(50)],
        ["\x00", "\x01", "\x7f", "\x85", "\r", "\n", "\t", "   ", END, "<unk>", "Ġ", "Ċ", "▁"],
    ]
    return "".join(draw.choice(draw.choice(pools)) for _ in range(draw.randrange(60)))


@pytest.mark.parametrize(("algorithm", "cut"), [("word", None), ("word", "jieba"), ("char", None)])
def test_words_and_characters_come_back_as_they_were(tmp_path: Path, algorithm: str, cut: str | None) -> None:
    english = "The cat's dog didn't see 1984 well-known (old) cats, I'll say:\n\n  naïve “quotes”!\tEnd.\n"
    chinese = "第一回　我们去公园玩，她说：“今天天气很好！”\n他有3只猫和T恤——真的。\n"
    mixed = "他用 Python 写了hello world程序，很 好。\n"
    texts = [english, chinese, mixed]
    tokenizer = trained(tmp_path, algorithm, 600, texts * 3, pre_tokenizer=cut)
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
    if algorithm == "word":
        assert {"The", " dog", "'s", "园" if cut is None else "公园"} <= set(tokenizer.get_vocab())
    else:
        assert all(len(token) == 1 for token in tokenizer.get_vocab() if token not in (END, "<unk>"))


@pytest.mark.parametrize(("algorithm", "cut"), [("word", None), ("word", "jieba"), ("char", None)])
def test_one_unknown_character_or_word_hides_no_other(tmp_path: Path, algorithm: str, cut: str | None) -> None:
    tokenizer = trained(tmp_path, algorithm, 600, ["我们去公园玩。the cat saw a dog"] * 3, pre_tokenizer=cut)
    assert tokenizer.decode(tokenizer("我们去靐园玩。", add_special_tokens=False)["input_ids"]) == "我们去<unk>园玩。"
    read = tokenizer.decode(tokenizer("the zebra saw a dog", add_special_tokens=False)["input_ids"])
    assert read == ("the<unk> saw a dog" if algorithm == "word" else "the <unk>e<unk><unk>a saw a dog")


def test_bpe_is_lossless_on_anything(tmp_path: Path) -> None:
    tokenizer = trained(tmp_path, "bpe", 1000, made(1, 60))
    texts = [noise(seed) for seed in range(2000)]
    choose_engine(tmp_path, texts[:50])
    encoder = BatchEncoder(tmp_path)
    assert encoder.engine == "gigatoken"
    fast, exact = encoder.encode(texts), encoder.encode_exactly(texts)
    assert np.array_equal(fast.values, exact.values)
    assert np.array_equal(fast.lengths, exact.lengths)
    ends = np.cumsum(fast.lengths)
    for text, start, end in zip(texts, ends - fast.lengths, ends, strict=True):
        ids = fast.values[start:end].tolist()
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
        assert tokenizer.eos_token_id not in ids


def same_merges(texts: list[str], vocab_size: int, special: list[str]) -> bool:
    return learn(texts, vocab_size, special).to_str() == learn_exactly(texts, vocab_size, special).to_str()


def test_merges_are_those_of_tokenizers() -> None:
    assert all(
        same_merges(texts, size, [END]) for texts in (made(1), [noise(i) for i in range(900)]) for size in (400, 3000)
    )
    # nothing left to merge, a tie in every step, special tokens in the text and of the same spelling as a merge
    for texts in ([], [""], ["ab ab ab"], ["aaaaaaaa bbbb ababab aabb aaab"] * 3, [f"hello {END}{END} x"] * 5):
        assert all(same_merges(texts, size, [END, "ab", "hello"]) for size in (259, 262, 300, 600))
    draw = random.Random(3)
    for pool in ("ab ", "abc \n", "0123456789 's", "".join(HAN[:60]) + " ，"):
        for size in (270, 500, 4000):
            texts = ["".join(draw.choices(pool, k=draw.randrange(200))) for _ in range(draw.randrange(1, 150))]
            assert same_merges(texts, size, [END])


def test_merges_are_learned_by_gigatoken_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmkit.data.tokenizer_merges.learn_exactly", lambda *_: pytest.fail("not needed"))
    assert learn([*made(1), "你好，naïve e\u0301 😀"], 600, [END]).get_vocab_size() == 600
    with pytest.raises(pytest.fail.Exception, match="not needed"):
        learn([*made(1), "a letter of Unicode 17: \u088f"], 600, [END])


def test_learning_merges_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert learn(made(1), 600, [END]).get_vocab_size() == 600
    assert capfd.readouterr() == ("", "")


def plain_bpe(texts: list[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return tokenizer


def check_chinese(directory: Path, texts: list[str], held: list[str], vocab_size: int, parts: float) -> None:
    """Lossless; every usual character a token; at most the tokens that plain BPE of the same size takes, and 1%.

    parts: the share of tokens that may end within a character.
    """
    tokenizer = trained(directory, "bpe", vocab_size, texts)
    ids = BatchEncoder(directory, "tokenizers").encode(held)
    assert single_byte_ids(directory, read_special_ids(directory).size)[ids.values].mean() < parts
    usual = [c for c, n in Counter("".join(texts)).items() if n > 20 and ord(c) > 0x2FFF]
    assert set(BatchEncoder(directory, "tokenizers").encode(usual).lengths.tolist()) == {1}
    ends = np.cumsum(ids.lengths)
    for text, start, end in zip(held, ends - ids.lengths, ends, strict=True):
        assert tokenizer.decode(ids.values[start:end].tolist(), clean_up_tokenization_spaces=False) == text
    plain = sum(len(one.ids) for one in plain_bpe(texts, vocab_size).encode_batch(held))
    assert len(ids.values) <= plain * 1.01


def test_chinese_at_8k_has_no_single_bytes(tmp_path: Path) -> None:
    # so many entries learn whole phrases of so small a corpus, some with the first byte of what follows
    check_chinese(tmp_path, made(2, 500)[1::2], made(3, 60)[1::2], 8000, 0.15)


@pytest.mark.skipif(not (DIRECTORIES / "lm_zh").is_dir(), reason="needs ../shared/data/lm_zh")
def test_a_chinese_novel_at_8k(tmp_path: Path) -> None:
    path = next((DIRECTORIES / "lm_zh").rglob("*honglou*"))
    text = path.read_text(encoding="utf-8")
    size = len(text) // 100
    pieces = [text[i * size : (i + 1) * size] for i in range(100)]
    held = pieces[::10]
    check_chinese(tmp_path, [piece for i, piece in enumerate(pieces) if i % 10], held, 8000, 0.015)


SOURCES = {
    "bert-base-chinese": "BertTokenizer",
    "bert-base-uncased": None,
    "gpt2": None,
    "llama-like": None,
    "qwen": None,
    "t5": "T5Tokenizer",
    "t5-like-multilingual": None,
}
SAMPLE = [
    "Hello world, it's 3.14!  two  spaces\n\ntabs\t",
    "你好，世界！今天天气很好。",
    "naïve café 😀 e\u0301",
    "def f(x):\n    return x\n",
]


@pytest.mark.skipif(not (DIRECTORIES / "tokenizers").is_dir(), reason="needs ../shared/data/tokenizers")
@pytest.mark.parametrize("name", SOURCES)
def test_imports_encode_as_transformers_does(tmp_path: Path, name: str) -> None:
    import transformers

    directory = DIRECTORIES / "tokenizers" / name
    import_tokenizer(TokenizerSource(str(directory), False), TokenizerSection(), tmp_path / "tokenizer")
    kind = getattr(transformers, SOURCES[name] or "AutoTokenizer")
    expected, ours = kind.from_pretrained(str(directory)), load_tokenizer(tmp_path / "tokenizer")
    choose_engine(tmp_path / "tokenizer", SAMPLE)
    ids = BatchEncoder(tmp_path / "tokenizer").encode(SAMPLE)
    ends = np.cumsum(ids.lengths)
    for text, start, end in zip(SAMPLE, ends - ids.lengths, ends, strict=True):
        assert ids.values[start:end].tolist() == expected(text, add_special_tokens=False)["input_ids"], text
        assert ours(text)["input_ids"] == expected(text)["input_ids"], text
    special = read_special_ids(tmp_path / "tokenizer")
    for role in ("bos", "eos", "pad", "unk", "cls", "sep", "mask"):
        named = getattr(expected, f"{role}_token_id")
        assert named is None or getattr(special, role) == named, role
    spelled = expected.eos_token or expected.sep_token
    tokens = BatchEncoder(tmp_path / "tokenizer").encode([f"a {spelled} b"]).values
    assert (special.eos if special.eos is not None else special.sep) not in tokens


def test_texts_that_spell_special_tokens_stay_text_in_both_engines(tmp_path: Path) -> None:
    """Special tokens of neighbouring and of scattered ids, at either end of the batch, several in a text, and beside
    empty texts."""
    texts = made(5, 60)
    spec = TokenizerTrain(algorithm="bpe", vocab_size=700)
    names = ("<|a|>", "<|b|>", "<|c|>")
    train_tokenizer(lambda: texts, spec, tmp_path, additional=names)
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    last = max(token["id"] for token in content["added_tokens"]) + 700
    content["added_tokens"].append({**content["added_tokens"][0], "id": last, "content": "<|far|>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    dice = random.Random(7)
    spelled = [text + dice.choice((*names, "<|far|>", END)) * dice.randrange(3) + text[:9] for text in texts[:30]]
    batch = [END, "", *spelled, "", texts[-1], f"{names[0]}{names[2]}"]
    fast, slow = (BatchEncoder(tmp_path, engine).encode(batch) for engine in ("gigatoken", "tokenizers"))
    assert np.array_equal(fast.values, slow.values)
    assert np.array_equal(fast.lengths, slow.lengths)
    assert not {token["id"] for token in content["added_tokens"]} & set(slow.values.tolist())


def test_a_generic_tokenizer_needs_no_transformers(tmp_path: Path) -> None:
    import subprocess
    import sys

    trained(tmp_path / "a", "bpe", 400, made(1, 20))
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "tokenizer.json").write_bytes((tmp_path / "a" / "tokenizer.json").read_bytes())
    program = (
        "import sys; from pathlib import Path; from llmkit.data.tokenizer import import_tokenizer as i;"
        "from llmkit.data.tokenizer_files import TokenizerSource as S;"
        "from llmkit.recipe.sections import TokenizerSection as T;"
        "[i(S(p, False), T(), Path(p + '-copy')) for p in sys.argv[1:]]; assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "a"), str(tmp_path / "bare")], check=True)
    for name in ("a", "bare"):
        tokenizer = load_tokenizer(tmp_path / f"{name}-copy")
        assert tokenizer.eos_token == END
        assert tokenizer("some text 春天")["input_ids"] == load_tokenizer(tmp_path / "a")("some text 春天")["input_ids"]


def test_a_truncation_in_the_file_is_taken_off(tmp_path: Path) -> None:
    trained(tmp_path / "a", "bpe", 400, made(1, 20))
    core = Tokenizer.from_file(str(tmp_path / "a" / "tokenizer.json"))
    core.enable_truncation(5)
    core.enable_padding(length=50)
    core.save(str(tmp_path / "a" / "tokenizer.json"))
    import_tokenizer(TokenizerSource(str(tmp_path / "a"), False), TokenizerSection(), tmp_path / "b")
    text = made(1, 2)[0]
    assert len(BatchEncoder(tmp_path / "b").encode([text]).values) > 50
    assert len(load_tokenizer(tmp_path / "b")(text)["input_ids"]) > 50
