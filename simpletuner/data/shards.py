"""Room 4, Keep (one file): what is in a shard, and whether it is whole.

In: a shard's path, or tensors by key. Out: where each tensor lies in the file with its checksum, or the file's bytes. A
shard is a safetensors file whose metadata has a CRC-32 of each tensor; any safetensors reader opens it.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save

from simpletuner.errors import CacheError

LARGEST_HEADER = 64 * 2**20

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor lies in a shard, ``offset`` and ``length`` in bytes."""

    shard: Path
    offset: int
    length: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    crc32: int

    def problem_of(self, key: str, data: bytearray) -> str | None:
        """What is wrong with the bytes read for this entry, or None."""
        if len(data) != self.length:
            return f"it ends in the middle of {key[:12]}…"
        if zlib.crc32(data) != self.crc32:
            return f"the checksum of {key[:12]}… differs"
        if not is_finite(self.tensor(data)):
            return f"{key[:12]}… holds NaN or infinity"
        return None

    def tensor(self, data: bytearray) -> torch.Tensor:
        """The tensor in these bytes."""
        if not data:  # a caption without a single token
            return torch.empty(self.shape, dtype=self.dtype)
        return torch.frombuffer(data, dtype=self.dtype).reshape(self.shape)


def read_header(shard: Path) -> dict[str, Entry] | None:
    """The shard's entries by key, or None if it is not a whole shard of ours. Reads no tensor."""
    try:
        with open(shard, "rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > LARGEST_HEADER:
                return None
            header = json.loads(file.read(size))
            length = file.seek(0, 2)
        checksums = json.loads(header.pop("__metadata__")["crc32"])
        start = 8 + size
        entries = {key: _entry(shard, start, value, checksums[key]) for key, value in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return None
    end = max((entry.offset + entry.length for entry in entries.values()), default=start)
    return entries if length == end else None


def _entry(shard: Path, start: int, value: dict[str, Any], crc32: int) -> Entry:
    """One entry of a header. Raises ValueError, KeyError or TypeError where it is not what was written."""
    begin, end = value["data_offsets"]
    dtype, shape = _DTYPES[value["dtype"]], tuple(value["shape"])
    if not all(isinstance(number, int) and number >= 0 for number in (begin, end, crc32, *shape)):
        raise ValueError("no numbers of bytes")
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError("offsets that do not fit the shape")
    return Entry(shard, start + begin, end - begin, dtype, shape, crc32)


def pack(tensors: Mapping[str, torch.Tensor], shard: Path) -> bytes:
    """The bytes of a shard that holds these tensors; ``shard`` is named in the message of the error.

    Raises:
        CacheError: They cannot be packed.
    """
    checksums = {
        key: zlib.crc32(t.reshape(-1).view(torch.uint8).numpy().tobytes()) for key, t in sorted(tensors.items())
    }
    try:
        return save(dict(tensors), metadata={"crc32": json.dumps(checksums)})
    except SafetensorError as error:
        raise CacheError(f"cannot pack {shard}: {error}") from error


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no number is NaN or infinity: from its extremes, which takes a tenth of the time of asking each number."""
    return not tensor.numel() or all(bool(extreme.isfinite()) for extreme in tensor.aminmax())


def must_be_finite(tensor: torch.Tensor, name: str) -> None:
    """Raises CacheError if a tensor that was made from ``name`` holds NaN or infinity; it never reaches the disk."""
    if not is_finite(tensor):
        raise CacheError(f"encoding {name} gave NaN or infinity. What to do: look at that file, or remove it.")
