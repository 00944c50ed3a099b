"""Room 4, Keep: tensors on disk in packed safetensors shards.

In: a content key and a tensor. Out: the same tensor, checked. Does not know what the tensors mean.

A store is one folder per encoding fingerprint, so a changed VAE, prefix or dtype never meets old data. Each shard is
written whole under a temporary name, synced and renamed: it exists completely or not at all, which is also what makes
caching resumable. Shards describe themselves (any safetensors reader opens them); no index file can go stale.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import struct
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from safetensors import SafetensorError
from safetensors.torch import save

from simpletuner.errors import CacheError

FLUSH_BYTES = 256 * 2**20
FLUSH_COUNT = 512
OPEN_FILES = 64
LEFTOVER_AGE_S = 24 * 3600

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def content_key(*parts: object) -> str:
    """Hex sha256 of the parts, each length-prefixed so that no two lists collide."""
    digest = hashlib.sha256()
    for part in parts:
        data = str(part).encode("utf-8", "surrogateescape")
        digest.update(struct.pack("<Q", len(data)))
        digest.update(data)
    return digest.hexdigest()


def weights_digest(module: torch.nn.Module) -> str:
    """Hex sha256 over names, dtypes and values of all parameters and buffers of a module."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Write, sync and rename: after a crash the file is whole or absent.

    Raises:
        CacheError: The file cannot be written (disk full, no permission).
    """
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise CacheError(f"cannot write {path}: {error.strerror}. Free some space or choose another folder.") from error


@dataclass(frozen=True, slots=True)
class _Entry:
    shard: Path
    offset: int
    length: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    crc32: int


def _read_header(shard: Path) -> dict[str, _Entry] | None:
    """The shard's entries, or None if it is not a whole shard of ours."""
    try:
        with open(shard, "rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > 64 * 2**20:
                return None
            header = json.loads(file.read(size))
        checksums = json.loads(header.pop("__metadata__")["crc32"])
        start = 8 + size
        entries = {
            key: _Entry(
                shard=shard,
                offset=start + value["data_offsets"][0],
                length=value["data_offsets"][1] - value["data_offsets"][0],
                dtype=_DTYPES[value["dtype"]],
                shape=tuple(value["shape"]),
                crc32=checksums[key],
            )
            for key, value in header.items()
        }
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None
    end = max((entry.offset + entry.length for entry in entries.values()), default=start)
    return entries if shard.stat().st_size == end else None


def _close_all(files: dict[Path, int]) -> None:
    for descriptor in files.values():
        os.close(descriptor)
    files.clear()


class TensorStore:
    """A folder of shards, read by key. One process writes at a time through ``writer``."""

    def __init__(self, folder: Path, read_only: bool = False, on_written: Callable[[Path], None] | None = None) -> None:
        """Open (and make) the folder; leftovers of a killed run and damaged shards are dropped, to be encoded anew.

        Args:
            folder: One fingerprint's folder.
            read_only: Change nothing: damaged shards are passed over and stay.
            on_written: Called with each shard once it is safe on disk.
        """
        self.folder = folder
        self._entries: dict[str, _Entry] = {}
        self._files: dict[Path, int] = {}
        self._lock = threading.Lock()
        weakref.finalize(self, _close_all, self._files)
        self.dropped: list[Path] = []
        self._on_written = on_written
        if read_only:
            for shard in sorted(folder.glob("shard-*.safetensors")):
                self._entries.update(_read_header(shard) or {})
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CacheError(f"cannot make the cache folder {folder}: {error.strerror}.") from error
        for leftover in folder.glob("shard-*.tmp"):
            if time.time() - leftover.stat().st_mtime > LEFTOVER_AGE_S:  # a younger one may still be written by another
                leftover.unlink(missing_ok=True)
        for shard in sorted(folder.glob("shard-*.safetensors")):
            entries = _read_header(shard)
            if entries is None:
                self.dropped.append(shard)
                shard.unlink()
            else:
                self._entries.update(entries)

    def __contains__(self, key: str) -> bool:
        """Whether a tensor is kept under this key."""
        return key in self._entries

    def __len__(self) -> int:
        """Number of tensors kept."""
        return len(self._entries)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of the tensor under ``key``, from the header alone."""
        return self._entries[key].shape

    def get(self, key: str) -> torch.Tensor:
        """Read one tensor and check it against its checksum.

        Raises:
            CacheError: Not in the cache, or the bytes are damaged.
        """
        entry = self._entries.get(key)
        if entry is None:
            raise CacheError(f"{self.folder} holds nothing under key {key[:12]}…; run again to build the cache.")
        data = bytearray(self._read(entry))
        if len(data) != entry.length or zlib.crc32(data) != entry.crc32:
            raise CacheError(
                f"{entry.shard} is damaged (checksum of {key[:12]}… differs). "
                "What to do: delete that file and run again; only its samples are encoded anew."
            )
        if not data:  # a caption without a single token
            return torch.empty(entry.shape, dtype=entry.dtype)
        return torch.frombuffer(data, dtype=entry.dtype).reshape(entry.shape)

    def _read(self, entry: _Entry) -> bytes:
        """The entry's bytes; the shard files used last stay open, a bounded number of them."""
        with self._lock:
            descriptor = self._files.pop(entry.shard, None)
            if descriptor is None:
                if len(self._files) >= OPEN_FILES:
                    os.close(self._files.pop(next(iter(self._files))))
                try:
                    descriptor = os.open(entry.shard, os.O_RDONLY)
                except OSError as error:
                    reason = f"cannot read {entry.shard}: {error.strerror}. Run again to encode its samples anew."
                    raise CacheError(reason) from error
            self._files[entry.shard] = descriptor  # last in the order: used last
            return os.pread(descriptor, entry.length, entry.offset)

    @staticmethod
    def keys_of(shard: Path) -> set[str]:
        """Keys of the tensors in one shard file; none if it is damaged."""
        return set(_read_header(shard) or {})

    @staticmethod
    def problem_with(shard: Path) -> str | None:
        """Why a shard file cannot be trusted, or None: reads and checks every tensor in it."""
        entries = _read_header(shard)
        if entries is None:
            return "it is no whole shard"
        data = shard.read_bytes()
        for key, entry in entries.items():
            part = bytearray(data[entry.offset : entry.offset + entry.length])
            if zlib.crc32(part) != entry.crc32:
                return f"the checksum of {key[:12]}… differs"
            if part and not torch.isfinite(torch.frombuffer(part, dtype=entry.dtype)).all():
                return f"{key[:12]}… holds NaN or infinity"
        return None

    def writer(self) -> ShardWriter:
        """A context manager that adds tensors."""
        return ShardWriter(self)

    def forget(self, keys: Set[str], wanted: Set[str]) -> None:
        """Remove the shards that hold any of these keys and none that is wanted."""
        held: dict[Path, set[str]] = {}
        for key, entry in self._entries.items():
            held.setdefault(entry.shard, set()).add(key)
        for shard, theirs in held.items():
            if theirs & keys and not theirs & wanted:
                with self._lock:
                    if shard in self._files:
                        os.close(self._files.pop(shard))
                shard.unlink(missing_ok=True)
                for key in theirs:
                    del self._entries[key]

    def _adopt(self, shard: Path) -> None:
        entries = _read_header(shard)
        if entries is None:
            raise CacheError(f"{shard} could not be read back after writing; the disk may be failing.")
        self._entries.update(entries)
        if self._on_written:
            self._on_written(shard)

    def close(self) -> None:
        """Close the shard files."""
        with self._lock:
            _close_all(self._files)


class ShardWriter:
    """Collects tensors and writes them as whole shards; a kill loses at most one buffer."""

    def __init__(self, store: TensorStore) -> None:
        """Write into ``store``."""
        self._store = store
        self._buffer: dict[str, torch.Tensor] = {}
        self._bytes = 0

    def __enter__(self) -> ShardWriter:
        """Start writing."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is buffered, also when the work was interrupted: finished samples are worth keeping."""
        self.flush()

    def add(self, key: str, tensor: torch.Tensor, name: str) -> None:
        """Keep one tensor.

        Args:
            key: Content key, hex.
            tensor: Floating point, any shape; copied to the CPU.
            name: What it was made from, for the error message.

        Raises:
            CacheError: The tensor holds NaN or infinity; it never reaches the disk.
        """
        tensor = tensor.detach().cpu().contiguous()
        if not torch.isfinite(tensor).all():
            raise CacheError(f"encoding {name} gave NaN or infinity. What to do: look at that file, or remove it.")
        self._buffer[key] = tensor
        self._bytes += tensor.numel() * tensor.element_size()
        if self._bytes >= FLUSH_BYTES or len(self._buffer) >= FLUSH_COUNT:
            self.flush()

    def pending(self, key: str) -> torch.Tensor | None:
        """A tensor that is not written yet."""
        return self._buffer.get(key)

    def forget(self, keys: Set[str]) -> None:
        """Drop tensors that are not written yet."""
        for key in keys & self._buffer.keys():
            tensor = self._buffer.pop(key)
            self._bytes -= tensor.numel() * tensor.element_size()

    def flush(self) -> None:
        """Write the buffer as one shard, synced and renamed."""
        if not self._buffer:
            return
        checksums = {
            key: zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
            for key, tensor in self._buffer.items()
        }
        # The name is derived from the content, so two writers never choose the same one.
        name = content_key(*sorted(self._buffer))[:16]
        shard = self._store.folder / f"shard-{name}.safetensors"
        try:
            data = save(self._buffer, metadata={"crc32": json.dumps(checksums)})
        except SafetensorError as error:
            raise CacheError(f"cannot pack {shard}: {error}") from error
        write_atomic(shard, data)
        self._store._adopt(shard)
        self._buffer, self._bytes = {}, 0
