"""Options of who hears of a run: webhooks and trackers; a part of ``options``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from simpletuner.config.section import Positive, Section
from simpletuner.config.values import parse_json


class ReportingOptions(Section):
    """Webhooks and trackers."""

    webhook_config: Annotated[list[Any] | dict[str, Any] | Path | None, BeforeValidator(parse_json)] = Field(
        None, description="Who is sent the run's events: a JSON object, a list of them, or a file with either."
    )
    webhook_reporting_interval: Positive | None = Field(
        None, description="Steps between two messages about steps to raw webhooks; by default at most one a second."
    )
