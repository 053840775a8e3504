"""Replaced token detection (ELECTRA, arXiv:2003.10555): pretraining of a discriminator beside a generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.data.examples import IGNORE, Encoder, Plan, Sample
from llmkit.data.packing import generator
from llmkit.errors import ModelError, RecipeError
from llmkit.models.heads import MASKED_LM, Head
from llmkit.models.source import model_type
from llmkit.recipe.sections import ModelSection, Recipe
from llmkit.recipe.tasks import ReplacedTokenDetection
from llmkit.tasks.base import Batch, Evaluated, Prediction, Task
from llmkit.tasks.masked_lm import refuse_packing
from llmkit.tasks.masked_text import MaskedText
from llmkit.tasks.network import NetworkSpec, build_network, export_network
from llmkit.tasks.sums import RowSums, divide, join_rows

if TYPE_CHECKING:
    from torch import nn

    from llmkit.data.shards import Split

DISCRIMINATOR = Head("AutoModelForPreTraining", "model_type electra", "FEATURE_EXTRACTION", fresh=True)
_UNIFORM = 65
"""What a stream of random numbers is for; part of its key, other than that of masks and plans."""

GENERATOR, DETECTION = ("generator", "masked"), ("detection", "tokens")
CONFUSION = ("true_positives", "false_positives", "false_negatives")


def build(recipe: Recipe, network: NetworkSpec) -> Task:
    """The task of a recipe. Raises ModelError, RecipeError."""
    section = recipe.task
    assert isinstance(section, ReplacedTokenDetection)
    kind = model_type(recipe.model)
    if kind is not None and kind != "electra":
        message = f"{kind} has no head that tells replaced tokens; use model_type electra, or the task masked_lm"
        raise ModelError(message, key="model")
    if recipe.peft is not None:
        raise RecipeError("replaced_token_detection trains two whole networks; leave it out", key="peft")
    refuse_packing(recipe)
    weights = tuple(source.weight for source in recipe.data.train)
    text = MaskedText(network.tokenizer_dir, network.max_length, weights, section.mlm_probability, always_mask=True)
    return ReplacedTokenTask(network, text, section.generator, section.detection_weight)


@dataclass(frozen=True)
class ReplacedTokenTask:
    """generator: `{name_or_path: ...}`, or keys of a fresh one's config; None: the one saved beside the
    discriminator's weights, else a fresh one."""

    network: NetworkSpec
    text: MaskedText
    generator: dict[str, Any] | None
    detection_weight: float

    @property
    def loss_weights(self) -> dict[str, float]:
        return {"generator": 1.0, "detection": self.detection_weight}

    def encoder(self) -> Encoder:
        return self.text.encoder()

    def build_model(self) -> nn.Module:
        from llmkit.models.electra import ReplacedTokenModule, share_embeddings
        from llmkit.models.mlm import MaskedLMModule

        discriminator = build_network(self.network, DISCRIMINATOR)
        generator = self._generator(discriminator)
        share_embeddings(generator, discriminator)
        return ReplacedTokenModule(discriminator, MaskedLMModule(generator))

    def _generator(self, discriminator: nn.Module) -> nn.Module:
        from dataclasses import replace

        from llmkit.models.electra import KEY, fresh_generator, generator_beside
        from llmkit.models.linear import fast_linears

        keys = dict(self.generator or {})
        name = keys.pop("name_or_path", None)
        if name is not None and keys:
            raise RecipeError(
                "a pretrained generator has a config of its own; leave it out", key=f"{KEY}.{next(iter(keys))}"
            )
        beside = generator_beside(self.network.model.name_or_path)
        if name is None and beside is not None and (self.network.trained or not keys):
            name = str(beside)
        if name is None:
            fresh: nn.Module = fresh_generator(discriminator, keys, seed=self.network.seed)
            fast_linears(fresh)
            return fresh
        model = ModelSection(name_or_path=name, attn_implementation=self.network.model.attn_implementation)
        return build_network(replace(self.network, model=model), MASKED_LM)

    def settle(self, module: nn.Module, saved: dict[str, Any] | None = None) -> tuple[Task, dict[str, Any]]:
        return self, {"packing": False}

    def prepare(self, train: Split | None, validation: Split | None) -> None:
        """Nothing is needed before training."""

    def train_plan(self, split: Split, seed: int) -> Plan:
        return self.text.plan(split, seed)

    def eval_plan(self, split: Split) -> Plan:
        return self.text.plan(split, None)

    def collate(self, samples: Sequence[Sample], *, seed: int, step: int, width: int | None = None) -> Batch:
        import torch

        arrays = self.text.collate(samples, seed=seed, step=step, width=width)
        arrays["uniform"] = np.zeros(arrays["labels"].shape)
        for line, sample in enumerate(samples):
            size = len(sample.arrays["input_ids"])
            draw = generator(seed, _UNIFORM, step, *sample.arrays["key"].tolist())
            arrays["uniform"][line, :size] = draw.random(size)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def counts(self, batch: Batch) -> dict[str, int]:
        return {"generator": int((batch["labels"] != IGNORE).sum()), "detection": int(batch["attention_mask"].sum())}

    def predict(self, module: nn.Module, batch: Batch, samples: Sequence[Sample]) -> list[Prediction]:
        from llmkit.models.electra import ReplacedTokenModule
        from llmkit.models.wrapping import unwrap

        columns = unwrap(module, ReplacedTokenModule).score(batch)
        return [
            Prediction(int(sample.rows[0]), {name: values[i] for name, values in columns.items()})
            for i, sample in enumerate(samples)
        ]

    def finalize(self, predictions: list[Prediction], split: Split, *, bootstrap: bool) -> Evaluated:
        sums = join_rows(predictions, (*GENERATOR, *DETECTION, *CONFUSION))
        weight = self.detection_weight
        metrics = {
            "loss": sums.metric(
                (*GENERATOR, *DETECTION),
                lambda c: divide(c[0], c[1]) + weight * divide(c[2], c[3]),
                bootstrap=bootstrap,
            ),
            "generator_loss": sums.metric(GENERATOR, lambda c: divide(c[0], c[1]), bootstrap=bootstrap),
            "detection_loss": sums.metric(DETECTION, lambda c: divide(c[0], c[1]), bootstrap=bootstrap),
            "detection_f1": sums.metric(
                CONFUSION, lambda c: divide(2 * c[0], 2 * c[0] + c[1] + c[2]), bootstrap=bootstrap
            ),
        }
        note = f"loss: generator_loss + {weight:g} x detection_loss; masks and draws are the same at every evaluation"
        return Evaluated(metrics, _items(sums, split) if bootstrap else [], [note])

    def export(self, module: nn.Module, directory: Path) -> None:
        """The discriminator as the model, the generator beside it."""
        from llmkit.models.electra import GENERATOR as BESIDE
        from llmkit.models.electra import ReplacedTokenModule
        from llmkit.models.wrapping import unwrap

        inner = unwrap(module, ReplacedTokenModule)
        export_network(inner.model, directory, self.network)
        export_network(inner.generator.model, directory / BESIDE, self.network)


def _items(sums: RowSums, split: Split) -> list[dict[str, Any]]:
    items = []
    for number, (place, row) in enumerate(zip(split.origins(sums.rows), sums.rows.tolist(), strict=True)):
        own = {name: column[number].item() for name, column in sums.columns.items()}
        replaced = own["true_positives"] + own["false_negatives"]
        wrong = own["false_positives"] + own["false_negatives"]
        items.append(
            {
                "row": row,
                **{key: place[key] for key in ("source", "file", "line", "hash")},
                "generator_loss": own["generator"] / own["masked"],
                "detection_loss": own["detection"] / own["tokens"],
                "tokens": int(own["tokens"]),
                "replaced": int(replaced),
                **{name: int(own[name]) for name in CONFUSION},
                "sums": {
                    "generator_loss": (own["generator"], own["masked"]),
                    "detection_loss": (own["detection"], own["tokens"]),
                    "detection_f1": (2 * own["true_positives"], own["true_positives"] * 2 + wrong),
                },
            }
        )
    return items
