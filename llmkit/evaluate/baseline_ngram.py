"""The `ngram` baseline: a modified Kneser-Ney model of the same training tokens, scored as the language model is.

What a neural language model has to beat: perplexity by counting alone, on the same tokens, in the same windows.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llmkit.data.tokenizer import read_special_ids
from llmkit.models.ngram_counting import Scratch
from llmkit.models.ngram_smoothing import Documents, estimate

if TYPE_CHECKING:
    from llmkit.data.shards import Split
    from llmkit.tasks.base import Metric
    from llmkit.tasks.causal_lm import CausalLMTask

ORDER = 5


def ngram(
    task: CausalLMTask, train: Split, scored: Split, *, max_samples: int | None = None, order: int = ORDER
) -> dict[str, Metric]:
    """Loss, perplexity and bits a byte of `scored`, with intervals. Every row of `train` is counted once, whatever its
    source's weight. Raises EnvironmentFailure where the temporary directory has no room."""
    from llmkit.evaluate.split import evaluate_split
    from llmkit.models.lm import CausalLMModule
    from llmkit.models.ngram import NgramForCausalLM
    from llmkit.models.ngram_config import NgramConfig

    ids = read_special_ids(task.network.tokenizer_dir)
    assert ids.prefix is not None and ids.suffix is not None, "the encoder refuses a tokenizer without them"
    documents = Documents(train, np.arange(train.num_rows), ids.size, ids.prefix, ids.suffix)
    model = NgramForCausalLM(NgramConfig(vocab_size=ids.size, order=order))
    with tempfile.TemporaryDirectory(prefix="llmkit-ngram-") as place:
        model.set_tables(estimate(documents, order=order, prune=[], scratch=Scratch(Path(place))).tables)
    evaluated = evaluate_split(
        task, CausalLMModule(model, split_head=False), scored, None, max_samples=max_samples, bootstrap=True
    )
    wanted = ("loss", "perplexity", "bits_per_byte")
    return {name: metric for name, metric in evaluated.metrics.items() if name in wanted}
