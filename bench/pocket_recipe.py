"""How well does the embedded recipe teach the pocket model a style? Prints a table, recipe by recipe.

    python bench/pocket_recipe.py                       # the embedded recipe beside the prototype's, 3 x 3 seeds
    python bench/pocket_recipe.py --half choose "lr=learning_rate=3e-4 max_train_steps=300" …   # compare candidates

Each recipe is trained by the real command with three seeds (or ``--seeds``); each result is sampled with three seeds. The 24 held-out
pictures are split in two: recipes are chosen on 12 (``choose``), figures are reported on the other 12 (``report``).
Metrics: held-out loss at fixed noise and times; palette, the overlap of colour histograms with the real pictures;
top-1, how often a generated picture's latents are nearest to those of the right subject among the 12.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import simpletuner
from simpletuner.evaluation.palette import histogram, overlap

POCKET = Path(simpletuner.__file__).parent / "pocket"
PICTURES = POCKET / "blueprint" / "eval"
# The throw-away script's recipe that came with the pocket model; the yardstick.
PROTOTYPE = (
    "max_train_steps=200 train_batch_size=8 learning_rate=5e-4 lr_scheduler=polynomial lr_power=1 lr_end=5e-5 "
    "lr_warmup_steps=20 optimizer=torch-adamw optimizer_config=weight_decay=0.01 use_ema=true ema_decay=0.98 "
    "caption_dropout_probability=0.1 flow_schedule_shift=1 flow_sigmoid_scale=1.1 max_grad_norm=1"
)
SIGMAS = (0.1, 0.3, 0.5, 0.7, 0.9)
TOKENS = 32
GUIDANCE = 3.5
DRAWN: dict[str, Any] = {  # as the embedded configuration draws its validation pictures
    "height": 128,
    "width": 128,
    "num_inference_steps": 20,
    "use_resolution_binning": False,
    "complex_human_instruction": None,
    "max_sequence_length": TOKENS,
}


class HeldOut:
    """Held-out pictures and the three metrics on them."""

    def __init__(self, half: str) -> None:
        """Every second picture by name: ``choose`` the first of each pair, ``report`` the second; or ``all`` 24."""
        every = sorted(PICTURES.glob("*.png"))
        files = every if half == "all" else every[0 if half == "choose" else 1 :: 2]
        self.pixels = torch.stack([_pixels(Image.open(f).convert("RGB")) for f in files])
        self.captions = [f.with_suffix(".txt").read_text().strip() for f in files]

    @torch.no_grad()
    def loss(self, pipe: Any) -> float:
        """Mean over five times of the flow-matching loss at fixed noise."""
        latents = pipe.vae.encode(self.pixels).latent * pipe.vae.config.scaling_factor
        tokens = pipe.tokenizer(
            self.captions, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
        )
        text = pipe.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0]
        generator = torch.Generator().manual_seed(1)
        total = 0.0
        for sigma in SIGMAS:
            noise = torch.randn(latents.shape, generator=generator)
            prediction = pipe.transformer(
                (1 - sigma) * latents + sigma * noise,
                encoder_hidden_states=text,
                encoder_attention_mask=tokens.attention_mask,
                timestep=torch.full((len(latents),), sigma * 1000),
                return_dict=False,
            )[0]
            total += (prediction - (noise - latents)).square().mean().item()
        return total / len(SIGMAS)

    @torch.no_grad()
    def score(self, pipe: Any, seed: int, guidance: float) -> tuple[float, float]:
        """(palette, top-1) of one sampled set."""
        images = pipe(
            self.captions,
            **DRAWN,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(seed),
        ).images
        made = torch.stack([_pixels(image) for image in images])
        palette = overlap(histogram(made), histogram(self.pixels).mean(0)).mean().item()
        ours, real = (pipe.vae.encode(x).latent.flatten(1) for x in (made, self.pixels))
        similarity = F.normalize(ours - ours.mean(0)) @ F.normalize(real - real.mean(0)).T
        return palette, (similarity.argmax(1) == torch.arange(len(ours))).float().mean().item()


def _pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1


def prototype_data(folder: Path) -> Path:
    """The prototype's data: the embedded dataloader file with the plain training entry and without the style entry."""
    entries = json.loads((POCKET / "multidatabackend.json").read_text().replace("{example:pocket}", str(POCKET)))
    plain = next(entry for entry in entries if entry["caption_strategy"] == "textfile")
    file = folder / "prototype_data.json"
    file.write_text(json.dumps([{**plain, "repeats": 0, "timestep_sampling_offset": 0.3}]))
    return file


def train(recipe: str, seed: int, folder: Path) -> float:
    """Train with the real command; returns its seconds."""
    command = [sys.executable, "-c", "from simpletuner.cli.app import main; main()", "train", "--example=pocket"]
    command += [f"--output_dir={folder}", f"--seed={seed}", "--validation_disable=true", "--eval_loss_disable=true"]
    command += ["--checkpoint_step_interval=0", *(f"--{word}" for word in recipe.split())]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return time.perf_counter() - began


def evaluate(
    recipe: str, held_out: HeldOut, seeds: int, guidance: float, sampling_seeds: int = 3
) -> dict[str, list[float]]:
    """Train one recipe with each of ``seeds`` seeds, and sample each result ``sampling_seeds`` times."""
    from diffusers import SanaPipeline

    figures: dict[str, list[float]] = {"loss": [], "palette": [], "top1": [], "seconds": []}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            figures["seconds"].append(train(recipe, seed, Path(folder)))
            pipe = SanaPipeline.from_pretrained(Path(folder) / "pipeline", dtype=torch.float32)
            pipe.set_progress_bar_config(disable=True)
            figures["loss"].append(held_out.loss(pipe))
            for sampling_seed in range(sampling_seeds):
                palette, top1 = held_out.score(pipe, sampling_seed, guidance)
                figures["palette"].append(palette)
                figures["top1"].append(top1)
    return figures


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", help="NAME=KEY=VALUE [KEY=VALUE …], on top of the embedded recipe")
    parser.add_argument("--half", choices=("choose", "report"), default="report")
    parser.add_argument("--seeds", type=int, default=3, help="training seeds; each result is sampled with three")
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    arguments = parser.parse_args()
    scratch = tempfile.TemporaryDirectory()
    recipes = {"embedded": ""}
    recipes["prototype"] = f"{PROTOTYPE} data_backend_config={prototype_data(Path(scratch.name))}"
    if arguments.recipes:
        recipes = dict(text.split("=", 1) for text in arguments.recipes)
    held_out = HeldOut(arguments.half)
    print(f"{arguments.half} half, {arguments.seeds} training x 3 sampling seeds, guidance {arguments.guidance:g}")
    print(f"{'recipe':14} {'loss':>14} {'palette':>14} {'top-1 of 12':>14} {'seconds':>8}")
    for name, recipe in recipes.items():
        figures = evaluate(recipe.replace("+", " "), held_out, arguments.seeds, arguments.guidance)
        cells = [
            f"{statistics.mean(figures[key]):.3f} ± {statistics.pstdev(figures[key]):.3f}"
            for key in ("loss", "palette", "top1")
        ]
        seconds = statistics.mean(figures["seconds"])
        print(f"{name:14} {cells[0]:>14} {cells[1]:>14} {cells[2]:>14} {seconds:8.0f}", flush=True)
        print(f"  {json.dumps({k: [round(v, 3) for v in vs] for k, vs in figures.items()})}", flush=True)


if __name__ == "__main__":
    main()
