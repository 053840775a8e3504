"""The exported tokenizer frames texts as encoders are trained on them: [CLS] a [SEP], [CLS] a [SEP] b [SEP]; and as
encoder-decoders are, an end of sequence last.

Tokenizers that already do (BERT's, RoBERTa's with its own way for pairs) stay as they are; others, those trained here
among them, get such a post-processor, with type ids where the network has an embedding for them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.data.tokenizer import load_tokenizer
from llmkit.files import dump_json, read_json
from llmkit.models.source import config_of
from llmkit.recipe.sections import ModelSection

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TYPES = "token_type_ids"


def frame(tokenizer: PreTrainedTokenizerBase, model: ModelSection) -> bool:
    """Makes `tokenizer` put its cls and sep tokens around texts; whether anything changed."""
    changed = False
    takes_types = tells_types(model)
    if not is_framed(tokenizer):
        _set_template(tokenizer, second=1 if takes_types else 0)
        changed = True
    wanted = [name for name in tokenizer.model_input_names if name != TYPES]
    if takes_types:
        wanted.insert(1, TYPES)
    if tokenizer.model_input_names != wanted:
        tokenizer.model_input_names = wanted
        tokenizer.init_kwargs["model_input_names"] = wanted
        changed = True
    return changed


def is_framed(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text comes out between the cls and sep tokens."""
    ids = tokenizer("a").input_ids
    return [ids[0], ids[-1]] == [tokenizer.cls_token_id, tokenizer.sep_token_id]


def close_texts(tokenizer: Any, prefix: list[int]) -> bool:
    """Makes an encoder-decoder's `tokenizer` put its end of sequence after a text, and `prefix` before it; whether
    anything changed. A tokenizer that ends texts and begins them with something else stays as it is."""
    from tokenizers import processors

    ids = tokenizer("a").input_ids
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if end is None or (end in ids and ids[0] != end):
        return False
    close = tokenizer.convert_ids_to_tokens(end)
    before = "".join(f"{token} " for token in tokenizer.convert_ids_to_tokens(prefix))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{before}$A {close}",
        pair=f"{before}$A {close} $B {close}",
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in [*before.split(), close]],
    )
    return True


def keep_frame(directory: Path) -> None:
    """Some tokenizer classes (T5's) build their post-processor anew when loaded: there the generic class, which takes
    tokenizer.json as it is, replaces them."""
    if not is_framed(load_tokenizer(directory)):
        path = directory / "tokenizer_config.json"
        path.write_bytes(dump_json({**read_json(path), "tokenizer_class": "PreTrainedTokenizerFast"}))
        assert is_framed(load_tokenizer(directory)), "the generic class keeps the post-processor"


def _set_template(tokenizer: Any, second: int) -> None:
    """The post-processor; one that trims offsets stays in front of it."""
    from tokenizers import processors

    cls, sep = tokenizer.cls_token, tokenizer.sep_token
    template = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:{second} {sep}:{second}",
        special_tokens=[(cls, tokenizer.cls_token_id), (sep, tokenizer.sep_token_id)],
    )
    backend = tokenizer.backend_tokenizer
    trims = isinstance(backend.post_processor, processors.ByteLevel)
    backend.post_processor = processors.Sequence([backend.post_processor, template]) if trims else template


def tells_types(model: ModelSection) -> bool:
    """Whether the network has an embedding for the second text of a pair."""
    from transformers import CONFIG_MAPPING

    config = config_of(model)
    size = config.get("type_vocab_size")
    kind = config.get("model_type")
    if size is None and isinstance(kind, str) and kind in CONFIG_MAPPING:
        size = getattr(CONFIG_MAPPING[kind](), "type_vocab_size", None)
    return isinstance(size, int) and size > 1
