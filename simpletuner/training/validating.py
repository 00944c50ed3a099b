"""The hook that draws validation pictures: when, with which weights, and what is told of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copyfile
from typing import Any

import torch

from simpletuner.evaluation import history
from simpletuner.evaluation.grid import grid
from simpletuner.evaluation.pictures import BASE, Key, Picture, in_turn
from simpletuner.evaluation.validation import Failure, Rendering, Validator
from simpletuner.models.adapters import Adapter
from simpletuner.reporting.events import Notification, PromptValidated
from simpletuner.reporting.metrics import MetricsFile
from simpletuner.reporting.progress import Reporter
from simpletuner.reporting.stages import Stages
from simpletuner.training.ema import Ema
from simpletuner.training.interval import Interval
from simpletuner.training.loop import StepResult
from simpletuner.training.optimizers import evaluation_weights
from simpletuner.wording import counted

# Tiles are no advice: where they can be had, the picture was tried in them.
MEMORY = "lower validation_resolution or validation_batch_size; training itself needs no more than before"
SMALLER = (
    "memory was too short for a picture as a whole; pictures are decoded in overlapping tiles from now on, which gives nearly "
    "the same (vae_enable_tiling does so from the start)"
)


@dataclass(frozen=True, slots=True)
class Shown:
    """Which weights pictures are drawn with.

    Attributes:
        ema: The EMA, if any.
        mode: ``none`` live weights only, ``ema_only``, or ``comparison`` for both.
        adapter: The adapter, if one is trained; it is off in the base model's pictures.
        strength: Of the adapter where it acts and a prompt has no strength of its own.
        optimizer: Whose weights for use are drawn, where they differ from those it trains.
        continued: Whether the adapter goes on from a file, and so acts in the first pictures as well.
        benchmark: Whether the base model's own pictures are kept beside the later ones.
    """

    ema: Ema | None = None
    mode: str = "comparison"
    adapter: Adapter | None = None
    strength: float = 1.0
    optimizer: torch.optim.Optimizer | None = None
    continued: bool = False
    benchmark: bool = True

    def labels(self, step: int) -> list[str]:
        """Labels drawn at this step: "" for live weights, ``ema``, and ``base`` where step 0 is not the base model."""
        if step == 0:
            return [BASE, ""] if self.benchmark and self.continued else [""]
        if self.ema is None or self.mode == "none":
            return [""]
        return ["ema"] if self.mode == "ema_only" else ["", "ema"]

    def weights(self, label: str) -> AbstractContextManager[object]:
        """The label's weights, inside."""
        if label == "ema" and self.ema:
            return self.ema.applied()
        return evaluation_weights(self.optimizer) if self.optimizer else nullcontext()

    def adapted(self, step: int, label: str, own: float | None) -> AbstractContextManager[object]:
        """The adapter at its strength, or off in the base model's pictures."""
        if self.adapter is None:
            return nullcontext()
        if label == BASE or not (step or self.continued):
            return self.adapter.disabled()
        return self.adapter.scaled(self.strength if own is None else own)


class _Prompts:
    """Which prompts of one rendering are finished: every picture is told, and every prompt once."""

    def __init__(
        self,
        pictures: Sequence[Picture],
        picture_finished: Callable[[Picture], None],
        prompt_finished: Callable[[list[Picture]], None],
    ) -> None:
        self._waiting = Counter(picture.nickname for picture in pictures)
        self._drawn: dict[str, list[Picture]] = {}
        self._picture_finished, self._prompt_finished = picture_finished, prompt_finished

    def tell(self, picture: Picture, failure: Failure | None) -> None:
        """One picture is on disk, or could not be drawn."""
        if failure is None:
            self._picture_finished(picture)
            self._drawn.setdefault(picture.nickname, []).append(picture)
        self._waiting[picture.nickname] -= 1
        if not self._waiting[picture.nickname] and picture.nickname in self._drawn:
            self._prompt_finished(self._drawn.pop(picture.nickname))

    def end(self) -> None:
        """Time was up: what is drawn of other prompts is all there will be."""
        for pictures in self._drawn.values():
            self._prompt_finished(pictures)


