"""Room 8, Step: AdamW for bf16 weights, with bf16 states and stochastic rounding.

bf16 keeps 8 bits of a number: an update below 1/256 of a weight is lost when rounded to the nearest. Rounded up with
the probability of what would be lost, it is kept on average. The maths are pure functions; the class only holds state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from simpletuner.training.guarded_adam import GuardedAdam, Mix, adam_where, plain_mix
from simpletuner.training.seeds import mixed_seed

Piece = tuple[torch.Tensor, ...]
# Elements handled at once: on a GPU as many as make few launches (their float32 copies take 0.5 GiB at most), on a CPU
# as many as stay in its cache.
CHUNK, CPU_CHUNK = 2**24, 2**18


def stochastic_round(value: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Float32 to bf16, up or down, so that the mean over ``bits`` is the value itself.

    Args:
        value: Any shape, float32, finite.
        bits: The same shape, int32, uniform in [0, 65536).

    Returns:
        bf16: one of the two neighbours of each value; numbers that bf16 can hold stay as they are.

    Source: adding noise below the last kept bit and cutting, as in Zamirai et al. 2021, "Revisiting BFloat16
        Training", section 3 (stochastic rounding).
    """
    whole = value.view(torch.int32) + bits
    return whole.bitwise_and_(-65536).view(torch.float32).to(torch.bfloat16)


