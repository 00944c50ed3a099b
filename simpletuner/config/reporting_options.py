"""Options of who hears of a run: webhooks and trackers; a part of ``options``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from simpletuner.config.section import Positive, Section
from simpletuner.config.values import parse_json, parse_trackers

Tracker = Literal["tensorboard", "wandb", "trackio", "comet_ml", "swanlab", "all"]
# The package of each tracker, and the extra of ours that brings it.
TRACKERS: Mapping[str, tuple[str, str]] = {
    "tensorboard": ("tensorboard", ""),
    "wandb": ("wandb", "wandb"),
    "trackio": ("trackio", "trackio"),
    "comet_ml": ("comet_ml", "comet"),
    "swanlab": ("swanlab", "swanlab"),
}


class ReportingOptions(Section):
    """Webhooks and trackers."""

    report_to: Annotated[tuple[Tracker, ...], BeforeValidator(parse_trackers)] = Field(
        ("tensorboard",),
        description="Trackers, several with commas: tensorboard, wandb, trackio, comet_ml, swanlab; all = those "
        "installed; none = metrics.jsonl alone, which is always written.",
    )
    tracker_project_name: Annotated[str, Field(min_length=1)] = Field("simpletuner", description="Project of trackers.")
    tracker_run_name: str | None = Field(None, description="Name of the run in trackers; that of output_dir.")
    tracker_image_layout: Literal["gallery", "table"] = Field(
        "gallery", description="wandb's validation pictures: a series of each, or a table of each prompt."
    )
    logging_dir: Path | None = Field(None, description="Where trackers keep their files; logs in output_dir.")

    webhook_config: Annotated[list[Any] | dict[str, Any] | Path | None, BeforeValidator(parse_json)] = Field(
        None, description="Who is sent the run's events: a JSON object, a list of them, or a file with either."
    )
    webhook_reporting_interval: Positive | None = Field(
        None, description="Steps between two messages about steps to raw webhooks; by default at most one a second."
    )

    def trackers(self) -> tuple[str, ...]:
        """The trackers that are told, each once."""
        if "all" in self.report_to:
            return tuple(name for name, (package, _) in TRACKERS.items() if installed(package))
        return tuple(dict.fromkeys(self.report_to))


def installed(package: str) -> bool:
    """Whether a package is there: a mere folder of that name is none, such as the one wandb writes its runs into."""
    found = find_spec(package)
    return found is not None and found.origin is not None
