"""Room 4, Keep: tensors on disk in packed safetensors shards.

In: a content key and a tensor. Out: the same tensor, checked. Does not know what the tensors mean.

A store is one folder per encoding fingerprint, so a changed VAE, prefix or dtype never meets old data. Each shard is
written whole under a temporary name, synced and renamed: it exists completely or not at all, which is also what makes
caching resumable. Shards describe themselves (any safetensors reader opens them); no index file can go stale.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from types import TracebackType

import torch

from simpletuner.data.shards import Entry, must_be_finite, pack, read_header
from simpletuner.errors import CacheError, DamagedError
from simpletuner.wording import where_to_write

FLUSH_BYTES = 256 * 2**20
FLUSH_COUNT = 512
OPEN_FILES = 64
LEFTOVER_AGE_S = 24 * 3600


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
        remedy = where_to_write(error)
        raise CacheError(f"cannot write {path}: {error.strerror}. What to do: {remedy}.") from error


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
        self._entries: dict[str, Entry] = {}
        self._files: dict[Path, int] = {}
        self._lock = threading.RLock()
        weakref.finalize(self, _close_all, self._files)
        self.dropped: list[Path] = []
        self._on_written = on_written
        if read_only:
            for shard in sorted(folder.glob("shard-*.safetensors")):
                self._entries.update(read_header(shard) or {})
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            remedy = where_to_write(error)
            raise CacheError(
                f"cannot make the cache folder {folder}: {error.strerror}. What to do: {remedy}."
            ) from error
        for leftover in folder.glob("shard-*.tmp"):
            if time.time() - leftover.stat().st_mtime > LEFTOVER_AGE_S:  # a younger one may still be written by another
                leftover.unlink(missing_ok=True)
        for shard in sorted(folder.glob("shard-*.safetensors")):
            entries = read_header(shard)
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
            DamagedError: The bytes are damaged.
            CacheError: Not in the cache.
        """
        entry = self._entries.get(key)
        if entry is None:
            raise CacheError(f"{self.folder} holds nothing under key {key[:12]}…; run again to build the cache.")
        try:
            return self._tensor(key, entry)
        except DamagedError:
            return self._tensor(key, self._looked_up_again(key))

    def _tensor(self, key: str, entry: Entry) -> torch.Tensor:
        data = bytearray(self._read(entry))
        problem = entry.problem_of(key, data)
        if problem:
            raise DamagedError(entry.shard, problem)
        return entry.tensor(data)

    def _looked_up_again(self, key: str) -> Entry:
        """Where a tensor is now: another process may have mended its shard, under the same name or another."""
        with self._lock:
            shard = self._entries[key].shard
            self._close(shard)
            known = {entry.shard for entry in self._entries.values()} - {shard}
            for other in sorted(self.folder.glob("shard-*.safetensors")):
                if other not in known:
                    self._entries.update(read_header(other) or {})
            return self._entries[key]

    def _read(self, entry: Entry) -> bytes:
        """The entry's bytes; the shard files used last stay open, a bounded number of them."""
        with self._lock:
            descriptor = self._files.pop(entry.shard, None)
            if descriptor is None:
                if len(self._files) >= OPEN_FILES:
                    os.close(self._files.pop(next(iter(self._files))))
                try:
                    descriptor = os.open(entry.shard, os.O_RDONLY)
                except OSError as error:
                    raise DamagedError(entry.shard, f"it cannot be opened: {error.strerror}") from error
            self._files[entry.shard] = descriptor  # last in the order: used last
            try:
                return os.pread(descriptor, entry.length, entry.offset)
            except OSError as error:
                raise DamagedError(entry.shard, f"it cannot be read: {error.strerror}") from error

    def _close(self, shard: Path) -> None:
        """Close a shard's file: what is read next is what has this name then."""
        if shard in self._files:
            os.close(self._files.pop(shard))

    @staticmethod
    def keys_of(shard: Path) -> set[str]:
        """Keys of the tensors in one shard file; none if it is damaged."""
        return set(read_header(shard) or {})

    @staticmethod
    def problem_with(shard: Path) -> str | None:
        """Why a shard file cannot be trusted, or None: reads and checks every tensor in it."""
        entries = read_header(shard)
        if entries is None:
            return "it is no whole shard"
        data = shard.read_bytes()
        for key, entry in entries.items():
            problem = entry.problem_of(key, bytearray(data[entry.offset : entry.offset + entry.length]))
            if problem:
                return problem
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
                    self._close(shard)
                shard.unlink(missing_ok=True)
                for key in theirs:
                    del self._entries[key]

    def lost(self, shard: Path) -> list[str]:
        """Keys of a shard whose tensors are damaged; reads all of it."""
        return [key for key, whole in self._content(shard).items() if whole is None]

    def mend(self, shard: Path, fresh: Mapping[str, torch.Tensor]) -> None:
        """Write a damaged shard anew.

        What is whole in it is carried over and ``fresh`` takes the place of what is not; what is neither is no longer
        kept. The new file is safe on disk before the old one goes, and takes its very name where the keys are the same:
        a kill at any moment leaves one of them or both.

        Args:
            shard: The file.
            fresh: What was made anew, by key; finite.

        Raises:
            CacheError: It cannot be written.
        """
        with self._lock:
            held = self._content(shard)
            tensors = {key: whole for key, whole in held.items() if whole is not None} | dict(fresh)
            written = self._write(tensors, instead_of=held.keys()) if tensors else None
            if written is None:
                for key in held:
                    del self._entries[key]
            if written != shard:
                self._close(shard)
                shard.unlink(missing_ok=True)

    def _content(self, shard: Path) -> dict[str, torch.Tensor | None]:
        """Every tensor that this shard is named for, None where it is damaged."""
        found: dict[str, torch.Tensor | None] = {}
        for key, entry in list(self._entries.items()):
            if entry.shard == shard:
                try:
                    found[key] = self._tensor(key, entry)
                except DamagedError:
                    found[key] = None
        return found

    def _write(self, tensors: Mapping[str, torch.Tensor], instead_of: Set[str] = frozenset()) -> Path:
        """Write tensors as one shard, synced and renamed; it takes the place of these keys in the index."""
        # The name is derived from the content, so two writers never choose the same one.
        shard = self.folder / f"shard-{content_key(*sorted(tensors))[:16]}.safetensors"
        write_atomic(shard, pack(tensors, shard))
        entries = read_header(shard)
        if entries is None:
            raise CacheError(f"{shard} could not be read back after writing; the disk may be failing.")
        with self._lock:
            self._close(shard)
            for key in instead_of:
                self._entries.pop(key, None)
            self._entries.update(entries)
        if self._on_written:
            self._on_written(shard)
        return shard

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
        must_be_finite(tensor, name)
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
        self._store._write(self._buffer)
        self._buffer, self._bytes = {}, 0
