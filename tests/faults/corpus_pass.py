"""Find and decode a whole folder, in a process of its own, and write down what became of each file.

Usage: python corpus_pass.py FOLDER OUT. Writes OUT/report.json and OUT/pixels.npz (names: position in the report).
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import simpletuner
from simpletuner.data.captions import CaptionRules
from simpletuner.data.discover import discover
from simpletuner.data.images import cut
from simpletuner.data.placement import PlacementRules, place
from simpletuner.data.types import Placement, Sample
from simpletuner.errors import ImageError

RULES = PlacementRules(64, "pixel", crop=True)


def peak_bytes() -> int:
    """Most memory this process ever had; not ru_maxrss, which begins with that of the process that started it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def cut_as_in_training(sample: Sample) -> None:
    """Checks the form alone."""
    pixels = cut(sample.path, place(sample.size, RULES, 0))
    assert pixels.shape == (3, 64, 64) and bool(pixels.isfinite().all()) and float(pixels.abs().max()) <= 1.0


def whole(sample: Sample) -> np.ndarray[Any, Any]:
    """[H, W, 3] uint8 of the whole picture."""
    pixels = cut(sample.path, Placement(sample.size, sample.size, (0, 0, *sample.size)))
    return ((pixels + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()


def main(folder: Path, out: Path) -> None:
    """The whole pass."""
    torch.set_num_threads(1)
    seconds: dict[str, float] = {}
    now_at = out / "now_at"

    def timed(paths: Sequence[Path]) -> Iterator[Path]:
        for path in paths:
            now_at.write_text(ascii(str(path)))  # if it hangs: where
            begin = time.process_time()
            yield path
            seconds[str(path)] = time.process_time() - begin

    used: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    base = peak_bytes()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        found = discover(folder, CaptionRules("textfile"), RULES, timed)
        skipped = [[str(s.path.relative_to(folder)), s.reason] for s in found.skipped]
        for sample in found.samples:
            name = str(sample.path.relative_to(folder))
            now_at.write_text(ascii(name))
            begin = time.process_time()
            try:
                cut_as_in_training(sample)
                seconds[str(sample.path)] += time.process_time() - begin
                arrays[str(len(used))] = whole(sample)
                used.append({"name": name, "size": sample.size, "captions": sample.captions})
            except ImageError as error:
                skipped.append([name, str(error)])
    np.savez(out / "pixels.npz", **arrays)  # type: ignore[arg-type]
    report = {
        "used": used,
        "skipped": skipped,
        "seconds": {os.path.relpath(path, folder): value for path, value in seconds.items()},
        "warnings": [str(w.message) for w in warned],
        "base": base,
        "peak": peak_bytes(),
        "package": simpletuner.__file__,
    }
    (out / "report.json").write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
