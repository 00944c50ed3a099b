"""One of two processes that train together, on a CPU: ``python ranks_averaging.py RANK FOLDER``. Writes what it has into the folder.

Started by unit/test_averaging.py.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import toy

from simpletuner.training.adamw_bf16 import AdamWBF16
from simpletuner.training.averaging import Averaging
from simpletuner.training.guard import Guard
from simpletuner.training.learning_rate import Schedule
from simpletuner.training.ranks import SMALL, Ranks
from simpletuner.training.step import one_step

EDGE = 512  # an EDGE x EDGE matrix is large enough to travel by itself
STEPS = 4
RATE = 1e-2


class Watched(Averaging):
    """Notes how many gradients were under way when backward ended."""

    sent: list[int]

    def finish(self, gradients: Sequence[torch.Tensor]) -> None:
        self.sent.append(len(self._sent))
        super().finish(gradients)


def crossing(turn: int) -> tuple[list[torch.nn.Parameter], torch.Tensor]:
    """Two large weights and a small one; which of the large ones backward reaches first depends on ``turn``."""
    generator = torch.Generator().manual_seed(5)
    first, second = (torch.nn.Parameter(torch.randn(EDGE, EDGE, generator=generator) / EDGE**0.5) for _ in range(2))
    small = torch.nn.Parameter(torch.randn(EDGE, generator=generator))
    x = torch.randn(3, EDGE, generator=torch.Generator().manual_seed(turn))
    one, other = (first, second) if turn else (second, first)
    assert first.numel() >= SMALL > small.numel()
    return [first, second, small], ((torch.tanh(x @ one) @ other) * small).sum()


def crossed(ranks: Ranks) -> list[list[float]]:
    """A few numbers of every averaged gradient, of a second backward pass too."""
    found = []
    parameters, loss = crossing(ranks.rank)
    averaging = Averaging(ranks, parameters, early=True)
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = None
        loss.backward(retain_graph=True)
        averaging.finish([p.grad for p in parameters if p.grad is not None])
        found += [p.grad.flatten()[:: EDGE // 4].tolist() for p in parameters if p.grad is not None]
    return found


def toy_steps(ranks: Ranks, whole_step: bool) -> list[list[float]]:
    """Losses, sigmas and the norm of some steps of the toy, and its weights; ``whole_step`` as a graph would have it."""
    trainee = toy.trainee()
    trainee.optimizer = AdamWBF16(trainee.parameters, lr=RATE, weight_decay=0.0)
    trainee.ranks = ranks
    sent: list[int] = []  # of each step, the gradients that went out within backward
    if ranks.several:
        trainee.averaging = Watched(ranks, trainee.parameters, early=True, least=1)
        trainee.averaging.sent = sent
    graphs: Any = lambda work, inputs: work(*inputs)  # noqa: E731
    trainee.graphs = graphs if whole_step else None
    recipe = toy.recipe(schedule=Schedule("constant", RATE, 0.0, 0, 99), clip_norm=0.1)
    found = []
    for step in range(STEPS):
        whole = toy.batch(*range(4 * step, 4 * step + 4))
        size = 4 // ranks.world
        rows = slice(ranks.rank * size, (ranks.rank + 1) * size)
        mine = replace(whole, latents=whole.latents[rows], text=whole.text[rows], mask=whole.mask[rows])
        outcome = one_step(trainee, recipe, iter([mine]), step, Guard())
        found.append([*outcome.losses.tolist(), *outcome.sigmas.tolist(), float(outcome.grad_norm)])
    assert not ranks.several or sent == [len(trainee.parameters)] * STEPS
    return [*found, toy.flat(trainee.transformer).tolist()]


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    ranks = Ranks(rank, 2, rank, 2)
    found = {"crossed": crossed(ranks), "whole": toy_steps(ranks, True), "parts": toy_steps(ranks, False)}
    found["each in its own way"] = toy_steps(ranks, ranks.main)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
