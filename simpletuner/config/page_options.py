"""Options of the pages that show a run to a person; a part of ``options``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from simpletuner.config.section import Section


class PageOptions(Section):
    """Dashboard and report."""

    dashboard: bool = Field(False, description="Show the run on a page of this machine while it trains.")
    dashboard_port: Annotated[int, Field(ge=1, le=65535)] | None = Field(
        None, description="Port of that page; by default 8686, or any free one."
    )
    report: bool = Field(True, description="Write report.html, one file with curves and pictures, at the end of a run.")
