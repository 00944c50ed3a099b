"""Every way of training on the pocket model, one row each: writes the table of docs/methods.md.

    python bench/methods.py                    # all rows that are not measured yet, then the page
    python bench/methods.py --only lora lokr   # some rows
    python bench/methods.py --page             # the page alone, from what was measured

Each row is the real command with bench/fixed_recipe.py and words of its own, which win over the recipe's. The last rate,
lr_end, is a number: rows with other rates fall from them to the same end. A row trains ``STEPS`` steps with a checkpoint
in the middle, then goes on from that checkpoint in a second folder (the weights must be the same bits), then plain
diffusers loads the result and must draw the run's own validation picture, pixel for pixel, and is scored on the 24
held-out pictures (bench/pocket_recipe.py says how). Finished rows are kept in output/methods/rows.json, so an
interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fixed_recipe import RECIPE
from PIL import Image
from pocket_recipe import DRAWN, GUIDANCE, POCKET, HeldOut
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "output" / "methods" / "rows.json"
PAGE = ROOT / "docs" / "methods.md"
STEPS = 40
PROMPT = "a blueprint of a fox"
MARK = "<!-- table: bench/methods.py -->"


@dataclass(frozen=True, slots=True)
class Row:
    """One way of training.

    Attributes:
        name: Short and unique.
        what: For the page.
        options: ``key=value`` words on top of the fixed recipe.
    """

    name: str
    what: str
    options: str


_ADAPTER = "model_type=lora learning_rate=2e-3"
_LYCORIS = f"{_ADAPTER} lora_type=lycoris"
_BF16 = "mixed_precision=bf16"


def _lycoris(algo: str, **more: Any) -> str:
    targets = {"target_module": ["Attention", "GLUMBConv"], "target_name": []}
    config = {"algo": algo, "multiplier": 1.0, "linear_dim": 16, "linear_alpha": 16, "apply_preset": targets, **more}
    return "lycoris_config=" + json.dumps(config, separators=(",", ":"))


METHODS = (
    Row("full", "full rank, torch-adamw", ""),
    Row("full-bf16", "full rank, bf16 weights, optimi-adamw", f"{_BF16} optimizer=optimi-adamw"),
    Row("full-release", "full rank, gradients released in backward",
        "optimizer=optimi-adamw optimizer_release_gradients=true max_grad_norm=0"),
    Row("rollout", "full rank with rollout", "scheduled_sampling_max_step_offset=8 scheduled_sampling_probability=0.5"),
    Row("lora", "LoRA, rank 16, attention", _ADAPTER),
    Row("lora-all", "LoRA, rank 16, attention and feed-forward", f"{_ADAPTER} peft_lora_target_modules=all"),
    Row("dora", "DoRA, rank 16", f"{_ADAPTER} use_dora=true"),
    Row("rslora", "rank-stabilised LoRA, rank 16", f"{_ADAPTER} use_rslora=true"),
    Row("lokr", "LoKr, factor 8", f"{_LYCORIS} {_lycoris('lokr', factor=8)}"),
    Row("loha", "LoHa, rank 16", f"{_LYCORIS} {_lycoris('loha')}"),
    Row("lora-nf4", "LoRA over an nf4 base", f"{_ADAPTER} {_BF16} base_model_precision=nf4-bnb"),
    Row("lora-int8", "LoRA over an int8 base", f"{_ADAPTER} {_BF16} base_model_precision=int8-torchao"),
    Row("lokr-nf4", "LoKr over an nf4 base", f"{_LYCORIS} {_BF16} base_model_precision=nf4-bnb {_lycoris('lokr', factor=8)}"),
)  # fmt: skip

# Full rank with other optimizers: name → (learning rate, further options). Rates of the same kind as AdamW's are kept;
# those of sign-based and scale-free optimizers are what their papers advise relative to it.
OPTIMIZERS = {
    "optimi-adamw": (4e-4, ""),
    "adamw_bf16": (4e-4, _BF16),
    "optimi-stableadamw": (4e-4, ""),
    "optimi-lion": (5e-5, ""),
    "optimi-adan": (4e-4, ""),
    "torch-adafactor": (4e-3, ""),
    "bnb-adamw8bit": (4e-4, ""),
    "bnb-lion8bit": (5e-5, ""),
    "bnb-ademamix8bit": (4e-4, ""),
    "ao-adamw8bit": (4e-4, ""),
    "prodigy": (1.0, ""),
    "adamw_schedulefree": (1e-3, "use_ema=false"),
    "muon": (2e-3, ""),
    "soap": (4e-4, ""),
    "came": (2e-4, ""),
}
ALL = (
    *METHODS,
    *(
        Row(f"full/{name}", f"full rank, {name}", f"optimizer={name} learning_rate={rate} {more}".strip())
        for name, (rate, more) in OPTIMIZERS.items()
    ),
)  # fmt: skip


def train(options: str, output: Path, caches: Path) -> tuple[str, float]:
    """The real command; returns what it said and its seconds."""
    words = [f"--{word}" for word in f"{RECIPE} {options}".split()]
    command = [sys.executable, "-c", "from simpletuner.cli.app import main; main()", "train", "--example=pocket"]
    command += [f"--output_dir={output}", f"--max_train_steps={STEPS}", f"--checkpoint_step_interval={STEPS // 2}"]
    command += [f"--data_backend_config={caches / 'data.json'}", f"--validation_prompt={PROMPT}"]
    command += [f"--user_prompt_library={caches / 'prompts.json'}", "--validation_on_startup=false", *words]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout).strip()[-600:])
    return done.stdout, time.perf_counter() - began


def prepare(folder: Path) -> None:
    """The embedded dataloader file with caches in one place, so that only the first row encodes."""
    text = (POCKET / "multidatabackend.json").read_text().replace('"cache/', f'"{folder}/')
    (folder / "data.json").write_text(text)
    (folder / "prompts.json").write_text("{}")


def metrics(output: Path, kind: str) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def trained_weights(output: Path) -> tuple[list[Path], Path]:
    """The files of the result, and the folder of the last checkpoint's weights."""
    adapter = output / "pytorch_lora_weights.safetensors"
    if adapter.is_file():
        return [adapter], output / f"checkpoint-{STEPS}"
    return sorted((output / "pipeline" / "transformer").glob("*.safetensors")), output / f"checkpoint-{STEPS}"


