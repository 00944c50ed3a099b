"""Room 8, Step: the steady step as one CUDA graph for each shape of batch.

Launching the thousands of kernels of a step takes the host longer than a small batch takes the device. A graph launches
them at once. The first steps of a shape run as they are (kernels are compiled, libraries set up); then one step is
captured, which runs nothing, and from there on replayed on new numbers in the same places. What cannot be captured is
left to the plain way, for good.
"""

from __future__ import annotations

import contextlib
import gc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from simpletuner.training.device import memory

WARM_UP = 3
ROOM = 0.3  # of the device's memory must be free for pictures to be drawn beside the graphs
LIMIT = 24  # shapes; each graph takes some megabytes on the host and shares its tensors' memory with the others
FRESH_STARTS = 8  # how often in a row all graphs make room for one that has none beside them, before it is left at that

Work = Callable[..., tuple[torch.Tensor, ...]]
Inputs = tuple[torch.Tensor | None, ...]
Shape = tuple[Any, ...]


def undo_failed_capture(pool: Any) -> None:
    """Undo what torch (2.11 to 2.13) leaves behind where a capture ends in an error; no harm where nothing was left.

    The allocator goes on holding the pool, so that its memory would never come back, and the device's own generator
    believes that it is being captured, so that every random number on the device would be an error.

    Args:
        pool: Handle of the pool that was captured into.

    Source: github.com/pytorch/pytorch/pull/190308.
    """
    device = torch.cuda.current_device()
    with contextlib.suppress(RuntimeError):  # "not currently recording": the capture was ended as it should be
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)
    generator = torch.cuda.default_generators[device]
    generator.graphsafe_set_state(generator.clone_state())  # the same numbers follow; no capture is remembered


@dataclass(slots=True)
class Captured:
    """One graph with the tensors it reads, those it returns, those it leaves behind, and what else it reads."""

    graph: torch.cuda.CUDAGraph
    inputs: Inputs
    outputs: tuple[torch.Tensor, ...]
    left: Any
    kept: Any


def shape_of(inputs: Inputs) -> Shape:
    """What two steps must share to share a graph."""
    return tuple(None if t is None else (tuple(t.shape), t.dtype) for t in inputs)


