"""What lies in a run's output folder, read for people: on a running, a finished and a killed run alike.

In: the folder. Out: plain values. Writes nothing and never touches the training process. Whatever is missing or damaged
is left out.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from simpletuner.reporting.json_lines import JsonLines
from simpletuner.reporting.masking import masked
from simpletuner.reporting.series import Series, number, smoothed
from simpletuner.reporting.settings import acted

PICTURE_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
MOST_EVENTS = 5000
SMOOTHING = 0.9
_PICTURE_NAME = re.compile(r"step_(\d{1,12})_(.+)_(\d{1,6})_(\d{1,6})x(\d{1,6})(?:_(ema))?\.(?:png|jpe?g|webp)")
_BASE_FOLDER = "benchmarks/base_model"
_BASE_NAME = re.compile(r"(.+)_(\d{1,6})_(\d{1,6})x(\d{1,6})\.png")
BASE = "base"  # label of the base model's pictures
STALE_S = 900.0
_RECENT = 60  # steps from which the speed is told


@dataclass(frozen=True, slots=True)
class Shot:
    """One validation picture.

    Attributes:
        step: Optimizer steps done.
        nickname: Of its prompt.
        prompt: "" where nobody wrote it down.
        width, height: In pixels.
        index: Among pictures of the same prompt and size.
        label: ``base`` of the base model, ``ema`` or empty.
        path: Relative to the output folder, with forward slashes.
    """

    step: int
    nickname: str
    prompt: str
    width: int
    height: int
    index: int
    label: str
    path: str

    @property
    def column(self) -> int:
        """The step; the base model stands before all of them."""
        return -1 if self.label == BASE else self.step


def confined(root: Path, relative: str) -> Path | None:
    """The file of that name if it is one inside ``root`` with all links followed, else None."""
    try:
        path = (root / relative).resolve(strict=True)
        return path if path.is_relative_to(root.resolve(strict=True)) and path.is_file() else None
    except (OSError, ValueError, RuntimeError):
        return None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file; {} if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _list_in(path: Path) -> list[Any]:
    """A JSON list from a file; [] if there is none."""
    try:
        value = masked(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return []
    return value if isinstance(value, list) else []


class RunFolder:
    """One run's folder, with how far its growing files have been read.

    Attributes:
        root: The folder.
        series: Figures so far.
        events: Events so far, at most the last ``MOST_EVENTS``.
        events_seen: How many there were in all.
    """

    def __init__(self, root: Path) -> None:
        """Nothing is read before ``refresh``."""
        self.root = root
        self.series = Series()
        self.events: list[dict[str, Any]] = []
        self.events_seen = 0
        self._metrics = JsonLines(root / "metrics.jsonl")
        self._events = JsonLines(root / "events.jsonl")
        self._told: dict[str, Shot] = {}

    def refresh(self) -> None:
        """Read on."""
        anew, lines = self._metrics.poll()
        if anew:
            self.series.clear()
            self._told.clear()
        for line in lines:
            self.series.add(line)
            if line.get("kind") == "picture":
                self._tell(line)
        anew, lines = self._events.poll()
        if anew:
            self.events, self.events_seen = [], 0
        self.events += lines
        self.events_seen += len(lines)
        del self.events[:-MOST_EVENTS]

    def _tell(self, line: Mapping[str, Any]) -> None:
        path, step = line.get("path"), line.get("step")
        if not isinstance(path, str) or not isinstance(step, int):
            return
        whole = {name: _whole(line.get(name)) for name in ("width", "height", "index")}
        words = {name: str(line.get(name) or "") for name in ("nickname", "prompt", "label")}
        path = path.replace("\\", "/")
        self._told[path] = Shot(step=step, path=path, **whole, **words)  # type: ignore[arg-type]

    def shots(self) -> list[Shot]:
        """Validation pictures that lie on the disk, by prompt and step; names of files tell where no line does."""
        found: dict[str, Shot] = {}
        for name in _names(self.root / "validation_images"):
            path = f"validation_images/{name}"
            shot = self._told.get(path) or _shot(path, name)
            if shot:
                found[path] = shot
        for path, shot in self._told.items():
            if path not in found and confined(self.root, path):
                found[path] = shot
        found = self._with_base(found)
        prompts = {shot.nickname: shot.prompt for shot in found.values() if shot.prompt}
        order = {
            nickname: place for place, nickname in enumerate(dict.fromkeys(s.nickname for s in self._told.values()))
        }
        shots = [
            shot if shot.prompt else replace(shot, prompt=prompts.get(shot.nickname, "")) for shot in found.values()
        ]
        return sorted(
            shots, key=lambda s: (order.get(s.nickname, len(order)), s.nickname, s.width, s.height, s.index, s.column)
        )

    def _with_base(self, found: dict[str, Shot]) -> dict[str, Shot]:
        """The base model's pictures as such: those of step 0, unless an adapter that was given acts in them already.

        Copies in ``benchmarks`` are shown where the picture that they are copies of is gone.
        """
        given = self.config().get("init_lora") or any(shot.label == BASE for shot in found.values())
        if not given:
            found = {
                path: replace(shot, label=BASE) if not (shot.step or shot.label) else shot
                for path, shot in found.items()
            }
        drawn = {_as_base(path): shot for path, shot in found.items()}
        based = {_as_base(path) for path, shot in found.items() if shot.label == BASE}
        for name in _names(self.root / _BASE_FOLDER):
            match = _BASE_NAME.fullmatch(name)
            if match and name not in based:
                like = drawn.get(name)
                nickname, *whole = match.groups()
                if like:
                    nickname = like.nickname
                index, width, height = map(int, whole)
                path = f"{_BASE_FOLDER}/{name}"
                found[path] = Shot(0, nickname, "", width, height, index, BASE, path)
        return found

    def previews(self) -> list[dict[str, Any]]:
        """Pictures that are forming, with what the newest event says of each."""
        told = {}
        for event in self.events[-200:]:
            data = event.get("data")
            if event.get("type") == "validation.image" and isinstance(data, dict):
                told[str(data.get("path", "")).replace("\\", "/")] = data
        previews = []
        for name in _names(self.root / "previews"):
            path = f"previews/{name}"
            try:
                changed = (self.root / path).stat().st_mtime_ns
            except OSError:
                continue
            data = told.get(path, {})
            previews.append(
                {
                    "path": path,
                    "version": str(changed),
                    "nickname": str(data.get("nickname") or Path(name).stem),
                    "prompt": str(data.get("prompt") or ""),
                    "step": data.get("step"),
                    "sampler_step": data.get("sampler_step"),
                    "of": data.get("sampler_steps") or data.get("of"),
                }
            )
        return sorted(previews, key=lambda p: p["version"])

    def config(self) -> dict[str, Any]:
        """The effective options, without secrets."""
        shown = masked(read_object(self.root / "config.resolved.json"))
        return shown if isinstance(shown, dict) else {}

    def acted(self) -> dict[str, Any]:
        """The options as ``config`` has them, with the datasets' own values where these acted."""
        return acted(self.config(), _list_in(self.root / "datasets.resolved.json"))

    def dataset(self) -> dict[str, Any]:
        """The sheet of the training pictures that the run wrote at its start."""
        return read_object(self.root / "dataset_sheet.json")

    def best(self) -> dict[str, Any] | None:
        """The checkpoint of the lowest held-out loss as the run named it: ``checkpoint``, ``step``, ``held_out_loss``."""
        told = read_object(self.root / "best.json")
        name, step, loss = told.get("checkpoint"), told.get("step"), _finite(number(told.get("held_out_loss")))
        if not isinstance(name, str) or not _whole(step) or loss is None:
            return None
        return {"checkpoint": name, "step": step, "held_out_loss": loss}

    def state(self) -> dict[str, Any]:
        """Where the run is: status, step of total, time left, newest figures.

        ``status`` is running, finished, failed, interrupted, died (it says running, and its process is gone), or
        unknown where nobody wrote it down.
        """
        run, series = read_object(self.root / "run.json"), self.series
        total = _whole(run.get("total_steps") or run.get("total") or self.config().get("max_train_steps")) or None
        step = series.steps[-1] if series.steps else _whole(run.get("step"))
        status = self._status(run, step, total)
        pace = self._pace()
        losses = [v for v in series.columns["loss"][-400:]]
        smooth = smoothed(losses, SMOOTHING)
        evals = [e for e in series.evals if e.get("kind") == "eval"]
        return {
            "status": status,
            "step": step,
            "total": total,
            "eta_s": round(pace * max(0, total - step), 1) if pace and total and status == "running" else None,
            "started": run.get("started"),
            "elapsed_s": round(series.running_s, 1) if series.running_s else None,
            "loss": _finite(smooth[-1]) if smooth else None,
            "held_out": _finite(number(evals[-1].get("loss"))) if evals else None,
            "learning_rate": _finite(series.columns["learning_rate"][-1]) if series.steps else None,
            "grad_norm": _finite(series.columns["grad_norm"][-1]) if series.steps else None,
            "speed": _finite(_median(series.columns["speed"][-_RECENT:])),
            "best": self.best(),
            "stage": self._stage() if status == "running" else None,
            "message": masked(str(run.get("error") or "")),
        }

    def _status(self, run: Mapping[str, Any], step: int, total: int | None) -> str:
        status = str(run.get("status") or "")
        if status == "running":
            # On another machine's disk nobody can ask for the process; a run writes something every few minutes.
            here = run.get("host") in (None, socket.gethostname())
            going = alive(run.get("pid"), run.get("started")) if here else self._silent_s() < STALE_S
            return "running" if going else "died"
        if status:
            return status
        return "finished" if total and step >= total and (self.root / "pipeline").is_dir() else "unknown"

    def _silent_s(self) -> float:
        """Seconds since the run last wrote a line."""
        times = [
            file.stat().st_mtime for name in ("metrics", "events") if (file := self.root / f"{name}.jsonl").is_file()
        ]
        return time.time() - max(times, default=0.0)

    def _pace(self) -> float | None:
        """Seconds a step over the last ones, with all that happens between."""
        times = self.series.columns["time"][-_RECENT:]
        return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 and times[-1] > times[0] else None

    def _stage(self) -> dict[str, Any] | None:
        """The phase that is going on, if the newest one is."""
        for event in reversed(self.events):
            stage = event.get("stage")
            if event.get("type") == "lifecycle.stage" and isinstance(stage, dict):
                return {"label": str(stage.get("label", ""))} if stage.get("status") == "running" else None
        return None


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _finite(value: float) -> float | None:
    return float(f"{value:.7g}") if value == value and abs(value) != float("inf") else None


