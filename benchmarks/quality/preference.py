"""Reward accuracy of DPO on held-out pairs, cross-validated, beside a bag-of-words model of the same pairs.

usage: preference.py DATA [--folds 5] [--work DIR] [--loss dpo] [--lr 3e-4] [--epochs 3]

DATA has preference/hh_harmless_base_test_first1500.jsonl.gz and alpaca/en. A small GPT-2 is pretrained on alpaca's
answers; then, a fold at a time, `llmkit finetune` prefers on the other folds and `llmkit evaluate` judges it. Pairs
that share a prompt are in one fold. The peer is logistic regression on the difference of the answers' TF-IDF vectors.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

Rows = list[dict[str, Any]]


def llmkit(command: str, recipe: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(recipe))
    done = subprocess.run([sys.executable, "-m", "llmkit", command, str(path)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])


def pretrained(data: Path, work: Path) -> Path:
    recipe = {
        "version": 1,
        "output_dir": str(work / "base"),
        "task": {"type": "causal_lm"},
        "model": {"config": {"model_type": "gpt2", "n_layer": 2, "n_embd": 128, "n_head": 4, "n_positions": 384}},
        "tokenizer": {"train": {"algorithm": "bpe", "vocab_size": 4096}},
        "data": {"train": [{"path": str(data / "alpaca/en/*.json"), "columns": {"text": "output"}}], "max_length": 384},
        "training": {"num_train_epochs": 2, "global_batch_size": 16, "learning_rate": 2e-3, "torch_compile": False},
    }
    llmkit("pretrain", recipe, work / "base.yaml")
    return work / "base/model"


def preferred(train: Path, test: Path, base: Path, work: Path, options: argparse.Namespace) -> tuple[float, int]:
    recipe = {
        "version": 1,
        "output_dir": str(work),
        "task": {"type": "preference", "loss": options.loss, "beta": options.beta},
        "model": {"name_or_path": str(base), "dropout": 0.1},
        "data": {"train": [{"path": str(train)}], "test": [{"path": str(test)}], "max_length": 384},
        "training": {
            "num_train_epochs": options.epochs,
            "global_batch_size": 16,
            "learning_rate": options.lr,
            "torch_compile": False,
        },
    }
    for command in ("finetune", "evaluate"):
        llmkit(command, recipe, work.with_suffix(".yaml"))
    found = json.loads((work / "evaluation/results.json").read_text())["metrics"]["reward_accuracy"]
    return found["value"], found["n"]


def bag_of_words(train: Rows, test: Rows) -> float:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    def tails(rows: Rows, side: str) -> list[str]:
        return [row[side].rsplit("\n\nAssistant:", 1)[-1] for row in rows]

    def differences(rows: Rows) -> Any:
        return (vectorizer.transform(tails(rows, "chosen")) - vectorizer.transform(tails(rows, "rejected"))).tocsr()

    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2)
    vectorizer.fit(tails(train, "chosen") + tails(train, "rejected"))
    signs = np.resize([1, -1], len(train))
    model = LogisticRegression(C=4.0, fit_intercept=False)
    model.fit(differences(train).multiply(signs[:, None]).tocsr(), signs)
    return float(np.mean(model.decision_function(differences(test)) > 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("runs/quality/preference"))
    parser.add_argument("--loss", default="dpo")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--only", type=int, nargs="*", help="folds to run")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    packed = options.data / "preference/hh_harmless_base_test_first1500.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(packed.read_bytes()).decode().rstrip("\n").split("\n")]
    prompts = [row["chosen"].rsplit("\n\nAssistant:", 1)[0].encode() for row in rows]
    folds = [int(hashlib.sha256(prompt).hexdigest(), 16) % options.folds for prompt in prompts]
    base = pretrained(options.data, work)
    found = []
    for fold in options.only or range(options.folds):
        sides = {"train": [r for r, f in zip(rows, folds, strict=True) if f != fold]}
        sides["test"] = [r for r, f in zip(rows, folds, strict=True) if f == fold]
        paths = {name: work / f"{name}-{fold}.jsonl" for name in sides}
        for name, path in paths.items():
            path.write_text("".join(json.dumps(row) + "\n" for row in sides[name]), encoding="utf-8")
        accuracy, count = preferred(paths["train"], paths["test"], base, work / f"fold-{fold}", options)
        peer = bag_of_words(sides["train"], sides["test"])
        found.append((accuracy * count, peer * count, count))
        print(fold, f"llmkit {accuracy:.3f}", f"bag of words {peer:.3f}", f"{count} pairs", flush=True)
    right, peer, total = np.sum(found, axis=0)
    share = right / total
    margin = 1.96 * np.sqrt(share * (1 - share) / total)
    print(
        f"reward accuracy {share:.3f} ({share - margin:.3f} to {share + margin:.3f}); bag of words {peer / total:.3f}"
    )


if __name__ == "__main__":
    main()
