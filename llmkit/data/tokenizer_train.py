"""Trains a tokenizer on a bounded sample of the corpus and saves it as AutoTokenizer loads it.

Chinese must not end in unknown tokens or single bytes: alphabets are chosen by frequency with CJK characters counted
in, unigram falls back to bytes, byte-level BPE gets the merges of frequent characters that training left out. Decoding
gives back what was encoded, blanks and line breaks too (wordpiece: one blank between words); what `word` and `char` do
not know stays `<unk>`, and `preprocess` reports how much that is. With
`pre_tokenizer: jieba` the sample is cut into words before training, so that no piece crosses a word; the tokenizer
itself needs no jieba afterwards (the longest match in the vocabulary finds the words again).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from llmkit.data.text import CJK_RANGES
from llmkit.errors import DataError, RecipeError
from llmkit.files import dump_json, environment_errors
from llmkit.recipe.sections import TokenizerTrain

END = "<|endoftext|>"
BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CJK = "".join(f"{chr(first)}-{chr(last)}" for first, last in CJK_RANGES)
PHRASE = re.compile(
    r"\s*(?:[^\s，。！？；：、“”‘’（）《》…]{1,24}[，。！？；：、“”‘’（）《》…]*|[，。！？；：、“”‘’（）《》…]+)"
)
"""A word of spaced text, or up to 24 characters of Chinese between punctuation: the unigram trainer's suffix array and
expectation steps take minutes over whole lines without a blank."""
CJK_CHARACTER = re.compile(f"[{CJK}]")
KEY = "tokenizer.train.vocab_size"


def train_tokenizer(
    texts: Callable[[], Iterable[str]], spec: TokenizerTrain, target: Path, *, additional: Iterable[str] = ()
) -> None:
    """Trains on `texts()` (called once or twice) and writes `target`. Raises DataError where there is no text.

    The vocabulary has at most `spec.vocab_size` entries, special tokens among them. `<|endoftext|>` is bos, eos and
    pad (WordPiece pads with [PAD]), and a post-processor puts it before a prompt, as before every stored document.
    """
    if spec.pre_tokenizer is not None and spec.algorithm in ("wordpiece", "char"):
        raise RecipeError(
            f"jieba goes with bpe, unigram or word, not with {spec.algorithm}", key="tokenizer.train.pre_tokenizer"
        )
    special = [END, *additional]
    if spec.algorithm == "wordpiece":
        special = [*BERT_SPECIAL, *special]
    elif spec.algorithm != "bpe":
        special = [END, "<unk>", *additional]
    special = list(dict.fromkeys(special))
    floor = len(special) + (256 if spec.algorithm == "bpe" else 1)
    if spec.vocab_size < floor:
        raise RecipeError(f"{spec.algorithm} needs at least {floor}, got {spec.vocab_size}", key=KEY)

    def pieces() -> Iterator[str]:
        return _pieces(texts(), spec)

    tokenizer = ALGORITHMS[spec.algorithm](pieces, spec, special)
    if tokenizer.get_vocab_size() <= floor and next(iter(texts()), None) is None:
        raise DataError("there is no text to train the tokenizer on", key="data.train")
    assert tokenizer.get_vocab_size() <= spec.vocab_size, "a vocabulary above its bound"
    _save(tokenizer, spec.algorithm, special, target)


def _pieces(texts: Iterable[str], spec: TokenizerTrain) -> Iterator[str]:
    cut = _jieba() if spec.pre_tokenizer == "jieba" else None
    for text in texts:
        if cut is not None:
            yield from (_with_spaced_text(cut(text)) if spec.algorithm == "word" else _with_blanks(cut(text)))
        elif spec.algorithm in ("bpe", "word", "char"):
            yield text
        else:
            for line in text.splitlines():
                yield from (PHRASE.findall(line) if spec.algorithm == "unigram" else [line])


def _with_blanks(words: Iterable[str]) -> Iterator[str]:
    """Words with the blank before them, as the pre-tokenizers attach it; other blanks stay pieces of their own."""
    blank = ""
    for word in words:
        if word == " ":
            blank = word
            continue
        yield blank + word
        blank = ""


def _with_spaced_text(words: Iterable[str]) -> Iterator[str]:
    """CJK words one by one, and what stands between them as it was: jieba cuts spaced words at each mark."""
    for cjk, group in groupby(words, lambda word: bool(CJK_CHARACTER.search(word))):
        yield from group if cjk else ["".join(group)]


def _jieba() -> Callable[[str], Iterable[str]]:
    import jieba

    jieba.setLogLevel(60)
    words: Callable[[str], Iterable[str]] = jieba.Tokenizer().cut
    return words


Pieces = Callable[[], Iterable[str]]


def _bpe(pieces: Pieces, spec: TokenizerTrain, special: list[str]) -> Tokenizer:
    from llmkit.data.tokenizer_bpe import train_bpe

    return train_bpe(pieces, spec.vocab_size, special)


def _wordpiece(pieces: Pieces, spec: TokenizerTrain, special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=200))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=False
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=spec.vocab_size,
        special_tokens=special,
        limit_alphabet=max(1, (spec.vocab_size - len(special)) * 3 // 4),
        show_progress=False,
    )
    tokenizer.train_from_iterator(pieces(), trainer)
    return tokenizer


def _unigram(pieces: Pieces, spec: TokenizerTrain, special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never" if spec.pre_tokenizer else "always")
    room = spec.vocab_size - len(special)
    fallback = 256 if room >= 1024 else 0
    # blanks as the pre-tokenizer writes them; line breaks never reach the trainer, which is given pieces of lines
    alphabet = ["▁", "\n", "\t", *_frequent_characters(pieces(), max(1, (room - fallback) // 2))]
    alphabet = list(dict.fromkeys(alphabet))[: max(1, room - fallback)]
    trainer = trainers.UnigramTrainer(
        vocab_size=spec.vocab_size - fallback,
        special_tokens=special,
        unk_token="<unk>",
        initial_alphabet=alphabet,
        shrinking_factor=0.5,  # half the rounds of the default, hardly other pieces
        show_progress=False,
    )
    tokenizer.train_from_iterator(_known(pieces(), set(alphabet)), trainer)
    state = json.loads(tokenizer.to_str())
    model = state["model"]
    if fallback:
        worst = min(score for _, score in model["vocab"])
        model["vocab"] += [[f"<0x{byte:02X}>", worst - 10.0] for byte in range(256)]
        model["byte_fallback"] = True
    model["unk_id"] = special.index("<unk>")
    steps: list[Any] = [decoders.ByteFallback()] if fallback else []
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Metaspace(prepend_scheme="always")])
    return tokenizer


def _frequent_characters(texts: Iterable[str], room: int) -> list[str]:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    counts.pop(" ", None)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [character for character, _ in ranked[:room]]


def _known(texts: Iterable[str], alphabet: set[str]) -> Iterator[str]:
    """Without the characters that have no room: the trainer would keep every one that it sees, above its bound."""
    for text in texts:
        if alphabet.issuperset(text.replace(" ", "")):
            yield text
        else:
            yield "".join(character for character in text if character in alphabet or character == " ")


def _word_pattern(cjk: str) -> Regex:
    """Words with the blank before them, so that decoding only joins; digits, marks and other blanks one by one."""
    return Regex(
        rf"'(?:[sdmt]|ll|ve|re)(?!\p{{L}})|{cjk}| ?(?:(?![{CJK}])[\p{{L}}\p{{M}}])+| ?\p{{N}}| ?[^\s\p{{L}}\p{{N}}]|\s"
    )


def _word(pieces: Pieces, spec: TokenizerTrain, special: list[str]) -> Tokenizer:
    """Words of the sample by frequency; CJK characters one by one, or with jieba as words, longest match first."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        _word_pattern(f"[{CJK}]{'+' if spec.pre_tokenizer else ''}"), "isolated"
    )
    tokenizer.decoder = decoders.Fuse()
    if spec.pre_tokenizer is None:
        trainer = trainers.WordLevelTrainer(vocab_size=spec.vocab_size, special_tokens=special, show_progress=False)
        tokenizer.train_from_iterator(pieces(), trainer)
        return tokenizer
    # every frequent CJK character beside the words, so that an unseen word falls into known characters
    words: Counter[str] = Counter()
    characters: Counter[str] = Counter()
    for piece in pieces():
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(piece):
            words[word] += 1
            characters.update(CJK_CHARACTER.findall(word))
    room = spec.vocab_size - len(special)
    ranked = sorted(characters.items(), key=lambda item: (-item[1], item[0]))[: room // 2]
    chosen = dict.fromkeys(character for character, _ in ranked)
    known = "".join(chosen)
    for word, _ in sorted(words.items(), key=lambda item: (-item[1], item[0])):
        if len(chosen) >= room:
            break
        if all(character in chosen for character in CJK_CHARACTER.findall(word)):
            chosen.setdefault(word)
    vocabulary = {token: i for i, token in enumerate([*special, *chosen])}
    model = models.WordPiece(
        vocabulary, unk_token="<unk>", continuing_subword_prefix="", max_input_chars_per_word=10**6
    )
    matching = Tokenizer(model)
    # an unknown character stands alone: the model gives up a whole piece for one
    cjk = rf"[{known}]+|[{CJK}]" if known else rf"[{CJK}]"
    matching.pre_tokenizer = pre_tokenizers.Split(_word_pattern(cjk), "isolated")
    matching.decoder = decoders.Fuse()
    return matching


def _char(pieces: Pieces, spec: TokenizerTrain, special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    trainer = trainers.WordLevelTrainer(vocab_size=spec.vocab_size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(pieces(), trainer)
    return tokenizer


ALGORITHMS: dict[str, Callable[[Pieces, TokenizerTrain, list[str]], Tokenizer]] = {
    "bpe": _bpe,
    "wordpiece": _wordpiece,
    "unigram": _unigram,
    "word": _word,
    "char": _char,
}


def _save(tokenizer: Tokenizer, algorithm: str, special: list[str], target: Path) -> None:
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    end = tokenizer.token_to_id(END)
    template = processors.TemplateProcessing(single=f"{END} $A", pair=f"{END} $A $B:1", special_tokens=[(END, end)])
    tokenizer.post_processor = template
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "pad_token": "[PAD]" if "[PAD]" in special else END,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000_000,
    }
    if algorithm == "wordpiece":
        config |= {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    elif algorithm != "bpe":
        config["unk_token"] = "<unk>"
    with environment_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        (target / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
        (target / "tokenizer_config.json").write_bytes(dump_json(config))
