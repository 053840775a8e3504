"""`preprocess` as a function: the stages in order, each resumable, and the published result that training reads.

resolve sources -> fingerprint -> tokenizer -> read, clean, split, encode, write shards -> report, manifest -> publish
by one rename. Nothing is done where the dataset of this fingerprint is published already.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.data import pipeline
from llmkit.data.examples import Encoder
from llmkit.data.fingerprint import Fingerprint, explain_miss, fingerprint, source_hash
from llmkit.data.prepared import Prepared, open_prepared, preparation_lock, verify_prepared
from llmkit.data.process import Processor
from llmkit.data.reporting import make_report
from llmkit.data.rolespecs import RoleSpec
from llmkit.data.shardfile import BLOCK_BYTES, token_dtype
from llmkit.data.shards import Split
from llmkit.data.sources import ResolvedSource, resolve_sources
from llmkit.data.store import PROGRESS, SHARD_BYTES, Store
from llmkit.data.tokenizer import BatchEncoder, read_special_ids
from llmkit.data.tokenizer_make import make_tokenizer, single_byte_ids, tokenizer_identity, write_stand_in
from llmkit.errors import DataError, EnvironmentFailure, Stopped
from llmkit.files import dump_json, environment_errors, fsync_directory, read_json, sync
from llmkit.manifest import MANIFEST, hash_file, seal
from llmkit.recipe.sections import Recipe
from llmkit.report.console import Console

__all__ = ["Prepared", "check_sources", "fingerprint_of", "load", "prepare", "verify_prepared"]

GROUPS = ("train", "validation", "test")


@dataclass(frozen=True)
class Request:
    """A recipe with its sources found and its identity known: what `prepare` and `load` start from."""

    recipe: Recipe
    roles: RoleSpec
    groups: dict[str, list[ResolvedSource]]
    fingerprint: Fingerprint
    prepared_dir: Path

    @property
    def directory(self) -> Path:
        return self.prepared_dir / self.fingerprint.digest


def request(recipe: Recipe) -> Request:
    """Resolves and hashes the recipe's sources. Raises DataError, RecipeError, ModelError."""
    from llmkit.tasks import role_spec

    roles = role_spec(recipe.task)
    if not recipe.data.train and not recipe.data.validation and not recipe.data.test:
        raise DataError("there is no data: expected at least one source", key="data.train")
    groups = {
        group: resolve_sources(getattr(recipe.data, group), roles, split=group)
        for group in GROUPS
        if getattr(recipe.data, group)
    }
    tokenizer, source_directory = tokenizer_identity(recipe)
    identity = _encoder_identity(recipe, source_directory)
    found = fingerprint(groups, recipe.data, identity, tokenizer)
    return Request(recipe, roles, groups, found, prepared_dir_of(recipe))


def prepared_dir_of(recipe: Recipe) -> Path:
    """Where the recipe's prepared datasets lie, a directory a fingerprint."""
    return Path(recipe.data.prepared_dir or Path(recipe.output_dir) / "prepared")


def fingerprint_of(recipe: Recipe) -> Fingerprint:
    """The dataset that a resolved recipe asks for: its digest and the identity behind it."""
    return request(recipe).fingerprint


def check_sources(recipe: Recipe, recorded: dict[str, str], run: Path) -> None:
    """Raises DataError naming the source whose content is not what a run recorded (`Prepared.sources`, in order)."""
    from llmkit.tasks import role_spec

    roles = role_spec(recipe.task)
    for group in GROUPS:
        old = [(name, content) for name, content in recorded.items() if name.startswith(f"{group}: ")]
        for source in resolve_sources(getattr(recipe.data, group), roles, split=group):
            if source.index < len(old) and old[source.index][1] != source_hash(source):
                known = old[source.index][0] == f"{group}: {source.id}"
                what = f"the content of {source.id} has changed since" if known else f"{source.id} is not what"
                raise DataError(
                    f"{what} the run in {run} began{'' if known else ' with'}; restore it, choose another "
                    "output_dir, or start afresh with --overwrite",
                    key=f"data.{group}.{source.index}",
                )


def load(recipe: Recipe) -> Prepared | None:
    """The published dataset that matches the recipe, after the quick proof; None where there is none."""
    wanted = request(recipe)
    return open_prepared(wanted.directory) if (wanted.directory / MANIFEST).exists() else None


