"""What a person sees while it runs: bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TextIO, TypeVar, cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from simpletuner.errors import printable
from simpletuner.reporting.screen import Screen
from simpletuner.reporting.stages import Stages
from simpletuner.reporting.wrapping import wrapped

PLAIN_INTERVAL_S = 10.0
Item = TypeVar("Item")


class Bar(Protocol):
    """One bar."""

    def advance(self, count: int, note: str = "") -> None:
        """Move by ``count`` and show ``note`` behind the bar."""


class _RichBar:
    def __init__(self, progress: Progress, task: object) -> None:
        self._progress, self._task = progress, task

    def advance(self, count: int, note: str = "") -> None:
        self._progress.update(self._task, advance=count, note=note)  # type: ignore[arg-type]


class _PlainBar:
    """A line every ten seconds and at the end; none for what took less than ``quiet_s`` seconds."""

    def __init__(self, console: Console, label: str, total: int, done: int, quiet_s: float = 0.0) -> None:
        self._quiet_s = quiet_s
        self._console, self._label, self._total, self._done = console, label, total, done
        self._last = self._began = time.monotonic()
        self._steady: tuple[float, int] | None = None  # the first move is over: it compiles, loads and warms up

    def advance(self, count: int, note: str = "") -> None:
        self._done += count
        now = time.monotonic()
        self._steady = self._steady or (now, self._done)
        finished = self._done >= self._total and now - self._began >= self._quiet_s
        if finished or now - self._last >= PLAIN_INTERVAL_S:
            self._last = now
            text = f"{self._label} {self._done}/{self._total} ({self._times(now)}) {note}".rstrip()
            self._console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def _times(self, now: float) -> str:
        """How long it took, and about how long the rest takes at the pace since the first move."""
        since, before = self._steady or (now, self._done)
        left, made = self._total - self._done, self._done - before
        about = (now - since) / made * left if made > 0 else 0.0
        ahead = f", about {about:.0f} s left" if about < 120 else f", about {about / 60:.0f} min left"
        return f"{now - self._began:.0f} s{ahead if left > 0 and made > 0 else ''}"


class _MirroredBar:
    """A bar whose moves somebody else hears of as well."""

    def __init__(self, shown: Bar, mirror: Callable[[int], None]) -> None:
        self._shown, self._mirror = shown, mirror

    def advance(self, count: int, note: str = "") -> None:
        self._shown.advance(count, note)
        self._mirror(count)


class _Times(ProgressColumn):
    """How long it has taken, and how long it will; of what is finished the first alone."""

    max_refresh = 0.5  # seconds; faster it would flicker

    def __init__(self) -> None:
        """From the library's own two columns."""
        super().__init__(Column(no_wrap=True))
        self._taken, self._left = TimeElapsedColumn(), TimeRemainingColumn()

    def render(self, task: Task) -> Text:
        """``in 0:01:02`` and, while it goes on, ``0:03:04 left``."""
        taken = Text.assemble("in ", self._taken.render(task))
        return taken if task.finished else Text.assemble(taken, "  ", self._left.render(task), " left")


def standard_output() -> Console:
    """A console on standard output that outlives its readers; a width of 0, as COLUMNS has it in some shells, is none."""
    console = Console(file=cast(TextIO, Screen(sys.stdout)) if sys.stdout else None)  # closed from the start: None
    if not console.width:
        console.width = 80
    return console


class Reporter:
    """Bars and sentences on one console."""

    def __init__(self, console: Console | None = None) -> None:
        """Print on ``console`` (standard output by default)."""
        self.console = console or standard_output()
        self._stages: Stages | None = None

    def tell(self, stages: Stages | None) -> None:
        """From now on ``stages`` hears of every sentence, and of every bar inside a phase; None ends that."""
        self._stages = stages

    def say(self, text: str = "", whole: bool = False) -> None:
        """Print a sentence: in captions and file names no markup, emoji (``:dog:``) or command to the terminal is read.

        Args:
            text: One or more lines. A terminal gets them broken between words; a file or a pipe as they are.
            whole: Leave the lines as they are there too: code that is to be copied.
        """
        shown = printable(text)
        if self.console.is_terminal and not whole:
            shown = wrapped(shown, self.console.width)
        self.console.print(shown, markup=False, emoji=False, highlight=False, soft_wrap=True)
        if self._stages:
            self._stages.line(text)

    @contextmanager
    def bar(self, label: str, total: int, done: int = 0, quiet_s: float = 0.0) -> Iterator[Bar]:
        """A bar of ``total`` units, ``done`` of them behind us already.

        Without a terminal, work of less than ``quiet_s`` seconds leaves no line.
        """
        mirror = self._stages.progress(label, total, done) if self._stages else None
        with self._shown(label, total, done, quiet_s) as bar:
            yield _MirroredBar(bar, mirror.advance) if mirror else bar

    @contextmanager
    def _shown(self, label: str, total: int, done: int, quiet_s: float) -> Iterator[Bar]:
        if not self.console.is_terminal:
            yield _PlainBar(self.console, label, total, done, quiet_s)
            return
        columns = (
            TextColumn("{task.description}", markup=False),  # the id of a dataset in brackets is no markup
            BarColumn(bar_width=30 if self.console.width >= 130 else 10),
            MofNCompleteColumn(),
            _Times(),
            # In a narrow terminal the note goes on in a second line, and nothing else is cut for it.
            TextColumn("{task.fields[note]}", markup=False, table_column=Column(no_wrap=False)),
        )
        with Progress(*columns, console=self.console) as progress:
            yield _RichBar(progress, progress.add_task(label, total=total, completed=done, note=""))

    def track(self, label: str, items: Sequence[Item]) -> Iterator[Item]:
        """The items one by one, with a bar."""
        with self.bar(label, len(items), quiet_s=1.0) as bar:
            for item in items:
                yield item
                bar.advance(1)
