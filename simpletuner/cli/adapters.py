"""`simpletuner merge` and `simpletuner convert-adapter`: what is done with a finished adapter."""

from __future__ import annotations

from pathlib import Path

import click

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@click.command()
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option(
    "--base", metavar="MODEL", help="Folder, hub id or {example:NAME}/model  [the model it was trained on, as recorded]"
)
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder to write; must not exist.")
@click.option("--dtype", type=click.Choice(list(_DTYPES)), default="fp32", show_default=True, help="Of the weights.")
@click.option("--strength", type=float, default=1.0, show_default=True, help="Multiplies the adapter.")
@click.option("--debug", is_flag=True, help="Show a traceback with errors.")
def merge(adapter: Path, base: str | None, output: Path, dtype: str, strength: float, debug: bool) -> None:
    """Merge ADAPTER (LoRA, DoRA, LyCORIS; file or folder) into its base model: a complete diffusers folder."""
    import torch

    from simpletuner.config.examples import expand
    from simpletuner.reporting.progress import Reporter
    from simpletuner.training.merging import merge as run

    run(adapter, expand(base, "--base") if base else None, output, getattr(torch, _DTYPES[dtype]), strength, Reporter())


@click.command("convert-adapter")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--debug", is_flag=True, help="Show a traceback with errors.")
def convert(adapter: Path, output: Path, debug: bool) -> None:
    """Write the LoRA ADAPTER into the file OUTPUT in the other key layout: diffusers to ComfyUI, or back."""
    from simpletuner.reporting.progress import Reporter
    from simpletuner.training.merging import convert as run

    run(adapter, output, Reporter())
