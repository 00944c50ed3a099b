"""What a run takes of its machine, as lines of kind ``system`` in metrics.jsonl: memory, utilisation, samples seen.

Read in the thread of a listener, every few seconds: asking a driver may take milliseconds.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from simpletuner.reporting.events import Event, Status

if sys.platform != "win32":
    import resource

INTERVAL_S = 10.0
GIB = 2**30


class SystemFigures:
    """Writes a line with the first step, and then every few seconds."""

    name = "system figures"

    def __init__(self, write: Callable[[str, dict[str, Any]], None], device: torch.device) -> None:
        """Write by ``write`` (kind, values) what is read of ``device``."""
        self._write, self._device = write, device
        self._told = float("-inf")

    def wants(self, event: Event) -> bool:
        """A step now and then."""
        if not isinstance(event, Status) or event.status != "running":
            return False
        now = time.monotonic()
        if now - self._told < INTERVAL_S:
            return False
        self._told = now
        return True

    def handle(self, event: Event, ending: threading.Event) -> None:
        """One line."""
        if isinstance(event, Status):
            state = {"step": event.state.get("global_step"), "samples_seen": event.state.get("samples_seen")}
            self._write("system", state | read(self._device))

    def finish(self) -> None:
        """Nothing is left open."""


def read(device: torch.device) -> dict[str, float]:
    """GiB, percent, degrees and watts, as far as the machine tells them."""
    figures: dict[str, float] = {}
    if sys.platform != "win32":
        unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
        figures["process_memory_peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
    if device.type == "cuda":
        stats = torch.cuda.memory_stats(device)
        for name, key in (
            ("gpu_memory_allocated_gib", "allocated_bytes.all.current"),
            ("gpu_memory_reserved_gib", "reserved_bytes.all.current"),
            ("gpu_memory_peak_gib", "reserved_bytes.all.peak"),
        ):
            figures[name] = stats.get(key, 0) / GIB
        figures |= _driver(device)
    return {name: round(value, 3) for name, value in figures.items()}


def _driver(device: torch.device) -> dict[str, float]:
    """What only the driver knows, by way of nvidia-ml-py; nothing without it."""
    try:
        return {
            "gpu_utilisation_percent": float(torch.cuda.utilization(device)),
            "gpu_temperature_c": float(torch.cuda.temperature(device)),
            "gpu_power_w": torch.cuda.power_draw(device) / 1000,
        }
    except (ImportError, RuntimeError, OSError):  # the package, the card's permission, or the library is missing
        return {}
