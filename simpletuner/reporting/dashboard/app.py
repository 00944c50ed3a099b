"""What the page asks for, answered from the output folders.

In: folders of runs. Out: an ASGI application: JSON, pictures, and a stream that says what has changed. The only files it
ever writes are requests in ``control/``, which the run takes at the end of a step.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from simpletuner.reporting.dashboard.door import SHEET_POLICY
from simpletuner.reporting.masking import masked
from simpletuner.reporting.run_folder import PICTURE_TYPES, RunFolder, confined
from simpletuner.reporting.series import RARE
from simpletuner.reporting.settings import Group, changed_settings

ASSETS = Path(__file__).parent / "assets"
LOOK_S = 0.4  # how often a run's folder is looked at while somebody watches
BEAT_S = 15.0  # a line of nothing, so that both ends know that the other is there
REQUESTS = ("save", "validate", "stop")
WIDTHS = (192, 384, 768)  # of pictures in the grid
_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".txt": "text/plain"}


@dataclass(slots=True)
class Shown:
    """One run on the page.

    Attributes:
        name: What it is called there.
        folder: Its files.
        lock: Around reading on: requests come from several threads.
    """

    name: str
    folder: RunFolder
    lock: threading.Lock = field(default_factory=threading.Lock)


def names_of(folders: Sequence[Path]) -> list[str]:
    """A name for each folder: its own, with as many of its parents as it takes to tell it from the others."""
    parts = [folder.resolve().parts for folder in folders]
    names = []
    for own in parts:
        depth = 1
        while depth < len(own) and sum(other[-depth:] == own[-depth:] for other in parts) > 1:
            depth += 1
        names.append("/".join(own[-depth:]).lstrip("/") or "/")
    return names


class Pages:
    """The answers."""

    def __init__(self, folders: Sequence[Path], groups: Sequence[Group], closing: Callable[[], bool]) -> None:
        """Answer for these runs.

        Args:
            folders: Output folders.
            groups: Options by section with their defaults, to tell what was changed.
            closing: Whether the server is about to end, so that streams end too.
        """
        self.runs = [Shown(name, RunFolder(f)) for name, f in zip(names_of(folders), folders, strict=True)]
        self._groups, self._closing = groups, closing

    def routes(self) -> list[Route]:
        """All addresses."""
        run = "/api/runs/{run:int}"
        return [
            Route("/", self.page),
            Route("/assets/{name:path}", self.asset),
            Route("/api/runs", self.all_runs),
            Route("/api/stream", self.stream),
            Route(f"{run}/series", self.series),
            Route(f"{run}/pictures", self.pictures),
            Route(f"{run}/events", self.events),
            Route(f"{run}/config", self.config),
            Route(f"{run}/dataset", self.dataset),
            Route(f"{run}/sheet", self.sheet),
            Route(f"{run}/control/{{request}}", self.control, methods=["POST"]),
            Route("/files/{run:int}/{path:path}", self.file),
        ]

    def _run(self, request: Request) -> Shown:
        number = request.path_params["run"]
        if number >= len(self.runs):
            raise IndexError
        run = self.runs[number]
        with run.lock:
            run.folder.refresh()
        return run

    def page(self, request: Request) -> Response:
        """The page."""
        return FileResponse(ASSETS / "index.html", media_type="text/html")

    def asset(self, request: Request) -> Response:
        """A file of the page."""
        path = confined(ASSETS, request.path_params["name"])
        if path is None or path.suffix not in _TYPES:
            return _missing()
        return FileResponse(path, media_type=_TYPES[path.suffix], headers={"cache-control": "no-cache"})

    def all_runs(self, request: Request) -> Response:
        """Names and states."""
        return JSONResponse([self._brief(number, run) for number, run in enumerate(self.runs)])

    def _brief(self, number: int, run: Shown) -> dict[str, Any]:
        """What the page must know to tell whether it has everything."""
        with run.lock:
            run.folder.refresh()
            folder, series = run.folder, run.folder.series
            return {
                "run": number,
                "name": run.name,
                "folder": str(folder.root),
                "state": folder.state(),
                "generation": series.generation,
                "steps": len(series.steps),
                "rare": {name: len(getattr(series, name)) for name in RARE},
                "events": folder.events_seen,
                "previews": folder.previews(),
                "pictures": _stamp(folder.root),
            }

    def series(self, request: Request) -> Response:
        """Figures since those the page has."""
        run = self._run(request)
        with run.lock:
            known = {name: _number(request, name) for name in RARE}
            series = run.folder.series
            begin = _number(request, "since")
            if _number(request, "generation") != series.generation or begin > len(series.steps):
                begin, known = 0, {}
            told = series.since(begin, known)
        return JSONResponse(told)

    def pictures(self, request: Request) -> Response:
        """All validation pictures."""
        run = self._run(request)
        with run.lock:
            return JSONResponse(
                [
                    asdict(shot) | {"column": shot.column, "version": _version(run, shot.path)}
                    for shot in run.folder.shots()
                ]
            )

    def events(self, request: Request) -> Response:
        """The log since the lines the page has."""
        run = self._run(request)
        with run.lock:
            seen, kept = run.folder.events_seen, run.folder.events
            new = seen - _number(request, "since")
            lines = kept[-new:] if 0 < new < len(kept) else ([] if new == 0 else kept)
            skipped = [{"step": step, "message": text} for step, text in run.folder.series.skipped[-200:]]
            return JSONResponse({"seen": seen, "anew": new < 0, "events": masked(lines), "skipped": skipped})

    def config(self, request: Request) -> Response:
        """The options, by section, with what differs from the default."""
        folder = self._run(request).folder
        raw = folder.config()
        groups = [asdict(group) for group in changed_settings(folder.acted(), self._groups)]
        return JSONResponse({"groups": groups, "raw": raw})

    def dataset(self, request: Request) -> Response:
        """The sheet of training pictures, and whether `simpletuner check` left its page."""
        folder = self._run(request).folder
        page = confined(folder.root, "dataset.html") is not None
        return JSONResponse({"sheet": folder.dataset(), "page": page})

    def sheet(self, request: Request) -> Response:
        """The page of `simpletuner check`; nothing in it can run."""
        path = confined(self._run(request).folder.root, "dataset.html")
        if path is None:
            return _missing()
        return FileResponse(path, media_type="text/html", headers={"content-security-policy": SHEET_POLICY})

    def file(self, request: Request) -> Response:
        """A picture inside the run's folder, whole or reduced to ``w`` pixels."""
        number = request.path_params["run"]
        root = self.runs[number].folder.root if number < len(self.runs) else None
        path = confined(root, request.path_params["path"]) if root else None
        kind = PICTURE_TYPES.get(path.suffix.lower()) if path else None
        if path is None or kind is None:
            return _missing()
        keep = {"cache-control": "private, max-age=86400" if "v" in request.query_params else "no-store"}
        try:
            stat = path.stat()
            width = _number(request, "w")
            if width in WIDTHS and stat.st_size > 40_000:
                small = _reduced(str(path), stat.st_mtime_ns, width)
                return Response(small, media_type="image/webp", headers=keep)
            return Response(path.read_bytes(), media_type=kind, headers=keep)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return _missing()

    def control(self, request: Request) -> Response:
        """Ask the run for something; it answers with an event."""
        wanted = request.path_params["request"]
        run = self._run(request)
        if wanted not in REQUESTS:
            return _missing()
        if run.folder.state()["status"] != "running":
            return PlainTextResponse("The run is not training.\n", 409)
        folder = run.folder.root / "control"
        if folder.is_symlink():
            return PlainTextResponse("control/ is a link; it is left alone.\n", 409)
        _ask(folder, wanted)
        return JSONResponse({"asked": wanted}, 202)

    async def stream(self, request: Request) -> Response:
        """Server-sent events: a run's brief whenever it has changed."""
        return StreamingResponse(self._changes(), media_type="text/event-stream")

    async def _changes(self) -> AsyncIterator[str]:
        told: dict[int, str] = {}
        quiet = 0.0
        yield "retry: 1000\n\n"
        while not self._closing():
            for number, run in enumerate(self.runs):
                brief = json.dumps(await run_in_threadpool(self._brief, number, run))
                if told.get(number) != brief:
                    told[number], quiet = brief, 0.0
                    yield f"data: {brief}\n\n"
            quiet += LOOK_S
            if quiet >= BEAT_S:
                quiet = 0.0
                yield ": \n\n"
            await asyncio.sleep(LOOK_S)
        yield "event: end\ndata: {}\n\n"


