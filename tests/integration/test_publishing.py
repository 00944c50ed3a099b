"""A run goes to a hub and comes back; a hub that fails, or is gone, never fails a run; the token is nowhere."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import ROOT, Command, command_line
from hub import TOKEN, Client, hub
from PIL import Image

from simpletuner.training.checkpoint import problem_with

DRAWING = {
    "validation_disable": False,
    "validation_prompt": "a <b>fox</b> | blueprint",
    "validation_resolution": "64x64",
    "validation_num_inference_steps": 1,
    "validation_seed": 11,
    "disable_benchmark": True,
    "report": False,
    "report_to": "none",
}
LORA = {"model_type": "lora", "lora_rank": 4, "use_ema": True, "learning_rate": 1e-2}


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Client]:
    with hub() as running:
        yield running


def trained(config: Path, cwd: Path, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """The real command, whose pauses between tries are short."""
    program = "import simpletuner.training.publishing as p; p.PAUSES_S = (0.1, 0.1)\n" + command_line()[2]
    return subprocess.run(
        [sys.executable, "-c", program, "train", "--config", str(config)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
    )


def texts_of(folder: Path) -> str:
    """Everything readable that a run left."""
    return "".join(f.read_bytes().decode("latin-1") for f in folder.rglob("*") if f.is_file())


def downloaded(client: Client, repository: str, home: Path) -> Path:
    """A repository, by the real client."""
    code = "import sys; from huggingface_hub import snapshot_download; print(snapshot_download(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, repository],
        env={**os.environ, **client.environment(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    return Path(done.stdout.strip().splitlines()[-1])


def test_a_run_is_published_with_its_checkpoints_and_comes_back(
    empty: Client, pocket_run: Callable[..., Path], simpletuner: Command, tmp_path: Path, pocket: Path
) -> None:
    note = "Made of four drawings. hf_secretsecretsecret99"
    publishing = {"push_to_hub": True, "push_checkpoints_to_hub": True, "hub_model_id": "https://hf.co/tester/foxes"}
    steps = {"max_train_steps": 2, "checkpoint_step_interval": 1, "checkpoints_total_limit": 1}
    path = pocket_run(**DRAWING, **LORA, **publishing, **steps, model_card_note=note)
    environment = empty.environment(tmp_path / "home")
    empty.tell(faults=[{"match": "POST .*/commit/", "status": 503, "times": 1}])
    done = trained(path, tmp_path, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"uploaded the model to {empty.address}/tester/foxes" in done.stdout
    assert "the hub has a fault of its own (it answered 503)" in done.stdout
    state = empty.tell()["tester/foxes"]
    assert state["private"] is True
    assert [c["summary"] for c in state["commits"]][-2:] == ["checkpoint-2 of a run", "Trained model, step 2"]
    assert TOKEN not in done.stdout + done.stderr + texts_of(tmp_path / "out")
    events = [json.loads(line) for line in (tmp_path / "out/events.jsonl").read_text().splitlines()]
    told = [e["data"]["status"] for e in events if e["type"] == "training.status"]
    assert told[-3:] == ["uploading_model", "model_available", "completed"]
    assert not (tmp_path / "out" / ".uploading").exists()

    back = downloaded(empty, "tester/foxes", tmp_path / "elsewhere")
    assert (back / "pytorch_lora_weights.safetensors").read_bytes() == (
        tmp_path / "out" / "pytorch_lora_weights.safetensors"
    ).read_bytes()
    assert problem_with(back / "checkpoint-2") is None, "training can go on from it"
    readme = (back / "README.md").read_text()
    head = yaml.safe_load(readme.split("---")[1])
    assert head["library_name"] == "diffusers" and head["license"] == "other"
    assert {"lora", "sana", "not-for-all-audiences"} <= set(head["tags"]) and "base_model" not in head
    sample = head["widget"][0]
    assert sample["text"] == DRAWING["validation_prompt"] and "_ema" in sample["output"]["url"]
    ours = tmp_path / "out/validation_images" / Path(sample["output"]["url"]).name
    assert np.array_equal(np.asarray(Image.open(back / sample["output"]["url"])), np.asarray(Image.open(ours)))
    assert "Made of four drawings." in readme and "hf_secret" not in readme
    assert "&lt;b&gt;fox" in readme and "| `lora_rank` | 4 |" in readme and "| set | 4 |" in readme
    assert 'pipe.load_lora_weights("tester/foxes")' in readme and 'image.save("image.png")' in readme
    for private in (str(tmp_path), str(pocket), "drawing of thing"):
        assert private not in readme


def test_a_full_run_without_a_name_is_drawn_with_by_its_hub_id(
    empty: Client, pocket_run: Callable[..., Path], simpletuner: Command, tmp_path: Path
) -> None:
    simpletuner("train", "--config", pocket_run(**DRAWING, max_train_steps=1))
    environment = empty.environment(tmp_path / "home")
    done = simpletuner("publish", "out", "--to", "mine", "--public", "--safe-for-work", **environment)
    assert f"published {empty.address}/tester/mine" in done.stdout
    state = empty.tell()["tester/mine"]
    assert state["private"] is False and len(state["commits"]) == 1 and "model_index.json" in state["files"]
    assert not any("optimizer" in name or "manifest" in name for name in state["files"])
    words = ("--prompt", DRAWING["validation_prompt"], "--steps", 1, "--size", "64", "--seed", 11, "--tokens", 32)
    simpletuner("generate", "tester/mine", *words, "--no-instruction", "--no-grid", "--out", "drawn", **environment)
    (drawn,) = (tmp_path / "drawn").glob("*.png")
    ours = tmp_path / "out/validation_images/step_1_validation_0_64x64.png"
    assert np.array_equal(np.asarray(Image.open(drawn)), np.asarray(Image.open(ours)))
    readme = (downloaded(empty, "tester/mine", tmp_path / "elsewhere") / "README.md").read_text()
    assert 'SanaPipeline.from_pretrained("tester/mine"' in readme and "not-for-all-audiences" not in readme


def test_a_hub_that_is_gone_does_not_fail_the_run(
    empty: Client, pocket_run: Callable[..., Path], tmp_path: Path
) -> None:
    path = pocket_run(max_train_steps=1, push_to_hub=True, hub_model_id="tester/foxes", **LORA, report=False)
    environment = empty.environment(tmp_path / "home")
    empty.stop()
    done = trained(path, tmp_path, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING: tester/foxes cannot be uploaded to as it is" in done.stdout
    assert "WARNING: the model could not be uploaded to tester/foxes" in done.stdout
    assert "`simpletuner publish" in done.stdout and "--to tester/foxes`" in done.stdout
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "finished"
    assert (tmp_path / "out" / "pytorch_lora_weights.safetensors").is_file()
    assert TOKEN not in done.stdout + done.stderr


def test_without_a_login_it_is_told_before_anything_is_loaded(
    pocket_run: Callable[..., Path], simpletuner: Command, tmp_path: Path
) -> None:
    path = pocket_run(push_to_hub=True)
    nobody: dict[str, Any] = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
    done = simpletuner("train", "--config", path, check=False, **nobody)
    assert done.returncode == 1 and "nobody is logged in to the hub" in done.stderr and "hf auth login" in done.stderr
    assert not (tmp_path / "out").exists()
    done = simpletuner("train", "--config", path, check=False, HF_TOKEN="hf_x")
    assert done.returncode == 1 and "HF_HUB_OFFLINE is set" in done.stderr
    for environment, said in ((nobody, "nobody is logged in"), ({"HF_TOKEN": "hf_x"}, "HF_HUB_OFFLINE is set")):
        done = simpletuner("publish", tmp_path / "out", "--to", "me/mine", check=False, **environment)
        assert done.returncode == 1 and f"nothing can be published: {said}" in " ".join(done.stderr.split())
