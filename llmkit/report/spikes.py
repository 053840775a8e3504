"""Says when a step's loss stood far above those before it, or was not finite: read off the lines of metrics.jsonl."""

from __future__ import annotations

from typing import Any

from llmkit.report.text import number


def spike_warning(event: dict[str, Any]) -> str | None:
    """What to tell people of this event, if anything."""
    loss = event.get("step_loss")
    if event.get("spike") is True and isinstance(loss, int | float):
        what = f"loss spike, {number(loss)}, far above the steps before"
    elif event.get("skipped") is True:
        what = "the loss or its gradient was not finite"
    else:
        return None
    done = "; the step was skipped" if event.get("skipped") is True else ""
    return f"step {event.get('step')}: {what}{done}"
