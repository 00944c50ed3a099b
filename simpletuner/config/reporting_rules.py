"""Rules between the options of webhooks and trackers; a part of ``rules``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from simpletuner.config.options import Options
from simpletuner.config.reporting_options import TRACKERS, installed
from simpletuner.errors import Row
from simpletuner.wording import install


def reporting_problems(options: Options) -> Iterator[Row]:
    """Trackers whose package is missing."""
    for name in options.reporting.trackers():
        package, extra = TRACKERS[name]
        if not installed(package):
            remedy = install(extra) if extra else f"pip install {package}"
            yield ("report_to", name, f"it needs the package {package}", f"{remedy}; or leave it out")


def reporting_without_effect(options: Options, where: Mapping[str, str]) -> Iterator[str]:
    """Sentences about options that are given but change nothing beside the others."""
    reporting = options.reporting
    trackers = set(reporting.trackers())
    named = reporting.webhook_config is not None  # project and run stand before Discord messages
    acts = {
        "webhook_reporting_interval": ("there is no webhook_config", reporting.webhook_config is not None),
        "tracker_project_name": ("no tracker with projects is in report_to", bool(trackers - {"tensorboard"}) or named),
        "tracker_run_name": ("report_to is none", bool(trackers) or named),
        "logging_dir": ("no tracker in report_to keeps files", bool(trackers & {"tensorboard", "wandb", "swanlab"})),
    }
    for key, (reason, is_used) in acts.items():
        if key in where and not is_used:
            yield f"{key} has no effect: {reason}"
    if reporting.tracker_image_layout == "table" and "wandb" not in trackers:
        yield "tracker_image_layout table has no effect: only wandb has tables of pictures"
