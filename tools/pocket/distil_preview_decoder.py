"""Teach a tiny decoder to draw like the pocket's own, and write it into the pocket's model folder.

    python tools/pocket/distil_preview_decoder.py                    # about 8 minutes, one thread; prints the figures
    python tools/pocket/distil_preview_decoder.py --minutes 1 --out somewhere --picture side_by_side.png

It learns from the VAE's own decodings: of the 24 pictures to train on, moved, mirrored and recoloured; of pictures that
the pocket draws from its own words; and of clean latents predicted half-way, which is what previews show. The 24 held-out
pictures, and pictures of other seeds, measure it. Nothing else goes in.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from safetensors.torch import save_file

import simpletuner
from simpletuner.data.linear_rgb import Moments
from simpletuner.models.linear_preview import LinearDecoder
from simpletuner.models.sana.preview_decoder import SUBFOLDER, TinyDecoder, layers, read

POCKET = Path(simpletuner.__file__).parent / "pocket"
STYLES = ("cartoon", "blob", "flat", "3d")
SIDE, CHANNELS, STRIDE = 128, 8, 8
WIDTHS = (64, 32, 16, 8)  # channels at 16, 32, 64 and 128 px


def random_weights(generator: torch.Generator) -> dict[str, torch.Tensor]:
    """The layout of a taesd decoder, with He's scale: convolution, block, and for each enlargement both again."""
    weights: dict[str, torch.Tensor] = {}

    def conv(name: str, inside: int, out: int, bias: bool = True) -> None:
        weights[f"{name}.weight"] = torch.randn(out, inside, 3, 3, generator=generator) * (2 / (9 * inside)) ** 0.5
        if bias:
            weights[f"{name}.bias"] = torch.zeros(out)

    conv("1", CHANNELS, WIDTHS[0])
    place = 3
    for stage, width in enumerate(WIDTHS):
        for number in (0, 2, 4):
            conv(f"{place}.conv.{number}", width, width)
        weights[f"{place}.conv.4.weight"] *= 0.3  # blocks start near their shortcut
        if stage < len(WIDTHS) - 1:
            conv(f"{place + 2}", width, WIDTHS[stage + 1], bias=False)
            place += 3
    conv(f"{place + 1}", WIDTHS[-1], 3)
    weights[f"{place + 1}.weight"] *= 0.1
    weights[f"{place + 1}.bias"] += 0.5
    return weights


def named(net: torch.nn.Sequential) -> dict[str, torch.Tensor]:
    """The weights of ``layers`` under the names of its layout: they are those of the sequence itself."""
    return {
        name: tensor.detach().half().contiguous(memory_format=torch.contiguous_format)
        for name, tensor in net.state_dict().items()
    }


def pixels(folder: Path) -> torch.Tensor:
    """All PNG files of a folder, [n, 3, 128, 128] in [-1, 1]."""
    pictures = [Image.open(file).convert("RGB").resize((SIDE, SIDE)) for file in sorted(folder.glob("*.png"))]
    return torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1).float() / 127.5 - 1 for p in pictures])