class StepGraphs:
    """Runs work on tensors of a few shapes, by a graph where there is one.

    Attributes:
        obstacle: Why steps run the plain way from now on, or None.
    """

    def __init__(
        self,
        after_capture: Callable[[], Any],
        clear: Callable[[], None],
        say: Callable[[str], None],
        before_first: Callable[[], None] = lambda: None,
        repeatable: bool = True,
        warn: Callable[[str], None] | None = None,
        yields: bool = False,
        left: Callable[[], Any] = lambda: None,
        put_back: Callable[[Any], None] = lambda left: None,
    ) -> None:
        """Nothing is captured yet.

        Args:
            after_capture: Called when work was captured, before its graph runs. What it returns is kept as long as the graph.
            clear: Forgets what a piece of work that failed has left (gradients).
            say: Hears how steps are launched.
            before_first: Called before the first step: makes what lasts, so that it does not lie between what comes and goes.
            repeatable: Work that ran out of memory may be made again: nothing of it has reached weights or other processes.
            warn: Hears of obstacles, in place of ``say``.
            yields: Graphs go before hooks act: these move what graphs read.
            left: What work has left behind besides what it returns (gradients); asked when it was captured.
            put_back: Puts what ``left`` gave where work would have left it; called after each replay.
        """
        self._warn = warn or say
        self._repeatable, self._yields = repeatable, yields
        self._left, self._put_back = left, put_back
        self._after_capture, self._clear, self._say = after_capture, clear, say
        self._before_first = before_first
        self._seen: Counter[Shape] = Counter()
        self._captured: dict[Shape, Captured] = {}
        self._pool: Any = None
        self._size = 0  # bytes that the graphs keep for themselves
        self._told = False
        self._fresh_starts = 0
        self.obstacle: str | None = None

    def __call__(self, work: Work, inputs: Inputs) -> tuple[torch.Tensor, ...]:
        """What ``work(*inputs)`` gives, in tensors that later steps do not touch.

        Args:
            work: A function of device tensors alone: what it reads besides must stay where it is.
            inputs: Device tensors, or None.

        Raises:
            torch.OutOfMemoryError: There is too little memory even without graphs.
        """
        if not self._seen:
            self._before_first()
        shape = shape_of(inputs)
        self._seen[shape] += 1
        captured = self._captured.get(shape)
        if captured is None and self._seen[shape] > WARM_UP and not self.obstacle and len(self._captured) < LIMIT:
            captured = self._capture(work, inputs, shape)
        if captured is None:
            return self._plainly(work, inputs)
        for place, value in zip(captured.inputs, inputs, strict=True):
            if place is not None and value is not None:
                place.copy_(value, non_blocking=True)
        captured.graph.replay()
        self._put_back(captured.left)
        return tuple(output.clone() for output in captured.outputs)

    def make_room(self, acting: bool = False) -> None:
        """Before other work on the device: give the graphs' memory back where little else is free.

        A graph keeps the memory of a whole step for itself. It is captured anew when the next step of its shape comes.

        Args:
            acting: It is hooks that act: then graphs go in any case where they ``yield``.
        """
        here = memory(torch.device("cuda"))
        if self._captured and ((acting and self._yields) or here.free < ROOM * here.total):
            self.release()
            self._fresh_starts = 0  # what follows is captured anew whatever its order

    def release(self) -> None:
        """Forget all graphs; each is captured anew at the next step of its shape."""
        torch.cuda.synchronize()
        self.drop()
        torch.cuda.empty_cache()

    def drop(self) -> None:
        """Forget all graphs without waiting for the device: at the end of a run, before what they use goes."""
        self._captured.clear()
        self._pool, self._size = None, 0
        gc.collect()

    def _plainly(self, work: Work, inputs: Inputs) -> tuple[torch.Tensor, ...]:
        """Without a graph; where the graphs leave too little memory for that, they give it back first.

        Not in the graphs' pool: what a step leaves there (tables of addresses) would lie in memory that a graph writes over.
        Where memory is short all the same, there are no graphs from now on.
        """
        if self._captured and self._room() < self._size:  # another shape's step takes about what theirs does
            self.release()
        try:
            return work(*inputs)
        except torch.OutOfMemoryError:
            if not self._captured or not self._repeatable:
                raise
        self._clear()
        self.release()
        self._give_up("steps of other shapes need its memory")
        return work(*inputs)

    def _room(self) -> int:
        """Bytes that a plain step can have beside the graphs: what is free, and what torch keeps unused of earlier steps."""
        unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated() - self._size
        return memory(torch.device("cuda")).free + max(0, unused)

    def _give_up(self, why: str) -> None:
        self.obstacle = why
        self._warn(f"Note: steps are launched kernel by kernel from now on, without a CUDA graph: {why}")

    def _capture(self, work: Work, inputs: Inputs, shape: Shape) -> Captured | None:
        """Record the work, which does not run; None where that fails.

        Graphs lie in one pool and share its memory, but a larger shape finds no piece large enough in what smaller ones have
        laid out. Where it has no room beside them, they go, and come again in what the larger one lays out.
        """
        places = tuple(None if t is None else t.clone() for t in inputs)
        try:
            try:
                return self._record(work, places, shape)
            except torch.OutOfMemoryError:
                if not self._captured or self._fresh_starts == FRESH_STARTS:
                    raise
            self._fresh_starts += 1
            self.release()
            return self._record(work, places, shape)
        except RuntimeError as error:  # a call that a capture forbids, or no memory left
            why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        self.release()
        self._give_up(why)
        return None

    def _record(self, work: Work, places: Inputs, shape: Shape) -> Captured:
        """One capture into the pool. Raises RuntimeError where it fails, with all that it has left undone.

        Memory that is short is told as that, also where torch then finds the capture unfinished and says so.
        """
        gc.collect()  # nothing of an earlier step may keep its gradients' nodes alive
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # the graph has memory of its own: give back what the plain steps had
        before, here = torch.cuda.memory_reserved(), torch.cuda.current_stream()
        graph, pool = torch.cuda.CUDAGraph(), self._pool or torch.cuda.graph_pool_handle()
        try:
            # Only this thread's calls are watched: the loader's goes on pinning memory, and encoding, beside it.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                outputs = work(*places)
            left = self._left()
        except RuntimeError as error:
            self._clear()
            torch.cuda.set_stream(here)  # torch's own way back is cut off by the error
            undo_failed_capture(pool)
            if isinstance(error.__context__, torch.OutOfMemoryError):
                raise error.__context__ from None
            raise
        self._size += torch.cuda.memory_reserved() - before
        if not self._told:
            self._say(f"From here on a step is one CUDA graph, which keeps {self._size / 2**30:.1f} GiB of memory")
            self._told = True
        self._pool = pool
        self._captured[shape] = Captured(graph, places, outputs, left, self._after_capture())
        return self._captured[shape]
