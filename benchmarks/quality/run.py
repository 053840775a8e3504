"""What llmkit learns on real rows beside transformers' Trainer: same rows, model, hyper-parameters and seeds.

usage: run.py DATA [JOB ...] [--encoder DIR] [--seeds 3] [--work DIR] [--only ours|peer]

DATA is a directory of public sets (sst2/, wnut17/, ...: the jobs below read them). ENCODER is a BERT-like model with
its tokenizer, for the jobs that begin with one. Each job is a recipe here; `llmkit finetune` and `llmkit evaluate` run
it, then trainer.py runs on the rows as JSON lines and, where a job begins from nothing, with the configuration and
tokenizer of llmkit's own model. Prints a line a run and a table; WORK keeps every run: none is made twice.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]
Split = tuple[Rows, Rows]
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Job:
    """One comparison: rows for the peer, the recipe of ours, what both share, the metrics that are compared."""

    peer: str
    rows: Callable[[Path], Split]
    recipe: dict[str, Any]
    metrics: tuple[str, ...]
    epochs: float
    batch: int
    lr: float
    max_length: int
    peer_options: tuple[str, ...] = ()
    generation: dict[str, Any] = field(default_factory=dict)
    baselines: tuple[str, ...] = ()
    warmup: float = 0.03


def _tsv(path: Path, text: int, label: int, header: bool) -> Rows:
    lines = path.read_text(encoding="utf-8").splitlines()[header:]
    return [{"text": cells[text], "label": cells[label]} for cells in (line.split("\t") for line in lines)]


def _sst2(data: Path) -> Split:
    train, test = (_tsv(data / f"sst2/{name}.tsv", 0, 1, header=False) for name in ("train", "dev"))
    return train, test


def _chnsenticorp(data: Path) -> Split:
    train, test = (_tsv(data / f"chnsenticorp/{name}.tsv", 1, 0, header=True) for name in ("train", "test"))
    return train, test


def _conll(path: Path) -> Rows:
    rows = []
    lines = path.read_text(encoding="utf-8").splitlines()
    sentence: list[list[str]] = []
    for line in [*lines, ""]:
        if line.strip():
            sentence.append(line.split("\t") if "\t" in line else line.split())
        elif sentence:
            rows.append({"tokens": [cells[0] for cells in sentence], "labels": [cells[-1] for cells in sentence]})
            sentence = []
    return rows


def _wnut(data: Path) -> Split:
    return _conll(data / "wnut17/wnut17train.conll"), _conll(data / "wnut17/emerging.test.annotated")


def _resume(data: Path) -> Split:
    return _conll(data / "resume_ner_zh/train.char.bmes"), _conll(data / "resume_ner_zh/test.char.bmes")


def _squad(path: Path) -> Rows:
    articles = json.loads(path.read_text(encoding="utf-8"))["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    return [
        {"question": qa["question"], "context": paragraph["context"], "answers": qa["answers"]}
        for paragraph in paragraphs
        for qa in paragraph["qas"]
    ]


def _squad_subset(data: Path) -> Split:
    return _squad(data / "squad_subset/train-subset.json"), _squad(data / "squad_subset/dev-subset.json")


def _cmrc(data: Path) -> Split:
    """Trained on the larger file; answers that are not at their offset are left out of training by both."""
    train, test = _squad(data / "cmrc2018/cmrc2018_dev.json"), _squad(data / "cmrc2018/cmrc2018_trial.json")
    return [row for row in train if _placed(row)], [row for row in test if _placed(row)]


def _placed(row: dict[str, Any]) -> bool:
    answers = row["answers"]
    return all(row["context"].startswith(a["text"], a["answer_start"]) and a["text"].strip() for a in answers)


def _multi30k(data: Path) -> Split:
    def read(name: str) -> Rows:
        paths = [data / f"multi30k_en-de/{name}.{side}.gz" for side in ("en", "de")]
        english, german = (gzip.decompress(path.read_bytes()).decode().rstrip("\n").split("\n") for path in paths)
        return [{"source": a, "target": [b]} for a, b in zip(english, german, strict=True)]

    return read("train"), read("test_2016_flickr")


def _tatoeba(data: Path) -> Split:
    """Every 22nd English sentence with all its translations is held out: no source is on both sides."""
    targets: dict[str, list[str]] = {}
    for line in (data / "tatoeba_en-zh/cmn.txt").read_text(encoding="utf-8").splitlines():
        source, target = line.split("\t")[:2]
        targets.setdefault(source, []).append(target)
    held = set(list(targets)[::22])
    train = [{"source": source, "target": [t]} for source, own in targets.items() if source not in held for t in own]
    return train, [{"source": source, "target": targets[source]} for source in held]


def _scitldr(data: Path) -> Split:
    def read(name: str) -> Rows:
        rows = [json.loads(line) for line in (data / f"scitldr/{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        return [{"source": " ".join(row["source"]), "target": row["target"]} for row in rows if any(row["target"])]

    return read("train"), read("test")


def _dialogsum(data: Path) -> Split:
    def read(name: str) -> Rows:
        lines = (data / f"dialogsum/dialogsum.{name}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        keys = [key for key in rows[0] if key.startswith("summary")]
        return [{"source": row["dialogue"], "target": [row[key] for key in keys]} for row in rows]

    return read("dev"), read("test")


def _scratch(vocab_size: int, algorithm: str = "bpe", **config: Any) -> dict[str, Any]:
    return {"model": {"config": config}, "tokenizer": {"train": {"algorithm": algorithm, "vocab_size": vocab_size}}}


# Its layers are normalised after the residual: it needs a long warm-up, or its cross-attention never learns
BART = {"model_type": "bart", "d_model": 256, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 1024,
        "decoder_ffn_dim": 1024, "encoder_attention_heads": 4, "decoder_attention_heads": 4}  # fmt: skip
GRU = {"model_type": "rnn_seq2seq", "cell": "gru", "attention": "additive", "hidden_size": 256, "num_layers": 1}
CLASSES = {"type": "sequence_classification"}
EN_DE = {"max_new_tokens": 48, "num_beams": 4}
BEAMS = ("--beams", "4")
SUMMARY = ("--score", "rouge", "--new-tokens", "48")
SUMMARIES = {"max_new_tokens": 48, "num_beams": 1}
ROUGE = ("rouge1", "rougeL")
ANSWERS = ("exact_match", "f1")

JOBS = {
    "sst2": Job("classification", _sst2, {"task": CLASSES}, ("accuracy",), 2, 32, 1e-4, 128,
                baselines=("majority", "tfidf_logistic_regression")),
    "chnsenticorp-cnn": Job("classification", _chnsenticorp, {"task": CLASSES, **_scratch(
        5000, "char", model_type="text_cnn", hidden_size=128, num_filters=100, filter_widths=[2, 3, 4])},
        ("accuracy",), 4, 64, 1e-3, 256, baselines=("majority", "tfidf_logistic_regression")),
    "chnsenticorp-lstm": Job("classification", _chnsenticorp, {"task": CLASSES, **_scratch(
        5000, "char", model_type="rnn_encoder", cell="lstm", hidden_size=128, pooling="max")},
        ("accuracy",), 2, 64, 1e-3, 200),
    "wnut17": Job("tagging", _wnut, {"task": {"type": "token_classification"}}, ("f1",), 3, 16, 2e-4, 128),
    "resume_ner_zh": Job("tagging", _resume, {"task": {"type": "token_classification"}, **_scratch(
        3000, "char", model_type="rnn_encoder", cell="lstm", hidden_size=128)}, ("f1",), 4, 32, 3e-3, 256),
    "squad_subset": Job("questions", _squad_subset, {"task": {"type": "question_answering", "doc_stride": 96}}, ANSWERS,
                        1, 16, 1e-4, 256, ("--stride", "96")),
    "cmrc2018": Job("questions", _cmrc, {
        "task": {"type": "question_answering", "doc_stride": 128, "max_answer_length": 50}, **_scratch(
            4000, "wordpiece", model_type="bert", hidden_size=128, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=512)}, ANSWERS, 3, 16, 5e-4, 384, ("--language", "zh", "--answer-length", "50")),
    "multi30k-transformer": Job("seq2seq", _multi30k, {"task": {"type": "translation"}, **_scratch(6000, **BART)},
                                ("sacrebleu",), 3, 64, 1e-3, 64, BEAMS, EN_DE, ("copy",), warmup=0.15),
    "multi30k-rnn": Job("seq2seq", _multi30k, {"task": {"type": "translation"}, **_scratch(6000, **GRU)},
                        ("sacrebleu",), 3, 64, 2e-3, 64, BEAMS, EN_DE, ("copy",)),
    "tatoeba-transformer": Job("seq2seq", _tatoeba, {"task": {"type": "translation"}, **_scratch(6000, **BART)},
                               ("sacrebleu",), 6, 64, 1e-3, 64, (*BEAMS, "--language", "zh"), EN_DE, ("copy",),
                               warmup=0.15),
    "tatoeba-rnn": Job("seq2seq", _tatoeba, {"task": {"type": "translation"}, **_scratch(6000, **GRU)},
                       ("sacrebleu",), 6, 64, 2e-3, 64, (*BEAMS, "--language", "zh"), EN_DE, ("copy",)),
    "scitldr": Job("seq2seq", _scitldr, {"task": {"type": "summarization"}, **_scratch(6000, **BART)}, ROUGE,
                   4, 16, 5e-4, 256, SUMMARY, SUMMARIES, ("lead",)),
    "dialogsum": Job("seq2seq", _dialogsum, {"task": {"type": "summarization"}, **_scratch(4000, **BART)}, ROUGE,
                     8, 16, 5e-4, 256, SUMMARY, SUMMARIES, ("lead",)),
}  # fmt: skip


def _write(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    return done.stdout


def ours(job: Job, work: Path, encoder: Path | None, seed: int) -> dict[str, Any]:
    recipe = {
        "version": 1,
        "seed": seed,
        "output_dir": str(work / f"ours-{seed}"),
        **({} if "model" in job.recipe else {"model": {"name_or_path": str(encoder)}}),
        **job.recipe,
        "data": {
            "train": [{"path": str(work / "train.jsonl")}],
            "test": [{"path": str(work / "test.jsonl")}],
            "max_length": job.max_length,
            "prepared_dir": str(work / "prepared"),
        },
        "training": {
            "num_train_epochs": job.epochs,
            "global_batch_size": job.batch,
            "learning_rate": job.lr,
            "lr_scheduler_type": "linear",
            "warmup_ratio": job.warmup,
            "weight_decay": 0.0,
            "adam_beta2": 0.999,
            "torch_compile": False,
        },
        "evaluation": {"baselines": list(job.baselines)},
        **({"generation": job.generation} if job.generation else {}),
    }
    path = _write(work / f"ours-{seed}.yaml", [recipe])  # JSON is YAML
    _run([sys.executable, "-m", "llmkit", "preprocess", str(path)])
    started = time.perf_counter()
    _run([sys.executable, "-m", "llmkit", "finetune", str(path)])
    seconds = time.perf_counter() - started
    _run([sys.executable, "-m", "llmkit", "evaluate", str(path)])
    found = json.loads((work / f"ours-{seed}/evaluation/results.json").read_text())
    metrics = {name: found["metrics"][name]["value"] for name in job.metrics}
    return {"metrics": metrics, "seconds": round(seconds, 1), "baselines": found.get("baselines", {})}


def peer(job: Job, work: Path, encoder: Path | None, seed: int) -> dict[str, Any]:
    scratch = "model" in job.recipe
    model = next(iter(sorted(work.glob("ours-*/model"))), None) if scratch else encoder
    if model is None:
        sys.exit("llmkit has not made its model of this job yet" if scratch else "this job needs --encoder")
    command = [sys.executable, str(HERE / "trainer.py"), job.peer, str(model), str(work / "train.jsonl")]
    command += [str(work / "test.jsonl"), "--epochs", str(job.epochs), "--batch", str(job.batch), "--lr", str(job.lr)]
    command += ["--max-length", str(job.max_length), "--warmup", str(job.warmup), "--seed", str(seed)]
    command += job.peer_options
    found: dict[str, Any] = json.loads(_run([*command, "--scratch"] if scratch else command).splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=", ".join(JOBS))
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/quality"))
    parser.add_argument("--only", choices=("ours", "peer"))
    options = parser.parse_args()
    table = []
    for name in options.jobs or JOBS:
        job, work = JOBS[name], (options.work / name).resolve()
        work.mkdir(parents=True, exist_ok=True)
        train, test = job.rows(options.data)
        _write(work / "train.jsonl", train)
        _write(work / "test.jsonl", test)
        for side, run in (("ours", ours), ("peer", peer)):
            if options.only in (None, side):
                results = []
                for seed in range(42, 42 + options.seeds):
                    kept = work / f"{side}-{seed}.json"
                    if not kept.exists():
                        kept.write_text(json.dumps(run(job, work, options.encoder, seed)))
                    results.append(json.loads(kept.read_text()))
                    print(name, side, seed, json.dumps(results[-1]), flush=True)
                for metric in job.metrics:
                    values = [result["metrics"][metric] for result in results]
                    seconds = statistics.median(result["seconds"] for result in results)
                    table.append((name, side, metric, *_spread(values), f"{seconds:.0f} s"))
    print("\n".join("\t".join(row) for row in table))


def _spread(values: list[float]) -> tuple[str, str]:
    return f"{statistics.mean(values):.4g}", f"{min(values):.4g} to {max(values):.4g}"


if __name__ == "__main__":
    main()
