"""`simpletuner generate` draws what plain diffusers and validation draw, to the pixel, and never overwrites."""

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import Command
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from simpletuner.cli.generate import generate
from simpletuner.config.read import load
from simpletuner.errors import ModelError, TunerError
from simpletuner.models.adapters import WEIGHTS
from simpletuner.reporting.progress import Reporter
from simpletuner.training.merging import convert, merge
from simpletuner.training.schedule_free import WORDS

FAST = ("--steps", "2")
SMALL = (*FAST, "--size", "64x96", "--seed", "11", "--guidance", "3")
SCHEDULE_FREE: dict[str, Any] = {
    **{"optimizer": "adamw_schedulefree", "use_ema": False, "max_train_steps": 4},
    **{"checkpointing_steps": 2, "validation_steps": 2},
}
FOX = "a blueprint of a fox"


def call(*words: object) -> Result:
    """The command in this process; its errors are raised."""
    return CliRunner().invoke(generate, list(map(str, words)), catch_exceptions=False, standalone_mode=False)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, pocket: Path) -> Callable[[str], Path]:
    """Output folders of short runs on the pocket, full or lora, also schedule-free, each trained once."""
    from simpletuner.training.run import train

    made: dict[str, Path] = {}

    def run(kind: str) -> Path:
        if kind in made:
            return made[kind]
        home = tmp_path_factory.mktemp(kind)
        pictures = home / "pictures"
        pictures.mkdir()
        for number in range(2):
            Image.linear_gradient("L").resize((64, 64)).rotate(90 * number).convert("RGB").save(
                pictures / f"{number}.png"
            )
        config: dict[str, Any] = {
            "model_type": kind.partition(" ")[0],
            "pretrained_model_name_or_path": str(pocket / "model"),
            "output_dir": str(home / "out"),
            "mixed_precision": "no",
            "sana_complex_human_instruction": "None",
            "tokenizer_max_length": 32,
            "gradient_checkpointing": False,
            "learning_rate": 1e-2,
            "train_batch_size": 2,
            "max_train_steps": 2,
            "use_ema": True,
            "ema_decay": 0.9,
            "validation_prompt": FOX,
            "validation_resolution": "64x96",
            "validation_num_inference_steps": 2,
            "validation_seed": 11,
            "validation_guidance": 3.0,
            "disable_benchmark": True,
            "report_to": "none",
            "report": False,
            "validation_lycoris_strength": 1.0,
            **(SCHEDULE_FREE if "schedule-free" in kind else {}),
        }
        dataset = {"id": "set", "instance_data_dir": str(pictures), "resolution": 64, "resolution_type": "pixel"}
        texts = {"id": "texts", "dataset_type": "text_embeds", "default": True, "cache_dir": str(home / "text")}
        (home / "config.json").write_text(json.dumps(config))
        (home / "multidatabackend.json").write_text(json.dumps([dataset, texts]))
        train(load(str(home / "config.json"), environ={}), Reporter(Console(file=StringIO())))
        return made.setdefault(kind, home / "out")

    return run


