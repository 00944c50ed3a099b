"""What the real command leaves for those who watch: events.jsonl and run.json, finished, interrupted and failed."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from conftest import Command, has_recorded, stopped_when
from receiver import receiving

from simpletuner.cli.train import train
from simpletuner.errors import TunerError


def events(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def run_json(output: Path) -> dict[str, Any]:
    return dict(json.loads((output / "run.json").read_text()))


def test_a_run_tells_its_phases_pictures_and_checkpoints(
    pocket_run: Callable[..., Path], simpletuner: Command, tmp_path: Path
) -> None:
    config = pocket_run(
        max_train_steps=2,
        checkpoint_step_interval=1,
        validation_disable=False,
        validation_prompt="a fox",
        validation_resolution="64x64",
        validation_num_inference_steps=1,
    )
    simpletuner("train", "--config", config, SIMPLETUNER_JOB_ID="job-1")
    told, output = events(tmp_path / "out"), tmp_path / "out"
    stages = [(e["stage"]["key"], e["stage"]["status"]) for e in told if e["type"] == "lifecycle.stage"]
    for key in ("init_data_backend", "init_load_base_model", "init_vae_cache", "benchmark_base_model", "validation"):
        assert stages.index((key, "running")) < stages.index((key, "completed"))
    assert stages[-1] == ("training_complete", "completed")
    assert [e["checkpoint"]["step"] for e in told if e["type"] == "training.checkpoint"] == [1, 2]
    pictures = [path for e in told if e["type"] == "training.validation" for path in e["data"]["paths"]]
    assert len(pictures) == 2 and all((output / path).is_file() for path in pictures)
    sentences = [e["message"] for e in told if e["type"] == "training.validation"]
    assert sentences == ["Validation: validation, step 0", "Validation: validation, step 2"]
    code = [e["message"] for e in told if e["type"] == "notification" and "import torch" in e["message"]]
    assert len(code) == 1 and code[0].count("\n") > 5, "the lines that draw are told as one"
    assert told[-1]["data"]["status"] == "completed" and {e["job_id"] for e in told} == {"job-1"}
    assert any("Loading" in e.get("message", "") for e in told if e["severity"] == "debug"), "the log is in it"
    run = run_json(output)
    assert run["status"] == "finished" and run["total_steps"] == 2 and run["error"] is None


def test_an_interrupted_run_and_a_failed_one_say_so(pocket_run: Callable[..., Path], tmp_path: Path) -> None:
    config, output = pocket_run(max_train_steps=100_000), tmp_path / "out"
    code, _ = stopped_when(lambda: has_recorded(output, 2), config, tmp_path, signal.SIGINT)
    assert code == 130 and run_json(output)["status"] == "interrupted"
    assert events(output)[-1]["data"]["status"] == "interrupted"
    broken = pocket_run(max_train_steps=100_000, optimizer="torch-adam")  # the checkpoint is of another optimizer
    refused = CliRunner().invoke(train, ["--config", str(broken)])
    assert isinstance(refused.exception, TunerError)
    assert run_json(output)["status"] == "failed" and "optimizer" in run_json(output)["error"]
    error = next(e for e in events(output) if e["type"] == "notification" and e["severity"] == "error")
    assert error["title"] == "Error" and events(output)[-1]["data"]["status"] == "failed"


def test_a_receiver_hears_of_a_run_and_a_dead_one_costs_it_nothing(
    pocket_run: Callable[..., Path], simpletuner: Command, tmp_path: Path
) -> None:
    with receiving() as receiver:
        hooks = [
            {"webhook_type": "raw", "callback_url": f"{receiver.url}/ok", "auth_token": "s3cr3t"},
            {"webhook_type": "raw", "callback_url": "http://127.0.0.1:9/s3cr3t"},
        ]
        done = simpletuner("train", "--config", pocket_run(webhook_config=hooks, webhook_reporting_interval=1))
        kinds = [body["type"] for body in receiver.json()]
        statuses = [body["data"]["status"] for body in receiver.json() if body["type"] == "training.status"]
    assert statuses == ["starting", *["running"] * 4, "completed"] and "training.checkpoint" in kinds
    assert (
        "webhook http://127.0.0.1:9: it cannot be reached" in done.stdout and "Training was not affected" in done.stdout
    )
    assert "s3cr3t" not in done.stdout + done.stderr
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) > 5 and not any(b"s3cr3t" in path.read_bytes() for path in written)
