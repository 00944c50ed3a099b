"""Curves as SVG: no script, no request, sharp on paper.

In: numbers. Out: one ``<svg>`` whose colours come from the page's classes. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from simpletuner.reporting.series import thinned

MOST_POINTS = 1200  # of one curve; more cannot be told apart
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 14, 14, 28


@dataclass(frozen=True, slots=True)
class Line:
    """One curve.

    Attributes:
        label: Its name in the legend; "" stands in no legend.
        xs: Steps, rising.
        ys: Values; NaN is bridged.
        style: Class of its colour: ``c1``, ``c2``… or ``b1``… ``b5`` for noise levels.
        faint: Thin and pale, for the raw figures behind a smoothed curve.
        dashed: Dashed.
        dots: Whether each point is marked, with its value when pointed at.
    """

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    style: str = "c1"
    faint: bool = False
    dashed: bool = False
    dots: bool = False


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that lie in [low, high], about so many: 1, 2 or 5 times a power of ten apart.

    Args:
        low: Finite.
        high: Finite and above ``low``.
        about: At least 1.
    """
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(k * step, 12) + 0.0 for k in range(first, last + 1)]


def short(value: float) -> str:
    """A number as a person reads it: four digits at most."""
    if not math.isfinite(value):
        return "–"
    if value and not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    text = f"{value:.4g}"
    return f"{float(text):,.0f}" if "e" in text or abs(value) >= 10_000 else text


def _finite(lines: Sequence[Line]) -> tuple[list[float], list[float]]:
    pairs = [(x, y) for line in lines for x, y in zip(line.xs, line.ys, strict=True) if math.isfinite(y)]
    return [float(x) for x, _ in pairs], [float(y) for _, y in pairs]


def chart(
    lines: Sequence[Line], size: tuple[int, int] = (620, 250), star: tuple[float, float, str] | None = None
) -> str:
    """The curves with axes; a sentence where there is nothing to draw.

    Args:
        lines: Drawn in order, the last on top.
        size: Width and height of the drawing; it is scaled to its place.
        star: (x, y, words) of a point to mark.
    """
    xs, ys = _finite(lines)
    if not xs:
        return '<p class="soft nothing">No figures</p>'
    width, height = size
    x_low, x_high = min(xs), max(xs)
    x_high += 1.0 if x_high == x_low else 0.0
    y_low, y_high = _y_range(ys)

    def at(x: float, y: float) -> tuple[float, float]:
        right = _LEFT + (x - x_low) / (x_high - x_low) * (width - _LEFT - _RIGHT)
        down = height - _BOTTOM - (min(y, y_high) - y_low) / (y_high - y_low) * (height - _TOP - _BOTTOM)
        return round(right, 1), round(down, 1)

    parts = []
    for tick in nice_ticks(y_low, y_high):
        _, y = at(x_low, tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {y}H{width - _RIGHT}"/>')
        parts.append(f'<text class="tick end" x="{_LEFT - 8}" y="{y + 3.5}">{short(tick)}</text>')
    for tick in nice_ticks(x_low, x_high, 6):
        x, _ = at(tick, y_low)
        parts.append(f'<text class="tick mid" x="{x}" y="{height - 8}">{short(tick)}</text>')
    parts += [_curve(line, at) for line in lines]
    if star:
        x, y = at(star[0], star[1])
        side, shift = ("end", -11) if x > width * 0.7 else ("", 11)
        parts.append(f'<circle class="star" cx="{x}" cy="{y}" r="5.5"/>')
        parts.append(f'<text class="word {side}" x="{x + shift}" y="{max(y - 8, 11)}">{escape(star[2])}</text>')
    named = [line for line in lines if line.label]
    legend = ""
    if len(named) > 1:
        marks = "".join(
            f'<span class="{line.style}{" dash" if line.dashed else ""}{" pale" if line.faint else ""}"><i></i>{escape(line.label)}</span>'
            for line in named
        )
        legend = f'<div class="legend">{marks}</div>'
    return f'{legend}<svg viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'


def _y_range(ys: Sequence[float]) -> tuple[float, float]:
    """With some air; a few wild values must not press the rest flat."""
    low, high = min(ys), max(ys)
    if len(ys) > 50:
        high = min(high, float(np.quantile(np.asarray(ys), 0.995)) * 1.25 if high > 0 else high)
    if high <= low:
        return (low - abs(low) * 0.5 - 1e-12, low + abs(low) * 0.5 + 1e-12) if low else (-1.0, 1.0)
    air = (high - low) * 0.06
    return (max(0.0, low - air) if low >= 0 else low - air), high + air


def _curve(line: Line, at: object) -> str:
    known = [(float(x), float(y)) for x, y in zip(line.xs, line.ys, strict=True) if math.isfinite(y)]
    if not known:
        return ""
    chosen = thinned(np.asarray([y for _, y in known]), MOST_POINTS)
    points = [(at(*known[i]), known[i]) for i in chosen]  # type: ignore[operator]
    path = "M" + "L".join(f"{x} {y}" for (x, y), _ in points)
    kind = f"line {line.style}{' faint' if line.faint else ''}{' dashed' if line.dashed else ''}"
    dots = ""
    if line.dots or len(points) == 1:
        dots = "".join(
            f'<circle class="dot {line.style}" cx="{x}" cy="{y}" r="3"><title>step {short(step)}: {short(value)}</title></circle>'
            for (x, y), (step, value) in points
        )
    return f'<path class="{kind}" d="{path}"/>{dots}'
