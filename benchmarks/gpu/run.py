"""Training speed on one GPU: `llmkit pretrain`, transformers' Trainer and a loop written by hand, in turn.

    python benchmarks/gpu/run.py [gpt2-124m] [llama-1b] [--rounds 2] [--steps 30] [--precision fp8] [--work DIR]

Ours trains on the standard library's sources with a BPE vocabulary of 50,257, documents packed and isolated; the peers
on random tokens of the same shape, each row one document. MFU is 6 x parameters x tokens per second over the rate of an
8192 x 8192 bf16 product on the same machine; attention's own operations are not counted. Each configuration runs once
before it is timed, so that compiled kernels are in the cache. Prints a JSON line a run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
VOCABULARY = 50_257
SHAPES: dict[str, tuple[dict[str, Any], int, int]] = {
    "gpt2-124m": (
        {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024},
        32,
        1024,
    ),
    "llama-1b": (
        {
            "model_type": "llama",
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
        },
        8,
        2048,
    ),
    "tiny": ({"model_type": "gpt2", "n_layer": 2, "n_embd": 64, "n_head": 2, "n_positions": 128}, 4, 128),
}
"""Name -> (config, sequences a step, tokens of one)."""

RECIPE = """
version: 1
output_dir: {out}
task: {{type: causal_lm}}
model: {{config: {config}, dropout: 0.0}}
tokenizer: {{train: {{algorithm: bpe, vocab_size: {vocabulary}}}}}
data: {{train: [{{path: "builtin:python-stdlib"}}], max_length: {length}, prepared_dir: {prepared}}}
training:
  max_steps: {steps}
  global_batch_size: {batch}
  per_device_train_batch_size: {batch}
  learning_rate: 1.0e-4
  torch_compile: true
distributed: {{mixed_precision: {precision}}}
checkpoint: {{save_minutes: null}}
logging: {{logging_steps: 1}}
"""


def ours(work: Path, name: str, steps: int, precision: str) -> dict[str, Any]:
    config, batch, length = SHAPES[name]
    out = work / f"{name}-{time.time_ns()}"
    recipe = work / f"{out.name}.yaml"
    values = {"config": json.dumps(config), "batch": batch, "length": length, "steps": steps, "out": out}
    values["precision"] = precision
    recipe.write_text(RECIPE.format(vocabulary=VOCABULARY, prepared=work / f"prepared-{length}", **values))
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "llmkit", "pretrain", str(recipe)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    wall = time.perf_counter() - started
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    train = [e for e in events if e["split"] == "train"]
    steady = train[min(8, steps // 2) :]
    run = json.loads((out / "run.json").read_text())
    return {
        "ours": name,
        "tokens_per_second": statistics.median(e["tokens_per_second"] for e in steady),
        "mfu": statistics.median(e["mfu"] for e in steady),
        "peak_memory_bytes": max(e["memory_bytes"] for e in train),
        "losses": [round(e["loss"], 3) for e in train[:: max(len(train) // 6, 1)]],
        "wall_seconds": round(wall, 1),
        "run": {key: run["resolved"][key] for key in ("mixed_precision", "torch_compile", "attention")},
    }


def peer(work: Path, name: str, kind: str, compiled: bool, steps: int) -> dict[str, Any]:
    config, batch, length = SHAPES[name]
    place = work / f"{name}.json"
    place.write_text(json.dumps(config | {"vocab_size": VOCABULARY, "use_cache": False, **NO_DROPOUT}))
    command = [sys.executable, str(HERE / "peer.py"), kind, str(place), "--batch", str(batch), "--length", str(length)]
    command += ["--steps", str(steps), *(["--compile"] if compiled else [])]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"peer": kind, "error": done.stderr[-600:]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found | {"shape": name, "wall_seconds": round(time.perf_counter() - started, 1)}


NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
PEERS = (("loop", True), ("trainer", True), ("trainer", False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=["gpt2-124m", "llama-1b"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--precision", default="auto", choices=("auto", "no", "bf16", "fp16", "fp8"))
    parser.add_argument("--work", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = given.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        for name in given.shapes:
            for number in range(given.rounds):
                print(json.dumps(ours(work, name, given.steps, given.precision)), flush=True)
                for kind, compiled in PEERS if number == 0 else PEERS[:1]:
                    print(json.dumps(peer(work, name, kind, compiled, given.steps)), flush=True)


if __name__ == "__main__":
    main()
