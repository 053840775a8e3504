"""transformers' Trainer on the rows that llmkit is trained on, written as its own examples are: the tasks' peer.

usage: trainer.py TASK MODEL TRAIN.jsonl TEST.jsonl [--scratch] [--seed 42] ...

TASK: classification {text, label}, tagging {tokens, labels}, questions {context, question, answers} or seq2seq {source,
target: [one or several]}. MODEL is a directory: its weights, or with --scratch only its configuration and tokenizer.
AdamW in float32, linear schedule after a warm-up. Prints one JSON line: the metrics, the seconds of training.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from torch.utils.data import Dataset

import llmkit.models.registry  # noqa: F401  (its architectures answer to the Auto classes, for --scratch)

Rows = list[dict[str, Any]]


class Encoded(Dataset):  # type: ignore[type-arg]
    def __init__(self, rows: Rows):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.rows[i]


def read(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def load(options: argparse.Namespace, auto: Any, **settings: Any) -> Any:
    transformers.set_seed(options.seed)
    if not options.scratch:
        return auto.from_pretrained(options.model, **settings)
    return auto.from_config(transformers.AutoConfig.from_pretrained(options.model, **settings))


def train(options: argparse.Namespace, model: Any, rows: Rows, collator: Any) -> tuple[Any, float]:
    seq2seq = options.task == "seq2seq"
    arguments = (transformers.Seq2SeqTrainingArguments if seq2seq else transformers.TrainingArguments)(
        output_dir=tempfile.mkdtemp(prefix="trainer-"),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch,
        per_device_eval_batch_size=64,
        learning_rate=options.lr,
        warmup_steps=options.warmup,
        lr_scheduler_type="linear",
        weight_decay=0.0,
        seed=options.seed,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        logging_steps=1_000_000,
        dataloader_pin_memory=False,
        **({"predict_with_generate": True} if seq2seq else {}),
    )
    made = transformers.Seq2SeqTrainer if seq2seq else transformers.Trainer
    trainer = made(model=model, args=arguments, train_dataset=Encoded(rows), data_collator=collator)
    started = time.perf_counter()
    trainer.train()
    return trainer, time.perf_counter() - started


def classification(options: argparse.Namespace, rows: Rows, test: Rows) -> tuple[dict[str, float], float]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    names = sorted({row["label"] for row in rows})

    def encode(rows: Rows) -> Rows:
        made = [dict(tokenizer(row["text"], truncation=True, max_length=options.max_length)) for row in rows]
        return [{**found, "labels": names.index(row["label"])} for found, row in zip(made, rows, strict=True)]

    model = load(options, transformers.AutoModelForSequenceClassification, num_labels=len(names))
    trainer, seconds = train(options, model, encode(rows), transformers.DataCollatorWithPadding(tokenizer))
    encoded = encode(test)
    guesses = trainer.predict(Encoded(encoded)).predictions.argmax(-1)
    return {"accuracy": float(np.mean(guesses == np.array([row["labels"] for row in encoded])))}, seconds


def tagging(options: argparse.Namespace, rows: Rows, test: Rows) -> tuple[dict[str, float], float]:
    """As transformers' token-classification example does it: the first piece of a word carries its tag."""
    from seqeval.metrics import f1_score

    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    names = sorted({tag for row in rows for tag in row["labels"]})

    def encode(rows: Rows) -> Rows:
        made = []
        for row in rows:
            found = tokenizer(row["tokens"], is_split_into_words=True, truncation=True, max_length=options.max_length)
            words = found.word_ids()
            firsts = [word is not None and word != before for before, word in zip([None, *words], words, strict=False)]
            labels = [names.index(row["labels"][w]) if first else -100 for w, first in zip(words, firsts, strict=True)]
            made.append({**dict(found), "labels": labels})
        return made

    model = load(options, transformers.AutoModelForTokenClassification, num_labels=len(names))
    trainer, seconds = train(options, model, encode(rows), transformers.DataCollatorForTokenClassification(tokenizer))
    encoded = encode(test)
    scores = trainer.predict(Encoded(encoded)).predictions
    # A word that the window cut off is tagged O, so that every entity of the file counts
    found = [
        [names[guess.argmax(-1)] for guess, label in zip(score, row["labels"], strict=False) if label != -100]
        for score, row in zip(scores, encoded, strict=True)
    ]
    gold = [row["labels"] for row in test]
    found = [guess + ["O"] * (len(want) - len(guess)) for guess, want in zip(found, gold, strict=True)]
    middle_as_inside = [[[tag.replace("M-", "I-") for tag in row] for row in side] for side in (gold, found)]
    return {"f1": float(f1_score(*middle_as_inside))}, seconds


