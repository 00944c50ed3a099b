"""Options of previews while drawing, and of scores; and what is said of those that act only beside others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from simpletuner.config.section import Positive, Section
from simpletuner.errors import Row


class PreviewOptions(Section):
    """Previews and scores of validation pictures."""

    validation_preview: bool = Field(False, description="Show validation pictures while they form, in previews/.")
    validation_preview_steps: Positive = Field(5, description="A preview every n sampler steps, and at the last.")
    validation_preview_decoder: str | None = Field(
        None,
        description="Tiny decoder for previews: file, folder or hub id; the model's own, else a linear map of its latents.",
    )
    evaluation_type: Literal["none", "clip"] = Field(
        "none", description="clip: score validation pictures against their prompts, 0 to 100."
    )
    pretrained_evaluation_model_name_or_path: str = Field(
        "openai/clip-vit-large-patch14-336", description="Folder or hub id of the CLIP for evaluation_type clip."
    )


def preview_problems(options: PreviewOptions) -> Iterator[Row]:
    """A CLIP that is not there; also where nothing is drawn, since it is wanted the next time."""
    path = options.pretrained_evaluation_model_name_or_path
    if options.evaluation_type == "clip" and path.startswith((".", "/", "~")) and not Path(path).expanduser().is_dir():
        remedy = "give a folder with a CLIPModel, its tokenizer and its image processor, or a hub id"
        yield ("pretrained_evaluation_model_name_or_path", path, "there is no such folder", remedy)


def without_effect(options: PreviewOptions, drawn: bool, where: Mapping[str, str]) -> list[str]:
    """Sentences about options that are given but change nothing.

    Args:
        options: As given.
        drawn: Whether validation pictures are drawn.
        where: The file each key came from.
    """
    default = PreviewOptions()
    fields = PreviewOptions.model_fields
    given = [key for key in fields if key in where and getattr(options, key) != getattr(default, key)]
    lines = []
    for key in given:
        if not drawn:
            lines.append(f"{key}: nothing is drawn with validation_disable")
        elif key in ("validation_preview_steps", "validation_preview_decoder") and not options.validation_preview:
            lines.append(f"{key}: it acts with validation_preview only")
        elif key == "pretrained_evaluation_model_name_or_path" and options.evaluation_type == "none":
            lines.append(f"{key}: it acts with evaluation_type clip only")
    return lines
