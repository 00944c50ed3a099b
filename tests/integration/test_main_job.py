"""The real command, from pictures on disk to an exported folder, on real (small) models."""

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Command, Python, has_recorded, started, stopped_when
from PIL import Image
from processes import hanging_up, until
from safetensors.torch import load_file, save_file


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_export_draws_the_very_validation_pictures(
    simpletuner: Command, pocket_run: Callable[..., Path], tmp_path: Path
) -> None:
    from diffusers import SanaPipeline

    config = pocket_run(
        validation_disable=False,
        validation_prompt="a blueprint of a fox",
        validation_resolution="128x128,128x64",
        validation_num_inference_steps=4,
        validation_guidance=3.5,
        validation_seed=11,
        use_ema=True,
    )
    before = files_below(tmp_path / "pictures")
    done = simpletuner("train", "--config", config)
    assert "before_after.png" in done.stdout and "Done: 4 steps" in done.stdout
    assert files_below(tmp_path / "pictures") == before, "nothing is written into a picture folder"
    out = tmp_path / "out"
    pipe = SanaPipeline.from_pretrained(out / "pipeline", dtype=torch.float32)
    for width, height in ((128, 128), (128, 64)):
        image = pipe(
            "a blueprint of a fox",
            width=width,
            height=height,
            num_inference_steps=4,
            guidance_scale=3.5,
            use_resolution_binning=False,
            complex_human_instruction=None,
            max_sequence_length=32,
            generator=torch.Generator().manual_seed(11),
        ).images[0]
        with Image.open(out / "validation_images" / f"step_4_validation_0_{width}x{height}_ema.png") as written:
            assert np.array_equal(np.asarray(image), np.asarray(written))
    assert (out / "validation_images" / "step_4_validation_0_128x128.png").is_file()  # live weights beside EMA
    with Image.open(out / "before_after.png") as grid:
        assert grid.width > 2 * 128


def test_a_killed_run_resumes_to_the_same_bits(
    simpletuner: Command, pocket_run: Callable[..., Path], tmp_path: Path
) -> None:
    options = {"max_train_steps": 9, "checkpoint_step_interval": 3, "use_ema": True, "lr_scheduler": "cosine"}
    options |= {"gradient_accumulation_steps": 2, "num_eval_images": 2}
    config = pocket_run(**options, output_dir=str(tmp_path / "whole"))
    simpletuner("train", "--config", config)

    config = pocket_run(**options, output_dir=str(tmp_path / "killed"))
    # Killed without warning between checkpoints: after step 4 is on record, before 6 can be.
    stopped_when(lambda: has_recorded(tmp_path / "killed", 4), config, tmp_path)
    kept = sorted(p.name for p in (tmp_path / "killed").glob("checkpoint-*"))
    assert kept and "checkpoint-9" not in kept, "the kill came too late to test anything"
    done = simpletuner("train", "--config", config)
    assert f"Resuming from {kept[-1]}" in done.stdout
    for name in ("checkpoint-9", "pipeline"):
        assert same(weights(tmp_path / "whole" / name), weights(tmp_path / "killed" / name))
    for part in ("transformer_ema/diffusion_pytorch_model.safetensors", "optimizer.safetensors"):
        first, second = (load_file(tmp_path / run / "checkpoint-9" / part) for run in ("whole", "killed"))
        assert same(first, second)
    again = simpletuner("train", "--config", config, "--learning_rate=1e-5")
    assert "Nothing left to train: the checkpoint is at step 9 and the run has 9 steps" in again.stdout
    assert "learning_rate (" in again.stdout and "1e-05) changed since checkpoint-9" in again.stdout


def test_an_interrupt_saves_and_says_how_to_go_on(pocket_run: Callable[..., Path], tmp_path: Path) -> None:
    config = pocket_run(max_train_steps=5000)
    status, output = stopped_when(lambda: has_recorded(tmp_path / "out", 3), config, tmp_path, by=signal.SIGINT)
    assert status == 130, output
    assert "Stopped at step" in output and list((tmp_path / "out").glob("checkpoint-*"))


def test_a_closed_terminal_saves_too(pocket_run: Callable[..., Path], tmp_path: Path) -> None:
    """Nobody reads any more what is said, which is no error either: the status is that of an interrupt."""
    config, output = pocket_run(max_train_steps=5000), tmp_path / "out"
    with hanging_up(), started("train", "--config", config, cwd=tmp_path) as process:
        until(lambda: has_recorded(output, 3), process)
        assert process.stdout
        process.stdout.close()
        process.send_signal(signal.SIGHUP)
        process.wait(120)
    assert process.returncode == 130 and list(output.glob("checkpoint-*"))
    assert json.loads((output / "run.json").read_text())["status"] == "interrupted"


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("optimizer", ["optimi-adamw", "torch-adamw"])
def test_the_real_architecture_trains_in_every_precision(
    simpletuner: Command,
    pocket_run: Callable[..., Path],
    tiny_sana: Path,
    tmp_path: Path,
    precision: str,
    optimizer: str,
) -> None:
    config = pocket_run(
        pretrained_model_name_or_path=str(tiny_sana),
        sana_complex_human_instruction=None,
        tokenizer_max_length=300,
        mixed_precision=precision,
        optimizer=optimizer,
        gradient_checkpointing=True,
        gradient_checkpointing_interval=2,
        max_train_steps=3,
    )
    done = simpletuner("train", "--config", config)
    metrics = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in metrics if line["kind"] == "step"]
    assert len(losses) == 3 and all(loss is not None and 0 < loss < 100 for loss in losses)
    before, after = weights(tiny_sana), weights(tmp_path / "out" / "pipeline")
    assert all(tensor.isfinite().all() for tensor in after.values())
    changed = sum(not torch.equal(before[k].to(after[k].dtype), after[k]) for k in before)
    assert changed > 0.8 * len(before)
    expected = {
        "bf16": "bfloat16" if optimizer == "optimi-adamw" else "bfloat16 autocast",
        "fp16": "float16",
        "no": "float32",
    }
    assert expected[precision] in done.stdout