def prepare(recipe: Recipe, console: Console, *, shard_bytes: int = SHARD_BYTES) -> Prepared:
    """The dataset of a resolved recipe, made now unless it is published already.

    Raises DataError, EnvironmentFailure, RecipeError, ModelError; Stopped (from a signal handler) with `saved` where
    finished shards wait for the next call.
    """
    _check_place(prepared_dir_of(recipe))
    wanted = request(recipe)
    directory = wanted.directory
    if (directory / MANIFEST).exists():
        console.note(f"prepared data: {directory} matches")
        return checked(open_prepared(directory), recipe)
    missed = explain_miss(wanted.prepared_dir, wanted.fingerprint, wanted.groups)
    if missed is not None:
        console.note(f"{missed}; preparing anew")
    lock = wanted.prepared_dir / f".{directory.name}.lock"
    with preparation_lock(lock, lambda holder: console.note(f"waiting for {holder}, which prepares this dataset")):
        if not (directory / MANIFEST).exists():
            partial = wanted.prepared_dir / f".partial-{directory.name}"
            try:
                _make(wanted, partial, console, shard_bytes)
            except DataError:
                shutil.rmtree(partial, ignore_errors=True)  # its data has to change, and with it the fingerprint
                raise
            except Stopped as stopped:
                if (partial / PROGRESS).exists():
                    message = "preprocessing stopped; run the same command again to go on from its last finished shard"
                    raise Stopped(stopped.signum, saved=True, message=message) from stopped
                raise
    return checked(open_prepared(directory), recipe)


def _check_place(prepared_dir: Path) -> None:
    """Raises EnvironmentFailure before the sources are read where nothing is, and nothing could be, prepared."""
    place = prepared_dir.absolute()
    while not place.exists():
        place = place.parent
    if os.access(place, os.W_OK | os.X_OK) or any(prepared_dir.glob(f"[0-9a-f]*/{MANIFEST}")):
        return
    read_only = os.statvfs(place).f_flag & os.ST_RDONLY
    reason = os.strerror(errno.EROFS if read_only else errno.EACCES if place.is_dir() else errno.ENOTDIR)
    raise EnvironmentFailure(f"cannot write {prepared_dir}: {reason}")


