"""One of two processes, for tests/integration/test_several_processes.py: everything they do together, on the toy.

python -m torch.distributed.run --standalone --nproc-per-node 2 tests/two_ranks.py
"""

import os
from dataclasses import replace
from typing import Any

import pytest
import torch
import toy

from simpletuner.data.types import Batch
from simpletuner.errors import DataError
from simpletuner.training import device
from simpletuner.training.adamw_bf16 import AdamWBF16
from simpletuner.training.gradient_sums import Float32Sums
from simpletuner.training.loop import StepResult, train
from simpletuner.training.ranks import Ranks
from simpletuner.training.trainee import Trainee


class Told:
    """A hook of rank 0, as in a run."""

    def __init__(self) -> None:
        self.results: list[StepResult] = []

    def on_start(self, step: int) -> None: ...

    def acts_at(self, step: int) -> bool:
        return step == 3

    def on_step_end(self, result: StepResult) -> None:
        self.results.append(result)

    def on_stop(self, step: int, finished: bool) -> None: ...


def mine(batch: Batch, ranks: Ranks) -> Batch:
    rows = [ranks.rows(tensor) for tensor in (batch.latents, batch.text, batch.mask)]
    return replace(batch, latents=rows[0], text=rows[1], mask=rows[2])


def batches(spoilt: int) -> list[Batch]:
    """Twelve micro-batches of four; in one of them the last picture is broken."""
    made = [toy.batch(*range(n, n + 4)) for n in range(12)]
    made[spoilt].latents[-1] = float("nan")
    return made


def trained(
    ranks: Ranks, guards: bool, sums: bool, stop_at: int | None = None
) -> tuple[Trainee, list[StepResult], int]:
    made, told = toy.trainee(), Told()
    made.ranks = ranks
    if guards:
        made.optimizer = AdamWBF16(made.parameters, lr=1e-2, weight_decay=0.0)
    if sums:
        made.sums = Float32Sums(made.parameters)
    recipe = toy.recipe(clip_norm=0.5, accumulation=2)
    stream = iter([mine(batch, ranks) for batch in batches(5)])
    asked = [0]

    def should_stop() -> bool:
        """Asked of the last rank alone: both must stop."""
        asked[0] += 1
        return stop_at is not None and ranks.rank == ranks.world - 1 and asked[0] > stop_at

    done = train(made, recipe, stream, 0, 6, [told] if ranks.main else [], should_stop, ranks.any)
    return made, told.results, done


def compare(ranks: Ranks, guards: bool, sums: bool) -> None:
    """Both together do what one does alone, the broken step included."""
    alone, expected, _ = trained(Ranks(), guards, sums)
    together, found, _ = trained(ranks, guards, sums)
    assert ranks.are_equal(together.parameters)
    torch.testing.assert_close(toy.flat(together.transformer), toy.flat(alone.transformer), rtol=1e-5, atol=1e-6)
    if not ranks.main:
        return
    assert [r.skipped is None for r in found] == [True, True, False, True, True, True]
    for one, two in zip(expected, found, strict=True):
        assert (one.step, one.samples, one.samples_by_sigma) == (two.step, two.samples, two.samples_by_sigma)
        if one.skipped:
            assert one.skipped == two.skipped, "the picture of rank 1 is named by rank 0"
        else:
            assert two.loss == pytest.approx(one.loss, rel=1e-6)
            assert two.grad_norm == pytest.approx(one.grad_norm, rel=1e-5)


def main() -> None:
    ranks = Ranks.of(os.environ)
    assert device.choose(False, ranks).type == "cpu"
    ranks.join()
    assert ranks.any(ranks.rank == 1) and ranks.least(ranks.rank + 1) == 1 and ranks.of_all(ranks.rank) == [0, 1]
    assert ranks.by_main(lambda: ranks.rank) == 0
    large, odd = torch.full((600, 600), float(ranks.rank)), torch.arange(6.0).view(2, 3).t() * ranks.rank
    ranks.average([large, odd])
    assert large.unique().item() == 0.5 and torch.equal(odd, torch.arange(6.0).view(2, 3).t() / 2)
    first, second = ranks.gathered(torch.full((2,), ranks.rank), torch.full((2,), 7))
    assert first.tolist() == [0, 0, 1, 1] and second.tolist() == [7, 7, 7, 7]
    values: list[Any] = [torch.nn.Parameter(torch.full((3, 2), float(ranks.rank + 1)))]
    assert not ranks.are_equal(values)
    ranks.spread(values)
    assert ranks.are_equal(values) and values[0].unique().item() == 1
    ranks.must_agree("pictures", "same")
    with pytest.raises(DataError, match="process 1 of 2 has found other pictures"):
        ranks.must_agree("pictures", str(ranks.rank))
    for guards in (False, True):
        for sums in (False, True):
            compare(ranks, guards, sums)
    *_, done = trained(ranks, True, False, stop_at=3)
    assert ranks.of_all(done) == [3, 3], "both stop after the same step"
    ranks.leave()
    print(f"rank {ranks.rank} is content", flush=True)


if __name__ == "__main__":
    main()
