"""transformers' Trainer on the rows that llmkit is trained on, written as its own examples are: the tasks' peer.

usage: trainer.py TASK MODEL --train FILE --dev FILE [--epochs 2] [--batch 32] [--lr 1e-4] [--max-length 128]
                  [--stride 128] [--seed 42]

TASK: classification (rows of text TAB label, or columns label, text_a with a header), tagging (CoNLL columns),
questions (SQuAD JSON). MODEL is a directory. Linear schedule with 3% warm-up, AdamW without weight decay, float32.
Prints one JSON line: the metric, the seconds of training, samples a second.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from torch.utils.data import Dataset

Rows = list[dict[str, Any]]


class Encoded(Dataset):  # type: ignore[type-arg]
    def __init__(self, rows: Rows):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.rows[i]


def read_classification(path: Path) -> tuple[list[str], list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    if rows[0][:2] == ["label", "text_a"]:
        return [row[1] for row in rows[1:]], [row[0] for row in rows[1:]]
    return [row[0] for row in rows], [row[1] for row in rows]


def read_tagging(path: Path) -> tuple[list[list[str]], list[list[str]]]:
    words: list[list[str]] = [[]]
    tags: list[list[str]] = [[]]
    for line in path.read_text(encoding="utf-8").splitlines():
        columns = line.split("\t") if "\t" in line else line.split()
        if not line.strip():
            if words[-1]:
                words.append([])
                tags.append([])
        else:
            words[-1].append(columns[0])
            tags[-1].append(columns[-1])
    return [w for w in words if w], [t for t in tags if t]


def read_questions(path: Path) -> Rows:
    rows = []
    for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                rows.append({"context": paragraph["context"], **qa})
    return rows


def train(options: argparse.Namespace, model: Any, rows: Rows, collator: Any) -> tuple[Any, float]:
    arguments = transformers.TrainingArguments(
        output_dir="/tmp/peer-trainer",
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch,
        per_device_eval_batch_size=64,
        learning_rate=options.lr,
        warmup_steps=0.03,
        lr_scheduler_type="linear",
        weight_decay=0.0,
        seed=options.seed,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        logging_steps=1_000_000,
        dataloader_pin_memory=False,
    )
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=Encoded(rows), data_collator=collator)
    started = time.perf_counter()
    trainer.train()
    return trainer, time.perf_counter() - started


def classification(options: argparse.Namespace) -> tuple[dict[str, float], float, int]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    (texts, labels), (dev_texts, dev_labels) = read_classification(options.train), read_classification(options.dev)
    names = sorted(set(labels))

    def encode(texts: list[str], labels: list[str]) -> Rows:
        found = tokenizer(texts, truncation=True, max_length=options.max_length)
        keys = list(found.keys())
        return [
            {**{key: found[key][i] for key in keys}, "labels": names.index(label)} for i, label in enumerate(labels)
        ]

    transformers.set_seed(options.seed)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=len(names))
    rows = encode(texts, labels)
    trainer, seconds = train(options, model, rows, transformers.DataCollatorWithPadding(tokenizer))
    dev = encode(dev_texts, dev_labels)
    guesses = trainer.predict(Encoded(dev)).predictions.argmax(-1)
    accuracy = float(np.mean(guesses == np.array([row["labels"] for row in dev])))
    return {"accuracy": accuracy}, seconds, len(rows)


def tagging(options: argparse.Namespace) -> tuple[dict[str, float], float, int]:
    from seqeval.metrics import f1_score

    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    (words, tags), (dev_words, dev_tags) = read_tagging(options.train), read_tagging(options.dev)
    names = sorted({tag for row in tags for tag in row})

    def encode(words: list[list[str]], tags: list[list[str]]) -> Rows:
        rows = []
        for sentence, labels in zip(words, tags, strict=True):
            found = tokenizer(sentence, is_split_into_words=True, truncation=True, max_length=options.max_length)
            before, made = None, []
            for word in found.word_ids():
                made.append(-100 if word is None or word == before else names.index(labels[word]))
                before = word
            rows.append({**{key: found[key] for key in found}, "labels": made})
        return rows

    transformers.set_seed(options.seed)
    model = transformers.AutoModelForTokenClassification.from_pretrained(options.model, num_labels=len(names))
    rows = encode(words, tags)
    trainer, seconds = train(options, model, rows, transformers.DataCollatorForTokenClassification(tokenizer))
    dev = encode(dev_words, dev_tags)
    guesses = trainer.predict(Encoded(dev)).predictions.argmax(-1)
    gold = [[names[i] for i in row["labels"] if i != -100] for row in dev]
    found = [
        [names[g] for g, i in zip(guess, row["labels"], strict=False) if i != -100]
        for guess, row in zip(guesses, dev, strict=True)
    ]
    return {"f1": float(f1_score(gold, found))}, seconds, len(rows)


def questions(options: argparse.Namespace) -> tuple[dict[str, float], float, int]:
    """Features and answers as in transformers' question-answering example; one window's best span, n-best 20."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    rows, dev = read_questions(options.train), read_questions(options.dev)

    def encode(rows: Rows) -> tuple[Rows, list[Any]]:
        made, places = [], []
        for number, row in enumerate(rows):
            found = tokenizer(
                row["question"].lstrip(),
                row["context"],
                truncation="only_second",
                max_length=options.max_length,
                stride=options.stride,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
            )
            answer = row["answers"][0]
            first, last = answer["answer_start"], answer["answer_start"] + len(answer["text"])
            for window, offsets in enumerate(found["offset_mapping"]):
                sequence = found.sequence_ids(window)
                inside = [i for i, side in enumerate(sequence) if side == 1]
                start = end = 0
                if offsets[inside[0]][0] <= first and offsets[inside[-1]][1] >= last:
                    start = max(i for i in inside if offsets[i][0] <= first)
                    end = min(i for i in inside if offsets[i][1] >= last)
                keys = [key for key in found if key not in ("offset_mapping", "overflow_to_sample_mapping")]
                made.append(
                    {**{key: found[key][window] for key in keys}, "start_positions": start, "end_positions": end}
                )
                places.append((number, offsets, set(inside)))
        return made, places

    transformers.set_seed(options.seed)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(options.model)
    encoded, _ = encode(rows)
    collator = transformers.DataCollatorWithPadding(tokenizer)
    trainer, seconds = train(options, model, encoded, collator)
    windows, places = encode(dev)
    starts, ends = trainer.predict(Encoded(windows)).predictions[:2]
    best: dict[int, tuple[float, str]] = {}
    for (number, offsets, inside), start, end in zip(places, starts, ends, strict=True):
        top_starts, top_ends = np.argsort(-start)[:20].tolist(), np.argsort(-end)[:20].tolist()
        for a in top_starts:
            for b in top_ends:
                if a in inside and b in inside and a <= b < a + 30:
                    text = dev[number]["context"][offsets[a][0] : offsets[b][1]]
                    best[number] = max(best.get(number, (-1e9, "")), (float(start[a] + end[b]), text))
    from llmkit.metrics.answers import score_answer

    scores = []
    for i, row in enumerate(dev):
        references = [answer["text"] for answer in row["answers"]]
        scores.append(score_answer(best.get(i, (0.0, ""))[1], references, chinese=False))
    exact, f1 = np.mean(scores, axis=0) * 100
    return {"exact_match": float(exact), "f1": float(f1)}, seconds, len(encoded)


TASKS = {"classification": classification, "tagging": tagging, "questions": questions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("model")
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--dev", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--stride", type=int, default=128)
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    metrics, seconds, samples = TASKS[options.task](options)
    rate = samples * options.epochs / seconds
    print(
        json.dumps({"peer": "Trainer", **metrics, "seconds": round(seconds, 1), "samples_per_second": round(rate, 1)})
    )


if __name__ == "__main__":
    main()
