"""How fast are latents built, from picture files to a durable cache? Needs a GPU; prints ratios of one run.

    python bench/cache_build.py [--pictures 240] [--dtype fp32]

The VAE is DC-AE f32c32 in its real configuration with random weights; pictures are JPEGs of 2 to 12 megapixels, for
1024 px buckets. The reference does one thing after another, as a plain script does: decode with Pillow, Lanczos,
encode with diffusers' encoder at batch 1, ``torch.save``. Ours is the program's own room 1, 2 and 4: discovery, digests,
placement, decoding ahead, batches, the quickened encoder, checked and synced shards. Both are float32, TF32 allowed. "GPU only" leaves the files out: the encoder alone, on pictures in its memory.
``--rehearse`` runs a tiny VAE on the CPU.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from simpletuner.data import encode
from simpletuner.data.cache import TensorStore
from simpletuner.data.captions import CaptionRules
from simpletuner.data.placement import PlacementRules
from simpletuner.models.sana import encoder
from simpletuner.models.sana.family import Sana
from simpletuner.reporting.progress import Reporter
from simpletuner.training import keeping, prepare

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tools")]
from data import make_pictures, ours, with_pillow  # noqa: E402
from needs_gpu import need_gpu  # noqa: E402
from random_sana import vae_config  # noqa: E402

RULES = PlacementRules(1024, "pixel_area", 32)
FAMILY = Sana()


def synced(device: str) -> float:
    """Now, once the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(device: str, work: Callable[[], object]) -> float:
    """Seconds of one call, the device's work included."""
    began = synced(device)
    work()
    return synced(device) - began


def one_after_another(vae: Any, paths: list[Path], folder: Path, device: str) -> None:
    """The reference."""
    folder.mkdir()
    for path in paths:
        latents = FAMILY.encode_pixels(vae, with_pillow(path)[None].to(device)).to(torch.bfloat16)
        torch.save(latents[0].cpu(), folder / f"{path.stem}.pt")


def program(vae: Any, pictures: Path, cache: Path, device: str, batch: int) -> int:
    """Rooms 1, 2 and 4; returns how many latents are in the cache."""
    source = prepare.DatasetSource(
        id="set",
        folder=pictures,
        captions=CaptionRules("textfile"),
        placement=RULES,
        repeats=0,
        latent_dir=cache,
        encode_batch=batch,
    )
    reporter = Reporter()
    found = prepare.find([source], reporter)
    keeping.keep_latents(found, "bench", lambda x: FAMILY.encode_pixels(vae, x.to(device)), torch.bfloat16, reporter)
    return len(TensorStore(cache / "bench", read_only=True))


