"""Room 6, Noise: one step along a velocity field from each sample's sigma to a smaller one, at order 1 or 2.

In: the point, sigmas and what the model said. Out: the next point. Every sample of a batch has its own sigmas and its
own history, which diffusers' schedulers do not allow; the formulas are theirs and are tested against them.

All three work on the clean picture that the model implies, x0 = x - sigma * v, and on lambda = log((1 - sigma) / sigma).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Sampler = Literal["unipc", "euler", "dpm"]
# Below this sigma lambda grows without bound and the second order extrapolates too far: order 1, as diffusers' last step.
_LAST = 1e-4


@dataclass(frozen=True, slots=True)
class History:
    """What a multistep solver remembers of each sample.

    Attributes:
        point: [B, ...] where the last step began.
        sigmas: [B] float64, its sigma there.
        clean: [B, ...] the clean picture implied there.
        older_sigmas: [B] float64, one step earlier.
        older_clean: [B, ...] one step earlier.
        steps: [B] int64, steps made; 0 means that nothing is remembered.
    """

    point: torch.Tensor
    sigmas: torch.Tensor
    clean: torch.Tensor
    older_sigmas: torch.Tensor
    older_clean: torch.Tensor
    steps: torch.Tensor

    @classmethod
    def empty(cls, point: torch.Tensor) -> History:
        """Nothing remembered for any sample of ``point`` [B, ...]."""
        ones = torch.ones(len(point), dtype=torch.float64, device=point.device)
        zeros = torch.zeros_like(point)
        return cls(zeros, ones, zeros, ones, zeros, torch.zeros(len(point), dtype=torch.int64, device=point.device))

    def at(self, rows: torch.Tensor) -> History:
        """The history of these samples."""
        return History(*(part[rows] for part in self._parts()))

    def with_rows(self, rows: torch.Tensor, other: History) -> History:
        """This history with that of some samples replaced."""
        pairs = zip(self._parts(), other._parts(), strict=True)
        return History(*(whole.index_copy(0, rows, part) for whole, part in pairs))

    def _parts(self) -> tuple[torch.Tensor, ...]:
        return (self.point, self.sigmas, self.clean, self.older_sigmas, self.older_clean, self.steps)


def step(
    sampler: Sampler,
    order: int,
    point: torch.Tensor,
    velocity: torch.Tensor,
    sigmas: torch.Tensor,
    to: torch.Tensor,
    history: History,
) -> tuple[torch.Tensor, History]:
    """One step of each sample.

    Args:
        sampler: ``euler``, ``dpm`` (DPM-Solver++, multistep, midpoint) or ``unipc`` (bh2, with its corrector).
        order: 1 or 2; a sample's first step has order 1, and euler has no other.
        point: [B, ...] float32.
        velocity: Same shape, the model's answer at ``point`` and ``sigmas``.
        sigmas: [B] float64 in (0, 1).
        to: [B] float64 in [0, 1), below ``sigmas``.
        history: Of the same samples.

    Returns:
        The point at ``to``, and the history with this step.

    Source: Lu et al. 2022 (arXiv 2211.01095), algorithm 2; Zhao et al. 2023 (arXiv 2302.04867), algorithms 5 to 8;
    on the straight path as diffusers' ``use_flow_sigmas``. At order 1 all three are Euler's step, x + (to - sigma) * v.
    """
    clean = point - _column(sigmas, point) * velocity
    if sampler == "unipc":
        point = _corrected(point, clean, sigmas, history, order)
    ratio = _column(to / sigmas, point)
    moved = ratio * point + (1 - ratio) * clean
    if sampler != "euler" and order == 2:
        second = (history.steps > 0) & (to > _LAST)
        moved = moved + (1 - ratio) * 0.5 * _slope(clean, sigmas, to, history.sigmas, history.clean, second)
    kept = History(point, sigmas, clean, history.sigmas, history.clean, history.steps + 1)
    return moved, kept


def _corrected(
    point: torch.Tensor, clean: torch.Tensor, sigmas: torch.Tensor, history: History, order: int
) -> torch.Tensor:
    """UniC: the last step again, now that the model has been asked at its end; samples without a last step stay.

    The weights solve the 2x2 system of algorithm 6 for B(h) = e^h - 1 (bh2); at order 1 the weight is 1/2.
    """
    start, began = history.point, history.sigmas
    h = _lambda(sigmas) - _lambda(began)
    ratio = _column(sigmas / began, point)
    again = ratio * start + (1 - ratio) * history.clean
    change = clean - history.clean
    corrected = again + (1 - ratio) * 0.5 * change
    if order == 2:
        second = history.steps > 1
        back = torch.where(second, (_lambda(history.older_sigmas) - _lambda(began)) / h, -torch.ones_like(h))
        first_phi = torch.expm1(-h)
        phi_2 = first_phi / -h - 1
        phi_3 = phi_2 / -h - 0.5
        b_1, b_2 = phi_2 / first_phi, 2 * phi_3 / first_phi
        older_weight = (b_2 - b_1) / (back - 1)
        older = (history.older_clean - history.clean) / _column(back, point)
        both = again + (1 - ratio) * (
            _column(older_weight, point) * older + _column(b_1 - older_weight, point) * change
        )
        corrected = torch.where(_column(second, point), both, corrected)
    return torch.where(_column(history.steps > 0, point), corrected, point)


def _slope(
    clean: torch.Tensor,
    sigmas: torch.Tensor,
    to: torch.Tensor,
    before: torch.Tensor,
    clean_before: torch.Tensor,
    second: torch.Tensor,
) -> torch.Tensor:
    """Change of the clean picture over this step, extrapolated from the last one; 0 where ``second`` is False."""
    factor = (_lambda(to.clamp(min=_LAST)) - _lambda(sigmas)) / (_lambda(sigmas) - _lambda(before))
    factor = torch.where(second, factor, torch.zeros_like(factor))
    return _column(factor, clean) * (clean - clean_before)


def _lambda(sigmas: torch.Tensor) -> torch.Tensor:
    """Half the log-SNR; finite for the sigmas 0 and 1 of samples without a history."""
    inside = sigmas.clamp(1e-9, 1 - 1e-9)
    return torch.log((1 - inside) / inside)


def _column(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[B] → [B, 1, …] in the dtype of ``like`` (booleans stay)."""
    column = values.reshape(-1, *[1] * (like.ndim - 1))
    return column if column.dtype == torch.bool else column.to(like.dtype)
