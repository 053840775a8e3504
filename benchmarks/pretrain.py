"""Training speed, ours and a peer's in turn (A B A B ...): tokens/s over steady steps, the ratio pair by pair.

    python benchmarks/pretrain.py [--peer peer_pretrain.py] [--pairs 5] [--compile true|false|auto]

The peer is a script that prints one JSON line with `tokens_per_second`, for a GPT-2 of 6 layers, width 384, context
256, batch 16 and a vocabulary of 16,000. Ours is `llmkit pretrain` on the standard library's sources, whole: what is
read is metrics.jsonl, after the first steps.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

RECIPE = """
version: 1
output_dir: {out}
task: {{type: causal_lm}}
model:
  config: {{model_type: gpt2, n_layer: 6, n_embd: 384, n_head: 6, n_positions: 256}}
  dropout: 0.0
tokenizer: {{train: {{algorithm: bpe, vocab_size: 16000}}}}
data: {{train: [{{path: "builtin:python-stdlib"}}], max_length: 256, prepared_dir: {prepared}}}
training: {{max_steps: {steps}, global_batch_size: 16, per_device_train_batch_size: 16, torch_compile: {compiled}}}
checkpoint: {{save_minutes: null}}
logging: {{logging_steps: 1}}
"""
WARM_STEPS = 4


def ours(place: Path, number: int, steps: int, compiled: str) -> dict[str, float]:
    out = place / f"run-{number}"
    recipe = place / f"recipe-{number}.yaml"
    recipe.write_text(RECIPE.format(out=out, prepared=place / "prepared", steps=steps, compiled=compiled))
    subprocess.run([sys.executable, "-m", "llmkit", "pretrain", str(recipe)], check=True, capture_output=True)
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    train = [e for e in events if e["split"] == "train"][WARM_STEPS:]
    return {
        "tokens_per_second": statistics.median(e["tokens_per_second"] for e in train),
        "share_of_matrix_rate": statistics.median(e["mfu"] for e in train),
    }


def peer(script: str) -> float:
    out = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True).stdout
    return float(json.loads(out.strip().splitlines()[-1])["tokens_per_second"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", help="null: our own figure alone")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--compile", default="true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        ours(Path(scratch), -1, WARM_STEPS + 1, given.compile)  # prepares the data, fills the caches
        pairs = []
        for number in range(given.pairs):
            mine = ours(Path(scratch), number, given.steps, given.compile)
            if given.peer:
                theirs = peer(given.peer)
                mine |= {"peer": theirs, "ratio": mine["tokens_per_second"] / theirs}
            pairs.append(mine)
            print(json.dumps(pairs[-1]), file=sys.stderr, flush=True)
    summary = {
        "benchmark": "pretrain",
        **{f"median_{key}": statistics.median(pair[key] for pair in pairs) for key in pairs[0]},
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "pairs": pairs,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
