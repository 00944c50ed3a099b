"""Adapters through the real program on the pocket model: train, stop, resume, export, load elsewhere."""

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import has_recorded, stopped_when
from PIL import Image
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file

from simpletuner.config.read import load
from simpletuner.errors import ModelError, ResumeError, TunerError
from simpletuner.models.adapters import WEIGHTS
from simpletuner.reporting.progress import Reporter

SIDES = {"target_module": ["Attention", "GLUMBConv"]}
LYCORIS = {"algo": "lokr", "multiplier": 1.0, "linear_dim": 4, "linear_alpha": 2.0, "factor": 4, "apply_preset": SIDES}


@pytest.fixture
def train(pocket_run: Callable[..., Path]) -> Callable[..., str]:
    """Train in this process; returns what was said."""

    def run(**options: Any) -> str:
        from simpletuner.training.run import train as real

        said = StringIO()
        real(load(str(pocket_run(model_type="lora", **options)), environ={}), Reporter(Console(file=said, width=200)))
        return said.getvalue()

    return run


def same(first: Path, second: Path) -> bool:
    one, other = load_file(first), load_file(second)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


KINDS: dict[str, dict[str, Any]] = {
    "lora": {"peft_lora_target_modules": ["all"], "lora_rank": 4, "lora_dropout": 0.2, "use_ema": True},
    "dora": {"use_dora": True, "lora_rank": 4, "gradient_checkpointing": True},
    "pissa": {"lora_init_type": "pissa", "lora_rank": 4, "use_ema": True},
    "lokr": {"lora_type": "lycoris", "lycoris_config": {**LYCORIS, "rank_dropout": 0.1}, "use_ema": True},
    "loha": {"lora_type": "lycoris", "lycoris_config": {**LYCORIS, "algo": "loha", "use_scalar": True}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_ends_at_the_same_bits(train: Callable[..., str], kind: str, tmp_path: Path) -> None:
    options = {**KINDS[kind], "gradient_accumulation_steps": 2 if kind == "lora" else 1}
    train(**options, max_train_steps=4, output_dir=str(tmp_path / "whole"))
    train(**options, max_train_steps=2, output_dir=str(tmp_path / "halves"))
    said = train(**options, max_train_steps=4, output_dir=str(tmp_path / "halves"))
    assert "Resuming from checkpoint-2: 2 of 4 steps are done" in said
    files = ["optimizer.safetensors", WEIGHTS, *([f"ema/{WEIGHTS}"] if "use_ema" in options else [])]
    for file in files:
        assert same(*(tmp_path / run / "checkpoint-4" / file for run in ("whole", "halves"))), file
    exported = tmp_path / "whole" / WEIGHTS
    assert same(exported, tmp_path / "whole" / "checkpoint-4" / files[-1]), "the average is exported where there is one"
    assert f"trained model    {tmp_path / 'halves' / WEIGHTS}" in said
    assert not (tmp_path / "whole" / "pipeline").exists()
    assert not (tmp_path / "whole" / "checkpoint-4" / "transformer").exists(), "the base model is not saved again"
    if "lycoris_config" in options:
        assert json.loads((exported.parent / "lycoris_config.json").read_text()) == options["lycoris_config"]


def test_another_adapter_is_refused_on_resume(train: Callable[..., str]) -> None:
    train(lora_rank=4, max_train_steps=1)
    for change in ({"lora_rank": 8}, {"peft_lora_target_modules": ["all"]}, {"use_dora": True}, {"lora_alpha": 2.0}):
        with pytest.raises(ResumeError, match="was trained with"):
            train(**{"lora_rank": 4, "max_train_steps": 2, **change})
    with pytest.raises(ResumeError, match="was trained with"):
        train(lora_type="lycoris", lycoris_config=LYCORIS, max_train_steps=2)
    assert "lora_dropout (0 → 0.5) changed" in train(lora_rank=4, max_train_steps=2, lora_dropout=0.5)


def test_a_killed_run_resumes_to_the_same_bits(pocket_run: Callable[..., Path], tmp_path: Path) -> None:
    options = {
        "model_type": "lora",
        "max_train_steps": 200,
        "checkpoint_step_interval": 3,
        "checkpoints_total_limit": 0,
    }
    config = pocket_run(**options, output_dir=str(tmp_path / "killed"))
    stopped_when(lambda: has_recorded(tmp_path / "killed", 7), config, tmp_path)
    from simpletuner.training.run import train as real

    kept = max(int(p.name.rpartition("-")[2]) for p in (tmp_path / "killed").glob("checkpoint-*"))
    for run in ("killed", "whole"):
        config = pocket_run(**{**options, "max_train_steps": kept + 2}, output_dir=str(tmp_path / run))
        real(load(str(config), environ={}), Reporter(Console(file=StringIO())))
    assert same(*(tmp_path / run / f"checkpoint-{kept + 2}" / WEIGHTS for run in ("killed", "whole")))


def test_an_adapter_is_continued_from_its_file(train: Callable[..., str], tmp_path: Path) -> None:
    train(lora_rank=4, lora_alpha=2.0, lora_format="comfyui", max_train_steps=1, output_dir=str(tmp_path / "first"))
    first = load_file(tmp_path / "first" / WEIGHTS)
    assert all(key.startswith("diffusion_model.transformer_blocks.") for key in first)
    said = train(init_lora=str(tmp_path / "first"), max_train_steps=1, learning_rate=1e-12, lora_rank=8)
    assert "lora_rank: 8 → 4, as in the file" in said and "scale (alpha over rank): 1.0 → 0.5" in said
    second = load_file(tmp_path / "out" / WEIGHTS)
    for key, value in second.items():
        name = (
            key.replace("transformer.", "diffusion_model.", 1)
            .replace("lora_A", "lora_down")
            .replace("lora_B", "lora_up")
        )
        torch.testing.assert_close(value, first[name], atol=1e-9, rtol=0)


def test_what_a_continued_adapter_starts_from_is_the_adapter(pocket_run: Callable[..., Path], tmp_path: Path) -> None:
    """Pictures and held-out loss before the first step are those of the file as loaded, not of the base model."""
    from simpletuner.training.run import train as real

    def run(name: str, **options: Any) -> dict[tuple[str, int], Any]:
        drawing = {"validation_disable": False, "validation_prompt": "a fox", "validation_resolution": "64x64"}
        drawing |= {"validation_num_inference_steps": 2, "model_type": "lora", "output_dir": str(tmp_path / name)}
        config = pocket_run(**drawing, **options, max_train_steps=2, learning_rate=1e-2)
        dataloader = config.parent / "multidatabackend.json"
        entries = json.loads(dataloader.read_text())
        held_out = {
            **entries[0],
            "id": "held-out",
            "dataset_type": "eval",
            "cache_dir_vae": str(tmp_path / "cache/eval"),
        }
        dataloader.write_text(json.dumps([*entries, held_out]))
        real(load(str(config), environ={}), Reporter(Console(file=StringIO())))
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        found: dict[tuple[str, int], Any] = {("loss", m["step"]): m["loss"] for m in lines if m["kind"] == "eval"}
        for step in (0, 2):
            with Image.open(tmp_path / name / "validation_images" / f"step_{step}_validation_0_64x64.png") as image:
                found["picture", step] = np.asarray(image)
        return found

    first = run("first")
    second = run("second", init_lora=str(tmp_path / "first"))
    assert second["loss", 0] == pytest.approx(first["loss", 2], abs=1e-6) != first["loss", 0]
    assert np.array_equal(second["picture", 0], first["picture", 2])
    assert not np.array_equal(first["picture", 0], first["picture", 2])


def test_a_lycoris_file_is_continued_by_its_own_settings(train: Callable[..., str], tmp_path: Path) -> None:
    config = {**LYCORIS, "algo": "loha"}
    train(lora_type="lycoris", lycoris_config=config, max_train_steps=1, output_dir=str(tmp_path / "first"))
    goes_on = {"lora_type": "lycoris", "max_train_steps": 1, "learning_rate": 1e-12}
    said = train(**goes_on, init_lora=str(tmp_path / "first" / WEIGHTS))
    assert "LyCORIS loha" in said and "The adapter goes on from" in said and "that of the file" not in said
    first, second = load_file(tmp_path / "first" / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    assert all(torch.allclose(first[key], second[key], atol=1e-9) for key in first)
    said = train(**goes_on, init_lora=str(tmp_path / "first"), lycoris_config=LYCORIS, resume_from_checkpoint="no")
    assert "lycoris_config: that of the file is used" in said
    with pytest.raises(ModelError, match="set lora_type to lycoris"):
        train(init_lora=str(tmp_path / "first"), resume_from_checkpoint="no")


def test_regularisation_data_is_logged_apart(
    pocket_run: Callable[..., Path], pictures: Callable[..., Path], tmp_path: Path
) -> None:
    """Two sets through the whole program: the first regularisation step of an untrained adapter has exactly nothing to keep."""
    from simpletuner.training.run import train as real

    config = pocket_run(model_type="lora", learning_rate=1e-30, max_train_steps=8, caption_dropout_probability=0)
    file = tmp_path / "config" / "multidatabackend.json"
    entries = json.loads(file.read_text())
    kept = {"id": "kept", "instance_data_dir": str(pictures("others")), "is_regularisation_data": True}
    file.write_text(
        json.dumps([entries[0], {**entries[0], **kept, "cache_dir_vae": str(tmp_path / "k")}, *entries[1:]])
    )
    said = StringIO()
    real(load(str(config), environ={}), Reporter(Console(file=said, width=200)))
    assert "[kept] is regularisation data" in said.getvalue() and "[set] is regularisation" not in said.getvalue()
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    apart = [step for step in steps if step["regularisation_samples"]]
    assert 0 < len(apart) < 8, "batches of both sets, never mixed"
    assert all(s["regularisation_loss"] == 0.0 and s["regularisation_samples"] == s["samples"] == 2 for s in apart)
    assert all(s["loss"] is None for s in apart)
    assert all(s["regularisation_loss"] is None and s["loss"] > 0.1 for s in steps if s not in apart)


def test_fp16_trains_an_adapter(train: Callable[..., str], tmp_path: Path) -> None:
    said = train(mixed_precision="fp16", max_train_steps=2, lora_rank=2)
    assert "float32 for the adapter over a frozen float32 model under float16 autocast" in said
    assert all(t.isfinite().all() for t in load_file(tmp_path / "out" / WEIGHTS).values())


def test_lycoris_in_bf16_with_pictures_at_another_strength(train: Callable[..., str], tmp_path: Path) -> None:
    options = {"lora_type": "lycoris", "mixed_precision": "bf16", "gradient_checkpointing": True, "max_train_steps": 2}
    drawing = {"validation_disable": False, "validation_prompt": "a fox", "validation_resolution": "64x64"}
    drawing |= {"validation_num_inference_steps": 1, "validation_lycoris_strength": 0.0}
    preset = {"apply_preset": {"target_module": ["Attention", "FeedForward"]}}
    said = train(**options, **drawing, lycoris_config={**LYCORIS, **preset}, learning_rate=1e-2)
    assert "'FeedForward' matches nothing in this model; in Sana it is called GLUMBConv" in said
    assert "float32 for the adapter over a frozen bfloat16 model under bfloat16 autocast" in said
    weights = load_file(tmp_path / "out" / WEIGHTS)
    assert all(t.isfinite().all() and t.dtype == torch.float32 for t in weights.values())
    assert any(t.any() for key, t in weights.items() if key.endswith("lokr_w2_b")), "it has learned something"
    pictures = tmp_path / "out" / "validation_images"
    base, none = (np.asarray(Image.open(pictures / f"step_{n}_validation_0_64x64.png")).astype(int) for n in (0, 2))
    assert abs(base - none).max() <= 1, "at strength 0 the base model draws"


def test_layers_that_do_not_exist_stop_the_run_before_anything_is_encoded(train: Callable[..., str]) -> None:
    with pytest.raises(ModelError, match=r"'to_x' matches no layer.*attn1.to_q \(Linear\) ×7"):
        train(peft_lora_target_modules=["to_x"])
    with pytest.raises(ModelError, match="GLUMBConv ×7"):
        train(lora_type="lycoris", lycoris_config={**LYCORIS, "apply_preset": {"target_module": ["FeedForward"]}})


@pytest.mark.parametrize("kind", ["dora", "lokr"])
def test_merge_writes_a_model_that_draws_the_same(
    train: Callable[..., str], kind: str, tmp_path: Path, pocket: Path
) -> None:
    from diffusers import SanaTransformer2DModel

    from simpletuner.models import adapters
    from simpletuner.training.merging import merge, on_model

    train(**KINDS[kind], max_train_steps=2, learning_rate=1e-2)
    quiet, base = Reporter(Console(file=StringIO())), str(pocket / "model")
    merge(tmp_path / "out", base, tmp_path / "merged", torch.float32, 1.0, quiet)
    merge(tmp_path / "out" / WEIGHTS, None, tmp_path / "half", torch.float32, 0.5, quiet)  # as the file says

    def weights(folder: Path) -> Any:
        return SanaTransformer2DModel.from_pretrained(folder, subfolder="transformer").eval()

    def velocity(model: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(1, model.config.in_channels, 4, 4, generator=generator)
        text = torch.randn(1, 5, model.config.caption_channels, generator=generator)
        with torch.no_grad():
            return model(latents, text, torch.tensor([500.0]), encoder_attention_mask=torch.ones(1, 5)).sample

    adapted = weights(pocket / "model")
    put = on_model(adapters.read_file(tmp_path / "out"), adapted)
    with put.scaled(0.5):
        half = velocity(adapted)
    expected, plain = velocity(adapted), velocity(weights(pocket / "model"))
    for folder, wanted in (("merged", expected), ("half", half)):
        assert (velocity(weights(tmp_path / folder)) - wanted).abs().max() / wanted.abs().max() <= 1e-5
    assert (expected - plain).abs().max() > 1e-3
    with pytest.raises(TunerError, match="exists already"):
        merge(tmp_path / "out", base, tmp_path / "merged", torch.float32, 1.0, quiet)


def test_the_commands_for_finished_adapters(
    tmp_path: Path, pocket: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both layouts and back give the same file; a wrong one is told in a sentence."""
    from diffusers import SanaTransformer2DModel

    from simpletuner.cli.app import main
    from simpletuner.models import adapters
    from simpletuner.models.adapters import LoraSettings

    def simpletuner(*arguments: object) -> str:
        monkeypatch.setattr("sys.argv", ["simpletuner", *map(str, arguments)])
        try:
            main()
        except SystemExit as stop:
            assert stop.code == 1
        captured = capsys.readouterr()
        return captured.out + captured.err

    model = SanaTransformer2DModel.from_pretrained(pocket / "model", subfolder="transformer")
    adapters.put_on(model, LoraSettings(2, 1.0), seed=0).save(tmp_path)
    comfyui, back = tmp_path / "comfyui.safetensors", tmp_path / "back.safetensors"
    assert "the layout of ComfyUI" in simpletuner("convert-adapter", tmp_path / WEIGHTS, comfyui)
    assert "the layout of diffusers" in simpletuner("convert-adapter", comfyui, back)
    assert "exists already" in simpletuner("convert-adapter", comfyui, back)
    assert same(tmp_path / WEIGHTS, back) and not same(tmp_path / WEIGHTS, comfyui)
    with safe_open(tmp_path / WEIGHTS, "pt") as one, safe_open(back, "pt") as other:
        first, second = (json.loads(file.metadata()["lora_adapter_metadata"]) for file in (one, other))
    assert {**first, "transformer.target_modules": None} == {**second, "transformer.target_modules": None}
    wrong = simpletuner("merge", tmp_path / "nothing", "--base", pocket / "model", "--output", tmp_path / "merged")
    assert wrong.startswith("Error: cannot read the adapter") and "there is no such file" in wrong
    silent = simpletuner("merge", tmp_path, "--output", tmp_path / "merged")
    assert "does not tell its base model" in silent and "--base" in silent
    misspelt = simpletuner("merge", tmp_path, "--base", "{example:pockte}/model", "--output", tmp_path / "merged")
    assert "there is no such example" in misspelt and "pocket" in misspelt
    short = simpletuner("merge", tmp_path, "--base", "{example:pocket}", "--output", tmp_path / "merged")
    assert "(--base) has no model_index.json" in short and "add /model" in short and "pretrained_model" not in short
    merged = simpletuner("merge", tmp_path, "--base", "{example:pocket}/model", "--output", tmp_path / "merged")
    assert f"Loading {pocket / 'model'}" in merged and (tmp_path / "merged" / "model_index.json").is_file()
