"""Scores of what validation has drawn: written, printed in a line, and never a reason to stop.

In: pictures on disk. Out: ``score`` lines in metrics.jsonl. ``make_judging`` belongs to the composition root.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from simpletuner.data.encode import PlacedSample, decoding_threads
from simpletuner.data.images import cut
from simpletuner.errors import ImageError, TunerError
from simpletuner.evaluation import scores
from simpletuner.evaluation.clip_score import ClipScorer
from simpletuner.evaluation.scores import Drawn, Judge, Reference
from simpletuner.reporting.metrics import MetricsFile
from simpletuner.reporting.progress import Reporter
from simpletuner.training import prepare
from simpletuner.training.interrupt import GivenUp
from simpletuner.training.session import Session

LOOKED_AT = 512  # training pictures, evenly chosen where there are more


@dataclass(frozen=True, slots=True)
class Judging:
    """Scores pictures and tells; ``go_on`` raises GivenUp once the run is to stop.

    What a score means is said once: ``explained`` are the kinds of which it was.
    """

    judge: Judge
    metrics: MetricsFile
    reporter: Reporter
    go_on: Callable[[], None] = lambda: None
    explained: set[str] = field(default_factory=set)

    def __call__(self, step: int, label: str, pictures: Sequence[Drawn]) -> None:
        """Score the pictures of one step and label. Failing costs the scores and nothing else; it is said.

        Args:
            step: Optimizer steps done.
            label: ``ema`` or the like, or empty.
            pictures: On disk.
        """
        if not pictures:
            return
        try:
            found = self.judge.score(pictures, self.go_on)
        except GivenUp:
            self.reporter.say(f"step {step}: the pictures are not scored, as the run is to stop")
            return
        except (TunerError, OSError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            self.reporter.say(f"WARNING: step {step}: the pictures could not be scored: {reason}. Training goes on.")
            return
        for score in found:
            self.metrics.write("score", {"step": step, "label": label, **score.line()})
        for name, figures in scores.summaries(found).items():
            self.metrics.write("score", {"step": step, "label": label, "nickname": None, "name": name, **figures})
        if found:
            which = f" ({label})" if label else ""
            told = scores.sentence(found, self.judge.reference, self.explained)
            self.explained.update(score.name for score in found)
            self.reporter.say(f"step {step}{which}: {told}")
        again = scores.memorised(found)
        if again:
            self.reporter.say(f"step {step}: {again}: the model repeats what it was shown")


def load_clip(session: Session) -> ClipScorer | None:
    """The CLIP, if one is wanted; before anything else takes time, so that a wrong path is told at once.

    Raises:
        ModelError: It cannot be loaded.
    """
    options = session.config.options.previews
    if options.evaluation_type == "none" or not session.draws:
        return None
    clip = ClipScorer(options.pretrained_evaluation_model_name_or_path)
    session.reporter.say(f"CLIP scores, 0 to 100, by {options.pretrained_evaluation_model_name_or_path}")
    for nickname, prompt in session.config.prompts:
        if (tokens := clip.tokens(prompt)) > clip.longest:
            session.reporter.say(
                f"CLIP reads {clip.longest} tokens: of the prompt {nickname!r} ({tokens}) the end does not count for its "
                "score"
            )
    return clip


def make_judging(session: Session, clip: ClipScorer | None, training: Sequence[prepare.Found]) -> Judging:
    """Ready to score."""
    placed = [p for item in training for p in item.placed]

    def read() -> Reference | None:
        chosen = placed[:: -(-len(placed) // LOOKED_AT) or 1]
        return Reference.gather(_pixels(chosen, session), len(placed))

    return Judging(Judge(read, clip and clip.on(session.device)), session.metrics, session.reporter, session.go_on)


def _pixels(chosen: Sequence[PlacedSample], session: Session) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and pixels of training pictures, as training sees them; what cannot be read was told before."""
    with decoding_threads("scores") as pool:
        groups = [chosen[start : start + 32] for start in range(0, len(chosen), 32)]
        for group in session.reporter.track("Reading training pictures for scores", groups):
            session.go_on()
            jobs = [(p, pool.submit(cut, p.sample.path, p.placement)) for p in group]
            for placed, job in jobs:
                try:
                    yield placed.sample.path.name, job.result()
                except ImageError:
                    continue
