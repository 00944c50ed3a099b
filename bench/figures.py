"""Small figures that the pages and docstrings name, each measured in seconds to a minute on one CPU thread.

    python bench/figures.py                          # all of them
    python bench/figures.py optimizers tiling …      # some: see PARTS

``optimizers``: bytes of state a weight. ``adapters``: seconds and memory of one block of the 1.6B shape under LyCORIS.
``pissa``: its start with the range finder beside the exact decomposition. ``tiling``: the VAE in tiles, by diffusers' way
and by ours, beside the whole. ``quantised``: how far the pocket's output moves. ``large``: pictures of 100 megapixels.
"""

from __future__ import annotations

import argparse
import copy
import io
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms
from torch import nn

import simpletuner
from simpletuner.data.images import cut, read_size
from simpletuner.data.placement import PlacementRules, place
from simpletuner.models import adapters, lora_start, quantize
from simpletuner.models.adapters import LycorisSettings
from simpletuner.models.sana import tiling
from simpletuner.training.optimizers import OPTIMIZERS, build

ROOT = Path(__file__).resolve().parent.parent
POCKET = Path(simpletuner.__file__).parent / "pocket"
SIDE = 512  # of the matrix whose optimizer state is weighed


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        if hasattr(value, "__tensor_flatten__"):  # made of others
            for name in value.__tensor_flatten__()[0]:
                yield from _tensors(getattr(value, name))
        else:
            yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _state_bytes(name: str, dtype: torch.dtype) -> float:
    """Bytes of state for each weight of a matrix, after two steps."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(SIDE, SIDE).to(dtype))
    optimizer = build(name, [weight], 1e-4, {}, seed=1)
    for _ in range(2):
        weight.grad = torch.randn(SIDE, SIDE).to(dtype)
        optimizer.step()
    state = torch.optim.Optimizer.state_dict(optimizer)["state"]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in _tensors(state)}
    return sum(storages.values()) / weight.numel()


def optimizers() -> None:
    """Of every name, in the dtype its weights have with mixed_precision bf16."""
    with torch.compiler.set_stance("force_eager"):
        for name, entry in OPTIMIZERS.items():
            dtype = torch.bfloat16 if entry.low_precision_safe else torch.float32
            print(f"{name:24} {_state_bytes(name, dtype):6.2f} bytes a weight, weights {str(dtype).partition('.')[2]}")


def _one_block() -> Any:
    """A transformer of the 1.6B shape with one block, random weights, bf16."""
    from diffusers import SanaTransformer2DModel

    sys.path.insert(0, str(ROOT / "tools"))
    from random_sana import transformer_config

    torch.manual_seed(0)
    model = SanaTransformer2DModel(**{**transformer_config("1.6b"), "num_layers": 1})
    return nn.Module.to(model, torch.bfloat16).requires_grad_(False).train()


def _step(model: Any) -> tuple[float, float]:
    """Seconds of forward and backward over 256 tokens, and MiB kept for backward besides parameters."""
    block, width = model.transformer_blocks[0], model.transformer_blocks[0].attn1.to_q.in_features
    draw = torch.Generator().manual_seed(1)
    tokens, text = (torch.randn(1, n, width, generator=draw).to(torch.bfloat16) for n in (256, 64))
    timestep = torch.randn(1, 6 * width, generator=draw).to(torch.bfloat16)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    best = float("inf")
    for _ in range(3):
        kept.clear()
        began = time.perf_counter()
        with (
            torch.autocast("cpu", torch.bfloat16),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        ):
            made = block(tokens.requires_grad_(True), None, text, None, timestep, 16, 16)
        made.float().square().mean().backward()
        best = min(best, time.perf_counter() - began)
    return best, sum(kept.values()) / 2**20


def adapter_blocks() -> None:
    """LoKr and LoCon by their factors, and as the library does it: every ΔW built."""
    targets = {"target_module": ["Attention", "GLUMBConv"]}
    for algo, more in (("lokr", {"factor": 8, "full_matrix": True}), ("locon", {})):
        for way, bypass in (("the library's way", {"bypass_mode": False}), ("by factors", {})):
            config = {"algo": algo, "multiplier": 1.0, "linear_dim": 16, "linear_alpha": 16, "apply_preset": targets}
            model = _one_block()
            adapters.put_on(model, LycorisSettings({**config, **more, **bypass}), seed=1)
            seconds, kept = _step(model)
            print(f"{algo:6} {way:18} {seconds:5.2f} s  {kept:5.0f} MiB kept for backward")


def pissa() -> None:
    """Seconds for a square weight of Sana 1.6B's width, and the part of it that is not the best of that rank."""
    weight = torch.randn(2240, 2240, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    began = time.perf_counter()
    down, up = lora_start.pissa(weight, 16, 1.0)
    quick = time.perf_counter() - began
    began = time.perf_counter()
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    exact = time.perf_counter() - began
    best = (left[:, :16] * values[:16]) @ right[:16]
    ratio = (weight - up @ down).norm() / (weight - best).norm()
    print(
        f"pissa, 2240 x 2240, rank 16: {quick:.2f} s, exact {exact:.2f} s; error {ratio:.4f} times the least possible"
    )


def _smooth(side: int) -> torch.Tensor:
    y, x = np.mgrid[0:side, 0:side]
    waves = np.stack([np.sin(x / 37), np.cos(y / 29), np.sin((x + y) / 53)])
    return torch.tensor(0.7 * waves, dtype=torch.float32)[None]


def _real(side: int) -> torch.Tensor:
    """Pictures of the pocket's, side by side."""
    files = iter(sorted((POCKET / "blueprint").rglob("*.png")))
    whole = Image.new("RGB", (side, side))
    for y in range(0, side, 128):
        for x in range(0, side, 128):
            whole.paste(Image.open(next(files)).convert("RGB"), (x, y))
    return torch.tensor(np.asarray(whole)).permute(2, 0, 1)[None].float() / 127.5 - 1


@torch.no_grad()
def vae_tiling() -> None:
    """The pocket's VAE at 256 px in tiles of 128: latents beside those of the whole, and the picture they give back."""
    from diffusers import AutoencoderDC

    whole = AutoencoderDC.from_pretrained(POCKET / "model" / "vae").eval()
    theirs, ours = copy.deepcopy(whole), copy.deepcopy(whole)
    theirs.enable_tiling(128, 128, 112, 112)
    tiling.enable(ours, tiling=True, slicing=False)
    for kind, pixels in (("smooth", _smooth(256)), ("real", _real(256))):
        exact = whole.encode(pixels).latent
        without = (whole.decode(exact).sample - pixels).square().mean()
        for way, vae in (("diffusers' tiles", theirs), ("ours", ours)):
            latents = vae.encode(pixels).latent
            error = (vae.decode(latents).sample - pixels).square().mean()
            off = quantize.relative_error(exact, latents)
            print(
                f"tiling, {kind:6} {way:16} latents off by {off:.2%}, squared error {error / without:.2f} times the whole's"
            )
    for side in (1024, 4096):
        cells = side // 32
        work = (len(tiling.starts(cells)) * tiling.TILE / cells) ** 2
        print(f"tiling, {side} px at stride 32: {work:.2f} times the work of one piece")


def quantised() -> None:
    """How far transformer and text encoder of the pocket move in each plan that a CPU can carry out, as a run says it."""
    for name, plan in quantize.PLANS.items():
        if plan.capability is not None:
            print(f"{name}: needs a GPU of compute capability {plan.capability}")
            continue
        with TemporaryDirectory() as folder:
            (Path(folder) / "prompts.json").write_text("{}")
            command = [sys.executable, "-c", "from simpletuner.cli.app import main; main()", "train"]
            command += ["--example=pocket-lora", f"--output_dir={folder}/out", "--mixed_precision=bf16"]
            command += [f"--base_model_precision={name}", f"--text_encoder_1_precision={name}", "--max_train_steps=1"]
            command += [f"--cache_dir={folder}/cache", "--validation_disable=true", "--eval_loss_disable=true"]
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        print(*(line for line in done.stdout.splitlines() if line.startswith("Quantised")), sep="\n")


def large_pictures() -> None:
    """Process seconds from file to 1024 px, best of 3, of one colour: decoding is as cheap as it gets."""
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    kinds = {"RGBA with a profile.png": "RGBA", "RGBA with a profile.tiff": "RGBA", "CMYK.tiff": "CMYK"}
    with TemporaryDirectory() as folder:
        for name, mode in kinds.items():
            path, file = Path(folder) / name, io.BytesIO()
            extra = {"icc_profile": profile} if mode == "RGBA" else {}
            Image.new(mode, (10_000, 10_000), (10, 20, 30, 200)).save(file, path.suffix[1:], **extra)
            path.write_bytes(file.getvalue())
            target = place(read_size(path), PlacementRules(1024, "pixel_area"), 0)
            seconds = []
            for _ in range(3):
                began = time.process_time()
                cut(path, target)
                seconds.append(time.process_time() - began)
            began = time.process_time()
            Image.open(path).load()
            decoding = time.process_time() - began
            print(f"100 megapixels, {name:24} {min(seconds):.2f} s; Pillow's decoding alone {decoding:.2f} s")


PARTS: dict[str, Callable[[], None]] = {
    "optimizers": optimizers,
    "adapters": adapter_blocks,
    "pissa": pissa,
    "tiling": vae_tiling,
    "quantised": quantised,
    "large": large_pictures,
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    arguments = parser.parse_args()
    if unknown := [part for part in arguments.parts if part not in PARTS]:
        parser.error(f"there is no {unknown[0]}; choose among {', '.join(PARTS)}")
    torch.set_num_threads(1)
    for part in arguments.parts or PARTS:
        PARTS[part]()


if __name__ == "__main__":
    main()