def test_the_second_run_encodes_nothing(simpletuner: Command, pocket_run: Callable[..., Path], tmp_path: Path) -> None:
    config = pocket_run()
    assert "Encoding pictures" in simpletuner("train", "--config", config).stdout
    again = simpletuner("train", "--config", config, "--output_dir", tmp_path / "second").stdout
    assert "latents are in the cache" in again and "Encoding" not in again
    # Another precision is another fingerprint: nothing stale is read.
    other = simpletuner("train", "--config", config, "--output_dir", tmp_path / "third", "--mixed_precision=bf16")
    assert "Encoding pictures" in other.stdout


def test_too_few_pictures_is_said_before_anything_is_loaded(
    simpletuner: Command, pocket_run: Callable[..., Path], tmp_path: Path
) -> None:
    config = pocket_run(train_batch_size=8)
    done = simpletuner("train", "--config", config, check=False)
    assert done.returncode == 1 and "Loading" not in done.stdout
    assert "bucket 64x64 has 4, needs 8: set repeats ≥ 1" in done.stderr
    allowed = simpletuner("train", "--config", config, "--allow_dataset_oversubscription", "--max_train_steps=1")
    assert "filled with repeated pictures" in allowed.stdout


def test_unreadable_pictures_are_named_and_the_run_goes_on(
    simpletuner: Command, pocket_run: Callable[..., Path], tmp_path: Path
) -> None:
    config = pocket_run()
    folder = tmp_path / "pictures"
    (folder / "broken.png").write_bytes(b"no picture")
    whole = (folder / "picture_1.png").read_bytes()
    (folder / "cut_off.png").write_bytes(whole[: len(whole) // 2])
    (folder / "cut_off.txt").write_text("a caption")
    (folder / "lonely.png").write_bytes(whole)
    done = simpletuner("train", "--config", config).stdout
    for name in ("broken.png", "cut_off.png", "lonely.png"):
        assert f"skipped {name}" in done
    assert "7 pictures found, 5 used" in done, "before decoding"
    assert "7 pictures found, 4 used (64x64 × 4); 1 picture cannot be decoded" in done
    sheet = json.loads((tmp_path / "out" / "dataset_sheet.json").read_text())["datasets"][0]
    assert (sheet["used"], sheet["found"]) == (4, 7)
    # The one that can only be found out by decoding is remembered, until the file changes.
    again = simpletuner("train", "--config", config, "--output_dir", tmp_path / "second").stdout
    assert "7 pictures found, 4 used" in again and "5 used" not in again and "Encoding" not in again
    assert "skipped cut_off.png: it cannot be decoded: the file is damaged" in again
    assert "4 of 4 that the configuration needs" in simpletuner("cache", "stats", "--config", config).stdout
    (folder / "cut_off.png").write_bytes(whole)
    mended = simpletuner("train", "--config", config, "--output_dir", tmp_path / "third", "--max_train_steps=1").stdout
    assert "7 pictures found, 5 used" in mended and "skipped cut_off.png" not in mended


def test_a_poisoned_sample_is_skipped_and_named(
    simpletuner: Command, pocket_run: Callable[..., Path], tmp_path: Path
) -> None:
    """A latent so large that the loss overflows: its steps are skipped, its picture named, the weights stay finite."""
    from simpletuner.data.cache import TensorStore

    config = pocket_run(max_train_steps=4, use_ema=True)
    simpletuner("train", "--config", config, "--max_train_steps=1", "--output_dir", tmp_path / "first")
    (shard_folder,) = (p for p in (tmp_path / "cache" / "vae").iterdir() if p.is_dir())
    store = TensorStore(shard_folder)
    tensors = {key: store.get(key) for shard in shard_folder.glob("shard-*") for key in load_file(shard)}
    shutil.rmtree(shard_folder)
    poisoned = TensorStore(shard_folder)
    with poisoned.writer() as writer:
        for number, (key, tensor) in enumerate(tensors.items()):
            writer.add(key, tensor * 1e30 if number == 0 else tensor, key)
    done = simpletuner("train", "--config", config)
    assert "skipped: its loss is NaN or infinite" in done.stdout and "picture_" in done.stdout
    for part in ("transformer", "transformer_ema"):
        saved = load_file(tmp_path / "out" / "checkpoint-4" / part / "diffusion_pytorch_model.safetensors")
        assert all(tensor.isfinite().all() for tensor in saved.values())


def test_a_run_in_a_used_folder_goes_on_only_where_it_may(
    simpletuner: Command, pocket_run: Callable[..., Path], tmp_path: Path, pocket: Path
) -> None:
    """Same run goes on; a changed recipe is told; another precision or base model is refused; a fresh run starts clean."""
    config = pocket_run(max_train_steps=2, checkpoint_step_interval=1)
    simpletuner("train", "--config", config)
    told = simpletuner(
        *("train", "--config", config, "--max_train_steps=3"),
        *("--optimizer_config=weight_decay=0.5", "--flow_schedule_shift=9", "--seed=8"),
    ).stdout
    assert "weight_decay 0.0 → 0.5" in told and "noise changed since checkpoint-2" in told
    assert "seed changed since checkpoint-2; the order" in told and "2 of 3 steps are done" in told
    refused = simpletuner("train", "--config", config, "--mixed_precision=bf16", check=False)
    assert refused.returncode == 1 and "weights in 'float32'" in refused.stderr and "Traceback" not in refused.stderr
    other = tmp_path / "other"
    shutil.copytree(pocket / "model", other)
    file = other / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor * 0 for name, tensor in load_file(file).items()}, file)
    refused = simpletuner("train", "--config", config, f"--pretrained_model_name_or_path={other}", check=False)
    assert refused.returncode == 1 and "base model" in refused.stderr
    fresh = simpletuner("train", "--config", config, "--resume_from_checkpoint=no", "--max_train_steps=1").stdout
    assert "Resuming" not in fresh and "earlier-1" in fresh
    out = tmp_path / "out"
    assert [p.name for p in out.glob("checkpoint-*")] == ["checkpoint-1"]
    assert {p.name for p in (out / "earlier-1").iterdir()} >= {"checkpoint-3", "checkpoint-2", "metrics.jsonl"}