def resumes(options: str, output: Path, caches: Path) -> str:
    """Whether the run that goes on from the middle ends in the same weights: "bit-exact", or by how much not."""
    second = output.with_name(output.name + "-resumed")
    second.mkdir()
    shutil.copytree(output / f"checkpoint-{STEPS // 2}", second / f"checkpoint-{STEPS // 2}")
    train(f"{options} validation_disable=true eval_loss_disable=true", second, caches)
    (first, *_), (again, *_) = trained_weights(output)[0], trained_weights(second)[0]
    return _same(first, again)


def _same(first: Path, second: Path) -> str:
    one, two = load_file(first), load_file(second)
    if one.keys() != two.keys():
        return "other tensors"
    worst = max((one[k].float() - two[k].float()).abs().max().item() for k in one)
    return "bit-exact" if all(torch.equal(one[k], two[k]) for k in one) else f"differs by {worst:.1e}"


def reloaded(output: Path, options: str, as_trained: bool = False) -> Any:
    """The result in plain diffusers (and LyCORIS' own loader for its adapters), in float32 or in the run's own dtypes."""
    from diffusers import SanaPipeline

    half = {"transformer": torch.bfloat16, "text_encoder": torch.bfloat16, "default": torch.float32}
    dtype = half if as_trained and _BF16 in options else torch.float32

    adapter = output / "pytorch_lora_weights.safetensors"
    home = POCKET / "model" if adapter.is_file() else output / "pipeline"
    pipe = SanaPipeline.from_pretrained(home, torch_dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    if "lora_type=lycoris" in options:
        from lycoris import create_lycoris_from_weights

        network, _ = create_lycoris_from_weights(1.0, str(adapter), pipe.transformer)
        network.apply_to()  # the library's merge_to applies alpha / rank twice for LoKr and LoHa
    elif adapter.is_file():
        pipe.load_lora_weights(str(output))
    return pipe


def difference(output: Path, options: str) -> float:
    """Largest difference, in grey levels, between the run's last validation picture and diffusers' own."""
    pipe = reloaded(output, options, as_trained=True)
    adapter_in_half = _BF16 in options and "model_type=lora" in options  # float32 beside a bf16 base: under autocast
    (drawn,) = (output / "validation_images").glob(f"step_{STEPS}_validation_*.png")
    with torch.autocast("cpu", torch.bfloat16) if adapter_in_half else nullcontext():
        latents = pipe(
            PROMPT,
            **DRAWN,
            guidance_scale=GUIDANCE,
            generator=torch.Generator("cpu").manual_seed(0),
            output_type="latent",
        ).images
    with torch.no_grad():  # decoded in float32, whatever the transformer ran in
        decoded = pipe.vae.decode(latents.float() / pipe.vae.config.scaling_factor, return_dict=False)[0]
    (image,) = pipe.image_processor.postprocess(decoded)
    both = (np.asarray(i.convert("RGB"), dtype=np.int16) for i in (image, Image.open(drawn)))
    return float(np.abs(np.subtract(*both)).max())


def measure(row: Row, work: Path, caches: Path, held_out: HeldOut) -> dict[str, Any]:
    """Everything about one row."""
    output = work / row.name.replace("/", "-")
    try:
        train(row.options, output, caches)
        steps = metrics(output, "step")
        losses = {line["step"]: line["loss"] for line in metrics(output, "eval") if line["weights"] != "live weights"}
        files, checkpoint = trained_weights(output)
        pipe = reloaded(output, row.options)
        palette, top1 = held_out.score(pipe, 0, GUIDANCE)
        return {
            "seconds per step": round(statistics.median(line["seconds"] for line in steps[5:]), 3),
            "held-out before": round(losses[0], 3),
            "held-out after": round(losses[STEPS], 3),
            "plain diffusers": round(held_out.loss(pipe), 3),
            "palette": round(palette, 2),
            "top-1": round(top1, 2),
            "result MB": round(sum(f.stat().st_size for f in files) / 1e6, 2),
            "checkpoint MB": round(sum(f.stat().st_size for f in checkpoint.rglob("*") if f.is_file()) / 1e6, 1),
            "reload": difference(output, row.options),
            "resume": resumes(row.options, output, caches),
        }
    except (
        RuntimeError,
        OSError,
        ValueError,
        KeyError,
        ImportError,
    ) as error:  # a row that fails is a row that says so
        return {"failed": f"{type(error).__name__}: {error}"[:600]}
    finally:
        shutil.rmtree(output, ignore_errors=True)
        shutil.rmtree(output.with_name(output.name + "-resumed"), ignore_errors=True)


def page(rows: dict[str, dict[str, Any]]) -> str:
    """The table in Markdown."""
    head = [
        "method",
        "s/step",
        "held-out loss",
        "palette",
        "top-1 of 24",
        "result MB",
        "checkpoint MB",
        "reload",
        "resume",
    ]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in ALL:
        found = rows.get(row.name)
        if not found:
            continue
        if "failed" in found:
            lines.append(f"| {row.what} | failed: {found['failed'].splitlines()[-1][:120]} |{' |' * (len(head) - 2)}")
            continue
        equal = "equal" if found["reload"] == 0 else f"{found['reload']:g} of 255"
        equal = "base in fewer bits" if "base_model_precision" in row.options else equal
        cells = [row.what, found["seconds per step"], f"{found['held-out before']} → {found['held-out after']}"]
        cells += [found[k] for k in ("palette", "top-1", "result MB", "checkpoint MB")]
        lines.append(f"| {' | '.join(str(c) for c in [*cells, equal, found['resume']])} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="names of rows; those are measured again")
    parser.add_argument("--page", action="store_true", help="write the page from what was measured")
    arguments = parser.parse_args()
    ROWS.parent.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, Any]] = json.loads(ROWS.read_text()) if ROWS.is_file() else {}
    wanted = [
        r
        for r in ALL
        if (r.name in arguments.only if arguments.only else rows.get(r.name, {"failed": 1}).get("failed"))
    ]
    with tempfile.TemporaryDirectory() as folder:
        caches = Path(folder) / "caches"
        caches.mkdir()
        prepare(caches)
        held_out = HeldOut("all")
        for row in [] if arguments.page else wanted:
            began = time.perf_counter()
            rows[row.name] = measure(row, Path(folder), caches, held_out)
            ROWS.write_text(json.dumps(rows, indent=1))
            print(f"{row.name:20} {time.perf_counter() - began:4.0f} s  {json.dumps(rows[row.name])}", flush=True)
    before, _, _, _, after = re.split(f"({re.escape(MARK)})", PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(f"{before}{MARK}\n\n{page(rows)}\n\n{MARK}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
