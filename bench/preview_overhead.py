"""What previews cost drawing: the same pictures with and without, turn about.

    python bench/preview_overhead.py                         # the pocket on the CPU, previews every 5 of 20 steps
    python bench/preview_overhead.py --every 1 --decoder linear
    python bench/preview_overhead.py --model FOLDER --side 1024 --device cuda --decoder taesana   # random TAESANA weights

Prints the median of all pairs' ratios, with the lowest and the highest, and the time that the sampler's thread spends in
the callback; on a CPU also the processor time of all threads, which other programs do not blur. Each pair is drawn in the other order than the one before. FOLDER may hold random weights
(tools/random_sana.py): only the time matters.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import simpletuner
from simpletuner.data.types import Size
from simpletuner.evaluation.pictures import ValidationSettings
from simpletuner.evaluation.previews import Callback, Preview, Previewer
from simpletuner.evaluation.validation import Validator
from simpletuner.models.base import EncodedText, Facts, LoadSource, PreviewDecoder, TextSettings
from simpletuner.models.linear_preview import LinearDecoder
from simpletuner.models.sana.family import Sana
from simpletuner.models.sana.preview_decoder import TinyDecoder, layers

POCKET = Path(simpletuner.__file__).parent / "pocket" / "model"
# TAESANA's decoder: place in the file → (channels in, channels out); blocks between them keep their number.
CONVS = {1: (32, 256), 7: (256, 128), 12: (128, 64), 17: (64, 64), 22: (64, 64), 27: (64, 64), 29: (64, 3)}


def random_taesana() -> TinyDecoder:
    weights: dict[str, torch.Tensor] = {}
    width = 32
    for place in range(1, 30):
        if place in CONVS:
            inside, width = CONVS[place]
            weights[f"{place}.weight"] = torch.randn(width, inside, 3, 3) * 0.02
            if place in (1, 29):
                weights[f"{place}.bias"] = torch.zeros(width)
        elif place not in (2, 6, 11, 16, 21, 26):
            for number in (0, 2, 4):
                weights[f"{place}.conv.{number}.weight"] = torch.randn(width, width, 3, 3) * 0.02
                weights[f"{place}.conv.{number}.bias"] = torch.zeros(width)
    return TinyDecoder("TAESANA's layout, random weights", layers(weights).eval().requires_grad_(False), 32)


def decoder_of(name: str, source: LoadSource, facts: Facts) -> PreviewDecoder:
    if name == "taesana":
        return random_taesana()
    own = Sana().preview_decoder(source, "") if name == "own" else None
    return own or LinearDecoder(torch.randn(facts.latent_channels + 1, 3) * 0.1, facts.stride)


class Timed(Previewer):
    """Notes how long the sampler's thread is in the callback."""

    inside = 0.0

    def watch(self, pictures: Any) -> Callback:
        callback = super().watch(pictures)

        def timed(*arguments: Any) -> dict[str, Any]:
            began = time.perf_counter()
            result = callback(*arguments)
            self.inside += time.perf_counter() - began
            return result

        return timed


def seconds(validator: Validator, previewer: Previewer | None, device: torch.device) -> tuple[float, float]:
    """Draw every picture once: wall time, and processor time with the previews that still wait."""
    validator.previews = previewer
    if device.type == "cuda":
        torch.cuda.synchronize()
    began, worked = time.perf_counter(), time.process_time()
    rendering = validator.render(validator.expected(1), lambda *_: None)
    if device.type == "cuda":
        torch.cuda.synchronize()
    took = time.perf_counter() - began
    if rendering.failed:
        raise SystemExit(rendering.failed[0].reason)
    if previewer:
        previewer.close()
    return took, time.process_time() - worked


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(POCKET))
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=2, help="in one drawing, one after the other")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--decoder", choices=("own", "linear", "taesana"), default="own")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device, family = torch.device(arguments.device), Sana()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    source = LoadSource(arguments.model, weight_dtype=dtype, text_dtype=dtype)
    parts, facts = family.load(source), family.peek(source)
    parts.transformer.to(device)
    parts.vae.to(device)

    def encode(prompt: str, instruction: bool) -> EncodedText:
        return family.encode_captions(parts, [prompt], TextSettings((), 32), instruction)

    settings = ValidationSettings(
        (("fox", "a blueprint of a fox"),), "", 3.5, arguments.steps, (Size(arguments.side, arguments.side),),
        arguments.pictures, 0,
    )  # fmt: skip
    made: list[Preview] = []
    decoder = decoder_of(arguments.decoder, source, facts).to(device)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        validator = Validator(family.pipeline(parts, with_text=False), settings, encode, folder / "pictures", device)
        previewer = Timed(decoder, folder / "previews", arguments.every, made.append, print)
        seconds(validator, previewer, device)  # warm
        made.clear()
        previewer.inside = 0.0
        ratios, work, plain = [], [], []
        for pair in range(arguments.pairs):
            order: list[Callable[[], Previewer | None]] = [lambda: None, lambda: previewer]
            took = {}
            for choice in order if pair % 2 else order[::-1]:
                chosen = choice()
                took[chosen is not None] = seconds(validator, chosen, device)
            ratios.append(took[True][0] / took[False][0])
            work.append(took[True][1] / took[False][1])
            plain.append(took[False][0])
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU"
    print(f"{where}, {torch.get_num_threads()} threads; {decoder.name}; previews every {arguments.every} steps")
    print(
        f"{statistics.median(plain) / arguments.pictures:.3f} s a picture without; with previews "
        f"{100 * (statistics.median(ratios) - 1):+.1f} % (median of {len(ratios)} pairs, {100 * (min(ratios) - 1):+.1f} to "
        f"{100 * (max(ratios) - 1):+.1f})"
    )
    if device.type == "cpu":
        print(f"processor time {100 * (statistics.median(work) - 1):+.1f} % (median)")
    calls = arguments.pairs * arguments.pictures * arguments.steps
    print(f"{len(made)} previews made; {1e6 * previewer.inside / calls:.0f} µs in each call of the callback")


if __name__ == "__main__":
    main()
