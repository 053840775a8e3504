from pathlib import Path

from llmkit.report.html import write_report
from llmkit.report.spikes import spike_warning


def test_what_is_told() -> None:
    spike = {"step": 7, "split": "train", "step_loss": 9.5, "spike": True, "skipped": True}
    assert spike_warning(spike) == "step 7: loss spike, 9.5000, far above the steps before; the step was skipped"
    assert spike_warning(spike | {"skipped": False}) == "step 7: loss spike, 9.5000, far above the steps before"
    told = spike_warning({"step": 7, "step_loss": None, "spike": False, "skipped": True})
    assert told == "step 7: the loss or its gradient was not finite; the step was skipped"
    assert spike_warning({"step": 7, "split": "train", "loss": 3.0}) is None


def test_the_report_has_a_line_for_each(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text('{"step": 7, "split": "train", "loss": 3.0, "skipped": true}\n')
    assert "step 7: the loss or its gradient was not finite" in write_report(tmp_path).read_text()
