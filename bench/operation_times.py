"""How right and how fast one way of an operation is: for ``operations.py`` and its plans."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from operation_subjects import Operation, Subject

WORST = 2e-2  # relative error of bf16 results that is still right


def make(shapes: list[tuple[int, ...]], dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    return [torch.randn(shape, device=device).to(dtype).requires_grad_() for shape in shapes]


def as_list(result: Any) -> list[torch.Tensor]:
    return [result] if isinstance(result, torch.Tensor) else list(result)


def worst_error(way: Operation, subject: Subject, tensors: list[torch.Tensor]) -> float:
    """The largest relative error of the output and of every gradient, against float32 of the library."""
    exact = [tensor.detach().float().requires_grad_() for tensor in tensors]
    wanted, found = as_list(subject.exact(*exact)), as_list(way(*tensors))
    grads = [torch.randn_like(out) for out in found]
    ours = torch.autograd.grad(found, tensors, grads)
    theirs = torch.autograd.grad(wanted, exact, [grad.float() for grad in grads])
    pairs = zip([*found, *ours], [*wanted, *theirs], strict=True)
    return max(((a.float() - b).norm() / b.norm()).item() for a, b in pairs)


def device_ms(run: Callable[[int], object], sets: int) -> float:
    """Median device time of one call in ms; `run` is called with 0 … sets − 1."""

    def all_sets() -> None:
        for index in range(sets):
            run(index)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            all_sets()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    again: Callable[[], None] = all_sets
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            all_sets()
        again = graph.replay
    except RuntimeError as error:
        torch.cuda.synchronize()
        print(f"    (no graph: {str(error).splitlines()[0][:80]}; launches are in the time)")
    times = []
    for _ in range(12):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        again()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / sets)
    return statistics.median(times[2:])


def time_way(way: Operation, subject: Subject, sets: list[list[torch.Tensor]]) -> tuple[float, float]:
    """Device time in ms of the forward pass alone, and with backward."""
    grad = torch.randn(subject.out, device="cuda").to(sets[0][0].dtype)

    def forward(index: int) -> None:
        with torch.no_grad():
            way(*sets[index])

    def with_backward(index: int) -> None:
        found = as_list(way(*sets[index]))
        torch.autograd.grad(found, sets[index], [grad] * len(found))

    return device_ms(forward, len(sets)), device_ms(with_backward, len(sets))
