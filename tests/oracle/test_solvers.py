"""One walk along a curved velocity field, against diffusers' schedulers on the same sigmas."""

from itertools import pairwise

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from simpletuner.flow.solvers import History, step

# From 0.97 down in uneven steps; never to 0, where diffusers changes the order.
SIGMAS = torch.tensor([0.97, 0.9, 0.82, 0.7, 0.66, 0.5, 0.3, 0.21, 0.08], dtype=torch.float64)


def field(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Neither straight nor linear, so that every order gives another result."""
    return torch.sin(2 * x) + (1 + sigma) ** 2 * x.roll(1, -1) * 0.3


def start() -> torch.Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def walk(sampler: str, order: int) -> list[torch.Tensor]:
    x, points = start(), []
    history = History.empty(x)
    for now, to in pairwise(SIGMAS):
        velocity = field(x, now.item())
        x, history = step(sampler, order, x, velocity, now.expand(2), to.expand(2), history)  # type: ignore[arg-type]
        points.append(x)
    return points


def reference(sampler: str, order: int) -> list[torch.Tensor]:
    shared = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "solver_order": order}
    if sampler == "euler":
        scheduler = FlowMatchEulerDiscreteScheduler()
    elif sampler == "dpm":
        scheduler = DPMSolverMultistepScheduler(**shared, algorithm_type="dpmsolver++", lower_order_final=False)
    else:
        scheduler = UniPCMultistepScheduler(**shared, solver_type="bh2", lower_order_final=False)
    scheduler.set_timesteps(len(SIGMAS))  # one step more than is made: the last one to 0 has order 1 there
    scheduler.sigmas = torch.cat([SIGMAS, SIGMAS.new_zeros(1)])
    x, points = start(), []
    for index, now in enumerate(SIGMAS[:-1]):
        timestep = scheduler.timesteps[index]
        x = scheduler.step(field(x, now.item()), timestep, x, return_dict=False)[0]
        points.append(x)
    return points


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("dpm", 1), ("dpm", 2), ("unipc", 1), ("unipc", 2)])
def test_every_point_of_a_walk_is_that_of_diffusers(sampler: str, order: int) -> None:
    for ours, theirs in zip(walk(sampler, order), reference(sampler, order), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_solvers_differ_from_each_other() -> None:
    ends = [walk(*case)[-1] for case in (("euler", 1), ("dpm", 2), ("unipc", 1), ("unipc", 2))]
    assert all((a - b).abs().max() > 1e-3 for i, a in enumerate(ends) for b in ends[:i])


def test_the_second_order_is_nearer_to_the_true_path() -> None:
    x, fine = start(), torch.linspace(SIGMAS[0].item(), SIGMAS[-1].item(), 20_001, dtype=torch.float64)
    for now, to in pairwise(fine):
        x = x + (to - now) * field(x, now.item())
    euler, dpm, unipc = ((walk(s, o)[-1] - x).norm() for s, o in (("euler", 1), ("dpm", 2), ("unipc", 2)))
    assert dpm < 0.5 * euler and unipc < 0.5 * euler
