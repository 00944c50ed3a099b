"""Between room 6 and room 7: scheduled sampling, also called rollout.

In: a NoisedBatch and a way to ask the model. Out: the batch with some samples replaced by points that the model itself
arrives at. In plain training the model sees only points on the line between data and noise; while sampling it sees its
own. Here some samples start nearer to noise, on the line, and the model walks them, without gradients, to the sigma
that is trained. Nothing here knows what is trained: full-rank and adapter runs are alike.

The target stays noise - latents, the velocity of the line, as in the original program: the sample is trained to go on
as if it had never left the line. The velocity that leads from a rolled-out point x straight to its data is
(x - latents) / sigma. It differs by drift / sigma, which has no bound towards the data and would outweigh everything
else there; ReflexFlow (Huang et al. 2025, arXiv 2512.04904) changes the target together with the weighting for that
reason. For a model whose drift is small the two agree.

Source of the idea: Bengio et al. 2015 (arXiv 1506.03099); options, offsets and ramp: the original program's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch

from simpletuner.flow.path import NoisedBatch
from simpletuner.flow.schedules import shift_sigmas
from simpletuner.flow.solvers import History, Sampler, step
from simpletuner.wording import counted

# Offsets count timesteps of a schedule of 1000; no walk starts above the last but one, where no data is left.
TIMESTEPS = 1000
_HIGHEST = 0.999

# (points [n, C, h, w], sigmas [n], which samples of the batch [n]) → velocity [n, C, h, w]
VelocityOf = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Ramp:
    """The share of samples that are rolled out, by optimizer step.

    Attributes:
        start: Share before the ramp, in [0, 1].
        end: Share after it, in [0, 1]; without a ramp ``start`` holds for ever.
        first_step: Where it begins.
        steps: How long it takes; 0 is no ramp.
        shape: ``linear``, or ``cosine``: (1 - cos(pi * progress)) / 2.
    """

    start: float
    end: float
    first_step: int = 0
    steps: int = 0
    shape: Literal["linear", "cosine"] = "linear"

    def at(self, step: int) -> float:
        """The share in step ``step`` (from 0)."""
        if not self.steps:
            return self.start
        progress = min(max((step - self.first_step) / self.steps, 0.0), 1.0)
        if self.shape == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return self.start + (self.end - self.start) * progress

    def describe(self) -> str:
        """A few words for the log."""
        if not self.steps:
            return f"{self.start:.0%} of samples"
        where = f"{self.shape} over {counted(self.steps, 'step')} from step {self.first_step}"
        return f"{self.start:.0%} to {self.end:.0%} of samples, {where}"


@dataclass(frozen=True, slots=True)
class Rollout:
    """What is rolled out, how far, and by which solver.

    Attributes:
        max_offset: At most this many timesteps, out of 1000, towards noise; each costs a forward pass.
        ramp: Share of samples.
        strategy: ``uniform``: 0 … max_offset alike; ``biased_early``: round(u² max_offset), mostly short;
            ``biased_late``: round((1 - u²) max_offset), mostly long.
        sampler: The solver.
        order: 1 or 2.
    """

    max_offset: int
    ramp: Ramp
    strategy: Literal["uniform", "biased_early", "biased_late"] = "uniform"
    sampler: Sampler = "unipc"
    order: int = 2

    def describe(self) -> str:
        """What is done and what it costs: the mean of u² is 1/3."""
        share = {"uniform": 1 / 2, "biased_early": 1 / 3, "biased_late": 2 / 3}[self.strategy]
        most = max(self.ramp.start, self.ramp.end) if self.ramp.steps else self.ramp.start
        solver = self.sampler if self.sampler == "euler" else f"{self.sampler} of order {self.order}"
        return (
            f"Rollout: {self.ramp.describe()} walk up to {self.max_offset} timesteps of 1000 ({self.strategy}) by "
            f"{solver}; up to {self.max_offset} extra forward passes a micro-batch, "
            f"about {most * share * self.max_offset:.3g} a picture at the most"
        )


def draw_offsets(
    rollout: Rollout, sigmas: torch.Tensor, shift: float, step: int, generator: torch.Generator
) -> torch.Tensor:
    """How many timesteps each sample walks.

    Args:
        rollout: The plan.
        sigmas: [B] in [0, 1], after the shift.
        shift: The shift in force; timesteps are counted before it.
        step: Optimizer steps done.
        generator: The only source of randomness.

    Returns:
        [B] int64 in [0, max_offset]; less where the schedule has no more timesteps.
    """
    device = sigmas.device
    u, chance = (torch.rand(len(sigmas), generator=generator, device=device, dtype=torch.float64) for _ in range(2))
    if rollout.strategy == "uniform":
        wanted = (u * (rollout.max_offset + 1)).floor()
    else:
        share = u.square() if rollout.strategy == "biased_early" else 1 - u.square()
        wanted = (share * rollout.max_offset).round()
    position = shift_sigmas(sigmas.double(), 1 / shift)
    room = ((_HIGHEST - position) * TIMESTEPS).floor().clamp(min=0)
    chosen = chance < rollout.ramp.at(step)
    return (torch.minimum(wanted, room) * chosen).long()


@torch.no_grad()
def roll_out(
    noised: NoisedBatch, offsets: torch.Tensor, shift: float, rollout: Rollout, velocity_of: VelocityOf
) -> NoisedBatch:
    """Walk the samples with an offset from their start to their own sigma.

    All walks end together, so in each pass of the model the samples with that many timesteps left are one batch.

    Args:
        noised: The plain batch.
        offsets: [B] from ``draw_offsets``; where it is 0, a sample stays as it is.
        shift: As for ``draw_offsets``.
        rollout: The solver.
        velocity_of: Asks the model; called max(offsets) times.

    Returns:
        The same batch with other noisy_latents, or the very same object if nothing is rolled out.
    """
    longest = int(offsets.max())
    if longest == 0:
        return noised
    own = noised.sigmas.double()
    position = shift_sigmas(own, 1 / shift)

    def sigmas_at(left: int | torch.Tensor) -> torch.Tensor:
        return shift_sigmas(position + left / TIMESTEPS, shift)

    start = sigmas_at(offsets)
    along = (start - own).to(noised.target.dtype)[:, None, None, None]
    points = noised.noisy_latents + along * noised.target
    history = History.empty(points)
    for left in range(longest, 0, -1):
        rows = (offsets >= left).nonzero().squeeze(1)
        sigmas, to = sigmas_at(left)[rows], own[rows] if left == 1 else sigmas_at(left - 1)[rows]
        velocity = velocity_of(points[rows], sigmas.float(), rows).float()
        moved, kept = step(rollout.sampler, rollout.order, points[rows], velocity, sigmas, to, history.at(rows))
        points, history = points.index_copy(0, rows, moved), history.with_rows(rows, kept)
    walked = (offsets > 0)[:, None, None, None]
    return replace(noised, noisy_latents=torch.where(walked, points, noised.noisy_latents))
