"""What a run did and learned, as one HTML file that opens anywhere and asks nobody for anything.

In: the files of a run's output folder. Out: the text of a page: pictures inside it, curves as SVG, no script. Captions,
prompts, names and log lines are text only, and the page's own policy lets a browser run and fetch nothing.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import math
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from simpletuner.reporting.drawing import short
from simpletuner.reporting.masking import masked_text
from simpletuner.reporting.report_curves import curves
from simpletuner.reporting.run_folder import BASE, RunFolder, Shot, confined
from simpletuner.reporting.series import Series, number, overfitting
from simpletuner.reporting.settings import Group, changed_settings
from simpletuner.wording import counted

NAME = "report.html"
MOST_PROMPTS = 24
MOST_STEPS = 8  # columns of pictures
MOST_THUMBNAILS = 60
MOST_EVENTS = 400
_STYLE = (Path(__file__).parent / "report_style.css").read_text(encoding="utf-8").strip()
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
POLICY = f"default-src 'none'; img-src data:; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'"
_STATES = {
    "running": "still training when this was written",
    "finished": "finished",
    "failed": "failed",
    "interrupted": "stopped before its end",
    "died": "its process ended without a word",
    "unknown": "not finished",
}


def page(folder: RunFolder, groups: Sequence[Group]) -> str:
    """The whole page.

    Args:
        folder: A run; it is read on first.
        groups: Options by section with their defaults, to tell what was changed.
    """
    folder.refresh()
    config, state, shots = folder.config(), folder.state(), folder.shots()
    name = folder.root.resolve().name or "run"
    parts = [
        _head(name, config, state, folder.series),
        _before_after(folder.root, shots),
        _film(folder.root, shots),
        curves(folder.series, state["best"]),
        _scores(folder.series),
        _dataset(folder.dataset()),
        _settings(folder.acted(), groups),
        _log(folder),
    ]
    moment = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    foot = f"<footer>Written by SimpleTuner on {moment}. This file needs no network and runs no script.</footer>"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="referrer" content="no-referrer">'
        f"<title>{_text(name)} · SimpleTuner</title><style>{_STYLE}</style></head><body><main>{''.join(parts)}{foot}"
        "</main></body></html>\n"
    )


def _text(value: object) -> str:
    """Any value as text of the page: without secrets, markup or halves of letters."""
    return escape(masked_text(str(value)).encode("utf-8", "backslashreplace").decode("utf-8"))


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60} s"
    return f"{s // 3600} h {s % 3600 // 60} min"


def what_was_trained(config: Mapping[str, Any]) -> str:
    """One sentence."""
    kind = "every weight of the transformer of"
    if config.get("model_type") == "lora":
        algorithm = config.get("lycoris_config")
        lycoris = algorithm.get("algo", "LyCORIS") if isinstance(algorithm, dict) else "LyCORIS"
        standard = "DoRA" if config.get("use_dora") else "LoRA"
        kind = f"a {lycoris} adapter on"
        if config.get("lora_type", "standard") == "standard":
            kind = f"a {standard} of rank {config.get('lora_rank', '?')} on"
    base = str(config.get("model_flavour") or config.get("pretrained_model_name_or_path") or "an unknown model")
    base = "/".join(Path(base).parts[-2:])  # of a folder the end is enough
    rate, optimizer = config.get("learning_rate", "?"), config.get("optimizer", "?")
    size = config.get("train_batch_size", 4)
    pictures = counted(size, "picture") if isinstance(size, int) else "? pictures"
    return f"Trained {kind} {base} with {optimizer} at a learning rate of {rate}, {pictures} at a time."


def _head(name: str, config: Mapping[str, Any], state: Mapping[str, Any], series: Series) -> str:
    best = state["best"]
    steps = counted(state["step"], "step") if state["step"] else "no steps yet"
    of = f" of {state['total']}" if state["total"] and state["total"] != state["step"] else ""
    tiles = [("steps", str(state["step"]) + of, _STATES.get(str(state["status"]), ""))]
    if state["elapsed_s"]:
        tiles.append(("time", duration(state["elapsed_s"]), "of training and drawing, without pauses"))
    if state["loss"] is not None:
        tiles.append(("training loss", short(state["loss"]), "smoothed, at the end"))
    own = [e for e in series.evals if e.get("kind") == "eval"]
    if own:
        last, first = number(own[-1].get("loss")), number(own[0].get("loss"))
        note = f"{short(first)} before" if len(own) > 1 and own[0]["step"] == 0 else ""
        tiles.append(("held-out loss", short(last), note))
    if best:
        tiles.append(("best checkpoint", f"step {best['step']}", f"held-out loss {short(best['held_out_loss'])}"))
    if state["speed"] is not None:
        tiles.append(("pictures a second", short(state["speed"]), "median of the last steps"))
    boxes = "".join(
        f'<div class="tile"><span>{_text(a)}</span><b>{_text(b)}</b><small>{_text(c)}</small></div>'
        for a, b, c in tiles
    )
    turned = overfitting(series.evals)
    warning = f'<p class="warn">{_text(_alarm(turned))}</p>' if turned else ""
    failed = f'<p class="warn">{_text(state["message"])}</p>' if state["message"] else ""
    skipped = (
        f'<p class="warn">{counted(len(series.skipped), "step was", "steps were")} skipped (NaN or infinity).</p>'
        if series.skipped
        else ""
    )
    head = f'<span class="mark">SimpleTuner report</span><h1>{_text(name)}</h1>'
    lead = f'<p class="lead">{_text(what_was_trained(config))} {_text(steps)}{_text(of)}.</p>' if config else ""
    return f'<header>{head}{lead}{failed}{warning}{skipped}<div class="tiles">{boxes}</div></header>'


def _alarm(told: Mapping[str, Any]) -> str:
    """What the run found, in a sentence."""
    (low, high), (before, within) = told["held_out"], told["training"]
    return (
        f"Held-out loss rose from {short(low)} at step {told['low']} to {short(high)} while training loss fell from "
        f"{short(before)} to {short(within)}, and has not been as low again: later weights remember the pictures more than "
        "they learn from them."
    )


def _rows(shots: Sequence[Shot]) -> dict[tuple[str, int, int, int], dict[int, Shot]]:
    """Pictures by (nickname, width, height, index) and column: EMA weights where they were drawn, and the base model."""
    rows: dict[tuple[str, int, int, int], dict[int, Shot]] = {}
    for shot in shots:
        row = rows.setdefault((shot.nickname, shot.width, shot.height, shot.index), {})
        if shot.column not in row or shot.label == "ema":
            row[shot.column] = shot
    return rows


def _column(column: int) -> str:
    return "base model" if column < 0 else f"step {column}"


def _before_after(root: Path, shots: Sequence[Shot]) -> str:
    rows = [row for row in _rows(shots).values() if row]
    if not rows:
        return ""
    edge = 512 if len(rows) <= 8 else 320
    figures = []
    for row in rows[:MOST_PROMPTS]:
        first, last = row.get(-1), row[max(row)]
        after = _image(root, last, edge)
        label = _column(last.column)
        body = f'<div class="one">{after}<span>{label}</span></div>'
        if first and first is not last:
            before = f'<div class="one">{_image(root, first, edge)}<span>base model</span></div>'
            body = f'<div class="two">{before}{body}</div>'
        prompt = last.prompt if last.prompt != last.nickname else ""
        words = f"<b>{_text(last.nickname)}</b>{_text(prompt)}"
        figures.append(f'<figure class="pair">{body}<figcaption>{words}</figcaption></figure>')
    more = f'<p class="soft">{len(rows) - MOST_PROMPTS} more prompts are in validation_images.</p>'
    tail = more if len(rows) > MOST_PROMPTS else ""
    return f'<h2>Before and after</h2><div class="pairs">{"".join(figures)}</div>{tail}'


def _film(root: Path, shots: Sequence[Shot]) -> str:
    rows = _rows(shots)
    steps = sorted({step for row in rows.values() for step in row})
    if len(steps) < 3:
        return ""
    if len(steps) > MOST_STEPS:
        steps = sorted({steps[round(i * (len(steps) - 1) / (MOST_STEPS - 1))] for i in range(MOST_STEPS)})
    head = "".join(f"<th>{_column(step)}</th>" for step in steps)
    lines = []
    for row in list(rows.values())[:MOST_PROMPTS]:
        cells = "".join(f"<td>{_image(root, row[step], 192) if step in row else ''}</td>" for step in steps)
        lines.append(f"<tr><th>{_text(next(iter(row.values())).nickname)}</th>{cells}</tr>")
    return f'<h2>Pictures over time</h2><div class="film"><table><tr><th></th>{head}</tr>{"".join(lines)}</table></div>'


def _image(root: Path, shot: Shot, edge: int) -> str:
    """A picture inside the page, at most ``edge`` px wide and high; nothing for one that cannot be read."""
    path = confined(root, shot.path)
    if path is None:
        return ""
    try:
        with Image.open(path) as picture:
            small = picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""
    small.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    memory = io.BytesIO()
    small.save(memory, format="WEBP", quality=84, method=4)
    data = base64.b64encode(memory.getvalue()).decode("ascii")
    kind = ' class="small"' if max(small.size) <= 160 else ""
    return f'<img{kind} alt="" width="{small.width}" height="{small.height}" src="data:image/webp;base64,{data}">'


_SCORES = {
    "clip": "CLIP score, 0 to 100",
    "palette": "share of the training pictures' palette",
    "colour_distance": "colour distance to the training pictures",
    "nearest_distance": "distance to the nearest training picture",
}


def _scores(series: Series) -> str:
    """First and last figure of every score, and pictures that repeat what was trained on."""
    pictures = [s for s in series.scores if s.get("nickname") and math.isfinite(number(s.get("value")))]
    pictures = [s for s in pictures if s.get("label") != BASE]  # the curve begins with what training began with
    rows = []
    for name in list(dict.fromkeys(str(s.get("name")) for s in pictures))[:40]:
        lines = [s for s in pictures if s.get("name") == name]
        first, last = min(s["step"] for s in lines), max(s["step"] for s in lines)
        cells = "".join(f'<td class="number">{_mean_of(lines, step)}</td>' for step in dict.fromkeys((first, last)))
        rows.append(f"<tr><th>{_text(_SCORES.get(name, name))}</th>{cells}</tr>")
    if not rows:
        return ""
    newest = {_picture_of(s): s for s in sorted(pictures, key=lambda s: s["step"]) if "memorised" in s}
    repeats = {
        f"{s['nickname']} at step {s['step']} repeats {s.get('nearest', '')}"
        for s in newest.values()  # an early alarm is over when a later picture of the prompt gives none
        if s["memorised"] is True
    }
    warned = "".join(f'<p class="warn">{_text(line)}</p>' for line in sorted(repeats)[:50])
    head = "<tr><th>mean (lowest to highest)</th><td>first</td><td>last</td></tr>"
    return f'<h2>Scores</h2><div class="card"><table class="rows">{head}{"".join(rows)}</table>{warned}</div>'


def _picture_of(score: Mapping[str, Any]) -> tuple[str, ...]:
    """What is the same at every step: prompt, size, number and weights."""
    return tuple(str(score.get(name)) for name in ("nickname", "width", "height", "index", "label"))


def _mean_of(lines: Sequence[Mapping[str, Any]], step: int) -> str:
    """Of the EMA weights where they were scored."""
    own = [s for s in lines if s["step"] == step]
    values = [number(s["value"]) for s in own if s.get("label") == "ema"] or [number(s["value"]) for s in own]
    mean = short(sum(values) / len(values))
    return mean if len(values) < 2 else f"{mean} ({short(min(values))} to {short(max(values))})"


def _dataset(sheet: Mapping[str, Any]) -> str:
    parts, left = [], MOST_THUMBNAILS
    for entry in sheet.get("datasets") or []:
        if not isinstance(entry, dict):
            continue
        figures = []
        for picture in entry.get("pictures") or []:
            source = str(picture.get("thumbnail", "")) if isinstance(picture, dict) else ""
            if left and source.startswith("data:image/jpeg;base64,"):
                caption = next(iter(picture.get("captions") or []), "") or picture.get("name", "")
                figures.append(
                    f'<figure><img alt="" src="{escape(source)}"><figcaption>{_text(caption)}</figcaption></figure>'
                )
                left -= 1
        used, found = (value if isinstance(value := entry.get(key), int) else 0 for key in ("used", "found"))
        count = counted(used, "picture") if used == found else f"{used} of {found} pictures used"
        parts.append(f'<h3>{_text(entry.get("id", ""))} <span class="soft">{_text(count)}</span></h3>')
        parts.append(f'<div class="sheet">{"".join(figures)}</div>')
        if used > len(figures):
            rest = counted(used - len(figures), "more is", "more are")
            parts.append(f'<p class="soft">{rest} used and not shown here.</p>')
    return f"<h2>Training pictures</h2>{''.join(parts)}" if parts else ""


def _settings(config: Mapping[str, Any], groups: Sequence[Group]) -> str:
    if not config:
        return ""
    joined = changed_settings(config, groups)
    changed = "".join(_row(key, value) for group in joined for key, value, differs in group.rows if differs)
    everything = "".join(
        f'<section class="card"><h3>{_text(group.title)}</h3><table class="rows">'
        f"{''.join(_row(key, value) for key, value, _ in group.rows)}</table></section>"
        for group in joined
    )
    told = f'<div class="card"><table class="rows">{changed}</table></div>' if changed else ""
    return (
        f"<h2>Settings</h2>{told}<details><summary>All settings</summary>"
        f'<div class="two-columns">{everything}</div></details>'
    )


def _row(key: str, value: str) -> str:
    return f"<tr><th>{_text(key)}</th><td>{_text('–' if value in ('', 'null') else value)}</td></tr>"


def _log(folder: RunFolder) -> str:
    lines = [f"step {step}: {text}" for step, text in folder.series.skipped[-100:]]
    for event in folder.events[-MOST_EVENTS:]:
        words = sentence(event)
        if words:
            lines.append(f"{str(event.get('timestamp', ''))[11:19]}  {words}")
    if not lines:
        return ""
    return f'<h2>Log</h2><div class="card log">{_text(chr(10).join(lines))}</div>'


def sentence(event: Mapping[str, Any]) -> str:
    """An event in one line; "" for those that are only of interest while they happen."""
    words = ": ".join(str(event[name]) for name in ("title", "message") if event.get(name))
    if event.get("type") in ("validation.image", "training.status") and not words:
        return ""
    if words:
        return words
    stage, saved = event.get("stage"), event.get("checkpoint")
    if isinstance(stage, dict):
        told = stage.get("progress") is None and stage.get("status") != "running"
        return f"{stage.get('label', '')}: {stage.get('status', '')}" if told else ""
    if isinstance(saved, dict):
        return f"saved {saved.get('label', '')}"
    return str(event.get("type", ""))


def write(root: Path, groups: Sequence[Group], to: Path | None = None) -> Path:
    """Write the page of a run, whole or not at all.

    Args:
        root: Its output folder.
        groups: Options by section with defaults.
        to: The file; ``report.html`` in the folder by default.

    Returns:
        The file.

    Raises:
        OSError: It cannot be written.
    """
    file = to or root / NAME
    text = page(RunFolder(root), groups)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")  # data.cache writes so too, and would load torch here
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        temporary.replace(file)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()  # there only where something went wrong
    return file
