"""Room 8, Step: Adam's update of all tensors in one launch for each kind, with all that changes lying on the device.

Holds the tables of addresses that ``adamw_triton`` and ``adamw8bit_triton`` read. A table is found again by its addresses, so
a steady step makes none; where other tensors lie at the same addresses, it is theirs as well. Inside the capture of a CUDA
graph nothing may be copied from the host: a spare table, made before, is written into the graph and filled after the capture.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol

import torch

KEPT = 32  # tables, one for each set of addresses in which gradients were met

Row = tuple[torch.Tensor, ...]


class Kernel(Protocol):
    """What ``adamw_triton`` and ``adamw8bit_triton`` have in common: how rows are sorted, cut and updated."""

    COLUMNS: int  # tensors a row at most
    kind: Any
    chunks_of: Any
    launch: Any


def kernel_of(row: Row) -> Kernel:
    """The module that updates such rows: states in 8 bits have codes."""
    if row[2].dtype is torch.uint8:
        from simpletuner.training import adamw8bit_triton

        return adamw8bit_triton
    from simpletuner.training import adamw_triton

    return adamw_triton


@functools.cache
def _triton_found() -> bool:
    return importlib.util.find_spec("triton") is not None


def available(tensor: torch.Tensor) -> bool:
    """Whether the kernel can run beside this tensor."""
    return tensor.is_cuda and _triton_found()


class Launches:
    """The tables of one list of tensors whose addresses have one alignment."""

    def __init__(self, lengths: Sequence[int], device: torch.device, kernel: Kernel) -> None:
        """For tensors of these lengths."""
        self._columns = kernel.COLUMNS
        self.chunks = kernel.chunks_of(lengths).to(device)
        self._lengths, self._device = list(lengths), device
        self._tables: OrderedDict[tuple[int, ...], torch.Tensor] = OrderedDict()
        self._captured: list[tuple[torch.Tensor, tuple[int, ...]]] = []
        self._spare = self._empty()

    def table(self, rows: Sequence[Row]) -> torch.Tensor:
        """[columns + 1, tensors] int64 of these rows and their lengths, on the device."""
        missing = self._columns - len(rows[0])
        columns = [[row[column].data_ptr() for row in rows] for column in range(len(rows[0]))]
        addresses = tuple(itertools.chain(*columns, [0] * missing * len(rows)))
        if torch.cuda.is_current_stream_capturing():
            self._captured.append((self._spare, addresses))
            return self._spare
        if addresses not in self._tables:
            self._tables[addresses] = self._empty()
            self._fill(self._tables[addresses], addresses)
            if len(self._tables) > KEPT:
                self._tables.popitem(last=False)
        self._tables.move_to_end(addresses)
        return self._tables[addresses]

    def after_capture(self) -> list[torch.Tensor]:
        """Fill the table that was written into a graph, and make the next spare one; the graph reads what is returned."""
        tables = [table for table, _ in self._captured]
        for (
            table,
            addresses,
        ) in self._captured:  # after a capture that failed the same table again, with other addresses
            self._fill(table, addresses)
            self._spare = self._empty()
        self._captured.clear()
        return tables

    def _empty(self) -> torch.Tensor:
        return torch.zeros(self._columns + 1, len(self._lengths), dtype=torch.int64, device=self._device)

    def _fill(self, table: torch.Tensor, addresses: tuple[int, ...]) -> None:
        table.copy_(torch.tensor([*addresses, *self._lengths], dtype=torch.int64).view(table.shape))


class FusedUpdate:
    """Updates what the kernel takes, in one launch for each kind of tensors."""

    def __init__(self, eps: float, weight_decay: float, seed: int) -> None:
        """With these numbers; ``seed`` decides the rounding."""
        self._numbers = (float(eps), float(weight_decay))
        self._seed = seed
        self._launches: dict[tuple[Any, ...], Launches] = {}

    def __call__(self, rows: Sequence[Row], control: torch.Tensor) -> list[Row]:
        """Update rows in place; returns those left: of another dtype, or not dense.

        Args:
            rows: (weight, gradient, mean, square[, rest]), or with codes of mean and square, and their scales.
            control: From ``guarded_adam.control_of``.
        """
        kinds: dict[tuple[Any, Any], list[Row]] = {}
        left: list[Row] = []
        for row in rows:
            kernel = kernel_of(row)
            kind = kernel.kind(row)
            (left if kind is None else kinds.setdefault((kernel, kind), [])).append(row)
        # What needs room comes before the first launch: a step that finds none has changed nothing, and may be repeated.
        ready = []
        for (kernel, kind), some in kinds.items():
            key = kernel, kind, tuple(row[0].numel() for row in some)
            if key not in self._launches:
                self._launches[key] = Launches(key[2], some[0][0].device, kernel)
            ready.append((kernel, kind, self._launches[key].chunks, self._launches[key].table(some)))
        for kernel, kind, chunks, table in ready:
            kernel.launch(table, chunks, control, self._seed + kind.stream, self._numbers, kind)
        return left

    def after_capture(self) -> list[torch.Tensor]:
        """To be called when an update was captured in a CUDA graph, before the graph runs; it reads what is returned."""
        return [table for launches in self._launches.values() for table in launches.after_capture()]
