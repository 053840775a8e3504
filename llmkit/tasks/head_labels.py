"""The labels of the data against those of a classifier that is given as weights."""

from __future__ import annotations

from collections.abc import Sequence

from llmkit.errors import DataError, ModelError
from llmkit.models.source import locate, read_config
from llmkit.tasks.labels import IN_TRANSFORMERS, Labels, from_config, names_in
from llmkit.tasks.network import NetworkSpec

CLASSIFIER = "ForSequenceClassification"


def settle_names(data: Labels | None, network: NetworkSpec, given: Sequence[tuple[str, ...] | None] = ()) -> Labels:
    """The head's labels: a finished run's own; a given classifier's where it knows all of the data's, so that training
    goes on with its head; else those of the data. Raises ModelError where a given classifier has others."""
    name = network.model.name_or_path
    config = read_config(locate(name, revision=network.model.revision)) if name is not None else {}
    if network.trained:
        return from_config(config)
    if data is None:
        raise DataError("no training rows to take the labels from", key="data.train")
    if not any(str(one).endswith(CLASSIFIER) for one in config.get("architectures") or ()):
        return data
    old, count = names_in(config), len(data.names)
    unnamed = all(one == f"LABEL_{i}" for i, one in enumerate(old))
    kind = config.get("problem_type")
    if kind in (None, IN_TRANSFORMERS[data.problem_type]):
        if len(old) == count and (unnamed or set(old) == set(data.names)):
            return data if unnamed else Labels(data.problem_type, old)
        if set(data.names) < set(old) and not unnamed:
            return Labels(data.problem_type, old)
    raise ModelError(
        f"{name} is a {kind or 'finished'} classifier of {len(old)} labels ({', '.join(old[:10])}), and the data is "
        f"{data.problem_type} with {count} ({', '.join(data.names[:10])}); give the encoder it was made from, or map "
        "the data to its labels with label_names",
        key="model.name_or_path",
    )