def application(pages: Pages) -> Starlette:
    """The application, without the door."""

    def missing(request: Request, error: Exception) -> Response:
        return _missing()

    handlers: Mapping[Any, Any] = {IndexError: missing}
    return Starlette(routes=pages.routes(), exception_handlers=handlers)


def _ask(folder: Path, wanted: str) -> None:
    """Leave a request: there as a whole or not at all."""
    folder.mkdir(exist_ok=True)
    temporary = folder / f".{wanted}.{secrets.token_hex(8)}"
    temporary.write_text("dashboard\n", encoding="utf-8")
    os.replace(temporary, folder / wanted)


def _missing() -> Response:
    return PlainTextResponse("There is no such thing here.\n", 404)


def _number(request: Request, name: str) -> int:
    text = request.query_params.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0


def _stamp(root: Path) -> str:
    """Changes whenever a validation picture is added, replaced or removed."""
    stamps = []
    for folder in ("validation_images", "benchmarks/base_model"):
        try:
            stamps.append(str((root / folder).stat().st_mtime_ns))
        except OSError:
            stamps.append("")
    return "-".join(stamps)


def _version(run: Shown, path: str) -> str:
    try:
        return str((run.folder.root / path).stat().st_mtime_ns)
    except OSError:
        return ""


@lru_cache(maxsize=512)
def _reduced(path: str, changed: int, width: int) -> bytes:
    """A picture at most ``width`` px wide and high, as WebP; ``changed`` tells versions of the file apart."""
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((width, width), Image.Resampling.LANCZOS)
    memory = io.BytesIO()
    small.save(memory, format="WEBP", quality=82, method=3)
    return memory.getvalue()
