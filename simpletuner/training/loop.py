"""Room 8, Step: the training loop: steps, and who is told of them when.

In: a Trainee, a stream of batches, a Recipe. Out: StepResults to hooks. One step is ``step.one_step``.

Figures of a step lie on the device. Reading them at once would make the host wait, and then the device wait for the host;
so they are read up to ``LATE`` steps later, unless a hook acts on the model at this very step.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from simpletuner.data.types import Batch
from simpletuner.errors import CacheError, DataError, LostProcessError, NonFiniteError
from simpletuner.training.guard import Guard
from simpletuner.training.ranks import Ranks
from simpletuner.training.step import Outcome, one_step
from simpletuner.training.trainee import Recipe, Trainee

LATE = 2
BANDS = 5


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step did.

    Attributes:
        step: Steps done, from 1.
        loss: Mean loss of the step's ordinary samples, None without any: what keeps a model is no part of its course.
        grad_norm: Global gradient norm before clipping.
        learning_rate: In force in this step.
        seconds: Time of the step, on a GPU by its own clock, waiting for pictures included.
        samples: Pictures in the step.
        skipped: The sentence of a skipped step, or None.
        regularisation_loss: Mean loss of the step's regularisation samples, or None without any.
        regularisation_samples: How many of ``samples`` these are.
        by_sigma: Mean loss of the ordinary samples in each of ``BANDS`` equal bands of sigma from 0 to 1, None without
            any: one step has few samples, so their means over many steps are what tells something.
        samples_by_sigma: How many samples these are.
    """

    step: int
    loss: float | None
    grad_norm: float
    learning_rate: float
    seconds: float
    samples: int
    skipped: str | None = None
    regularisation_loss: float | None = None
    regularisation_samples: int = 0
    by_sigma: tuple[float | None, ...] = ()
    samples_by_sigma: tuple[int, ...] = ()


class Hook(Protocol):
    """Acts on training between steps; an exception stops the run."""

    def on_start(self, step: int) -> None:
        """Before the first step; ``step`` are done already."""

    def acts_at(self, step: int) -> bool:
        """Whether ``on_step_end`` of this step (from 1) looks at the model or changes it: then it is called at once."""

    def on_step_end(self, result: StepResult) -> None:
        """After each step, in order; up to ``LATE`` steps later where no hook acts."""

    def on_stop(self, step: int, finished: bool) -> None:
        """After the last step; ``finished`` is False when stopped early, by the user or by the guard."""


Moment = float | torch.cuda.Event


