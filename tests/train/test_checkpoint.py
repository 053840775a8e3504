"""Checkpoints come back bit for bit, are found damaged at any bit, and are kept and deleted as promised."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from llmkit.errors import CheckpointError, EnvironmentFailure
from llmkit.manifest import seal, unseal
from llmkit.train import checkpoint, tensorfile

Tensors = dict[str, dict[str, torch.Tensor]]


def silent(message: str) -> None:
    raise AssertionError(f"nothing was to be said, but: {message}")


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def assert_same(found: Tensors, expected: Tensors) -> None:
    assert {stem: set(part) for stem, part in found.items()} == {stem: set(part) for stem, part in expected.items()}
    for stem, part in expected.items():
        for name, tensor in part.items():
            other = found[stem][name]
            assert (other.dtype, other.shape, bits(other)) == (tensor.dtype, tensor.shape, bits(tensor)), (stem, name)


def every_kind() -> Tensors:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(5, 7, generator=generator)
    return {
        "model": {
            "weight": weight,
            "tied": weight,
            "transposed": weight.t(),
            "bfloat16": weight.bfloat16(),
            "float16": weight.half(),
            "float64": weight.double(),
            "int64": torch.arange(-3, 3),
            "int8": torch.arange(-3, 4, dtype=torch.int8),
            "bool": torch.tensor([True, False, True]),
            "scalar": torch.tensor(2.5),
            "empty": torch.empty(0, 4),
            "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
            "权重": torch.ones(1),
            "parameter": torch.nn.Parameter(torch.ones(2, 2)),
        },
        "optimizer": {"step": torch.tensor(7.0)},
        "nothing": {},
    }


def small(step: int) -> Tensors:
    return {"model": {"weight": torch.full((4, 3), float(step))}, "optimizer": {"m": torch.full((2,), step / 7)}}


def saved(root: Path, *steps: int, keep: int | None = None) -> list[Path]:
    return [checkpoint.save(root, step, small(step), {"step": step}, keep=keep) for step in steps]


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name != "latest")


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    bit %= len(data) * 8
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    state = {"step": 100, "epoch": 1.5, "name": "模型", "nested": {"list": [1, None, True]}}
    path = checkpoint.save(tmp_path / "checkpoints", 100, every_kind(), state, keep=2)
    assert path == tmp_path / "checkpoints" / "step-00000100"
    tensors, found = checkpoint.load(path)
    assert_same(tensors, every_kind())
    assert found == state
    assert tensors["model"]["tied"] is tensors["model"]["weight"]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000100\n"


def test_files_are_those_of_the_safetensors_library(tmp_path: Path) -> None:
    tensors = every_kind()["model"]
    path = checkpoint.save(tmp_path, 1, {"model": tensors}, {}, keep=None) / "model.safetensors"
    theirs = load_file(path)
    assert set(theirs) == set(tensors) - {"tied"}
    for name, tensor in theirs.items():
        assert bits(tensor) == bits(tensors[name]), name
    plain = {name: tensors[name].detach().contiguous().clone() for name in theirs}
    path.write_bytes(save(plain))
    entry = tensorfile_entry(path)
    assert_same({"model": tensorfile.read(path, entry, CheckpointError)}, {"model": plain})


def tensorfile_entry(path: Path) -> dict[str, object]:
    from llmkit.manifest import hash_file

    return hash_file(path)


def test_one_flipped_bit_anywhere_is_found_and_named(tmp_path: Path) -> None:
    good = saved(tmp_path / "good", 100)[0]
    dice = random.Random(0)
    files = sorted(path.name for path in good.iterdir())
    assert files == ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]
    for turn in range(500):
        name = files[turn % len(files)]
        bad = tmp_path / "bad" / "step-00000100"
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(good, bad)
        flip(bad / name, dice.randrange((bad / name).stat().st_size * 8))
        for prove in (checkpoint.verify, checkpoint.load):
            with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
                prove(bad)


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors", "state.json"])
@pytest.mark.parametrize("harm", ["truncated", "emptied", "removed", "extended"])
def test_truncated_missing_and_extended_files_are_found(tmp_path: Path, name: str, harm: str) -> None:
    path = saved(tmp_path, 100)[0]
    data = (path / name).read_bytes()
    if harm == "removed":
        (path / name).unlink()
    else:
        (path / name).write_bytes({"truncated": data[:-1], "emptied": b"", "extended": data + b"\0"}[harm])
    for prove in (checkpoint.verify, checkpoint.load):
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
            prove(path)


def header_bytes(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        header_bytes([1, 2]),
        header_bytes(b"\x80\x04K\x01."),
        header_bytes({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234"),
        header_bytes({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}),
        header_bytes({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}),
        header_bytes({"a": {"dtype": "O", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
        header_bytes({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"12345678"),
        header_bytes({"a": 3}),
        header_bytes({"__metadata__": {"aliases": '{"b": "a"}'}}),
    ],
)
def test_a_hostile_tensor_file_is_refused_even_with_a_matching_manifest(tmp_path: Path, data: bytes) -> None:
    path = saved(tmp_path, 1)[0]
    (path / "model.safetensors").write_bytes(data)
    manifest = unseal((path / "manifest.json").read_bytes())
    manifest["files"]["model.safetensors"] = tensorfile_entry(path / "model.safetensors")
    (path / "manifest.json").write_bytes(seal(manifest))
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        checkpoint.load(path)


def test_a_manifest_cannot_point_outside_its_directory(tmp_path: Path) -> None:
    path = saved(tmp_path, 1)[0]
    manifest = unseal((path / "manifest.json").read_bytes())
    manifest["files"]["../../secret"] = manifest["files"]["state.json"]
    (path / "manifest.json").write_bytes(seal(manifest))
    with pytest.raises(CheckpointError, match="plain file names"):
        checkpoint.verify(path)


def test_a_renamed_checkpoint_is_not_taken_for_another_step(tmp_path: Path) -> None:
    path = saved(tmp_path, 100)[0]
    other = path.rename(tmp_path / "step-00000200")
    for prove in (checkpoint.verify, checkpoint.load):
        with pytest.raises(CheckpointError, match="step 100"):
            prove(other)


def test_the_newest_valid_one_is_used_and_the_damaged_are_named(tmp_path: Path) -> None:
    assert checkpoint.newest_valid(tmp_path / "none", silent) is None
    first, second, third = saved(tmp_path, 10, 20, 30)
    assert checkpoint.newest_valid(tmp_path, silent) == third
    flip(third / "model.safetensors", 999)
    (second / "state.json").unlink()
    said: list[str] = []
    assert checkpoint.newest_valid(tmp_path, said.append) == first
    assert len(said) == 2
    assert "step-00000030/model.safetensors" in said[0]
    assert "step-00000020/state.json" in said[1]
    assert all("step-00000010" in message for message in said)
    (first / "manifest.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=r"(?s)no checkpoint.*000030.*000020.*000010"):
        checkpoint.newest_valid(tmp_path, said.append)


def test_retention_keeps_the_newest_and_the_protected(tmp_path: Path) -> None:
    def kept(directory: str, keep: int | None, protect: set[int]) -> list[int]:
        for step in (10, 20, 30, 40):
            checkpoint.save(tmp_path / directory, step, small(step), {}, keep=keep, protect=protect)
        return [checkpoint.step_of(path) for path in checkpoint.published(tmp_path / directory)]

    assert kept("all", None, set()) == [10, 20, 30, 40]
    assert kept("two", 2, set()) == [30, 40]
    assert kept("one", 1, set()) == [40]
    assert kept("best", 2, {10}) == [10, 40]
    assert kept("best alone", 1, {20}) == [20, 40]
    assert kept("more best", 2, {10, 20, 30}) == [10, 20, 30, 40]
    assert all(name.startswith("step-") for name in names(tmp_path / "best"))


def test_nothing_old_goes_while_the_new_one_does_not_verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, 10, 20)
    publish: Callable[[Path, Path], None] = checkpoint._publish

    def garble(partial: Path, final: Path) -> None:
        flip(partial / "model.safetensors", 999)
        publish(partial, final)

    monkeypatch.setattr(checkpoint, "_publish", garble)
    with pytest.raises(EnvironmentFailure, match=r"step-00000030/model\.safetensors is damaged.*the disk garbles"):
        checkpoint.save(tmp_path, 30, small(30), {}, keep=1)
    assert names(tmp_path)[:2] == ["step-00000010", "step-00000020"]
    assert checkpoint.newest_valid(tmp_path, lambda _: None) == tmp_path / "step-00000020"


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(tmp_path: Path) -> None:
    _, second, third = saved(tmp_path, 10, 20, 30)
    flip(second / "model.safetensors", 999)
    flip(third / "model.safetensors", 999)
    checkpoint.save(tmp_path, 20, small(20), {"again": True}, keep=3)
    assert names(tmp_path) == ["step-00000010", "step-00000020"]  # 30 is later, and did not verify
    assert checkpoint.load(second)[1] == {"again": True}


def test_leftovers_of_a_killed_save_are_cleared_and_a_replaced_one_is_put_back(tmp_path: Path) -> None:
    first, second = saved(tmp_path, 10, 20)
    shutil.copytree(first, tmp_path / ".step-00000030.partial-1")
    shutil.copytree(first, tmp_path / ".step-00000005.deleted-1")
    second.rename(tmp_path / ".step-00000020.replaced-1")
    assert checkpoint.newest_valid(tmp_path, silent) == second
    assert names(tmp_path) == ["step-00000010", "step-00000020"]


def test_too_little_space_is_seen_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, 10)
    monkeypatch.setattr(checkpoint, "free_bytes", lambda path: 1000)
    with pytest.raises(
        EnvironmentFailure, match=r"step-00000020: not enough space.*bytes needed, 1,000 bytes free.*000010"
    ):
        saved(tmp_path, 20)
    assert names(tmp_path) == ["step-00000010"]


def test_a_state_that_json_cannot_hold_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        checkpoint.save(tmp_path, 10, small(10), {"loss": float("nan")}, keep=None)
    with pytest.raises(AssertionError, match="dense"):
        checkpoint.save(tmp_path, 10, {"model": {"a": torch.ones(1), "b": torch.eye(2).to_sparse()}}, {}, keep=None)
    assert names(tmp_path) == []


def test_memory_is_not_doubled() -> None:
    """The largest piece of the stream is the tensor's own memory, not a copy."""
    tensor = torch.arange(1 << 16, dtype=torch.float32)
    pieces = [piece for piece in tensorfile.chunks_of({"a": tensor}) if isinstance(piece, memoryview)]
    tensor[0] = 5.0
    assert len(pieces) == 1
    assert bytes(pieces[0][:4]) == torch.tensor(5.0).numpy().tobytes()