def varied(pictures: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Moved, mirrored, with channels exchanged, darker or paler: other colours than a blueprint's."""
    made = []
    for picture in pictures:
        changed = picture.roll((int(rng.integers(-24, 25)), int(rng.integers(-24, 25))), (1, 2))
        changed = changed[rng.permutation(3).tolist()] * rng.choice([-1.0, 1.0])
        changed = changed.flip(2) if rng.random() < 0.5 else changed
        made.append((changed * rng.uniform(0.5, 1.0) + rng.uniform(-0.3, 0.3)).clamp(-1, 1))
    return torch.stack(made)


def drawn(pipe: Any, seed: int, count: int, half_way: bool) -> torch.Tensor:
    """Latents of pictures that the pocket draws, and clean latents predicted on the way. [n, 8, 16, 16]."""
    words = [file.read_text().split(" of ", 1)[1].strip() for file in sorted((POCKET / "blueprint").rglob("*.txt"))]
    rng, kept = np.random.default_rng(seed), []

    def keep(_: Any, index: int, __: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if half_way and index in (2, 5):
            kept.append(pipe.scheduler.model_outputs[-1].clone())
        return tensors

    for start in range(0, count, 8):
        prompts = [f"a {rng.choice(STYLES)} of {rng.choice(words)}" for _ in range(min(8, count - start))]
        latents = pipe(
            prompts, height=SIDE, width=SIDE, num_inference_steps=10, guidance_scale=3.5, output_type="latent",
            use_resolution_binning=False, complex_human_instruction=None, max_sequence_length=32,
            generator=torch.Generator().manual_seed(seed * 1000 + start), callback_on_step_end=keep,
        ).images  # fmt: skip
        kept.append(latents)
    return torch.cat(kept).float()


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pixels in [-1, 1]."""
    return float(10 * torch.log10(4 / F.mse_loss(one, other)))


def side_by_side(rows: list[tuple[str, torch.Tensor]], out: Path) -> None:
    """Each row one way to decode the same latents."""
    count = len(rows[0][1])
    sheet = Image.new("RGB", (150 + count * (SIDE + 6), len(rows) * (SIDE + 6) + 6), (250, 250, 250))
    draw = ImageDraw.Draw(sheet)
    for row, (label, pictures) in enumerate(rows):
        draw.multiline_text((8, row * (SIDE + 6) + 44), label, fill=(30, 30, 30), font_size=14)
        for column, picture in enumerate(pictures):
            array = ((picture.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
            sheet.paste(Image.fromarray(array), (150 + column * (SIDE + 6), row * (SIDE + 6) + 6))
    sheet.save(out, optimize=True)


@torch.no_grad()
def linear(vae: Any, latents: torch.Tensor) -> LinearDecoder:
    """The fallback, fitted to the same decodings."""
    moments = Moments(CHANNELS)
    moments.add(latents * vae.config.scaling_factor, vae.decode(latents).sample)
    return LinearDecoder(moments.solve(), STRIDE)


def learn(net: torch.nn.Sequential, latents: torch.Tensor, targets: torch.Tensor, seconds: float) -> int:
    """L1 of pixels and of their differences, AdamW, a rate that falls over the given time; returns the steps."""
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=0.0)
    generator, began, steps = torch.Generator().manual_seed(2), time.monotonic(), 0
    while (share := (time.monotonic() - began) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, steps / 50) * (1 - share) + 1e-5
        chosen = torch.randint(len(latents), (16,), generator=generator)
        made, wanted = net(latents[chosen].to(memory_format=torch.channels_last)) * 2 - 1, targets[chosen]
        loss = F.l1_loss(made, wanted)
        loss = loss + sum(F.l1_loss(made.diff(dim=d), wanted.diff(dim=d)) for d in (2, 3)) * 0.5
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
        if steps % 200 == 0:
            print(f"  step {steps}: loss {loss.item():.4f}", flush=True)
    return steps


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--minutes", type=float, default=5.5, help="of learning; drawing what it learns from comes first"
    )
    parser.add_argument("--out", type=Path, default=POCKET / "model" / SUBFOLDER)
    parser.add_argument("--picture", type=Path, default=Path("docs/preview_decoder.png"))
    parser.add_argument("--pictures", type=int, default=160, help="how many the pocket draws to learn from")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    from diffusers import SanaPipeline

    pipe = SanaPipeline.from_pretrained(POCKET / "model")
    pipe.set_progress_bar_config(disable=True)
    vae, scale = pipe.vae.eval().requires_grad_(False), pipe.vae.config.scaling_factor
    began = time.monotonic()
    with torch.no_grad():
        train = pixels(POCKET / "blueprint" / "train")
        rng = np.random.default_rng(1)
        shown = torch.cat([train, *(varied(train, rng) for _ in range(10))])
        latents = torch.cat([vae.encode(part).latent for part in shown.split(16)])
        latents = torch.cat([latents, drawn(pipe, 1, arguments.pictures, half_way=True) / scale])
        targets = torch.cat([vae.decode(part).sample.clamp(-1, 1) for part in latents.split(16)])
        tests = {
            "held-out pictures": vae.encode(pixels(POCKET / "blueprint" / "eval")).latent,
            "drawn, other seeds": drawn(pipe, 2, 16, half_way=False) / scale,
        }
    print(f"{len(latents)} latents to learn from, made in {time.monotonic() - began:.0f} s", flush=True)
    net = layers(random_weights(torch.Generator().manual_seed(0))).to(memory_format=torch.channels_last)
    steps = learn(net, latents * scale, targets, arguments.minutes * 60)
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "decoder.safetensors"
    save_file(named(net), file)
    tiny: TinyDecoder = read(file, CHANNELS, STRIDE)
    flat = linear(vae, latents[: len(shown)])
    print(f"{steps} steps; {file.stat().st_size / 1e6:.2f} MB, {sum(p.numel() for p in net.parameters()):,} weights")
    rows: list[tuple[str, list[torch.Tensor]]] = [("the VAE", []), ("tiny decoder", []), ("linear map", [])]
    for name, held in tests.items():
        with torch.no_grad():
            made = [vae.decode(held).sample.clamp(-1, 1), tiny(held * scale), flat(held * scale)]
        print(f"{name}: tiny {psnr(made[1], made[0]):.1f} dB, linear {psnr(made[2], made[0]):.1f} dB against the VAE")
        for row, pictures in zip(rows, made, strict=True):
            row[1].append(pictures[::4][:4])
    side_by_side([(label, torch.cat(pictures)) for label, pictures in rows], arguments.picture)


if __name__ == "__main__":
    main()