def gpu_only(vae: Any, device: str, batch: int, count: int) -> float:
    """Seconds a picture, of the encoder alone."""
    pixels = torch.rand(batch, 3, 1024, 1024, device=device) * 2 - 1
    for _ in range(2):
        FAMILY.encode_pixels(vae, pixels)
    calls = max(1, count // batch)
    return timed(device, lambda: [FAMILY.encode_pixels(vae, pixels) for _ in range(calls)]) / (calls * batch)


def decode_rates(paths: list[Path]) -> None:
    """Threads against processes, for decoding and resizing alone."""
    base = torch.get_num_threads()
    for torch_threads in (base, 1):
        torch.set_num_threads(torch_threads)
        for workers in (1, 4, 16):
            with ThreadPoolExecutor(workers) as pool:
                _print_rate(f"decode, {workers} threads, torch with {torch_threads} each", pool, paths)
    with ProcessPoolExecutor(
        16, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as p:
        list(p.map(ours, paths[:32]))
        _print_rate("decode, 16 processes", p, paths)
    torch.set_num_threads(base)


def _print_rate(name: str, pool: Executor, paths: list[Path]) -> None:
    seconds = timed("cpu", lambda: list(pool.map(ours, paths)))
    print(f"{name:44} {len(paths) / seconds:7.1f} pictures/s", flush=True)


def explore(vae: Any, device: str, batch: int, count: int, alone: float) -> None:
    """Other ways of running the encoder, and how far their latents are from the plain way's."""
    pixels = torch.rand(1, 3, 1024, 1024, device=device) * 2 - 1
    plain = FAMILY.encode_pixels(vae, pixels)

    def tell(name: str, size: int) -> None:
        seconds = gpu_only(vae, device, size, count)
        off = ((FAMILY.encode_pixels(vae, pixels) - plain).norm() / plain.norm()).item()
        print(
            f"{f'GPU only, {name}, batch {size}':44} {1 / seconds:7.1f} pictures/s ({alone / seconds:.2f}x), {off:.1e} off"
        )

    vae.to(memory_format=torch.channels_last)
    for size in (1, batch):
        tell("channels last", size)
    vae.encoder.compile()
    for size in (1, batch):
        tell("compiled, channels last", size)
    vae.to(memory_format=torch.contiguous_format)
    tell("compiled", batch)


def end_to_end(vae: Any, quick: Any, scratch: Path, arguments: argparse.Namespace, device: str) -> None:
    """The reference and ours, file to disk."""
    make_pictures(scratch / "few", 8)
    pictures = scratch / "pictures"
    paths = sorted(pictures.glob("*.jpg"))
    one_after_another(vae, paths[:4], scratch / "warm", device)
    some = paths[: arguments.reference]  # its speed does not depend on how many there are
    plain = timed(device, lambda: one_after_another(vae, some, scratch / "plain", device)) / len(some)
    print(f"{'one after another':44} {1 / plain:7.1f} pictures/s", flush=True)
    for threads, batch in product(arguments.threads, arguments.batch):
        encode.DECODE_THREADS = threads
        cache = scratch / f"cache{batch}-{threads}"
        program(quick, scratch / "few", scratch / f"warm{batch}-{threads}", device, batch)
        seconds = timed(device, lambda c=cache, b=batch: program(quick, pictures, c, device, b)) / len(paths)
        name = f"ours, batch {batch}, {threads} decoding threads"
        print(f"{name:44} {1 / seconds:7.1f} pictures/s ({plain / seconds:.2f}x)", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=240)
    parser.add_argument("--reference", type=int, default=80, help="of the pictures, encoded one after another")
    parser.add_argument("--batch", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--threads", type=int, nargs="+", default=[encode.DECODE_THREADS], help="that decode")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--decode", action="store_true", help="also decoding alone, on threads and on processes")
    parser.add_argument("--explore", action="store_true", help="also other ways of running the encoder")
    arguments = parser.parse_args()
    if not arguments.rehearse:
        need_gpu("add --rehearse, which shows on the CPU that everything runs")
    device = "cpu" if arguments.rehearse else "cuda"
    from diffusers import AutoencoderDC

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    with torch.device(device):
        vae = AutoencoderDC(**vae_config("tiny" if arguments.rehearse else "1.6b")).eval().requires_grad_(False)
    quick = encoder.quicken(copy.deepcopy(vae))
    count = arguments.pictures
    alone = gpu_only(vae, device, 1, count)
    print(f"{'GPU only, diffusers, batch 1':44} {1 / alone:7.1f} pictures/s", flush=True)
    for batch in arguments.batch:
        many = gpu_only(quick, device, batch, count)
        print(f"{f'GPU only, ours, batch {batch}':44} {1 / many:7.1f} pictures/s ({alone / many:.2f}x)", flush=True)
    if arguments.explore:
        explore(quick, device, arguments.batch[0], count, alone)
    with tempfile.TemporaryDirectory() as scratch:
        make_pictures(Path(scratch) / "pictures", arguments.pictures)
        if arguments.decode:
            decode_rates(sorted((Path(scratch) / "pictures").glob("*.jpg")))
        end_to_end(vae, quick, Path(scratch), arguments, device)


if __name__ == "__main__":
    main()