def questions(options: argparse.Namespace, rows: Rows, test: Rows) -> tuple[dict[str, float], float]:
    """Features and answers as in transformers' question-answering example: the best span of all windows, n-best 20."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)

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
                inside = [i for i, side in enumerate(found.sequence_ids(window)) if side == 1]
                start = end = 0
                if offsets[inside[0]][0] <= first and offsets[inside[-1]][1] >= last:
                    start = max(i for i in inside if offsets[i][0] <= first)
                    end = min(i for i in inside if offsets[i][1] >= last)
                keys = [key for key in found if key not in ("offset_mapping", "overflow_to_sample_mapping")]
                kept = {key: found[key][window] for key in keys}
                made.append({**kept, "start_positions": start, "end_positions": end})
                places.append((number, offsets, set(inside)))
        return made, places

    model = load(options, transformers.AutoModelForQuestionAnswering)
    trainer, seconds = train(options, model, encode(rows)[0], transformers.DataCollatorWithPadding(tokenizer))
    windows, places = encode(test)
    starts, ends = trainer.predict(Encoded(windows)).predictions[:2]
    best: dict[int, tuple[float, str]] = {}
    for (number, offsets, inside), start, end in zip(places, starts, ends, strict=True):
        top_starts, top_ends = np.argsort(-start)[:20].tolist(), np.argsort(-end)[:20].tolist()
        for a in top_starts:
            for b in top_ends:
                if a in inside and b in inside and a <= b < a + options.answer_length:
                    text = test[number]["context"][offsets[a][0] : offsets[b][1]]
                    best[number] = max(best.get(number, (-1e9, "")), (float(start[a] + end[b]), text))
    from llmkit.metrics.answers import score_answer

    scores = []
    for i, row in enumerate(test):
        references = [answer["text"] for answer in row["answers"]]
        scores.append(score_answer(best.get(i, (0.0, ""))[1], references, chinese=options.language == "zh"))
    exact, f1 = np.mean(scores, axis=0) * 100
    return {"exact_match": float(exact), "f1": float(f1)}, seconds


def seq2seq(options: argparse.Namespace, rows: Rows, test: Rows) -> tuple[dict[str, float], float]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)

    def encode(rows: Rows) -> Rows:
        limit = {"truncation": True, "max_length": options.max_length}
        targets = [tokenizer(text_target=row["target"][0], **limit)["input_ids"] for row in rows]
        sources = [dict(tokenizer(row["source"], **limit)) for row in rows]
        return [{**found, "labels": target} for found, target in zip(sources, targets, strict=True)]

    model = load(options, transformers.AutoModelForSeq2SeqLM)
    collator = transformers.DataCollatorForSeq2Seq(tokenizer, model=model)
    trainer, seconds = train(options, model, encode(rows), collator)
    found = trainer.predict(Encoded(encode(test)), max_new_tokens=options.new_tokens, num_beams=options.beams)
    ids = np.where(found.predictions == -100, tokenizer.pad_token_id, found.predictions)
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    references = [row["target"] for row in test]
    if options.score == "bleu":
        import sacrebleu

        streams = [[row[0] for row in references]]
        cut = "zh" if options.language == "zh" else "13a"
        return {"sacrebleu": sacrebleu.corpus_bleu(texts, streams, tokenize=cut).score}, seconds
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rougeL"])
    scores = [scorer.score_multi(own, text) for own, text in zip(references, texts, strict=True)]
    return {name: float(np.mean([s[name].fmeasure for s in scores])) for name in ("rouge1", "rougeL")}, seconds


TASKS = {"classification": classification, "tagging": tagging, "questions": questions, "seq2seq": seq2seq}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("model")
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--scratch", action="store_true")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--warmup", type=float, default=0.03, help="share of the steps")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--stride", type=int, default=128)
    parser.add_argument("--answer-length", type=int, default=30)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--score", choices=("bleu", "rouge"), default="bleu")
    parser.add_argument("--language", choices=("en", "zh"), default="en")
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    metrics, seconds = TASKS[options.task](options, read(options.train), read(options.test))
    print(json.dumps({"metrics": metrics, "seconds": round(seconds, 1)}))


if __name__ == "__main__":
    main()
