"""Rules between the options of webhooks and trackers; a part of ``rules``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from simpletuner.config.options import Options


def reporting_without_effect(options: Options, where: Mapping[str, str]) -> Iterator[str]:
    """Sentences about options that are given but change nothing beside the others."""
    reporting = options.reporting
    if "webhook_reporting_interval" in where and reporting.webhook_config is None:
        yield "webhook_reporting_interval has no effect: there is no webhook_config"
