"""The network of a task: built from the recipe's model and peft sections with the head the task needs, and exported."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.errors import RecipeError
from llmkit.models.heads import Head
from llmkit.models.load import quiet
from llmkit.recipe.sections import ModelSection, PeftSection

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class NetworkSpec:
    """What a network is built from; the same values give the same weights.

    trained: it comes from a finished run, so its head must be there, and its labels are those in its config. start: the
    weights that training starts (or started) from, where those are others than `model`. trial: for a dry run, which
    computes nothing beforehand and keeps nothing.
    """

    model: ModelSection
    peft: PeftSection | None
    tokenizer_dir: Path
    seed: int
    max_length: int
    gradient_checkpointing: bool = False
    allow_remote_code: bool = False
    trained: bool = False
    label_smoothing: float = 0.0
    start: ModelSection | None = None
    trial: bool = False


def build_network(spec: NetworkSpec, head: Head) -> nn.Module:
    """The transformers model with `head`, in float32 on the CPU, an adapter on it where the recipe has one.

    Raises ModelError, RecipeError.
    """
    from llmkit.data.tokenizer import load_tokenizer
    from llmkit.models.load import load_model

    tokenizer = load_tokenizer(spec.tokenizer_dir)
    model: Any = load_model(
        spec.model,
        tokenizer,
        seed=spec.seed,
        max_length=spec.max_length,
        head=replace(head, fresh=head.fresh and not spec.trained),
        gradient_checkpointing=spec.gradient_checkpointing,
        allow_remote_code=spec.allow_remote_code,
    )
    if spec.peft is not None:
        if spec.model.name_or_path is None:
            raise RecipeError("an adapter needs a pretrained model: give model.name_or_path", key="peft")
        from llmkit.models.peft import add_adapter

        name, revision = spec.model.name_or_path, spec.model.revision
        model = add_adapter(
            model, spec.peft, name=name, revision=revision, seed=spec.seed, head=head, max_length=spec.max_length
        )
    if spec.model.freeze:
        from llmkit.models.freeze import freeze

        freeze(model, spec.model.freeze)
    network: nn.Module = model
    return network


def export_network(model: nn.Module, directory: Path, spec: NetworkSpec, *, template: str | None = None) -> None:
    """The model (an adapter merged where the recipe says so) and its tokenizer, with the chat `template` if any."""
    from llmkit.data.tokenizer import load_tokenizer

    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(spec.tokenizer_dir)
    with quiet():
        if hasattr(model, "get_base_model"):
            from llmkit.models.peft import merged, save_adapter

            if spec.peft is not None and not spec.peft.merge:
                save_adapter(model, directory)
            else:
                merged(model).save_pretrained(str(directory))
        else:
            model.save_pretrained(str(directory))  # type: ignore[operator]
        if template is not None:
            tokenizer.chat_template = template
        tokenizer.model_max_length = spec.max_length
        tokenizer.save_pretrained(str(directory))
