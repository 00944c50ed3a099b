"""Room 4, Keep (elsewhere too): a cache whose shards also lie behind a URL, for other machines and for the next one.

In: a folder of shards here and a URL of its twin. Out: the usual TensorStore. Whole shards move, never samples: opening
fetches and checks those that are missing here; each one written here is sent after it is safe on this disk. Training
never waits for the network and never fails because of it: what could not be sent stays here and is sent the next time.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from simpletuner.data.cache import TensorStore
from simpletuner.data.mirror import RemoteSource, open_url
from simpletuner.data.network import attempts, plain
from simpletuner.errors import DataError
from simpletuner.wording import counted

THREADS = 4
GIVE_UP = 3  # shards in a row that could not be sent: the others are not tried any more
_SHARD = re.compile(r"shard-[0-9a-f]{16}\.safetensors")


class RemoteCaches:
    """All remote caches of one run. ``close`` sends what is left."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        """Say with ``tell`` what a person should know."""
        self._tell = tell
        self._pool: ThreadPoolExecutor | None = None
        self._jobs: list[Future[None]] = []
        self._lock = threading.Lock()
        self._failed: dict[str, list[str]] = {}  # reasons by URL
        self._in_a_row = 0

    def open(self, folder: Path, remote: RemoteSource | None) -> TensorStore:
        """A store on ``folder``, which is the copy of the folder of the same name below ``remote``.

        Args:
            folder: One fingerprint's folder here.
            remote: The URL above it; None for a cache that is only here.

        Raises:
            DataError: A package for this kind of URL is missing.
            CacheError: The folder cannot be made.
        """
        if remote is None:
            return TensorStore(folder)
        twin = _twin(remote, folder)
        system, root = _connect(twin)
        there = self._listing(system, root, twin.url)
        damaged = self._fetch(system, there, folder, twin.url) if there else set()
        store = TensorStore(folder, on_written=lambda shard: self._send(system, root, shard, twin.url))
        for shard in sorted(folder.glob("shard-*.safetensors")):
            known = there.get(shard.name)
            if known is None or shard.name in damaged or known[1] != shard.stat().st_size:
                self._send(system, root, shard, twin.url)
        return store

    def _listing(self, system: Any, root: str, url: str) -> dict[str, tuple[str, int]]:
        """(path, bytes) of the shards that are there, by name."""
        found: dict[str, Any] = {}
        problem = ""
        for _ in attempts():
            try:
                system.invalidate_cache()
                found = system.find(root, detail=True)
                break
            except FileNotFoundError:
                return {}
            except Exception as error:  # noqa: BLE001 - every store has errors of its own
                problem = plain(error)
        else:
            self._tell(f"The cache at {url} cannot be reached ({problem}): the copy here is used")
        named = {path.rpartition("/")[2]: (path, int(facts.get("size") or 0)) for path, facts in found.items()}
        return {name: place for name, place in named.items() if _SHARD.fullmatch(name)}

    def _fetch(self, system: Any, there: dict[str, tuple[str, int]], folder: Path, url: str) -> set[str]:
        """Bring what is missing here; returns the names of shards that are damaged there."""
        missing = [name for name in sorted(there) if not TensorStore.keys_of(folder / name)]
        if not missing:
            return set()
        with contextlib.suppress(OSError):  # TensorStore tells it
            folder.mkdir(parents=True, exist_ok=True)
        damaged = set()
        with ThreadPoolExecutor(THREADS) as pool:
            problems = list(pool.map(lambda name: _bring(system, there[name][0], folder / name), missing))
        for name, (whole, problem) in zip(missing, problems, strict=True):
            if not whole:
                damaged.add(name)
            if problem:
                self._tell(f"{url}/{name} is passed over ({problem}); its samples are encoded anew")
        self._tell(f"{counted(sum(not problem for _, problem in problems), 'cache file')} fetched from {url}")
        return damaged

    def _send(self, system: Any, root: str, shard: Path, url: str) -> None:
        with self._lock:
            self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="upload")
            self._jobs.append(self._pool.submit(self._upload, system, f"{root}/{shard.name}", shard, url))

    def _upload(self, system: Any, target: str, shard: Path, url: str) -> None:
        """Send one shard; a failure is kept for the end."""
        problem = "given up after others failed"
        for _ in attempts() if self._in_a_row < GIVE_UP else ():
            try:
                if shard.exists():  # a cache may be cleared meanwhile
                    system.put_file(str(shard), target)
                    _check_size(system, target, shard)
                self._in_a_row = 0
                return
            except Exception as error:  # noqa: BLE001 - every store has errors of its own
                problem = plain(error)
        self._in_a_row += 1
        self._failed.setdefault(url, []).append(problem)

    def remove(self, shard: Path, remote: RemoteSource) -> bool:
        """Remove the twin of a shard; whether there was one. A failure is told, not raised."""
        twin = _twin(remote, shard.parent)
        try:
            system, root = _connect(twin)
            system.rm_file(f"{root}/{shard.name}")
        except FileNotFoundError:
            return False
        except DataError:
            raise
        except Exception as error:  # noqa: BLE001 - every store has errors of its own
            self._tell(f"{twin.url}/{shard.name} could not be removed ({plain(error)})")
            return False
        return True

    def close(self) -> None:
        """Wait for what is being sent, and say what could not be."""
        waiting = sum(not job.done() for job in self._jobs)
        if waiting:
            self._tell(f"Sending {counted(waiting, 'cache file')}")
        if self._pool:
            self._pool.shutdown()
        self._pool, self._jobs = None, []
        for url, reasons in self._failed.items():
            self._tell(
                f"{counted(len(reasons), 'cache file')} could not be sent to {url} ({reasons[0]}): they are kept here, and sent by "
                "the next run"
            )
        self._failed = {}


def _twin(remote: RemoteSource, folder: Path) -> RemoteSource:
    return replace(remote, url=f"{remote.url.rstrip('/')}/{folder.name}")


def _connect(source: RemoteSource) -> tuple[Any, str]:
    if source.url.startswith(("file://", "local://")):
        source = replace(source, options={**source.options, "auto_mkdir": True})
    if source.url.startswith("s3://"):  # tries are counted here: botocore's own would take minutes
        source = replace(source, options={**source.options, "config_kwargs": {"retries": {"max_attempts": 0}}})
    return open_url(source)


def _bring(system: Any, path: str, target: Path) -> tuple[bool, str]:
    """Fetch one shard whole and checked. Returns whether it is whole there (as far as known), and a problem or ""."""
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    problem = ""
    try:
        for _ in attempts():
            try:
                system.get_file(path, str(temporary))
            except Exception as error:  # noqa: BLE001 - every store has errors of its own
                problem = plain(error)
                continue
            problem = TensorStore.problem_with(temporary) or ""
            if problem:
                return False, f"damaged: {problem}"
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)
            return True, ""
        return True, problem
    except OSError as error:
        return True, str(error)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _check_size(system: Any, target: str, shard: Path) -> None:
    """Raises OSError if what is there is not as large as what was sent."""
    system.invalidate_cache()
    arrived = system.info(target).get("size")
    if arrived != shard.stat().st_size:
        raise OSError(f"{arrived} of {shard.stat().st_size} bytes arrived")