def random_bits(rows: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """[rows, count] int32, uniform in [0, 65536): four of each 64-bit draw, as drawing is what takes the time."""
    whole = torch.empty(-(-rows * count // 4), dtype=torch.int64, device=generator.device)
    whole.random_(-(2**63), None, generator=generator)
    return whole.view(torch.int16)[: rows * count].to(torch.int32).bitwise_and_(0xFFFF).view(rows, count)


def adamw(
    weight: torch.Tensor,
    grad: torch.Tensor,
    mean: torch.Tensor,
    square: torch.Tensor,
    step: int,
    settings: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One AdamW update in float32.

    Args:
        weight: Any shape, float32; so are the next three.
        grad: Its gradient.
        mean: Running mean of gradients.
        square: Running mean of squared gradients.
        step: From 1.
        settings: ``lr``, ``betas``, ``eps``, ``weight_decay``.

    Returns:
        New weight, mean and square.

    Source: Loshchilov & Hutter 2019, algorithm 2, with eps outside the square root and the decay times the rate.
    """
    beta1, beta2 = settings["betas"]
    mean = mean.lerp(grad, 1.0 - beta1)
    square = square * beta2 + grad * grad * (1.0 - beta2)
    denominator = (square / (1.0 - beta2**step)).sqrt_().add_(settings["eps"])
    decayed = weight * (1.0 - settings["lr"] * settings["weight_decay"])
    return decayed.addcdiv_(mean, denominator, value=-settings["lr"] / (1.0 - beta1**step)), mean, square


class AdamWBF16(GuardedAdam, torch.optim.Optimizer):
    """AdamW whose states have the weights' dtype.

    Rounding is drawn from a generator that is a function of seed, parameter and step, so a resumed run rounds the same.
    On a GPU one kernel updates all tensors, and its random bits are others.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        seed: int = 0,
    ) -> None:
        """Hold ``params``; ``seed`` decides the rounding."""
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._seed = seed

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient. ``closure`` is not supported."""
        self._count_steps()
        if self._taken is not None:
            self._taken += 1
        for group in self.param_groups:
            touched = self._touched(group)
            for parameter in touched:
                self.state[parameter]["step"] += 1
            for number, (step, pieces) in enumerate(self._batches(touched)):
                seed = mixed_seed(mixed_seed(self._seed, number), step)
                _update(pieces, step, group, torch.Generator(pieces[0][0].device).manual_seed(seed))

    def guarded_step(self, rate: torch.Tensor, scale: torch.Tensor, good: torch.Tensor) -> None:
        """One step that the device takes or leaves; see ``GuardedAdam``."""
        self._guarded_step(rate, scale, good)

    def _touched(self, group: dict[str, Any]) -> list[torch.Tensor]:
        """The parameters that have a gradient, their states made."""
        touched: list[torch.Tensor] = [p for p in group["params"] if p.grad is not None]
        for parameter in touched:
            state = self.state[parameter]
            if not state:
                state["step"] = 0
                state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
                state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
        return touched

    def _rows(self, group: dict[str, Any]) -> list[Piece]:
        rows: list[Any] = []
        for parameter in self._touched(group):
            state = self.state[parameter]
            rows.append((parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"]))
        return rows

    def _mix(self, group: dict[str, Any], taken: torch.Tensor) -> Mix:
        return plain_mix(group["betas"], taken)

    def _steps(self) -> int:
        (steps,) = {state["step"] for state in self.state.values()}  # counted once for all parameters
        return int(steps)

    def _write_steps(self, taken: int) -> None:
        for state in self.state.values():
            state["step"] = taken

    def _update_row(self, row: Piece, control: torch.Tensor, group: dict[str, Any]) -> None:
        if row[0].dtype is not torch.bfloat16:
            super()._update_row(row, control, group)
            return
        numbers = group["eps"], group["weight_decay"]
        change, mean, square = adam_where(tuple(t.float() for t in row), control, *numbers)
        decayed = row[0].float() * (1.0 - control[0] * group["weight_decay"])
        number = next(i for i, p in enumerate(group["params"]) if p is row[0])
        seed = mixed_seed(mixed_seed(self._seed, number), int(control[6]))
        bits = random_bits(3, row[0].numel(), torch.Generator(row[0].device).manual_seed(seed))
        for target, value, draw in zip((row[0], row[2], row[3]), (decayed + change, mean, square), bits, strict=True):
            target.copy_(torch.where(control[7] > 0, stochastic_round(value, draw.view(value.shape)), target))

    def _batches(self, parameters: list[torch.Tensor]) -> Iterator[tuple[int, list[Piece]]]:
        """(step, pieces) of about ``CHUNK`` elements: small parameters together, large ones in parts."""
        pieces: list[Piece] = []
        size, kind = 0, None
        for parameter in parameters:
            chunk = CHUNK if parameter.is_cuda else CPU_CHUNK
            state = self.state[parameter]
            here = (state["step"], parameter.dtype, parameter.device)
            # Weights keep their own layout when they are written to, whatever it is: only rows are cut.
            assert parameter.grad is not None
            four: Piece = (parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"])
            rows = max(1, chunk // max(1, parameter[:1].numel())) if parameter.ndim else 1
            for start in range(0, len(parameter) if parameter.ndim else 1, rows):
                piece = tuple(t[start : start + rows] if parameter.ndim else t for t in four)
                if pieces and (here != kind or size + piece[0].numel() > chunk):
                    yield kind[0], pieces  # type: ignore[index]
                    pieces, size = [], 0
                pieces.append(piece)
                size, kind = size + piece[0].numel(), here
        if pieces:
            yield kind[0], pieces  # type: ignore[index]


def _update(pieces: list[Piece], step: int, settings: dict[str, Any], generator: torch.Generator) -> None:
    """AdamW on all pieces as one vector; their storage is written to."""
    columns: list[tuple[torch.Tensor, ...]] = list(zip(*pieces, strict=True))
    weight, grad, mean, square = (torch.cat([t.reshape(-1).float() for t in column]) for column in columns)
    new = adamw(weight, grad, mean, square, step, settings)
    sizes = [piece[0].numel() for piece in pieces]
    in_bf16 = columns[0][0].dtype is torch.bfloat16
    draws = random_bits(3, weight.numel(), generator) if in_bf16 else [None] * 3
    for targets, value, bits in zip((columns[0], columns[2], columns[3]), new, draws, strict=True):
        if bits is not None:
            value = stochastic_round(value, bits)
        parts = [part.view(t.shape) for part, t in zip(value.split(sizes), targets, strict=True)]
        torch._foreach_copy_(list(targets), parts)
