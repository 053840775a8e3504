"""`llmkit generate`: finds the run's model and hands prompts to the engine. Results on standard output, the rest on
standard error."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmkit.errors import ModelError, RecipeError
from llmkit.evaluate.runmodel import OpenModel, locate_model, model_section, model_sha256, open_model, prove
from llmkit.generate.paths import check_paths
from llmkit.generate.settings import check_generation
from llmkit.models.source import is_encoder_decoder
from llmkit.options import Options
from llmkit.recipe.sections import Recipe
from llmkit.recipe.tasks import CHATS
from llmkit.report.console import Console

COMPLETING = ("causal_lm", "instruction", "preference")
WRITING = (*COMPLETING, "translation", "summarization", "span_corruption", "denoising")
"""Tasks whose models write text: what follows a prompt, or (the others) the target of a source."""
EXAMPLES = "--prompt TEXT, --input FILE.jsonl (or - for standard input) or --interactive"


def generate(recipe: Recipe, options: Options, console: Console) -> dict[str, Any]:
    """Runs the command; returns what --json prints. Raises RecipeError, DataError, ModelError."""
    _check_options(options)
    check_generation(recipe.generation, interactive=options.interactive)
    if options.input is not None:
        check_paths(options.input, options.output)
    if recipe.task.type not in WRITING:
        raise ModelError(f"a model of {recipe.task.type} writes no text; `llmkit evaluate` says what it predicts")
    place = locate_model(recipe, options)
    if options.dry_run:
        if not console.json:
            console.result(f"model: {place}")
        return {"model": str(place)}
    prove(place)
    console.note("loading torch and the model")
    from llmkit.generate.prompts import chat_format, prompt_encoder
    from llmkit.models.load import quiet
    from llmkit.writing.engine import TransformersEngine

    with tempfile.TemporaryDirectory(prefix="llmkit-") as temporary:
        opened = open_model(place, recipe, options, Path(temporary))
        instructed = recipe.task.type in CHATS
        chat = chat_format(opened.tokenizer_dir, required=instructed)
        source, suffix = _source(recipe, place, opened)
    stops = chat.stop_ids if instructed and chat is not None else []
    engine = TransformersEngine(
        opened.model, opened.tokenizer, recipe.generation, seed=recipe.seed, more_stop_ids=stops
    )
    encode = prompt_encoder(opened.tokenizer, chat, recipe.task.type, source, suffix)
    with quiet():
        if options.interactive:
            return _interactive(engine, encode, recipe, console)
        if options.input is not None:
            return _batch(engine, encode, place, recipe, options, console)
        return _prompts(engine, encode, options, console)


def _source(recipe: Recipe, place: Path | str, opened: OpenModel) -> tuple[Any, tuple[int, ...]]:
    """(how a source text is encoded where the task has sources, what ends a prompt that an encoder reads)."""
    from llmkit.tasks import encoder_for
    from llmkit.tasks.pair_encoder import read_frame

    section = model_section(recipe, place)
    apart = is_encoder_decoder(section)
    if recipe.task.type in COMPLETING:
        return None, (read_frame(opened.tokenizer_dir).suffix if apart else ())
    encoder: Any = encoder_for(recipe.model_copy(update={"model": section}), opened.tokenizer_dir)
    _ = encoder.encode_prompt("")  # reads the tokenizer's files while they are there
    return encoder.encode_prompt, ()


def _check_options(options: Options) -> None:
    given = [
        name
        for name, value in (
            ("--prompt", options.prompts),
            ("--input", options.input),
            ("--interactive", options.interactive),
        )
        if value
    ]
    if len(given) != 1:
        found = f"not {' and '.join(given)} together" if given else "nothing to continue"
        raise RecipeError(f"generate takes one of {EXAMPLES}; {found}")
    if options.output is not None and options.input is None:
        raise RecipeError(f"--output goes with --input; {given[0]} prints to standard output")
    if (options.num_processes or 1) > 1:
        raise RecipeError("generate runs in one process; leave --num-processes out")
    if options.interactive and options.json:
        raise RecipeError("--interactive is a conversation; it has no --json")


def _prompts(engine: Any, encode: Any, options: Options, console: Console) -> dict[str, Any]:
    from llmkit.generate.batch import answers
    from llmkit.generate.prompts import Item, check_item

    items = [Item({"prompt": text}, row) for row, text in enumerate(options.prompts)]
    for item in items:
        check_item(item)
    started = time.monotonic()
    found = engine.generate([encode(item) for item in items])
    _speed(console, sum(completion.completion_tokens for completion in found), started)
    samples = engine.section.num_return_sequences
    objects = []
    for item in items:
        group = found[item.row * samples : (item.row + 1) * samples]
        objects += answers(item, group)
        if not console.json:
            for completion in group:
                heading = _heading(item.row, completion.sample, len(items), samples)
                console.result(completion.text if heading is None else f"{heading}\n{completion.text}")
    return {"completions": objects}


def _heading(row: int, sample: int, prompts: int, samples: int) -> str | None:
    """None for a single result, so that it can be piped on as it is."""
    parts = [f"prompt {row + 1}"] if prompts > 1 else []
    parts += [f"sample {sample + 1}"] if samples > 1 else []
    return f"=== {', '.join(parts)} ===" if parts else None


def _batch(
    engine: Any, encode: Any, place: Path | str, recipe: Recipe, options: Options, console: Console
) -> dict[str, Any]:
    from llmkit.generate.batch import (
        BLOCK_BATCHES,
        Sink,
        check_file,
        file_blocks,
        open_output,
        run_batch,
        stream_blocks,
    )

    assert options.input is not None
    size = engine.batch_size * BLOCK_BATCHES
    total = None
    blocks: Iterator[Any]
    if options.input == "-":
        blocks = stream_blocks(sys.stdin.fileno(), size)
    else:
        total = check_file(Path(options.input), encode, engine)
        blocks = file_blocks(Path(options.input), size)
    started = time.monotonic()
    if options.output is None:
        sink = Sink(None if console.json else sys.stdout.buffer)
        tally = run_batch(engine, encode, blocks, sink, console, total)
        _speed(console, tally.tokens, started)
        return {"completions": sink.objects} if console.json else {}
    settings = output_settings(place, recipe)
    with open_output(options.output, settings, overwrite=options.overwrite) as file_sink:
        tally = run_batch(engine, encode, blocks, file_sink, console, total)
    if tally.kept:
        console.note(f"{tally.kept} completions were there already")
    _speed(console, tally.tokens, started)
    done = {"output": str(options.output), "completions": tally.completions + tally.kept, "kept": tally.kept}
    if not console.json:
        console.note(f"{done['completions']} completions in {options.output}")
    return done


def output_settings(place: Path | str, recipe: Recipe) -> dict[str, Any]:
    """What a completion depends on beside its prompt: compared before an output is appended to."""
    section = recipe.generation.model_dump(exclude={"batch_size", "seed"})
    seed = recipe.generation.seed if recipe.generation.seed is not None else recipe.seed
    return {
        "model_sha256": model_sha256(place),
        "task": recipe.task.type,
        **{name: getattr(recipe.task, name, None) for name in ("source_prefix", "src_lang", "tgt_lang")},
        **{f"generation.{name}": value for name, value in section.items()},
        "seed": seed if recipe.generation.do_sample else None,
    }


def _interactive(engine: Any, encode: Any, recipe: Recipe, console: Console) -> dict[str, Any]:
    from llmkit.generate.chat import chat, terminal_reader

    history = recipe.task.type in CHATS
    if not history:
        said = "continued" if recipe.task.type in COMPLETING else "a source text, answered"
        console.note(f"a conversation is not remembered: each line is {said} on its own")
    answered = chat(
        engine, encode, history=history, read_line=terminal_reader(), write=console.write, note=console.note
    )
    return {"answers": answered}


def _speed(console: Console, tokens: int, started: float) -> None:
    seconds = time.monotonic() - started
    if tokens:
        console.note(f"{tokens:,} tokens in {seconds:.1f} s ({tokens / max(seconds, 1e-9):,.0f} tokens/s)")
