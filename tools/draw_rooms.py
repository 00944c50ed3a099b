"""Draw docs/img/rooms-light.svg and rooms-dark.svg: the eight rooms through which a picture becomes a gradient.

    python tools/draw_rooms.py

Plain SVG without scripts or fonts of its own; the two differ in their colours alone.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from html import escape
from pathlib import Path

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "img"
WIDTH, HEIGHT = 1240, 700
ROOM_W, ROOM_H = 220, 132
COLUMNS = (54, 358, 662, 966)
ONCE_Y, STEP_Y = 176, 404
ROOMS = (
    ("1", "Find", "data/discover, captions", "every file is a Sample,", "or named with its reason"),
    ("2", "Place", "data/placement", "a bucket and a crop:", "whole numbers, no pixels"),
    ("3", "Cut", "data/images", "decode, turn, resize, crop", "to pixels in [-1, 1]"),
    ("4", "Encode and keep", "data/encode, cache", "latents and text embeds,", "on disk by content"),
    ("5", "Draw", "data/sampler, loader", "the batch at place k", "of one endless plan"),
    ("6", "Noise", "flow/", "sigmas, noisy latents,", "target = noise - latents"),
    ("7", "Score", "models/, flow/losses", "the model's velocity", "beside the target"),
    ("8", "Step", "training/loop, step", "gradient, clip, optimizer,", "schedule: a StepResult"),
)
COLOURS: Mapping[str, Mapping[str, str]] = {
    "light": dict(ground="#ffffff", text="#1f2430", faint="#5d6577", line="#8b93a7", once="#eef2ff", once_edge="#6573c3",
                  step="#fff3ec", step_edge="#e0703a", side="#f4f5f8", side_edge="#b9bfcd", band="#fafbff"),
    "dark": dict(ground="#1e2129", text="#e8eaf0", faint="#a3abbd", line="#7d869a", once="#283053", once_edge="#8c9eff",
                 step="#41302a", step_edge="#ff9e6b", side="#2a2e39", side_edge="#565e70", band="#23262f"),
}  # fmt: skip


def words(x: float, y: float, text: str, style: str, anchor: str = "start") -> str:
    """One line of text."""
    return f'<text x="{x:g}" y="{y:g}" class="{style}" text-anchor="{anchor}">{escape(text)}</text>'


def box(x: float, y: float, width: float, height: float, style: str) -> str:
    """A rounded box."""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="12" class="{style}"/>'


def arrow(path: str, style: str = "arrow") -> str:
    """A line with a head at its end."""
    return f'<path d="{path}" class="{style}" marker-end="url(#head)"/>'


def room(index: int) -> list[str]:
    """One of the eight."""
    number, name, where, first, second = ROOMS[index]
    x, y, kind = COLUMNS[index % 4], ONCE_Y if index < 4 else STEP_Y, "once" if index < 4 else "step"
    return [
        box(x, y, ROOM_W, ROOM_H, kind),
        f'<circle cx="{x + 27}" cy="{y + 29}" r="14" class="{kind}-dot"/>',
        words(x + 27, y + 34, number, "number", "middle"),
        words(x + 50, y + 35, name, "name"),
        words(x + 16, y + 66, first, "what"),
        words(x + 16, y + 86, second, "what"),
        words(x + 16, y + 116, where, "where"),
    ]


def between(row: int, labels: tuple[str, str, str]) -> list[str]:
    """Arrows from room to room, and what passes there."""
    y = (ONCE_Y if row == 0 else STEP_Y) + ROOM_H / 2
    parts = []
    for left, label in zip(COLUMNS, labels, strict=False):
        start = left + ROOM_W
        parts += [arrow(f"M{start + 8} {y} H{start + 76}"), words(start + 42, y - 10, label, "pass", "middle")]
    return parts


def drawing(scheme: str) -> str:
    """The whole SVG in one of the colour schemes."""
    c = COLOURS[scheme]
    style = f"""
text {{ font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; fill: {c["text"]}; }}
.title {{ font-size: 17px; font-weight: 600; }} .name {{ font-size: 16px; font-weight: 650; }}
.what {{ font-size: 14px; }} .where {{ font-size: 12.5px; fill: {c["faint"]}; font-family: ui-monospace, Menlo, Consolas, monospace; }}
.pass {{ font-size: 12.5px; fill: {c["faint"]}; }} .note {{ font-size: 14px; fill: {c["faint"]}; }}
.number {{ font-size: 15px; font-weight: 700; fill: {c["ground"]}; }}
.once {{ fill: {c["once"]}; stroke: {c["once_edge"]}; stroke-width: 1.5; }} .once-dot {{ fill: {c["once_edge"]}; }}
.step {{ fill: {c["step"]}; stroke: {c["step_edge"]}; stroke-width: 1.5; }} .step-dot {{ fill: {c["step_edge"]}; }}
.side {{ fill: {c["side"]}; stroke: {c["side_edge"]}; stroke-width: 1.2; }} .band {{ fill: {c["band"]}; }}
.arrow {{ fill: none; stroke: {c["line"]}; stroke-width: 2; }} .told {{ fill: none; stroke: {c["line"]}; stroke-width: 1.6; stroke-dasharray: 5 5; }}
.ground {{ fill: {c["ground"]}; }}"""
    last, middle = COLUMNS[3] + ROOM_W / 2, (ONCE_Y + ROOM_H + STEP_Y) / 2
    bottom = STEP_Y + ROOM_H
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-label="Eight rooms, from a picture on disk to an optimizer step">',
        f"<style>{style}</style>",
        f'<defs><marker id="head" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 L10 5 L0 10 z" fill="{c["line"]}"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="14" class="ground"/>',
        box(54, 28, 1132, 76, "side"),
        words(74, 58, "config → training/run: the door", "title"),
        words(74, 84, "Files, environment and command line become checked options; they stop here. Below, everybody gets plain "
              "values.", "note"),
        box(30, 122, 1180, 208, "band"),
        words(54, 154, "Once: pictures and captions to disk", "title"),
        box(30, 350, 1180, 226, "band"),
        words(54, 384, "Every step: one loop for full rank, LoRA, LoKr and rollout", "title"),
        *[line for index in range(8) for line in room(index)],
        *between(0, ("Sample", "Placement", "pixels")),
        *between(1, ("Batch", "NoisedBatch", "loss")),
        # from the cache to the loop, round the row's title
        arrow(f"M{last} {ONCE_Y + ROOM_H + 6} V{middle} H42 V{STEP_Y + 66} H{COLUMNS[0] - 4}"),
        # the next step
        arrow(f"M{last} {bottom + 6} V{bottom + 24} H{COLUMNS[0] + ROOM_W / 2} V{bottom + 8}"),
        words((last + COLUMNS[0] + ROOM_W / 2) / 2, bottom + 18, "next step", "pass", "middle"),
        box(54, 602, 552, 72, "side"),
        words(74, 632, "Hooks act", "title"),
        words(74, 656, "EMA, held-out loss, validation pictures, checkpoints", "note"),
        box(634, 602, 552, 72, "side"),
        words(654, 632, "Listeners are told", "title"),
        words(654, 656, "screen, files, trackers, webhooks; they cannot stop a run", "note"),
        "</svg>",
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


def main() -> int:
    """Write both."""
    for scheme in COLOURS:
        (IMAGES / f"rooms-{scheme}.svg").write_text(drawing(scheme), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