def moment(device: torch.device) -> Moment:
    """Now; on a GPU when it comes to this point, which the host may have passed long before."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class Figures:
    """A step's losses and gradient norm on their way to the host, and what is known of the step besides."""

    def __init__(self, step: int, outcome: Outcome, learning_rate: float, began: Moment) -> None:
        """Start the copy; ``step`` counts from 1, ``began`` is when the step was begun."""
        self.step, self.outcome, self.learning_rate, self.began = step, outcome, learning_rate, began
        self.ready: torch.cuda.Event | None = None
        self.partly = False  # the step was taken, but for parameters whose gradients were not finite
        norm, held = outcome.grad_norm, torch.zeros(()) if outcome.held is None else outcome.held
        numbers = (outcome.losses, outcome.sigmas, norm.view(1), held.view(1))
        together = torch.cat([number.to(outcome.losses.device, torch.float32) for number in numbers])
        if together.is_cuda:
            self.numbers = torch.empty(together.shape, pin_memory=True)
            self.numbers.copy_(together, non_blocking=True)
            self.ready = torch.cuda.Event(enable_timing=True)
            self.ready.record()
        else:
            self.numbers = together

    def read(self, guard: Guard, since: float, ranks: Ranks, trained: int) -> StepResult:
        """Wait for the figures, and judge the step where the host has not done so.

        Args:
            guard: Counts steps in a row that were skipped.
            ranks: The processes of the run, which the device may wait for.
            since: When the step before was read: two steps on the device share no time.
            trained: How many parameters there are.

        Raises:
            NonFiniteError: Too many steps in a row were skipped.
            LostProcessError: Another process does not answer.
        """
        if self.ready:
            ranks.wait_for(self.ready)
        *both, grad_norm, held = self.numbers.tolist()
        losses, sigmas = both[: len(both) // 2], both[len(both) // 2 :]
        outcome = self.outcome
        if not outcome.decided:
            self.partly = bool(held) and all(map(math.isfinite, losses))
            if self.partly:
                outcome.skipped = guard.held_back(self.step, int(held), trained, outcome.names)
            else:
                outcome.skipped = guard.verdict(self.step, losses, outcome.names, grad_norm)
        means, counts = by_sigma(losses, sigmas, outcome.regularisation)
        return StepResult(
            step=self.step,
            loss=_mean(losses, outcome.regularisation, False),
            grad_norm=grad_norm,
            learning_rate=self.learning_rate,
            seconds=self._seconds(since),
            samples=len(losses),
            skipped=outcome.skipped,
            regularisation_loss=_mean(losses, outcome.regularisation, True),
            regularisation_samples=sum(outcome.regularisation),
            by_sigma=means,
            samples_by_sigma=counts,
        )

    def _seconds(self, since: float) -> float:
        """How long the step took: on a GPU by its own clock, since the host may look when several are done."""
        if isinstance(self.began, float):
            return time.perf_counter() - max(self.began, since)
        assert self.ready is not None
        return self.began.elapsed_time(self.ready) / 1000


class Unread:
    """Figures of steps that nobody has looked at yet, in order; reading tells the hooks."""

    def __init__(self, trainee: Trainee, hooks: Sequence[Hook]) -> None:
        """Nothing waits."""
        self.guard = Guard()
        self._trainee, self._hooks = trainee, hooks
        self._waiting: deque[Figures] = deque()
        self._read_at = 0.0

    def add(self, figures: Figures) -> None:
        """The newest step."""
        self._waiting.append(figures)

    def read(self, left: int) -> None:
        """Read and tell until ``left`` steps wait; what lies on the host already is read at once.

        Raises:
            NonFiniteError: Too many steps in a row were skipped, and none of those that wait was good.
        """
        while self._waiting and (len(self._waiting) > left or not self._waiting[0].ready):
            try:
                self._tell()
            except NonFiniteError:
                if not self.tell_the_rest():
                    raise

    def tell_the_rest(self) -> bool:
        """Read and tell everything; whether the last step was good."""
        self.guard = Guard()
        while self._waiting:
            self._tell()  # at most LATE steps: too few for the guard
        return self.guard.seen and not self.guard.in_a_row

    def _tell(self) -> None:
        figures = self._waiting.popleft()
        try:
            result = figures.read(self.guard, self._read_at, self._trainee.ranks, len(self._trainee.parameters))
        finally:
            self._read_at = time.perf_counter()
        if result.skipped and not figures.partly and self._trainee.ema:
            self._trainee.ema.updates -= figures.outcome.averaged  # the device left it as it was
        for hook in self._hooks:
            hook.on_step_end(result)


def _mean(losses: list[float], regularisation: list[bool], kind: bool) -> float | None:
    """Mean over one kind of samples, None without any."""
    chosen = [loss for loss, is_kept in zip(losses, regularisation, strict=True) if is_kept is kind]
    return sum(chosen) / len(chosen) if chosen else None


def by_sigma(
    losses: Sequence[float], sigmas: Sequence[float], regularisation: Sequence[bool]
) -> tuple[tuple[float | None, ...], tuple[int, ...]]:
    """Mean loss of the ordinary samples in each band of sigma, None without any, and how many they are."""
    bands: list[list[float]] = [[] for _ in range(BANDS)]
    for loss, sigma, is_kept in zip(losses, sigmas, regularisation, strict=True):
        if not is_kept:
            bands[min(int(sigma * BANDS), BANDS - 1)].append(loss)
    return tuple(sum(band) / len(band) if band else None for band in bands), tuple(map(len, bands))


def train(
    trainee: Trainee,
    recipe: Recipe,
    batches: Iterator[Batch],
    start: int,
    total: int,
    hooks: Sequence[Hook],
    should_stop: Callable[[], bool],
    agreed: Callable[[bool], bool] = bool,
) -> int:
    """Train from step ``start`` to ``total``.

    Args:
        trainee: Model and optimizer; changed in place.
        recipe: How.
        batches: Micro-batches from position ``start * accumulation`` on.
        start: Optimizer steps done already.
        total: Optimizer steps of the whole run.
        hooks: Called in order.
        should_stop: Asked after each step; True ends the run cleanly.
        agreed: Of several processes, whether any of them is to stop: all stop after the same step. Each asks it equally often.

    Returns:
        Optimizer steps done.

    Raises:
        NonFiniteError: Too many steps in a row were not finite.
        DataError: The pictures of a batch cannot be read any more.
        CacheError: Nor can what was kept of them.
        LostProcessError: Another process has ended.
    """
    figures = Unread(trainee, hooks)
    for hook in hooks:
        if should_stop():  # asked while pictures were drawn: nothing is trained yet, so there is nothing to keep
            break
        hook.on_start(start)
    trainee.transformer.train()
    step = start
    try:
        while step < total and not agreed(should_stop()):
            began = moment(trainee.device)
            outcome = one_step(trainee, recipe, batches, step, figures.guard)
            step += 1
            figures.add(Figures(step, outcome, recipe.schedule.at(step - 1), began))
            acts = any([hook.acts_at(step) for hook in hooks])  # every hook is asked: one takes requests there
            if trainee.graphs and (acts or step == total):
                trainee.ranks.wait_until_now(trainee.device)  # what follows waits as well, and hears nothing
                trainee.graphs.make_room(acting=True)
            figures.read(0 if acts or outcome.decided else LATE)
        figures.read(0)
    except (NonFiniteError, DataError, CacheError) as error:
        if not isinstance(error, NonFiniteError):  # no batch: a disk that is gone says nothing against the weights
            figures.tell_the_rest()
        if step > start:
            for hook in hooks:  # what was learned until the last good step is saved
                hook.on_stop(step, False)
        raise
    except LostProcessError:
        raise  # a device may wait for the one that has ended: nothing on it can be read
    except BaseException:
        figures.tell_the_rest()
        raise
    if step > start:
        for hook in hooks:
            hook.on_stop(step, step >= total)
    return step