def test_a_folder_gives_the_pixels_of_plain_diffusers(pocket: Path, tmp_path: Path) -> None:
    from diffusers import SanaPipeline

    library = tmp_path / "library.json"
    library.write_text(json.dumps({"cat_<token>": "a cat", "house": {"caption": "a house", "adapter_strength": 0.5}}))
    words = ("--prompts", library, "--prompt", FOX, "--negative", "blurry", "--num", 2, "--guidance", 3)
    done = call(pocket / "model", *words, "--out", tmp_path / "out", *SMALL, "--tokens", 32, "--scheduler", "unipc")
    told = f"adapter_strength (house) changes nothing: it acts on an adapter, and {pocket / 'model'} has none"
    assert " ".join(done.output.split()).count(told) == 1
    from diffusers import UniPCMultistepScheduler

    pipe = SanaPipeline.from_pretrained(pocket / "model", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    flow = {
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": pipe.scheduler.config.flow_shift,
    }
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config, **flow)
    drawn = {line["path"]: line for line in json.loads((tmp_path / "out/pictures.json").read_text())["pictures"]}
    assert len(drawn) == 6 and "cat_token_1_64x96.png" in drawn
    for name in ("cat_token_1_64x96.png", "a_blueprint_of_a_fox_0_64x96.png"):
        line = drawn[name]
        expected = pipe(
            line["prompt"],
            negative_prompt="blurry",
            width=64,
            height=96,
            num_inference_steps=2,
            guidance_scale=3.0,
            use_resolution_binning=False,
            max_sequence_length=32,
            generator=torch.Generator("cpu").manual_seed(line["seed"]),
        ).images[0]
        assert np.array_equal(pixels(tmp_path / "out" / name), np.asarray(expected))
    with Image.open(tmp_path / "out" / "grid.png") as sheet:
        assert sheet.width > 3 * 64


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_run_its_checkpoint_and_its_adapter_give_its_validation_pictures(
    runs: Callable[[str], Path], kind: str, tmp_path: Path
) -> None:
    out = runs(kind)
    validated = {
        label: pixels(out / f"validation_images/step_2_validation_0_64x96{label}.png") for label in ("", "_ema")
    }
    assert not np.array_equal(validated[""], validated["_ema"])
    cases: list[tuple[Path, tuple[str, ...], str]] = [
        (out, (), "_ema"),
        (out / "checkpoint-2", ("--live",), ""),
        (out / "checkpoint-2", (), "_ema"),
    ]
    if kind == "lora":
        cases.append((out / "pytorch_lora_weights.safetensors", ("--strength", "1"), "_ema"))
    for number, (model, words, label) in enumerate(cases):
        done = call(model, "--prompt", FOX, *words, "--no-grid", "--out", tmp_path / str(number))
        assert "As in the run's own validation: guidance 3, 2 steps, seed 11, 64x96." in done.output
        (picture,) = (tmp_path / str(number)).glob("*.png")
        assert np.array_equal(pixels(picture), validated[label]), (model, words)


@pytest.mark.parametrize("kind", ["full schedule-free", "lora schedule-free"])
def test_a_checkpoint_draws_with_the_average_that_its_optimizer_keeps(
    runs: Callable[[str], Path], kind: str, tmp_path: Path
) -> None:
    """As validation did at its step; the point that is trained at draws another picture."""
    out = runs(kind)
    cases: list[tuple[Path, tuple[str, ...], int]] = [
        (out / "checkpoint-2", (), 2),
        (out / "checkpoint-4", (), 4),
        (out / "checkpoint-2", ("--live",), 2),
    ]
    if kind.startswith("lora"):
        cases.append((out / "checkpoint-2" / WEIGHTS, (), 2))
    for number, (model, words, step) in enumerate(cases):
        done = call(model, "--prompt", FOX, *words, "--no-grid", "--out", tmp_path / str(number))
        said = " ".join(done.output.split())
        assert f"with {'live weights' if words else WORDS} of" in said
        (picture,) = (tmp_path / str(number)).glob("*.png")
        validated = pixels(out / f"validation_images/step_{step}_validation_0_64x96.png")
        assert np.array_equal(pixels(picture), validated) != bool(words), (model, words)


def test_a_merged_model_draws_as_its_run_did(runs: Callable[[str], Path], tmp_path: Path) -> None:
    """What was trained is rounded in the sum, and nothing else differs: without the run's record all of it does."""
    out, merged, said = runs("lora schedule-free"), tmp_path / "merged", StringIO()
    merge(out / "checkpoint-2", None, merged, torch.float32, 1.0, Reporter(Console(file=said, width=200)))
    assert f"With {WORDS} of " in said.getvalue() and "as the run's validation did (drawing.json)" in said.getvalue()
    call(merged, "--prompt", FOX, "--no-grid", "--out", tmp_path / "a")
    (picture,) = (tmp_path / "a").glob("*.png")
    validated = pixels(out / "validation_images/step_2_validation_0_64x96.png").astype(int)
    assert abs(pixels(picture) - validated).max() <= 1
    call(out / "checkpoint-2", "--live", "--prompt", FOX, "--no-grid", "--out", tmp_path / "b")
    (live,) = (tmp_path / "b").glob("*.png")
    assert abs(pixels(live) - validated).max() > 1, "other weights are further away"
    (alone := tmp_path / "mine.safetensors").write_bytes((out / WEIGHTS).read_bytes())
    merge(alone, None, tmp_path / "strange", torch.float32, 1.0, Reporter(Console(file=said, width=200)))
    assert "For `simpletuner generate`: How its run drew is not known" in said.getvalue()
    assert not (tmp_path / "strange" / "drawing.json").exists()


