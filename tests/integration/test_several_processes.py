"""Several processes through the real command: the same course as one, no work twice, one writer, one end."""

import getpass
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ROOT, Command, has_recorded, own_environment, started
from processes import until
from rich.console import Console
from safetensors.torch import load_file

from simpletuner.config.read import load
from simpletuner.data.cache import TensorStore
from simpletuner.reporting.progress import Reporter
from simpletuner.training.run import train

TOGETHER = {"train_batch_size": 1, "gradient_accumulation_steps": 2}


def losses(output: Path) -> list[float]:
    lines = (json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "step"]


def weights(output: Path, step: int) -> dict[str, Any]:
    return load_file(output / f"checkpoint-{step}" / "transformer_ema" / "diffusion_pytorch_model.safetensors")


def test_two_processes_take_the_course_of_one_and_one_goes_on(
    pocket_run: Callable[..., Path], simpletuner: Command, tmp_path: Path
) -> None:
    """Gradient descent, so that no small number is blown up; two steps of accumulation, EMA, pictures and captions."""
    common: dict[str, Any] = {"optimizer": "torch-sgd", "learning_rate": 0.02, "use_ema": True}
    drawn = {"validation_disable": False, "validation_prompt": "a fox", "validation_resolution": "64x64"}
    drawn |= {"validation_num_inference_steps": 1, "disable_benchmark": True, "report_to": "none"}
    config = pocket_run(**common, **drawn, **TOGETHER, num_processes=2, max_train_steps=3)
    said = simpletuner("train", "--config", config).stdout
    output = tmp_path / "out"
    assert said.count("Done: 3 steps.") == 1 and "2 processes, 2 on this machine: a step has 4 pictures" in said
    steps = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if line["kind"] == "step"] == [1, 2, 3]
    assert len([line for line in steps if line["kind"] == "picture"]) == 2  # live and EMA, by rank 0 alone
    assert json.loads((output / "run.json").read_text())["status"] == "finished"
    for kind in ("vae", "text"):
        shards = list((tmp_path / "cache" / kind).rglob("shard-*.safetensors"))
        held = Counter(key for shard in shards for key in TensorStore.keys_of(shard))
        assert len(shards) == 2 and set(held.values()) == {1}, "each process has encoded its part"

    alone = pocket_run(**common, output_dir=str(tmp_path / "alone"), gradient_accumulation_steps=2, max_train_steps=5)
    train(load(str(alone), environ={}), Reporter(Console(file=StringIO())))
    assert losses(output) == pytest.approx(losses(tmp_path / "alone")[:3], rel=1e-6)

    on = pocket_run(**common, gradient_accumulation_steps=2, max_train_steps=5)
    said_then = StringIO()
    train(load(str(on), environ={}), Reporter(Console(file=said_then, width=200)))
    assert "Resuming from checkpoint-3" in said_then.getvalue() and "changed since" not in said_then.getvalue()
    assert losses(output) == pytest.approx(losses(tmp_path / "alone"), rel=1e-6)
    ours, theirs = weights(output, 5), weights(tmp_path / "alone", 5)
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) < 1e-5


def test_two_processes_on_the_toy() -> None:
    """What they exchange, broken pictures of one of them, and a stop that one of them is asked for."""
    environment = own_environment()
    environment["PYTHONPATH"] += f"{os.pathsep}{ROOT / 'tests'}"
    words = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--log-dir",
        os.devnull,
        "--nproc-per-node",
        "2",
        str(ROOT / "tests" / "two_ranks.py"),
    ]
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(re.findall(r"rank \d is content", done.stdout)) == ["rank 0 is content", "rank 1 is content"]


def test_an_interrupt_ends_both_with_a_checkpoint_and_a_death_ends_the_other(
    pocket_run: Callable[..., Path], tmp_path: Path
) -> None:
    output, aside = tmp_path / "out", tmp_path / "aside"
    aside.mkdir()
    config = pocket_run(**TOGETHER, num_processes=2, max_train_steps=100_000, report_to="none")
    with started("train", "--config", config, cwd=tmp_path, TMPDIR=str(aside)) as process:
        until(lambda: has_recorded(output, 3), process)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and said.count("the same command goes on from here") == 1, said
    left = {path.name for path in aside.iterdir()} - {"torchinductor_" + getpass.getuser()}  # torch's own, one for all
    assert not left, "a run leaves nothing behind in the machine's temporary folder"
    (saved,) = output.glob("checkpoint-*")
    step = int(saved.name.rpartition("-")[2])

    with started("train", "--config", config, cwd=tmp_path, TMPDIR=str(aside)) as process:
        until(lambda: has_recorded(output, step + 2), process)
        children = psutil.Process(process.pid).children()
        (one,) = [child for child in children if child.environ().get("RANK") == "1"]
        one.kill()
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "process 1 of 2" in said and "SIGKILL" in said, said
    assert f"Resuming from {saved.name}" in said and said.count("Error: another process of this run has ended") == 1, (
        said
    )
    assert json.loads((output / "run.json").read_text())["status"] == "failed"
    assert not any(child.is_running() for child in children)


def test_a_launcher_killed_while_its_processes_start_ends_them_too(
    pocket_run: Callable[..., Path], tmp_path: Path
) -> None:
    """Before a step is taken as well, or they would train to the end, unseen."""
    output = tmp_path / "out"
    config = pocket_run(**TOGETHER, num_processes=2, max_train_steps=100_000, report_to="none")
    with started("train", "--config", config, cwd=tmp_path) as process:
        until((output / "run.json").is_file, process)
        children = psutil.Process(process.pid).children()
        process.kill()
        _, still = psutil.wait_procs(children, timeout=60)
        for child in still:
            child.kill()
    assert len(children) == 2 and not still
    assert json.loads((output / "run.json").read_text())["status"] == "interrupted"
