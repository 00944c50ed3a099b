"""What do the options of noise, loss and rollout do to the pocket model? Prints a table, one row an option.

    nice python bench/noise_options.py                    # about 12 minutes on 2 cores
    python bench/noise_options.py "flow_density=mode" "snr_gamma=1 loss_type=huber"

The recipe of bench/fixed_recipe.py is trained by the real command with one seed and the options of the row. One seed
tells a large difference from none; it does not rank the rows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from fixed_recipe import RECIPE

ROWS = (
    "",
    "flow_stratified_sampling=true",
    "weighting_scheme=cosmap",
    "weighting_scheme=sigma_sqrt",
    "snr_gamma=5",
    "use_soft_min_snr=true",
    "loss_type=huber",
    "loss_type=smooth_l1",
    "input_perturbation=0.1",
    "offset_noise=true",
    "mixflow_enabled=true mixflow_gamma=0.4",
    "scheduled_sampling_max_step_offset=8 scheduled_sampling_probability=0.5",
)


def measure(options: str, steps: int) -> str:
    """One line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", "from simpletuner.cli.app import main; main()", "train", "--example=pocket"]
        command += [f"--output_dir={folder}", f"--max_train_steps={steps}", "--validation_disable=true"]
        command += ["--checkpoint_step_interval=0", *(f"--{word}" for word in f"{RECIPE} {options}".split())]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    taken = [line["seconds"] for line in lines if line["kind"] == "step"]
    last = [line for line in lines if line["kind"] == "eval"][-1]
    by_sigma = " | ".join(f"{x:.3f}" for x in last["by_sigma"])
    return (
        f"| {options or 'the recipe alone'} | {last['loss']:.3f} | {by_sigma} | {sorted(taken)[len(taken) // 2]:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", default=ROWS, help='options of a row, e.g. "snr_gamma=1"')
    parser.add_argument("--steps", type=int, default=150)
    arguments = parser.parse_args()
    print("| options | held-out loss | 0.1 | 0.3 | 0.5 | 0.7 | 0.9 | seconds a step (median) |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for options in arguments.rows:
        print(measure(options, arguments.steps), flush=True)


if __name__ == "__main__":
    main()