def _median(values: Sequence[float]) -> float:
    known = sorted(v for v in values if v == v)
    return known[len(known) // 2] if known else float("nan")


def _names(folder: Path) -> Iterable[str]:
    """Names of the pictures in a folder."""
    try:
        return sorted(entry.name for entry in os.scandir(folder) if Path(entry.name).suffix.lower() in PICTURE_TYPES)
    except OSError:
        return []


def _shot(path: str, name: str) -> Shot | None:
    """What a file name tells; contact grids and others are none."""
    match = _PICTURE_NAME.fullmatch(name)
    if not match:
        return None
    step, nickname, index, width, height, label = match.groups()
    return Shot(int(step), nickname, "", int(width), int(height), int(index), label or "", path)


def _as_base(path: str) -> str:
    """What the base model's picture of the same prompt, size and index is called in ``benchmarks``."""
    return re.sub(r"^step_\d+_|_ema(?=\.\w+$)", "", path.rpartition("/")[2])


def alive(pid: object, started: object = None) -> bool:
    """Whether the process of that number is there, and is not a later one that got the same number.

    Args:
        pid: From run.json.
        started: When the run began: seconds since 1970 or ISO 8601. Others are not compared.
    """
    if not isinstance(pid, int) or isinstance(pid, bool) or pid <= 0:
        return False
    if sys.platform == "win32":
        import ctypes

        handle = ctypes.windll.kernel32.OpenProcess(0x1000, False, pid)  # the right to ask, nothing more
        if handle:
            ctypes.windll.kernel32.CloseHandle(handle)
        return bool(handle)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    born, began = _born(pid), _seconds(started)
    return born is None or (born != float("inf") and (began is None or born <= began + 5))


def _seconds(moment: object) -> float | None:
    if isinstance(moment, str):
        try:
            return datetime.fromisoformat(moment).timestamp()
        except ValueError:
            return None
    return float(moment) if isinstance(moment, (int, float)) else None


def _born(pid: int) -> float | None:
    """When a process began, seconds since 1970; infinity if it has ended, None where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        if fields[0] == "Z":  # ended, and nobody has asked how
            return float("inf")
        up = float(Path("/proc/uptime").read_text(encoding="utf-8").split()[0])
        return time.time() - up + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None
