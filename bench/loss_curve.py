"""Draws docs/loss_curve.png: the course of the loss on the fast way beside diffusers' own forward, from the same seed.

    python bench/loss_curve.py                    # a GPU: fast beside diffusers, bf16, 200 steps each; a minute
    python bench/loss_curve.py --ways plain diffusers --steps 60 --precision no --out x.png    # any computer

The embedded pocket model is trained by the real command, three times: each way from one seed, and diffusers once more from
another seed, whose distance from the first is the noise of training. Printed is the mean absolute difference of the
smoothed losses, of the two ways and of the two seeds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 760, 300, 56, 30, 34
PAPER, INK, GRID = (250, 250, 250), (30, 30, 30), (215, 215, 215)
COLOURS = ((192, 80, 77), (47, 93, 153), (170, 170, 170))
SMOOTHING = 0.9


def losses(forward: str, seed: int, steps: int, precision: str, folder: Path) -> list[float]:
    """The loss of every step of one run."""
    options = {
        "transformer_forward": forward,
        "seed": seed,
        "max_train_steps": steps,
        "mixed_precision": precision,
        "optimizer": "torch-adamw",
        "optimizer_config": "weight_decay=0.0",
        "learning_rate": 3e-4,
        "lr_scheduler": "constant",
        "use_ema": "false",
        "validation_disable": "true",
        "checkpoint_step_interval": 0,
        "output_dir": folder,
    }
    command = [sys.executable, "-c", "from simpletuner.cli.app import main; main()", "train", "--example=pocket"]
    done = subprocess.run(
        command + [f"--{key}={value}" for key, value in options.items()], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "step"]


def smoothed(values: list[float]) -> list[float]:
    """An exponential average."""
    result = values[:1]
    for value in values[1:]:
        result.append(SMOOTHING * result[-1] + (1 - SMOOTHING) * value)
    return result


def apart(first: list[float], second: list[float]) -> float:
    """Mean absolute difference of two courses."""
    return sum(abs(a - b) for a, b in zip(first, second, strict=True)) / len(first)


def picture(courses: dict[str, list[float]], path: Path) -> None:
    """All courses in one plot, the last ones first so that the first lie on top."""
    font, sheet = ImageFont.load_default(13), Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(sheet)
    every = [value for course in courses.values() for value in course]
    low, high, steps = min(every), max(every), len(next(iter(courses.values())))

    def place(step: int, value: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - 16) * step / max(1, steps - 1)
        return across, TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    for part in range(5):
        value = low + (high - low) * part / 4
        draw.line((place(0, value), place(steps - 1, value)), fill=GRID)
        draw.text((6, place(0, value)[1] - 8), f"{value:.2f}", fill=INK, font=font)
        at = round((steps - 1) * part / 4)
        draw.text((place(at, low)[0] - 10, HEIGHT - BOTTOM + 8), f"{at + 1}", fill=INK, font=font)
    across = LEFT
    for course, colour in reversed(list(zip(courses.values(), COLOURS, strict=False))):
        draw.line([place(step, value) for step, value in enumerate(course)], fill=colour, width=2)
    for name, colour in zip(courses, COLOURS, strict=False):
        draw.text((across, 7), name, fill=colour, font=font)
        across += int(draw.textlength(name, font=font)) + 24
    sheet.quantize(32).save(path, format="PNG", optimize=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs=2, default=["fast", "diffusers"])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--one-by-one", action="store_true", help="Where three runs at a time are too many.")
    parser.add_argument("--out", type=Path, default=Path("docs/loss_curve.png"))
    arguments = parser.parse_args()
    first, second = arguments.ways
    runs = {first: (first, 1), second: (second, 1), f"{second}, another seed": (second, 2)}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1 if arguments.one_by_one else len(runs)) as pool:
        asked = {
            name: pool.submit(losses, way, seed, arguments.steps, arguments.precision, Path(folder) / str(number))
            for number, (name, (way, seed)) in enumerate(runs.items())
        }
        courses = {name: smoothed(course.result()) for name, course in asked.items()}
    picture(courses, arguments.out)
    one, other, noise = courses.values()
    print(f"smoothed loss at the end: {', '.join(f'{name} {course[-1]:.4f}' for name, course in courses.items())}")
    print(f"mean difference of the two ways {apart(one, other):.5f}, of two seeds {apart(other, noise):.5f}")


if __name__ == "__main__":
    main()
