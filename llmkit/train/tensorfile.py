"""Tensors to and from safetensors files as a stream: nothing is held twice, every byte is hashed on its way.

The library's own `save_file` builds the whole file in memory and loses the errno of a failing disk; its `load_file`
maps the file, so that bytes are used before they are proven. The format (https://github.com/huggingface/safetensors):
eight bytes of header length, a JSON header, the tensors' bytes one after the other.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from llmkit.files import parse_json
from llmkit.manifest import CHUNK, MakeError

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER = 100_000_000
ALIASES = "aliases"
"""Key of the header's metadata that lists `{name: name it shares its memory with}` as JSON."""


def size_of(tensors: dict[str, torch.Tensor]) -> int:
    """Bytes that the file of `tensors` takes, within a few hundred a tensor."""
    kept, _ = without_aliases(tensors)
    return sum(tensor.numel() * tensor.element_size() + len(name) + 120 for name, tensor in kept.items()) + 4096


def without_aliases(tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors that need bytes of their own, and for the others (tied weights) the name they are the same as."""
    kept: dict[str, torch.Tensor] = {}
    first: dict[Any, str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in tensors.items():
        assert tensor.layout == torch.strided, f"{name}: only dense tensors can be saved"
        assert tensor.device.type != "meta", f"{name} has no memory"
        key = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
            kept[name] = tensor
    return kept, aliases


def chunks_of(tensors: dict[str, torch.Tensor]) -> Iterator[bytes | memoryview]:
    """The file's bytes, in order. A tensor on another device is copied when its turn comes, one at a time."""
    kept, aliases = without_aliases(tensors)
    # Widest types first keeps every tensor aligned, as the format's own writer does.
    order = sorted(kept, key=lambda name: (-kept[name].element_size(), name))
    header: dict[str, Any] = {}
    if aliases:
        header["__metadata__"] = {ALIASES: json.dumps(aliases, sort_keys=True, ensure_ascii=False)}
    offset = 0
    for name in order:
        end = offset + kept[name].numel() * kept[name].element_size()
        dtype = NAMES[kept[name].dtype]
        header[name] = {"dtype": dtype, "shape": list(kept[name].shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name in order:
        if kept[name].numel():
            yield _bytes(kept[name].detach().to("cpu").contiguous())


def _bytes(tensor: torch.Tensor) -> memoryview:
    """(bytes,) view of a contiguous tensor's memory on the CPU."""
    flat: np.ndarray[Any, np.dtype[np.uint8]] = tensor.reshape(-1).view(torch.uint8).numpy()
    return flat.data


def read(path: Path, entry: dict[str, Any], make_error: MakeError) -> dict[str, torch.Tensor]:
    """The tensors of a file whose manifest entry is `entry`; nothing is returned unless every byte is proven.

    Raises `make_error` naming the file where its bytes are not those of the manifest, or no safetensors.
    """
    try:
        with path.open("rb", buffering=0) as file:
            digest = hashlib.sha256()
            try:
                tensors, size = _read(file, digest, entry["bytes"])
            except ValueError as error:
                raise make_error(f"{path} is damaged: {error}") from None
            if size != entry["bytes"] or file.read(1):
                raise make_error(f"{path} does not have the {entry['bytes']:,} bytes that its manifest says")
            if digest.hexdigest() != entry["sha256"]:
                raise make_error(
                    f"{path} is damaged: its sha256 is {digest.hexdigest()}, its manifest says {entry['sha256']}"
                )
            return tensors
    except OSError as error:
        raise make_error(f"{path} cannot be read: {error.strerror or error}") from None


def _read(file: IO[bytes], digest: Any, limit: int) -> tuple[dict[str, torch.Tensor], int]:
    """Tensors and the bytes read. The header is not proven yet, so nothing in it is trusted beyond `limit` bytes."""
    start = bytearray(8)
    _fill(file, digest, memoryview(start))
    length = struct.unpack("<Q", start)[0]
    if length > min(limit, MAX_HEADER):
        raise ValueError(f"its header claims {length:,} bytes")
    text = bytearray(length)
    _fill(file, digest, memoryview(text))
    header = parse_json(bytes(text))
    tensors: dict[str, torch.Tensor] = {}
    position = 0
    try:
        metadata = header.pop("__metadata__", {})
        for name, item in sorted(header.items(), key=lambda pair: pair[1]["data_offsets"]):
            begin, end = item["data_offsets"]
            dtype, shape = DTYPES[item["dtype"]], [int(size) for size in item["shape"]]
            count = 1
            for size in shape:
                count *= size
            if (
                begin != position
                or end - begin != count * dtype.itemsize
                or 8 + length + end > limit
                or min(shape, default=0) < 0
            ):
                raise ValueError(f"the place of tensor {name!r} is impossible")
            tensor = torch.empty(shape, dtype=dtype)
            if count:
                _fill(file, digest, _bytes(tensor))
            tensors[name] = tensor
            position = end
        for name, same in parse_json(metadata.get(ALIASES, "{}")).items():
            tensors[name] = tensors[same]
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"its header is not one of safetensors ({error!r})") from None
    return tensors, 8 + length + position


def _fill(file: IO[bytes], digest: Any, view: memoryview) -> None:
    """Fills `view` from the file, hashing what comes. Raises ValueError at an early end."""
    while view:
        count = file.readinto(view[:CHUNK])  # type: ignore[attr-defined]
        if not count:
            raise ValueError("it ends too early")
        digest.update(view[:count])
        view = view[count:]
