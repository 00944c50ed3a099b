"""Draws docs/densities.png: how often each sigma is trained, for every density and some shifts.

    python bench/density_picture.py

Nothing is drawn at random: an even spread of 100,000 values goes through each inverse distribution function.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from simpletuner.flow.densities import Beta, CosMap, Cubic, LogitNormal, Mode, Shape, Uniform
from simpletuner.flow.schedules import shift_sigmas

SHAPES: dict[str, Shape] = {
    "logit-normal (default)": LogitNormal(),
    "flow_sigmoid_mean 0.5": LogitNormal(0.5, 1.0),
    "flow_sigmoid_scale 2": LogitNormal(0.0, 2.0),
    "uniform": Uniform(),
    "beta 2, 2": Beta(2, 2),
    "beta 1, 2": Beta(1, 2),
    "mode 1.29": Mode(),
    "cosmap": CosMap(),
    "cubic 0, 0.1, 0.9, 1": Cubic((0.0, 0.1, 0.9, 1.0)),
}
SHIFTS = (0.1, 1.0, 3.0, 4.0)
BINS, WIDTH, HEIGHT, LABEL, PAD, TOP = 50, 200, 70, 170, 14, 26
PAPER, INK, BAR = (250, 250, 250), (30, 30, 30), (47, 93, 153)


def shares(shape: Shape, shift: float) -> list[float]:
    """Share of draws in each bin, relative to a uniform density (1 = as often)."""
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    sigmas = shift_sigmas(shape.quantile(u), shift)
    counts: list[float] = torch.histc(sigmas, bins=BINS, min=0.0, max=1.0).tolist()
    return [count * BINS / len(u) for count in counts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/densities.png"))
    arguments = parser.parse_args()
    font = ImageFont.load_default(13)
    size = (LABEL + len(SHIFTS) * (WIDTH + PAD) + PAD, TOP + len(SHAPES) * (HEIGHT + PAD) + 24)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, shift in enumerate(SHIFTS):
        draw.text((LABEL + column * (WIDTH + PAD), 5), f"shift {shift:g}", fill=INK, font=font)
    for row, (label, shape) in enumerate(SHAPES.items()):
        base = TOP + row * (HEIGHT + PAD) + HEIGHT
        draw.text((8, base - HEIGHT // 2 - 8), label, fill=INK, font=font)
        for column, shift in enumerate(SHIFTS):
            left = LABEL + column * (WIDTH + PAD)
            step = WIDTH // BINS
            for number, share in enumerate(shares(shape, shift)):
                top = base - min(HEIGHT, share * HEIGHT / 4)  # a bar of full height is trained 4 times as often
                draw.rectangle((left + number * step, top, left + (number + 1) * step - 1, base), fill=BAR)
            draw.line((left, base + 1, left + WIDTH, base + 1), fill=INK)
    bottom = TOP + len(SHAPES) * (HEIGHT + PAD)
    for column in range(len(SHIFTS)):
        left = LABEL + column * (WIDTH + PAD)
        draw.text((left, bottom - 8), "0 data", fill=INK, font=font)
        draw.text((left + WIDTH - 48, bottom - 8), "noise 1", fill=INK, font=font)
    sheet.quantize(16).save(arguments.out, format="PNG", optimize=True)


if __name__ == "__main__":
    main()