def test_an_adapter_is_merged_into_the_transformer_it_was_trained_over(
    runs: Callable[[str], Path], pocket: Path, tmp_path: Path
) -> None:
    """Which its run may have named beside the base model."""
    out, other, mine = runs("lora"), runs("full") / "pipeline", tmp_path / "mine"
    mine.mkdir()
    (mine / WEIGHTS).write_bytes((out / WEIGHTS).read_bytes())
    record = json.loads((out / "config.resolved.json").read_text())
    named = {"pretrained_transformer_model_name_or_path": str(other)}
    (mine / "config.resolved.json").write_text(json.dumps({**record, **named}))
    for base, expected in ((None, other), (str(pocket / "model"), pocket / "model")):
        merged = tmp_path / ("own" if base is None else "asked")
        merge(mine, base, merged, torch.float32, 1.0, Reporter(Console(file=StringIO())))
        found, wanted = (
            load_file(folder / "transformer/diffusion_pytorch_model.safetensors") for folder in (merged, expected)
        )
        assert torch.equal(found["proj_out.weight"], wanted["proj_out.weight"]), "no adapter is on it"


def test_strength_acts_and_zero_is_the_base_model(runs: Callable[[str], Path], pocket: Path, tmp_path: Path) -> None:
    out, library = runs("lora"), tmp_path / "library.json"
    library.write_text(json.dumps({"off": {"prompt": FOX, "adapter_strength": 0}, "half": FOX}))
    done = call(out, "--prompts", library, *SMALL, "--strength", 0.5, "--out", tmp_path / "a")
    assert "adapter_strength" not in done.output
    call(pocket / "model", "--prompt", FOX, *SMALL, "--no-instruction", "--tokens", 32, "--out", tmp_path / "b")
    off, half = (pixels(tmp_path / "a" / f"{name}_0_64x96.png") for name in ("off", "half"))
    assert np.array_equal(off, pixels(tmp_path / "b" / "a_blueprint_of_a_fox_0_64x96.png"))
    full = pixels(out / "validation_images/step_2_validation_0_64x96_ema.png")
    assert not np.array_equal(half, off) and not np.array_equal(half, full)


def test_a_checkpoint_is_converted_with_the_weights_it_draws_with(runs: Callable[[str], Path], tmp_path: Path) -> None:
    def converted(adapter: Path) -> dict[str, torch.Tensor]:
        file = tmp_path / "converted.safetensors"
        file.unlink(missing_ok=True)
        convert(adapter, file, Reporter(Console(file=StringIO())))
        return load_file(file)

    for kind, last in (("lora", "checkpoint-2"), ("lora schedule-free", "checkpoint-4")):
        out = runs(kind)
        export, from_checkpoint = converted(out), converted(out / last)
        assert export.keys() == from_checkpoint.keys()
        assert all(torch.equal(tensor, from_checkpoint[key]) for key, tensor in export.items()), kind
    live = converted(runs("lora") / "checkpoint-2" / WEIGHTS)
    assert any(not torch.equal(tensor, live[key]) for key, tensor in converted(runs("lora")).items())


