"""The table of docs/memory.md: GPU memory of a run, by phase, as the program itself estimates it before it starts.

    python bench/memory_table.py             # prints the table; seconds, any computer, no weights
    python bench/memory_table.py --write     # and puts it into docs/memory.md

Each row is a configuration for Sana 1.6B, read as `simpletuner check` reads it, on an NVIDIA card with the fast way.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console

from simpletuner.config.read import load
from simpletuner.models.families import FAMILIES
from simpletuner.reporting.progress import Reporter
from simpletuner.training import memory_estimate, prepare, translate, translate_data, translate_memory
from simpletuner.training.memory_estimate import GIB

ROOT = Path(__file__).resolve().parent.parent
MARK = "<!-- table: bench/memory_table.py -->"
BATCH = 4  # pictures that the VAE takes at once, by default
LAYERS, WORDS = 26, 256000  # of the published text encoder
PHASES = {
    "pictures": "encoding pictures",
    "captions": "encoding captions",
    "steps": "steps",
    "validation": "validation",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One line.

    Attributes:
        name: What it is.
        options: Of the run, beside those all have in common.
        edge: Of the pictures, in pixels.
        card: GiB of the card, where they decide what a run does.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    edge: int = 1024
    card: float = math.inf


PLAIN = {"gradient_checkpointing": False}
LORA = {"model_type": "lora", "peft_lora_target_modules": ["all"]}
TILED = {"vae_enable_tiling": True, "vae_batch_size": 1}
RELEASED = {"optimizer_release_gradients": True, "grad_clip_method": "value"}
NF4 = {**LORA, "base_model_precision": "nf4-bnb", "text_encoder_1_precision": "nf4-bnb", "quantize_via": "cpu"}
ROWS = (
    Row("full rank, `optimi-adamw`", PLAIN),
    Row("… every block recomputed"),
    Row("… every block recomputed, batch 4", {"train_batch_size": 4}),
    Row("… batch 4", {**PLAIN, "train_batch_size": 4}),
    Row("… with EMA", {**PLAIN, "use_ema": True}),
    Row("… with EMA, `ema_device` `cpu`", {**PLAIN, "use_ema": True, "ema_device": "cpu"}),
    Row("… `adamw_bf16`", {**PLAIN, "optimizer": "adamw_bf16"}),
    Row("… `ao-adamw8bit`, recomputed", {"optimizer": "ao-adamw8bit"}),
    Row("… `ao-adamw8bit`, recomputed, gradients released, VAE tiles, VAE batch 1, on a card of 8 GiB",
        {"optimizer": "ao-adamw8bit", **RELEASED, **TILED}, card=8),
    Row("… float32 (`mixed_precision` no)", {**PLAIN, "mixed_precision": "no"}),
    Row("full rank at 512 px", PLAIN, 512),
    Row("full rank at 2048 px, recomputed, VAE tiles, VAE batch 1", TILED, 2048),
    Row("LoRA, rank 16, all layers", {**LORA, **PLAIN}),
    Row("LoRA, recomputed", LORA),
    Row("LoRA over int8, recomputed", {**LORA, "base_model_precision": "int8-torchao"}),
    Row("LoRA over nf4, text encoder too, recomputed", NF4),
    Row("… with VAE tiles, VAE batch 1", {**NF4, **TILED}),
)  # fmt: skip


def model(folder: Path, size: str = "1.6b") -> Path:
    """Configuration files of the published model of this size, without weights."""
    sys.path.insert(0, str(ROOT / "tools"))
    from random_sana import _shapes

    transformer, vae, text = _shapes(size)
    gemma = {**text, "num_hidden_layers": LAYERS, "vocab_size": WORDS}
    for name, config in (("transformer", transformer), ("vae", vae), ("text_encoder", gemma)):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
    index = {"_class_name": "SanaPipeline", "transformer": ["diffusers", "SanaTransformer2DModel"],
             "vae": ["diffusers", "AutoencoderDC"], "text_encoder": ["transformers", "Gemma2Model"],
             "tokenizer": ["transformers", "GemmaTokenizerFast"],
             "scheduler": ["diffusers", "DPMSolverMultistepScheduler"]}  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"flow_shift": 3.0}))
    return folder


def estimated(row: Row, folder: Path, budget: float = math.inf) -> memory_estimate.Estimate:
    """What the program says of this run on a card with this many bytes."""
    return translate_memory.estimate(subject(row, folder), budget)


def subject(row: Row, folder: Path) -> translate_memory.Subject:
    """A run with its pictures, of the model that ``model`` has written."""
    for number in range(BATCH):
        Image.new("RGB", (row.edge, row.edge), (90, 20 * number, 60)).save(folder / "pictures" / f"{number}.png")
    entries = [{"id": "a", "instance_data_dir": str(folder / "pictures")}]
    (folder / "multidatabackend.json").write_text(json.dumps(entries))
    common = {
        "pretrained_model_name_or_path": str(folder / "model"), "max_train_steps": 1, "train_batch_size": 1,
        "validation_prompt": "a", "validation_resolution": f"{row.edge}x{row.edge}", "resolution": row.edge,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({**common, **row.options}))
    config = load(str(folder / "config.json"), environ={})
    family = FAMILIES["sana"]
    precision = translate_memory.precision_of(config.options)
    source = translate.load_source(config.options, precision)
    text = translate.text_settings(config.options, family.default_instruction())
    facts = family.peek(source)
    (entry,) = config.datasets.train
    found = prepare.find(
        [translate_data.dataset_source(config, entry, facts.alignment, facts.stride)],
        Reporter(Console(file=io.StringIO())),
    )
    return translate_memory.Subject(config, family, facts, source, precision, text, torch.device("cpu"), found)


def table() -> str:
    """The Markdown."""
    lines = [
        "| 1.6B at 1024 px, bf16, batch 1 |" + "".join(f" {name} |" for name in (*PHASES.values(), "most")),
        "|---" * 6 + "|",
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pictures").mkdir()
        model(folder / "model")
        for row in ROWS:
            found = estimated(row, folder, row.card * GIB)
            cells = [f"{found.phases.get(phase, 0) / GIB:.1f}" for phase in PHASES]
            lines.append(f"| {row.name} | " + " | ".join([*cells, f"**{found.peak / GIB:.1f}**"]) + " |")
    return "\n".join(lines)


def main() -> int:
    """Print the table; write it if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="into docs/memory.md")
    write = parser.parse_args().write
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    text = table()
    print(text)
    if write:
        page = ROOT / "docs" / "memory.md"
        before, _, rest = page.read_text(encoding="utf-8").partition(MARK)
        page.write_text(f"{before}{MARK}\n\n{text}\n\n{MARK}{rest.partition(MARK)[2]}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