def test_two_runs_in_one_folder_are_refused(
    simpletuner: Command, pocket_run: Callable[..., Path], tmp_path: Path
) -> None:
    from simpletuner.training.resuming import only_run_in

    config = pocket_run(max_train_steps=1)
    with only_run_in(tmp_path / "out"):
        done = simpletuner("train", "--config", config, check=False)
    assert done.returncode == 1 and "another run is training in" in done.stderr


def test_a_full_disk_is_a_sentence_and_the_last_checkpoint_stays(
    pocket_run: Callable[..., Path], tmp_path: Path, simpletuner: Command, python: Python
) -> None:
    config = pocket_run(max_train_steps=2, checkpoint_step_interval=1)
    simpletuner("train", "--config", config, "--max_train_steps=1")
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))\n"
        "from simpletuner.cli.app import main; main()"
    )
    done = python(code, "train", "--config", config, folder=tmp_path)
    assert done.returncode == 1 and "cannot write" in done.stderr and "fault of the program" not in done.stderr
    assert [p.name for p in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-1"]


def test_pictures_that_turn_out_broken_do_not_leave_a_bucket_too_small(
    simpletuner: Command, pocket_run: Callable[..., Path], tmp_path: Path
) -> None:
    config = pocket_run(max_train_steps=1, train_batch_size=4)
    for number in (1, 2, 3):  # whole headers, cut pixels
        file = tmp_path / "pictures" / f"picture_{number}.png"
        file.write_bytes(file.read_bytes()[:-200])
    done = simpletuner("train", "--config", config, check=False)
    assert done.returncode == 1 and "too few pictures" in done.stderr and "repeats" in done.stderr


def test_fp16_gradients_that_never_get_finite_stop_the_run() -> None:
    from simpletuner.errors import NonFiniteError
    from simpletuner.training.guard import SETTLING_PATIENCE, Guard

    guard = Guard()
    for step in range(1, SETTLING_PATIENCE):
        assert "settles" in guard.scale_overflowed(step)
    with pytest.raises(NonFiniteError, match="fp16"):
        guard.scale_overflowed(SETTLING_PATIENCE)
    guard.good()
    assert "settles" in guard.scale_overflowed(1)


def test_an_unreachable_hub_is_one_sentence_at_once(pocket_run: Callable[..., Path], simpletuner: Command) -> None:
    config = pocket_run(pretrained_model_name_or_path="someone/model")
    nobody = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    nobody |= {
        name: "" for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
    }
    began = time.monotonic()
    failed = simpletuner("train", "--config", config, check=False, **nobody)
    assert failed.returncode == 1 and time.monotonic() - began < 90  # the library alone tries for minutes
    (line,) = failed.stderr.strip().splitlines()
    assert "no folder 'someone/model'" in line and "http://127.0.0.1:9 cannot be reached" in line
    failed = simpletuner("train", "--config", config, "--pretrained_model_name_or_path=a/b/c", check=False)
    assert "neither a folder here nor a hub id" in failed.stderr