def discard(recipe: Recipe, console: Console) -> None:
    """Deletes the recipe's own prepared dataset, to be made anew; one outside output_dir may be shared and stays."""
    wanted = request(recipe)
    if not wanted.prepared_dir.absolute().is_relative_to(Path(recipe.output_dir).absolute()):
        console.note(f"{wanted.prepared_dir} lies outside output_dir and stays as it is")
        return
    lock = wanted.prepared_dir / f".{wanted.directory.name}.lock"
    with preparation_lock(lock, lambda holder: console.note(f"waiting for {holder}, which prepares this dataset")):
        # the manifest goes first: a kill in between leaves nothing that looks published
        (wanted.directory / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(wanted.directory, ignore_errors=True)
        shutil.rmtree(wanted.prepared_dir / f".partial-{wanted.directory.name}", ignore_errors=True)


def checked(prepared: Prepared, recipe: Recipe) -> Prepared:
    """The dataset, unless it fails by keys that are no part of its identity, or by splits that do not fit each other.
    Raises DataError."""
    from llmkit.tasks import check_splits

    pipeline.check_bad(prepared.report["tally"], recipe.data.max_bad_fraction)
    check_splits(recipe, prepared.splits)
    return prepared


def _make(wanted: Request, partial: Path, console: Console, shard_bytes: int) -> None:
    finished = (partial / MANIFEST).exists() and not (partial / PROGRESS).exists()
    if not finished:
        with environment_errors(partial):
            partial.mkdir(parents=True, exist_ok=True)
        if (partial / PROGRESS).exists():
            console.note(f"going on with the unfinished preparation in {partial}")
        recipe = wanted.recipe
        make_tokenizer(recipe, wanted.groups, wanted.roles, partial, console)
        encoder = _encoder(recipe, partial / "tokenizer")
        _write(wanted, partial, encoder, console, shard_bytes)
    with environment_errors(wanted.directory):
        if wanted.directory.exists():
            shutil.rmtree(wanted.directory)  # without a manifest: never published
        os.replace(partial, wanted.directory)
        fsync_directory(wanted.prepared_dir)


def _encoder_identity(recipe: Recipe, tokenizer_source: Path | None) -> dict[str, Any]:
    """What the encoder depends on beside the tokenizer, which may not exist yet: asked of one on a stand-in."""
    with tempfile.TemporaryDirectory() as scratch:
        write_stand_in(Path(scratch), tokenizer_source, recipe)
        return _encoder(recipe, Path(scratch)).identity()


def _encoder(recipe: Recipe, tokenizer_dir: Path) -> Encoder:
    from llmkit.tasks import encoder_for

    return encoder_for(recipe, tokenizer_dir)


def _write(wanted: Request, partial: Path, encoder: Encoder, console: Console, shard_bytes: int) -> None:
    recipe = wanted.recipe
    ids = read_special_ids(partial / "tokenizer")
    vocabulary = pipeline.Vocabulary(ids.size, ids.unk, single_byte_ids(partial / "tokenizer", ids.size))
    processor = Processor(recipe.data.clean, encoder, token_dtype(ids.size), wanted.roles.content_roles())
    dedup_steps = sum(step.step == "exact_dedup" for step in recipe.data.clean)
    plan = pipeline.Plan(
        wanted.groups, wanted.roles, recipe.data, processor, vocabulary, _workers(wanted, partial / "tokenizer")
    )
    total = sum(file.size for sources in wanted.groups.values() for source in sources for file in source.files)
    with Store(partial, ids.size, dedup_steps, shard_bytes) as store:
        with console.progress("preprocessing", None, "bytes") as advance:
            pipeline.run(plan, store, advance)
        pipeline.check_bad(store.tally, recipe.data.max_bad_fraction)
        _check_rows(wanted, store, console, total)
        splits = store.finish()
        labels = {name: encoder.audit(Split(partial / name, entry)).as_json() for name, entry in splits.items()}
        report = make_report(store.tally, splits, labels, read_json(partial / "tokenizer" / "engine.json"), ids)
        with environment_errors(partial):
            (partial / "report.json").write_bytes(dump_json(report))
            flushed = [path for path in sorted((partial / "tokenizer").rglob("*")) if path.is_file()]
            made = [partial / "report.json", partial / "rejected.jsonl"]
            made += [partial / split / "vocab_counts.npy" for split in splits]
            manifest = _manifest(wanted, partial, store, splits, [*flushed, *made])
            (partial / MANIFEST).write_bytes(seal(manifest))
            # tokenizer and shards are on the disk already; the rename makes all of it count
            sync([*made, partial / MANIFEST, *(partial / split for split in splits), partial])
        store.sweep()


def _check_rows(wanted: Request, store: Store, console: Console, total: int) -> None:
    shards = store.progress["shards"]
    for group in wanted.groups:
        if not sum(shard["rows"] for shard in shards.get(group, [])):
            counted = ", ".join(f"{n:,} x {reason}" for reason, n in list(store.tally["rejected"].items())[:5])
            where = "; ".join(source.id for source in wanted.groups[group])
            raise DataError(
                f"no usable records in {where} ({total:,} bytes){': ' + counted if counted else ''}",
                key=f"data.{group}",
            )
    if wanted.recipe.data.validation_fraction and not shards.get("validation"):
        console.warn("data.validation_fraction held out no document: there are too few of them")


def _manifest(
    wanted: Request, partial: Path, store: Store, splits: dict[str, Any], others: list[Path]
) -> dict[str, Any]:
    files = dict(store.progress["files"])
    for path in others:
        files[path.relative_to(partial).as_posix()] = hash_file(path)
    return {
        "format": "llmkit-prepared",
        "version": 1,
        "block_bytes": BLOCK_BYTES,
        "fingerprint": wanted.fingerprint.digest,
        "identity": wanted.fingerprint.identity,
        "vocab_size": store.vocab_size,
        "sources": {
            f"{group}: {source.id}": {"split": group, "index": source.index, "content": source_hash(source)}
            for group, sources in wanted.groups.items()
            for source in sources
        },
        "splits": splits,
        "files": files,
    }


def _workers(wanted: Request, tokenizer_dir: Path) -> int:
    """Worker processes: none where threads do, or the input is too small to pay for their start."""
    total = sum(file.size for sources in wanted.groups.values() for source in sources for file in source.files)
    available = wanted.recipe.data.num_workers or len(os.sched_getaffinity(0))
    light = not wanted.recipe.data.clean and BatchEncoder(tokenizer_dir).engine == "gigatoken"
    if light or available < 2 or total < pipeline.POOL_BYTES:
        return 0
    return available
