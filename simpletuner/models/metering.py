"""Measure the memory of work without doing it: tensors that have shapes and no numbers, and a meter of what lives.

In: a model's configuration as modules on the ``meta`` device, and a function that runs them. Out: bytes kept and the peak.
Knows no family. Exact for what PyTorch's own operators allocate; what libraries allocate inside (workspaces) is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Meter(TorchDispatchMode):
    """Counts the storages that operators make, until they are freed.

    Attributes:
        live: Bytes that live now.
        peak: The most that lived together.
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        """Nothing lives; the storages of ``known`` (weights, inputs) are not counted, also where a view returns them."""
        super().__init__()
        self.live = self.peak = 0
        self._known = {t.untyped_storage()._cdata for t in known}
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and count what it made."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes or key in self._known:
            return
        self._sizes[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.live -= self._sizes.pop(key)

    def start_peak(self) -> None:
        """Forget the peak so far."""
        self.peak = self.live


class _FusedAttention(torch.autograd.Function):
    """What fused attention keeps: query, key, value, output and a float32 sum a row; no scores."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(t) for t in ctx.saved_tensors[:3])


class _AsOnGpu(TorchFunctionMode):
    """A CPU's attention would keep scores, which a GPU's does not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.scaled_dot_product_attention:
            return _FusedAttention.apply(*args[:3])
        return func(*args, **(kwargs or {}))


def without_numbers(model: nn.Module, fake: FakeTensorMode) -> nn.Module:
    """The same module, whose parameters and buffers (on the meta device) became fake tensors; changed in place."""
    with fake:
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                    module._parameters[name] = nn.Parameter(empty, parameter.requires_grad)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return model


@contextmanager
def metered(model: nn.Module, fake: FakeTensorMode, inputs: Iterable[torch.Tensor] = ()) -> Iterator[Meter]:
    """Inside, operators are run without numbers and counted; the model's weights and ``inputs`` are not."""
    known = [*model.parameters(), *model.buffers(), *inputs]
    with fake, _AsOnGpu(), Meter(known) as meter:
        yield meter