def test_an_adapter_elsewhere_finds_its_base_in_its_file(runs: Callable[[str], Path], tmp_path: Path) -> None:
    out, elsewhere = runs("lora"), tmp_path / "mine.safetensors"
    elsewhere.write_bytes((out / "pytorch_lora_weights.safetensors").read_bytes())
    done = call(elsewhere, "--prompt", FOX, *SMALL, "--no-instruction", "--tokens", 32, "--out", tmp_path / "out")
    assert "How its run drew" not in done.output, "all is asked for"
    rest = call(elsewhere, "--prompt", FOX, *SMALL, "--no-instruction", "--out", tmp_path / "rest")
    said = " ".join(rest.output.split())
    assert "How its run drew is not known, so defaults are used: 300 tokens (--tokens)" in said
    (picture,) = (tmp_path / "out").glob("a_*.png")
    assert np.array_equal(pixels(picture), pixels(out / "validation_images/step_2_validation_0_64x96_ema.png"))


def test_nothing_is_overwritten_unless_asked(pocket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = (pocket / "model", "--prompt", FOX, *FAST, "--size", "64", "--no-instruction", "--tokens", 32)
    call(*words)
    call(*words)
    (first,), (second,) = (list(Path(f"generated/00{n}").glob("a_*.png")) for n in (1, 2))
    assert np.array_equal(pixels(first), pixels(second))
    first.write_bytes(b"mine")
    with pytest.raises(TunerError, match=r"a_blueprint_of_a_fox_0_64x64.png.* --overwrite"):
        call(*words, "--out", "generated/001")
    assert first.read_bytes() == b"mine"
    call(*words, "--out", "generated/001", "--overwrite")
    assert np.array_equal(pixels(first), pixels(second))


def test_mistakes_are_sentences(
    runs: Callable[[str], Path], pocket: Path, tmp_path: Path, simpletuner: Command
) -> None:
    out, empty = runs("full"), tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "list.json").write_text("[1]")
    prompt = ("--prompt", "a")
    cases: list[tuple[tuple[object, ...], str]] = [
        ((empty, *prompt), "holds nothing to draw with"),
        ((out, *prompt, "--ema"), "name a checkpoint, which may hold both"),
        ((out, *prompt, "--base", "x/y"), "needs no other model"),
        ((pocket / "model", *prompt, "--strength", 2), "acts on an adapter"),
        ((pocket / "model", *prompt, "--size", "100x64"), "multiples of 32 pixels"),
        ((pocket / "model", "--prompts", tmp_path / "list.json"), "it must be"),
        ((pocket / "model", "--prompts", tmp_path / "none.json"), "there is no such file"),
        (("nowhere", *prompt), r"\(MODEL\) is neither a folder here nor a hub id"),
        ((pocket / "model", *prompt, "--variant", "fp17"), "cannot load the transformer"),
    ]
    for words, sentence in cases:
        with pytest.raises((TunerError, ModelError), match=sentence):
            call(*words, "--out", tmp_path / "never")
    assert not (tmp_path / "never").exists()
    done = simpletuner("generate", pocket / "model", check=False)
    assert done.returncode == 2 and "there is nothing to draw" in done.stderr


def test_a_checkpoint_away_from_its_run_needs_its_base(
    runs: Callable[[str], Path], pocket: Path, tmp_path: Path
) -> None:
    import shutil

    moved = tmp_path / "checkpoint-2"
    shutil.copytree(runs("full") / "checkpoint-2", moved)
    with pytest.raises(TunerError, match=r"config\.resolved\.json .*--base"):
        call(moved, "--prompt", FOX)
    words = ("--base", pocket / "model", "--no-instruction", "--tokens", 32, *SMALL)
    call(moved, "--prompt", FOX, *words, "--out", tmp_path / "out", "--live")
    (picture,) = (tmp_path / "out").glob("a_*.png")
    assert np.array_equal(pixels(picture), pixels(runs("full") / "validation_images/step_2_validation_0_64x96.png"))
    (moved / "transformer" / "config.json").write_text("{}")
    with pytest.raises(TunerError, match="does not match its hash"):
        call(moved, "--prompt", FOX, *words, "--out", tmp_path / "out", "--overwrite")
