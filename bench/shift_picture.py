"""What does flow_schedule_shift do to what is learned? Draws docs/shift.png with the pocket model.

    python bench/shift_picture.py                        # about 5 minutes on 2 cores
    python bench/shift_picture.py --steps 60 --out x.png

The recipe of bench/fixed_recipe.py is trained by the real command once for each shift, everything else the same.
Rows are the base model and the shifts, columns are prompts. Held-out loss at each sigma is printed as a table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fixed_recipe import RECIPE

from simpletuner.evaluation.eval_loss import SIGMAS
from simpletuner.evaluation.grid import grid

SHIFTS = (0.1, 3.0, 4.0)
PROMPTS = {name: f"a blueprint of a {name}" for name in ("fox", "whale", "castle", "mushroom", "robot", "camera")}


def train(shift: float, steps: int, folder: Path) -> tuple[list[Path], list[Path], list[dict[str, Any]]]:
    """Train with the real command.

    Returns:
        Pictures before, pictures after, and the held-out losses before and after.
    """
    library = folder / "prompts.json"
    folder.mkdir(parents=True)
    library.write_text(json.dumps(PROMPTS))
    command = [sys.executable, "-c", "from simpletuner.cli.app import main; main()", "train", "--example=pocket"]
    command += [*(f"--{word}" for word in RECIPE.split()), f"--flow_schedule_shift={shift}"]
    command += [f"--output_dir={folder}", f"--max_train_steps={steps}"]
    command += [f"--user_prompt_library={library}", "--checkpoint_step_interval=0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    drawn = folder / "validation_images"
    before, after = (
        [next(drawn.glob(f"step_{step}_{name}_0_*{label}.png")) for name in PROMPTS]
        for step, label in ((0, ""), (steps, "_ema"))
    )
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return before, after, [line for line in lines if line["kind"] == "eval"]


def row(label: str, figures: dict[str, Any]) -> str:
    """One line of the table."""
    return f"| {label} | {figures['loss']:.3f} | " + " | ".join(f"{x:.3f}" for x in figures["by_sigma"]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--out", type=Path, default=Path("docs/shift.png"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows: list[tuple[str, list[Path]]] = []
        table: list[str] = []
        for shift in SHIFTS:
            before, after, figures = train(shift, arguments.steps, Path(folder) / str(shift))
            if not rows:
                rows.append(("before", before))
                table.append(row("before", figures[0]))
            rows.append((f"shift {shift:g}", after))
            table.append(row(f"shift {shift:g}", figures[-1]))
        grid(rows, list(PROMPTS.values()), arguments.out)
    print("| trained with | held-out loss | " + " | ".join(f"at sigma {sigma:g}" for sigma in SIGMAS) + " |")
    print("|---|---|" + "---|" * len(SIGMAS))
    print("\n".join(table))


if __name__ == "__main__":
    main()
