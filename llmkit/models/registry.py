"""Makes transformers' Auto classes know the project's own architectures, without importing transformers.

`import llmkit` must stay instant, and transformers takes seconds. So a finder on `sys.meta_path` waits for the two
modules that hold the Auto classes and registers right after each was executed; where they are loaded already, at once.
Configs and networks are registered apart: when transformers loads its configs, its modelling code may be half imported.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

AUTO_CONFIG = "transformers.models.auto.configuration_auto"
AUTO_MODELS = "transformers.models.auto.modeling_auto"

NETWORKS = {
    "AutoModel": ("rnn_lm.RnnLmModel", "rnn_encoder.RnnEncoderModel", "text_cnn.TextCnnModel"),
    "AutoModelForCausalLM": ("rnn_lm.RnnLmForCausalLM", "ngram.NgramForCausalLM"),
    "AutoModelForSeq2SeqLM": ("rnn_seq2seq.RnnForSeq2SeqLM",),
    "AutoModelForSequenceClassification": (
        "rnn_encoder.RnnForSequenceClassification",
        "text_cnn.TextCnnForSequenceClassification",
    ),
    "AutoModelForTokenClassification": ("rnn_encoder.RnnForTokenClassification",),
}
"""Auto class -> the classes it builds, as module.name in llmkit.models."""

OWN_ARCHITECTURES = frozenset(path.split(".")[0] for paths in NETWORKS.values() for path in paths)
"""Their `model_type`s, which are the names of their modules."""


def install() -> None:
    """Registers now what can be registered now, and the rest when its time comes. A second call changes nothing."""
    for name in (AUTO_CONFIG, AUTO_MODELS):
        if name in sys.modules:
            _register(name, sys.modules[name])
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _register(name: str, auto: ModuleType) -> None:
    if name == AUTO_CONFIG:
        for config in import_module("llmkit.models.configs").CONFIGS:
            auto.AutoConfig.register(config.model_type, config, exist_ok=True)
        return
    for auto_class, paths in NETWORKS.items():
        for path in paths:
            module, class_name = path.split(".")
            network = getattr(import_module(f"llmkit.models.{module}"), class_name)
            getattr(auto, auto_class).register(network.config_class, network, exist_ok=True)


class _Loader(SourceFileLoader):
    """Loads an Auto module as ever, then registers."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        _register(module.__name__, module)


class _Finder:
    """Finds the two Auto modules where Python would, and nothing else."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in (AUTO_CONFIG, AUTO_MODELS):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(name, spec.origin)
        return spec
