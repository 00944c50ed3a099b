"""How fast is the data path on this machine? Makes its own pictures and prints a table.

    python bench/data.py [--pictures 200]

Discovery in files/s; decode, resize and crop to 1024 px in pictures/s beside plain Pillow (full decode, Lanczos) in the
same run and the same threads; reading latents of 1024 px from the cache in samples/s; the whole `simpletuner check`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from simpletuner.data.cache import TensorStore, content_key
from simpletuner.data.captions import CaptionRules
from simpletuner.data.discover import discover
from simpletuner.data.images import cut
from simpletuner.data.placement import PlacementRules, place
from simpletuner.data.types import Size

POCKET = Path(__file__).resolve().parent.parent / "simpletuner" / "pocket" / "model"
SIZES = [(1733, 1155), (2000, 3000), (4000, 3000), (2400, 1600)]  # 2 to 12 megapixels
RULES = PlacementRules(1024, "pixel_area", 32)
THREADS = 2


def make_pictures(folder: Path, count: int) -> None:
    """Photograph-like JPEGs: smooth colours with fine grain."""
    folder.mkdir()
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda index: make_picture(folder, index), range(count)))


def make_picture(folder: Path, index: int) -> None:
    """One of them, and its caption."""
    generator, size = np.random.default_rng(index), SIZES[index % len(SIZES)]
    small = Image.fromarray(generator.integers(0, 256, (24, 36, 3), dtype=np.uint8)).resize(size, Image.BICUBIC)
    grain = generator.integers(0, 12, (size[1], size[0], 1), dtype=np.uint8)
    Image.fromarray(np.asarray(small) // 2 + grain + 60).save(folder / f"{index:05}.jpg", quality=90)
    (folder / f"{index:05}.txt").write_text(f"a photo of thing {index} on a hill")


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def with_pillow(path: Path) -> torch.Tensor:
    """The plain way: decode everything, Lanczos, crop."""
    with Image.open(path) as picture:
        rgb = picture.convert("RGB")
    target = place(Size(*rgb.size), RULES, 0)
    resized = rgb.resize(tuple(target.resize_to), Image.LANCZOS).crop(target.crop_box)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 127.5 - 1


def ours(path: Path) -> torch.Tensor:
    """The program's way."""
    with Image.open(path) as picture:
        size = Size(*picture.size)
    return cut(path, place(size, RULES, 0))


def decode_rate(paths: Sequence[Path], work: Callable[[Path], torch.Tensor]) -> float:
    """Pictures per second on ``THREADS`` threads."""
    with ThreadPoolExecutor(THREADS) as pool:
        return len(paths) / timed(lambda: list(pool.map(work, paths)))


def read_rate(folder: Path, count: int = 2000) -> float:
    """Latents of 1024 px (32 x 32 x 32, bf16) read and checked per second, in random order."""
    store = TensorStore(folder)
    keys = [content_key(i) for i in range(count)]
    with store.writer() as writer:
        for key in keys:
            writer.add(key, torch.randn(32, 32, 32, dtype=torch.bfloat16), key)
    store = TensorStore(folder)
    order = np.random.default_rng(1).permutation(count)
    return count / timed(lambda: [store.get(keys[i]) for i in order])


def check_seconds(folder: Path, work: Path) -> float:
    """The whole `simpletuner check`, page included, no weights."""
    import json

    options = {"model_type": "full", "pretrained_model_name_or_path": str(POCKET), "output_dir": "out"}
    options |= {"max_train_steps": 10, "train_batch_size": 1, "sana_complex_human_instruction": "None"}
    dataset = {"id": "set", "instance_data_dir": str(folder), "caption_strategy": "textfile", "cache_dir_vae": "cache"}
    (work / "config").mkdir()
    (work / "config" / "config.json").write_text(json.dumps({**options, "validation_disable": True}))
    (work / "config" / "multidatabackend.json").write_text(json.dumps([dataset]))
    command = [sys.executable, "-c", "from simpletuner.cli.app import main; main()", "check"]
    return timed(lambda: subprocess.run(command, cwd=work, check=True, capture_output=True))


def rows(count: int) -> Iterator[tuple[str, str]]:
    """Name and figure of each measurement."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "pictures"
        make_pictures(folder, count)
        seconds = timed(lambda: discover(folder, CaptionRules("textfile"), RULES))
        yield "discovery", f"{count / seconds:.0f} pictures/s"
        paths = sorted(folder.glob("*.jpg"))
        decode_rate(paths[:8], ours)
        plain, fast = decode_rate(paths, with_pillow), decode_rate(paths, ours)
        yield "decode + resize, Pillow", f"{plain:.1f} pictures/s"
        yield "decode + resize, ours", f"{fast:.1f} pictures/s ({fast / plain:.2f}x)"
        yield "cache read", f"{read_rate(Path(scratch) / 'latents'):.0f} samples/s"
        seconds = check_seconds(folder, Path(scratch))
        yield "simpletuner check", f"{seconds:.1f} s for {count} pictures"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=200)
    for name, figure in rows(parser.parse_args().pictures):
        print(f"{name:26} {figure}", flush=True)


if __name__ == "__main__":
    main()
