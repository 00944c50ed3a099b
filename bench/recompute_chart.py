"""Memory and time of recomputation: no block, every 3rd, every 2nd, every block; at batches 1, 4 and 8; a picture and a table.

    python bench/recompute_chart.py               # a GPU: Sana 1.6B, 1024 px; writes docs/recompute.png
    python bench/recompute_chart.py --tiny        # a rehearsal on a CPU, into output/: its figures mean nothing

One model in one process, the program's fast way, one length of text (256 tokens), adamw_bf16. Memory is what torch
reserved at most; the driver's half a GiB comes beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from needs_gpu import need_gpu
from PIL import Image, ImageDraw, ImageFont
from step import commit, device_name, lines_of
from step_variants import ROOT

INTERVALS = {0: "off", 3: "every 3rd", 2: "every 2nd", 1: "every block"}
BAR, HEIGHT, TOP = 44, 200, 74
PAPER, INK = (250, 250, 250), (30, 30, 30)
COLOURS = ((47, 93, 153), (96, 146, 200), (226, 152, 74), (190, 84, 58))


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as Markdown: a line for each interval, a pair of columns for each batch."""
    sizes = sorted({row["batch"] for row in rows})
    head = (
        "| recomputed | " + " | ".join(f"B={b}: GiB | ms" for b in sizes) + " |\n" + "|---" * (1 + 2 * len(sizes)) + "|"
    )
    lines = [head]
    for interval, name in INTERVALS.items():
        found = {row["batch"]: row for row in rows if row["interval"] == interval}
        cells = [f"{r['peak_gib']:.1f} | {r['ms']:.0f}" if "ms" in (r := found.get(b, {})) else "| " for b in sizes]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(rows: list[dict[str, Any]], title: str, file: Path) -> None:
    """Two panels of bars, a group for each batch and a bar for each interval: memory, and time for a picture."""
    sizes, font = sorted({row["batch"] for row in rows}), ImageFont.load_default(13)
    panels = {"GiB reserved": lambda row: row["peak_gib"], "ms a picture": lambda row: row["ms"] / row["batch"]}
    group = len(INTERVALS) * BAR + 24
    width, bottom = len(sizes) * group + 40, TOP + HEIGHT
    sheet = Image.new("RGB", (width * len(panels) + 20, bottom + 66), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((12, 8), title, fill=INK, font=font)
    for panel, (label, value) in enumerate(panels.items()):
        left, most = 20 + panel * width, max(value(row) for row in rows if "ms" in row)
        draw.text((left, 30), label, fill=INK, font=font)
        for column, batch in enumerate(sizes):
            found = {row["interval"]: row for row in rows if row["batch"] == batch and "ms" in row}
            start = left + column * group
            draw.text((start + group // 2 - 44, bottom + 6), f"batch {batch}", fill=INK, font=font)
            for place, (interval, colour) in enumerate(zip(INTERVALS, COLOURS, strict=True)):
                if interval in found:
                    height, x = value(found[interval]) / most * HEIGHT, start + place * BAR
                    draw.rectangle((x, bottom - height, x + BAR - 5, bottom), fill=colour)
                    draw.text((x, bottom - height - 17), f"{value(found[interval]):.1f}", fill=INK, font=font)
    for place, (name, colour) in enumerate(zip(INTERVALS.values(), COLOURS, strict=True)):
        x = 20 + place * 176
        draw.rectangle((x, bottom + 36, x + 12, bottom + 48), fill=colour)
        draw.text((x + 18, bottom + 33), f"{name} recomputed" if place else "none recomputed", fill=INK, font=font)
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(16).save(file, format="PNG", optimize=True)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="Rehearse on a CPU with a tiny model.")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--steps", type=int, default=8, help="Steady steps of each measurement.")
    parser.add_argument("--limit", type=float, default=90, help="Seconds in all.")
    parser.add_argument("--out", type=Path, help="The picture; the figures lie beside it as JSON.")
    chosen = parser.parse_args()
    if not chosen.tiny:
        need_gpu("add --tiny, which rehearses with a tiny model on the CPU")
    size, device = ("tiny", "cpu") if chosen.tiny else ("1.6b", "cuda")
    file = chosen.out or (ROOT / "output" / "recompute.png" if chosen.tiny else ROOT / "docs" / "recompute.png")
    rows: list[dict[str, Any]] = []
    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        job = {
            "work": "recompute", "size": size, "device": device, "variant": "ours" if chosen.tiny else "fast",
            "batches": chosen.batch, "intervals": list(INTERVALS), "steps": chosen.steps, "warm_up": 5, "recompute": 0,
            "limit": chosen.limit, "optimizer": "adamw_bf16", "text": 250, "even": True, "pictures": 32,
            "shape": {"latents": [32, 8, 8] if chosen.tiny else [32, 32, 32], "text": 2304}, "cache": f"{folder}/cache",
        }  # fmt: skip
        for line in lines_of(job, chosen.limit, "step_beside.py"):
            print(
                json.dumps({k: line[k] for k in ("interval", "batch", "ms", "peak_gib", "failed") if k in line}),
                flush=True,
            )
            if "interval" in line:
                rows.append(line)
    about = f"{device_name(device)}, commit {commit()}"
    if rows:
        picture(rows, f"Sana {size}, full rank: {about}", file)
        figures = {"command": " ".join(sys.argv), "machine": about, "rows": rows}
        file.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        print(f"\n{table(rows)}\n\n{about}; {file}; {time.time() - began:.0f} s")
    return int(len(rows) < len(INTERVALS) * len(chosen.batch))


if __name__ == "__main__":
    sys.exit(main())
