"""One section a task type: a discriminated union on `type`. A new task adds its section here and a row in `TASKS`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Task(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CausalLM(_Task):
    """Next-token prediction on text. `fim_rate`: share of documents in fill-in-the-middle order (arXiv:2207.14255)."""

    type: Literal["causal_lm"]
    fim_rate: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0


class Instruction(_Task):
    """Chat or prompt-completion pairs. `train_on`: which tokens are supervised (EOS always is)."""

    type: Literal["instruction"]
    train_on: Literal["completion", "all"] = "completion"


TaskSection = Annotated[CausalLM | Instruction, Field(discriminator="type")]

COMMAND_OF_TASK: dict[str, Literal["pretrain", "finetune"]] = {"causal_lm": "pretrain", "instruction": "finetune"}