@dataclass(slots=True)
class ValidationPictures:
    """Pictures before, on the interval and after; grids of them; a line in the metrics file for each.

    Attributes:
        interval: When, besides before and after.
        on_startup: Whether to draw before the first step.
        validator: Draws.
        shown: With which weights.
        output_dir: Where grids go.
        metrics: Where a line for each picture goes.
        stages: Told of every prompt that is drawn, and of what could not be.
        judging: Scores what was drawn: (step, label, pictures).
        stop: Whether the run is to stop: then no further picture is drawn, and none is scored.
        last: The run's last step, after which nothing is drawn.
    """

    interval: Interval
    on_startup: bool
    validator: Validator
    shown: Shown
    output_dir: Path
    metrics: MetricsFile
    reporter: Reporter
    stages: Stages = field(default_factory=Stages)
    judging: Callable[[int, str, Sequence[Picture]], None] | None = None
    stop: Callable[[], bool] = lambda: False
    last: int | None = None
    drawn_at: int = -1
    _tried: dict[Key, int] = field(default_factory=dict)

    def on_start(self, step: int) -> None:
        """The pictures of what training starts from, once; a resumed run knows what was drawn before."""
        for line in self.metrics.read("picture") if step else []:
            if line["step"] <= step:
                self._tried[line["nickname"], line["width"], line["height"], line["index"]] = line["step"]
        if step == 0 and self.on_startup:
            self._draw(0)

    def acts_at(self, step: int) -> bool:
        """On the interval."""
        return self.interval.due(step)

    def on_step_end(self, result: StepResult) -> None:
        """Draw on the interval."""
        if self.acts_at(result.step):
            self._draw(result.step)

    def on_stop(self, step: int, finished: bool) -> None:
        """Draw the end; not when stopped on the way."""
        if finished and step and step != self.drawn_at:
            self._draw(step)

    def now(self, step: int) -> None:
        """Draw, unless this step is drawn."""
        if step != self.drawn_at:
            self._draw(step)

    def _draw(self, step: int) -> None:
        key, what = ("validation", f"Validation at step {step}") if step else ("benchmark_base_model", "The base model")
        with self.stages.stage(key, what):
            self._draw_all(step)

    def _draw_all(self, step: int) -> None:
        labels = self.shown.labels(step)
        done: dict[str, Rendering] = {}
        budget = self.validator.settings.time_budget
        wanted = in_turn(self.validator.expected(step, labels[0]), self._tried)
        with self.reporter.bar(f"Validation at step {step}", len(wanted) * len(labels)) as bar:
            for label in labels:
                if done:  # the same pictures with other weights: what the first took is what this takes
                    keys = {p.key for p in wanted} - {p.key for p in done[labels[0]].left}
                    chosen = [p for p in in_turn(self.validator.expected(step, label), self._tried) if p.key in keys]
                else:
                    chosen = wanted
                prompts = _Prompts(chosen, self._finished, self._prompt_finished)

                def told(picture: Picture, failure: Failure | None, prompts: _Prompts = prompts) -> None:
                    bar.advance(1)
                    prompts.tell(picture, failure)

                with self.shown.weights(label):
                    done[label] = self.validator.render(
                        chosen,
                        told,
                        None if done or budget is None else budget / len(labels),
                        lambda own, label=label: self.shown.adapted(step, label, own),  # type: ignore[misc]
                        self.stop,
                    )
                prompts.end()
        self.drawn_at = step
        first = done[labels[0]]
        for picture in wanted[: len(wanted) - len(first.left)]:
            self._tried[picture.key] = step
        self._tell(step, list(done.values()))
        whole = {label: rendering for label, rendering in done.items() if not rendering.stopped}
        shown = whole or {labels[0]: first}
        drawn = {picture.key for rendering in shown.values() for picture in rendering.drawn}
        if drawn:
            with self._going_on(step, "a sheet of the pictures"):
                self._grids(step, drawn, list(shown), whole=len(whole) == len(labels))
        if self.judging:
            for label, rendering in done.items():
                self.judging(step, label, rendering.drawn)

    def _finished(self, picture: Picture) -> None:
        """One picture is on disk."""
        self.metrics.write("picture", picture.line(self.output_dir))
        if picture.step == 0 and not picture.label and self.shown.benchmark and not self.shown.continued:
            kept = self._base(picture)
            with self._going_on(picture.step, "the base model's picture"):
                kept.parent.mkdir(parents=True, exist_ok=True)
                copyfile(picture.path, kept)

    @contextmanager
    def _going_on(self, step: int, what: str) -> Iterator[None]:
        """A disk that is full, or a picture that is damaged, costs what was to be written and not the run."""
        try:
            yield
        except OSError as error:
            sentence = f"step {step}: {what} could not be written: {error.strerror or error}; training goes on"
            self.reporter.say(f"WARNING: {sentence}")
            self.stages.emit(Notification(title="Validation", message=sentence, severity="error"))

    def _prompt_finished(self, pictures: list[Picture]) -> None:
        """All pictures of one prompt with one kind of weights are on disk."""
        first = pictures[0]
        whose = {"ema": " (EMA weights)", BASE: " (base model)"}.get(first.label, "")
        self.stages.emit(
            PromptValidated(
                message=f"Validation: {first.nickname}{whose}, step {first.step}",
                step=first.step,
                nickname=first.nickname,
                prompt=first.prompt,
                label=first.label,
                pictures=tuple(picture.path for picture in pictures),
            )
        )

    def _base(self, picture: Picture) -> Path:
        """Where the base model's picture of the same prompt, size and index is kept."""
        return next(p.path for p in self.validator.expected(0, BASE) if p.key == picture.key)

    def _tell(self, step: int, renderings: list[Rendering]) -> None:
        """What could not be drawn and why, each reason once; and what is left for the next time."""
        failures = [failure for rendering in renderings for failure in rendering.failed]
        drawn = sum(len(rendering.drawn) for rendering in renderings)
        for reason, times in Counter(failure.reason for failure in failures).items():
            example = next(failure for failure in failures if failure.reason == reason)
            advice = f" What to do: {MEMORY}." if example.out_of_memory else ""
            sentence = (
                f"step {step}: {counted(times, 'validation picture')} could not be drawn "
                f"({example.picture.nickname!r} at {example.picture.size}, …): {reason}. {drawn} were; training goes on."
                f"{advice}"
            )
            self.reporter.say(f"WARNING: {sentence}")
            self.stages.emit(Notification(title="Validation", message=sentence, severity="error"))
        if any(rendering.smaller for rendering in renderings):
            self.reporter.say(f"Note: step {step}: {SMALLER}")
        left = renderings[0].left
        undrawn = sum(len(rendering.left) for rendering in renderings if rendering.stopped)
        if undrawn:
            then = "; the next validation begins with them" if left else ""
            then = (
                "; this was the last step, so the model is exported and there is no other validation"
                if step == self.last
                else then
            )
            self.reporter.say(f"step {step}: {counted(undrawn, 'picture')} left undrawn, as the run is to stop{then}")
        elif left:
            names = list(dict.fromkeys(picture.nickname for picture in left))
            listed = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
            self.reporter.say(
                f"step {step}: validation_time_budget left {counted(len(left), 'picture')} for the next time, first of "
                f"all then: {listed}"
            )

    def _grids(self, step: int, drawn: set[Key], labels: Sequence[str], whole: bool) -> None:
        """This step's sheet, before and after, and each prompt over time; of what was drawn at this step.

        Where the run is to stop they may not be ``whole``: then a before and after that is there is kept.
        """

        def now(at: int, label: str = "") -> list[Picture]:
            return [picture for picture in self.validator.expected(at, label) if picture.key in drawn]

        rows: list[tuple[str, list[Path | None]]] = []
        before = [picture.path if picture.path.is_file() else None for picture in now(0)]
        if step and any(before):
            rows.append(("before", before))
        for label in labels:
            name = {"ema": f"step {step} EMA", BASE: "base model"}.get(label, f"step {step}")
            rows.append((name, [picture.path for picture in now(step, label)]))
        captions = [p.prompt or "no prompt" for p in now(step)]
        sizes = [str(p.size) for p in now(step)]
        grid(rows, captions, now(step)[0].path.with_name(f"step_{step}_grid.png"), notes=sizes)
        both = self.output_dir / "before_after.png"
        if step and any(before) and (whole or not both.is_file()):
            grid([rows[0], rows[-1]], captions, both, notes=sizes)
        lines: dict[str, list[dict[str, Any]]] = {}
        for line in self.metrics.read("picture"):
            lines.setdefault(line["nickname"], []).append(line)
        nicknames = {nickname for nickname, *_ in drawn}
        for nickname, prompt in self.validator.settings.prompts:
            if nickname in nicknames:
                over, columns = history.over_time(lines[nickname], self.output_dir, step)
                out = self.output_dir / "grids" / f"{self.validator.names[nickname]}.png"
                grid(over, columns, out, prompt or "no prompt", history.CELL)
