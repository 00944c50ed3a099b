"""The processes of one run: which of them this is, what they do together, and how they end together.

In: what torchrun, or who works like it, has put into the environment. Out: Ranks; a run in one process has the same, and
every method is then the plain thing. Knows no model.

Gradients and figures go between the devices, by NCCL or gloo. What the hosts agree on goes by a gloo group of its own:
waiting there takes no device, and one that has ended is noticed there at once. A host that waits for its device looks every
second whether those on its machine are still there.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import psutil
import torch
import torch.distributed as dist

from simpletuner.errors import DataError, LostProcessError, NonFiniteError, TunerError
from simpletuner.training import neighbours

PATIENCE_DEVICES = timedelta(hours=1)  # hosts are never more than a few steps apart
POLL_S = 2e-4  # between two looks at a device
LAST_WORDS_S = 15.0  # for a process that was left alone to say so; torchrun would end it after 30
LOOK_S = 1.0  # between two looks at the processes beside this one
SMALL = 2**18  # elements: smaller tensors travel together
PATIENCE_MAIN = timedelta(hours=2)  # the first process waits for others that do what it does
PATIENCE = timedelta(hours=48)  # the others wait for the first: pictures, checkpoints
GRACE_S = 1.0  # rank 0 may be about to say the same
FAILURE = "simpletuner/failure"

T = TypeVar("T")


class Ranks:
    """This process among those of the run; alone by default.

    Attributes:
        rank: From 0; rank 0 alone writes and speaks.
        world: How many there are.
        local: This one's number on its machine.
        local_world: How many there are on this machine.
        lost: Another process is known to have ended.
    """

    def __init__(self, rank: int = 0, world: int = 1, local: int = 0, local_world: int = 1) -> None:
        """Not joined yet."""
        self.rank, self.world, self.local, self.local_world = rank, world, local, local_world
        self.lost = False
        self._hosts: Any = None
        self._store: Any = None
        self._beside: list[psutil.Process] = []  # the others on this machine

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Ranks:
        """What the environment says."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        if not all(environ.get(name, "").isdigit() for name in names[:3]):
            return cls()
        rank, world, local = (int(environ[name]) for name in names[:3])
        return cls(rank, world, local, int(environ.get(names[3], world)))

    @property
    def main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.world > 1

    def join(self) -> None:
        """Make the hosts' group; the default group is there (``device.choose``). Called by all."""
        if not self.several:
            return
        self._hosts = dist.new_group(backend="gloo", timeout=PATIENCE_MAIN if self.main else PATIENCE)
        self._store = dist.distributed_c10d._get_default_store()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._terminated)
        everyone = self.of_all((os.getpid(), neighbours.beginning(os.getpid())))
        first = self.rank - self.local
        beside = [*everyone[first : self.rank], *everyone[self.rank + 1 : first + self.local_world]]
        # Where one cannot be seen, torchrun ends this one.
        self._beside = [process for other in beside if (process := neighbours.process_of(*other))]

    def _terminated(self, number: int, frame: object) -> None:
        """SIGTERM outside the loop: an interrupt, but for one that is ending already because another has ended."""
        if not self.lost:
            raise KeyboardInterrupt

    def leave(self) -> None:
        """Wait for all; from here on each is on its own, and nothing below is called any more. Raises LostProcessError."""
        self.wait()
        self._hosts = self._store = None
        if dist.is_initialized():
            dist.destroy_process_group()

    # What the hosts do together. All processes call these in the same order.

    def wait(self) -> None:
        """Until all are here. Raises LostProcessError."""
        self.any(False)

    def any(self, mine: bool) -> bool:
        """Whether it is so in any process. Raises LostProcessError."""
        return self.least(-float(mine)) < 0

    def least(self, mine: float) -> float:
        """The lowest of all. Raises LostProcessError."""
        if not self.several:
            return mine
        number = torch.tensor(mine, dtype=torch.float64)
        self._ask(lambda: dist.all_reduce(number, dist.ReduceOp.MIN, group=self._hosts))
        return float(number)

    def of_all(self, mine: T) -> list[T]:
        """What each process has, by rank. Raises LostProcessError."""
        if not self.several:
            return [mine]
        found: list[Any] = [None] * self.world
        self._ask(lambda: dist.all_gather_object(found, mine, group=self._hosts))
        return found

    def by_main(self, work: Callable[[], T]) -> T:
        """What rank 0 gets by ``work``, which the others do not do. Raises LostProcessError."""
        if not self.several:
            return work()
        found: list[Any] = [work() if self.main else None]
        self._ask(lambda: dist.broadcast_object_list(found, src=0, group=self._hosts))
        result: T = found[0]
        return result

    @contextmanager
    def first(self) -> Iterator[None]:
        """One process of each machine goes through this block before the others of its machine. Raises LostProcessError."""
        if self.local:
            self.wait()
        yield
        if not self.local:
            self.wait()

    def must_agree(self, what: str, mine: str) -> None:
        """Refuse to train where a process has found something else than rank 0.

        Raises:
            DataError: Names the first that has.
            LostProcessError: One has ended.
        """
        found = self.of_all(mine)
        other = next((rank for rank, value in enumerate(found) if value != found[0]), None)
        if other is not None:
            raise DataError(
                f"process {other} of {self.world} has found other {what} than process 0. What to do: let nothing change the "
                "data while a run starts; on several machines give each the same folders, or a shared disk."
            )

    def part(self, items: Sequence[T]) -> Sequence[T]:
        """The share of this process among those of its machine: neighbours stay together."""
        start, end = (len(items) * number // self.local_world for number in (self.local, self.local + 1))
        return items[start:end]

    # What the devices do together.

    def wait_for(self, moment: torch.cuda.Event) -> None:
        """Until the device has come to this moment; of several processes a signal is heard meanwhile.

        Raises:
            LostProcessError: A process beside this one has ended, for which the device would wait; or it has not come there in
                an hour: nobody else watches what graphs exchange.
        """
        if not self.several:
            moment.synchronize()
            return
        now = time.monotonic()
        end, look = now + PATIENCE_DEVICES.total_seconds(), now + LOOK_S
        while not moment.query():
            now, alone = time.monotonic(), False
            if now > look:
                look, alone = now + LOOK_S, not all(map(neighbours.is_running, self._beside))
            if alone or now > end:
                raise self._left_alone()
            time.sleep(POLL_S)

    def wait_until_now(self, device: torch.device) -> None:
        """As ``wait_for``, until the device has done all it was given: before a host reads what lies there."""
        if self.several and device.type == "cuda":
            moment = torch.cuda.Event()
            moment.record()
            self.wait_for(moment)

    @torch.no_grad()
    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        """Put the mean over all processes into each tensor, in its own dtype; the same bits everywhere.

        Large tensors are summed where they lie, small ones in one go.
        """
        if not self.several:
            return
        kinds: dict[torch.dtype, list[torch.Tensor]] = {}
        ends = []
        for tensor in tensors:
            if tensor.numel() < SMALL or not tensor.is_contiguous():
                kinds.setdefault(tensor.dtype, []).append(tensor)
            else:
                ends.append(self.begin_average(tensor))
        together = [(small, torch.cat([tensor.reshape(-1) for tensor in small])) for small in kinds.values()]
        ends += [self.begin_average(flat) for _, flat in together]
        for end in ends:
            end()
        for small, flat in together:
            for tensor, mean in zip(small, flat.split([t.numel() for t in small]), strict=True):
                tensor.copy_(mean.view(tensor.shape))

    @torch.no_grad()
    def begin_average(self, tensor: torch.Tensor) -> Callable[[], None]:
        """Start putting the mean over all processes into a contiguous tensor; the device goes on beside it.

        Returns:
            To be called before the tensor is read. Both may raise LostProcessError.
        """
        by_device = dist.get_backend() == "nccl"  # gloo knows no mean
        with self._exchange():
            work = dist.all_reduce(tensor, dist.ReduceOp.AVG if by_device else dist.ReduceOp.SUM, async_op=True)

        @torch.no_grad()
        def end() -> None:
            with self._exchange():
                work.wait()
            if not by_device:
                tensor.div_(self.world)

        return end

    def gathered(self, *figures: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Each [n] of this process becomes [world * n], rank after rank, float32; n is the same everywhere."""
        if not self.several:
            return figures
        mine = torch.stack([figure.float() for figure in figures])
        parts = [torch.empty_like(mine) for _ in range(self.world)]
        with self._exchange():
            dist.all_gather(parts, mine)
        return tuple(torch.cat(parts, 1))

    @torch.no_grad()
    def spread(self, tensors: Sequence[torch.Tensor]) -> None:
        """Give every process the values of rank 0."""
        if self.several:
            with self._exchange():
                for tensor in tensors:
                    values = tensor.detach().contiguous()
                    dist.broadcast(values, src=0)
                    tensor.copy_(values)

    def are_equal(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether all processes hold the same values, by sums over each tensor. Raises LostProcessError."""
        if not self.several:
            return True
        sums = torch.stack([t.detach().double().sum() for t in tensors]).tolist()
        return len({str(found) for found in self.of_all(sums)}) == 1

    # A global micro-batch and this process's rows of it.

    def whole(self, mine: torch.Tensor) -> torch.Tensor:
        """[B, …] of this process in [world * B, …]; the others' rows are zeros."""
        if not self.several:
            return mine
        whole = mine.new_zeros(self.world * len(mine), *mine.shape[1:])
        whole[self.rank * len(mine) : (self.rank + 1) * len(mine)] = mine
        return whole

    def rows(self, whole: torch.Tensor) -> torch.Tensor:
        """[world * B, …] → [B, …]: those of this process."""
        if not self.several:
            return whole
        size = len(whole) // self.world
        return whole[self.rank * size : (self.rank + 1) * size]

    def in_order(self, micro_batches: Sequence[Sequence[T]]) -> list[T]:
        """What each global micro-batch has, in the order of ``gathered``: rank after rank."""
        found: list[T] = []
        for rank in range(self.world):
            for items in micro_batches:
                size = len(items) // self.world
                found += items[rank * size : (rank + 1) * size]
        return found

    # How they end together.

    @contextmanager
    def ending_together(self) -> Iterator[None]:
        """One of them says why the run failed: rank 0 if it knows. An interrupted run is told by rank 0 as well.

        Raises:
            TunerError: What was raised, here; in another process it has the process's number.
            SystemExit: Another has said it.
        """
        try:
            yield
        except LostProcessError as error:
            if not self.main or not self._is_first():
                raise SystemExit(1) from error
            raise
        except KeyboardInterrupt:
            if self.main:
                raise
        except BaseException as error:
            known = isinstance(error, TunerError)
            if (
                isinstance(error, NonFiniteError) and not self.main
            ):  # all know it; rank 0 saves what was learned, and says it
                with contextlib.suppress(LostProcessError):
                    self.wait()
            elif known and not self.main:
                time.sleep(GRACE_S)
            if not self._is_first() and known:
                raise SystemExit(1) from error
            if known and not self.main:
                raise TunerError(f"process {self.rank} of {self.world}: {error}") from error
            raise

    def _is_first(self) -> bool:
        """Whether nobody has said yet why the run failed; from now on somebody has."""
        if self._store is None:
            return self.main
        with contextlib.suppress(RuntimeError):  # where the store has gone, nobody can be asked
            return int(self._store.add(FAILURE, 1)) == 1
        return self.main

    def _ask(self, work: Callable[[], object]) -> None:
        try:
            work()
        except RuntimeError as error:
            raise self._left_alone() from error

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        """Between devices: on CPUs every error is one of the connection. While a graph is captured nothing is exchanged yet."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            capturing = torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
            if not capturing and (isinstance(error, dist.DistBackendError) or dist.get_backend() == "gloo"):
                raise self._left_alone() from error
            raise

    def _left_alone(self) -> LostProcessError:
        if not self.lost and dist.is_initialized() and dist.get_backend() == "nccl":
            atexit.register(neighbours.let_go)
            neighbours.leave_within(LAST_WORDS_S)  # on its way out it may call the device, which does not answer
        self.lost = True
        return LostProcessError(
            "another process of this run has ended, or does not answer; the step in which that happened is lost. What to do: "
            "the same command goes on from the last checkpoint (--debug shows what the connection says)."
        )
