"""The report's curves: which there are, from what a run told.

In: a run's figures. Out: HTML with SVG in it. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from simpletuner.reporting.drawing import Line, chart, short
from simpletuner.reporting.series import BAND_COLUMNS, BANDS, Series, number, smoothed, some_of

SMOOTHING = 0.95
SIGMAS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of held-out loss where a line does not say
_HALF, _THIRD = (620, 250), (420, 240)


def curves(series: Series, best: Mapping[str, Any] | None = None) -> str:
    """All curves there are figures for, as one part of the page.

    Args:
        series: The figures.
        best: The best checkpoint: its ``step`` and ``held_out_loss``.
    """
    if not series.steps and not series.evals:
        return ""
    xs, loss = series.steps, series.columns["loss"]
    keep = SMOOTHING if len(xs) > 200 else 0.85
    raw = Line("each step", xs, loss, faint=True)
    lines = [raw, *_regularisation(series, keep), Line("smoothed", xs, smoothed(loss, keep))]
    cards = [_card("Training loss", chart(lines, (1100, 330)), "wide")]
    middle: list[tuple[str, list[Line], tuple[float, float, str] | None]] = []
    own = [e for e in series.evals if e.get("kind") == "eval"]
    if own:
        star = (best["step"], best["held_out_loss"], f"best {short(best['held_out_loss'])}") if best else None
        middle.append(("Held-out loss", _held_out(series, own), star))
        middle.append(("Held-out loss by noise level", _bands(own), None))
    if trained := _trained_bands(series):
        middle.append(("Training loss by noise level", trained, None))
    kind, size = ("third", _THIRD) if len(middle) == 3 else ("", _HALF)
    cards += [_card(title, chart(lines, size, star), kind) for title, lines, star in middle]
    for title, column in (
        ("Learning rate", "learning_rate"),
        ("Gradient norm", "grad_norm"),
        ("Pictures a second", "speed"),
    ):
        cards.append(_card(title, chart([Line("", xs, series.columns[column])], _THIRD), "third"))
    return f'<h2>Figures</h2><div class="charts">{"".join(cards)}</div>'


def _card(title: str, body: str, kind: str) -> str:
    return f'<section class="card {kind}"><h3>{escape(title)}</h3>{body}</section>'


def _regularisation(series: Series, keep: float) -> list[Line]:
    """The loss of what keeps the model as it was, smoothed; nothing where no step had such samples."""
    values = series.columns["regularisation_loss"]
    if not any(map(math.isfinite, values)):
        return []
    return [Line("regularisation, smoothed", series.steps, smoothed(values, keep), "c2", dashed=True)]


def _held_out(series: Series, own: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Of the weights that are exported on top; live ones and single datasets behind."""
    xs = [e["step"] for e in own]
    lines = []
    last = own[-1].get("by_dataset")
    for i, name in enumerate(last if isinstance(last, dict) else ()):
        ys = [number(e["by_dataset"].get(name)) if isinstance(e.get("by_dataset"), dict) else math.nan for e in own]
        lines.append(Line(str(name), xs, ys, f"b{i % 5 + 1}", dashed=True))
    live = [e for e in series.evals if e.get("kind") == "eval_live"]
    if live:
        ys = [number(e.get("loss")) for e in live]
        lines.append(Line("live weights", [e["step"] for e in live], ys, "c2", dashed=True))
    label = "EMA weights" if live else "held-out loss"
    return [*lines, Line(label, xs, [number(e.get("loss")) for e in own], dots=len(xs) < 60)]


def _bands(evals: Sequence[Mapping[str, Any]]) -> list[Line]:
    told = [e for e in evals if isinstance(e.get("by_sigma"), list) and e["by_sigma"]]
    if not told:
        return []
    count = min(len(e["by_sigma"]) for e in told)
    sigmas = told[0]["sigmas"] if isinstance(told[0].get("sigmas"), list) else SIGMAS
    xs = [e["step"] for e in told]
    lines = []
    for place, i in enumerate(some_of(count)):
        name = short(number(sigmas[i])) if i < len(sigmas) else str(i + 1)
        ys = [number(e["by_sigma"][i]) for e in told]
        lines.append(Line(f"σ {name}", xs, ys, f"b{place + 1}", dots=len(xs) < 60))
    return lines


def _trained_bands(series: Series) -> list[Line]:
    """Smoothed: one step has few pictures in each band."""
    lines = []
    for i, name in enumerate(BAND_COLUMNS):
        values = series.columns[name]
        if any(math.isfinite(v) for v in values):
            label = f"σ {i / BANDS:.1f}–{(i + 1) / BANDS:.1f}"
            lines.append(Line(label, series.steps, smoothed(values, SMOOTHING), f"b{i + 1}"))
    return lines
