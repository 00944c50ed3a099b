"""`simpletuner generate`: pictures from a model, a run, a checkpoint or an adapter, by the same code as validation.

In: plain values. Out: PNG files, a contact sheet, and a record that says how each can be drawn again. In float32 a picture
is, pixel for pixel, what diffusers' SanaPipeline draws from the same folder with the same prompt, size, steps and seed.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from simpletuner.data.cache import write_atomic
from simpletuner.data.types import Size
from simpletuner.errors import ModelError, TunerError
from simpletuner.evaluation.grid import grid
from simpletuner.evaluation.naming import file_names
from simpletuner.evaluation.pictures import Picture, ValidationSettings
from simpletuner.evaluation.validation import Failure, Rendering, Validator
from simpletuner.models import adapters, imports, load
from simpletuner.models.adapters import Adapter, AdapterFile
from simpletuner.models.base import Components, EncodedText, Facts, Family, LoadSource, TextSettings
from simpletuner.models.families import FAMILIES
from simpletuner.reporting.progress import Reporter
from simpletuner.training import device, schedule_free
from simpletuner.training.drawing_again import PUBLISHED_TOKENS
from simpletuner.training.merging import on_model
from simpletuner.training.subject import Subject
from simpletuner.wording import counted

SHEET, RECORD = "grid.png", "pictures.json"
_WIDE = 6  # prompts, or seeds of one prompt, that stand side by side; more stand one below the other, or near a square
_TITLE_LINES = 4  # of the prompt above its seeds


@dataclass(frozen=True, slots=True)
class Loading:
    """How what is drawn with is loaded.

    Attributes:
        subject: What it is.
        revision: Hub revision of the base; None for that of the run, if there is one.
        variant: Weight variant; likewise.
        dtype: Of transformer and text encoder; None for bf16 on a GPU and float32 elsewhere.
        strength: Of the adapter, where a prompt has none of its own; without an adapter it is not looked at.
        tiling: The VAE works in tiles.
        sampler: ``flow_match``, ``dpm++`` or ``unipc``; None for the model's own.
        instruction: Lines before every prompt; None for those of the run, else the model's own.
        tokens: Tokens kept of each prompt; likewise.
    """

    subject: Subject
    revision: str | None = None
    variant: str | None = None
    dtype: torch.dtype | None = None
    strength: float = 1.0
    tiling: bool = False
    sampler: str | None = None
    instruction: tuple[str, ...] | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """Where pictures go.

    Attributes:
        folder: None for a new one below ``generated``.
        sheet: Whether a contact sheet is made.
        overwrite: Whether files of these names may be replaced.
    """

    folder: Path | None = None
    sheet: bool = True
    overwrite: bool = False


def generate(loading: Loading, settings: ValidationSettings, target: Target, reporter: Reporter) -> list[Picture]:
    """Draw.

    Args:
        loading: What to draw with.
        settings: What to draw; without sizes, the size the weights were made for.
        target: Where to.
        reporter: For the bar and what is said.

    Returns:
        The pictures that were drawn.

    Raises:
        ModelError: The model or adapter cannot be loaded, or they do not fit.
        TunerError: A file is there already; a size that cannot be drawn; a picture that could not be drawn.
    """
    imports.libraries()
    load.only_download_bars()
    family, where = FAMILIES["sana"], device.choose(disable_tf32=False)
    file, source = _source(loading, where)
    facts = family.peek(source)
    settings = replace(settings, sizes=settings.sizes or (Size(facts.native_resolution, facts.native_resolution),))
    _check_sizes(settings.sizes, facts)
    folder = target.folder.expanduser() if target.folder else _new_folder()
    pictures = expected(settings, folder)
    _check_free(pictures, folder, target)
    reporter.say(
        f"Drawing {counted(len(pictures), 'picture')} with {loading.subject.words} on {device.describe(where)}"
    )
    parts = family.load(source)
    adapter = on_model(file, parts.transformer) if file else None
    if loading.subject.average:
        schedule_free.put(loading.subject.average, parts.transformer, adapter)
    if adapter:
        reporter.say(adapter.describe()[0])
    validator = _validator(family, parts, facts, loading, settings, folder, where, adapter is not None)
    rendering = _draw(validator, pictures, adapter, loading.strength, reporter)
    if rendering.drawn:
        _record(rendering.drawn, folder, loading, source, settings)
        if target.sheet:
            reporter.say(f"all pictures in one  {sheet(rendering.drawn, folder / SHEET)}")
        reporter.say(f"pictures             {folder} ({RECORD} says how each was drawn)")
    if rendering.smaller:
        reporter.say("Note: memory was too short for whole pictures; they were decoded in tiles, as with --tiling")
    if rendering.failed:
        raise TunerError(_failures(rendering.failed))
    return rendering.drawn


def _source(loading: Loading, where: torch.device) -> tuple[AdapterFile | None, LoadSource]:
    """The adapter's file, if there is one, and where the pipeline under it is."""
    subject = loading.subject
    file = adapters.read_file(subject.adapter) if subject.adapter else None
    base = subject.base or (file.base_model if file else None)
    if base is None:
        raise ModelError(f"{subject.words} does not tell its base model. What to do: name it with --base.")
    dtype = loading.dtype or (torch.bfloat16 if where.type == "cuda" else torch.float32)
    path, subfolder = subject.transformer or (None, "transformer")
    return file, LoadSource(
        path=base,
        revision=loading.revision or subject.record.get("revision"),
        variant=loading.variant or subject.record.get("variant"),
        transformer_path=path,
        transformer_subfolder=subfolder,
        weight_dtype=dtype,
        text_dtype=dtype,
        vae_tiling=loading.tiling,
        key="MODEL" if base == subject.words else "the base model; --base names another",
    )


def _check_sizes(sizes: tuple[Size, ...], facts: Facts) -> None:
    needed = max(32, facts.alignment)  # the reference pipeline itself refuses sides that are no multiple of 32
    wrong = [str(size) for size in sizes if size.width % needed or size.height % needed]
    if wrong:
        raise TunerError(
            f"--size {', '.join(wrong)}: this model draws sides that are multiples of {needed} pixels. What to do: name "
            f"such a size; its own is {facts.native_resolution}x{facts.native_resolution}."
        )


def _new_folder() -> Path:
    number = 1
    while (folder := Path("generated") / f"{number:03d}").exists():
        number += 1
    return folder


def expected(settings: ValidationSettings, folder: Path) -> list[Picture]:
    """All pictures, prompt by prompt: ``NAME_<number>_<WxH>.png``."""
    names = file_names([nickname for nickname, _ in settings.prompts])
    seed = settings.seed
    return [
        Picture(0, "", nick, prompt, size, i, seed + i, folder / f"{names[nick]}_{i}_{size}.png")
        for nick, prompt in settings.prompts
        for size in settings.sizes
        for i in range(settings.images_per_prompt)
    ]


def _check_free(pictures: list[Picture], folder: Path, target: Target) -> None:
    """Refuse to overwrite anything, before a model is loaded."""
    beside = [folder / RECORD, *([folder / SHEET] if target.sheet else [])]
    taken = [path for path in [*(p.path for p in pictures), *beside] if path.exists()]
    if taken and not target.overwrite:
        names = ", ".join(path.name for path in taken[:3]) + (" …" if len(taken) > 3 else "")
        raise TunerError(
            f"{folder} has {names} already. What to do: name another folder with --out, or add --overwrite."
        )


def text_settings(loading: Loading, default: tuple[str, ...]) -> TextSettings:
    """How prompts become tokens: as asked; else as in the run that made the weights; else as published."""
    written = loading.subject.record.get("sana_complex_human_instruction")
    of_run = tuple(map(str, written)) if isinstance(written, list) else default
    return TextSettings(
        instruction=of_run if loading.instruction is None else loading.instruction,
        max_tokens=loading.tokens or int(loading.subject.record.get("tokenizer_max_length") or PUBLISHED_TOKENS),
    )


def _validator(
    family: Family,
    parts: Components,
    facts: Facts,
    loading: Loading,
    settings: ValidationSettings,
    folder: Path,
    where: torch.device,
    adapted: bool,
) -> Validator:
    """What draws, its prompts encoded; the text encoder leaves the device before the transformer comes."""
    text = text_settings(loading, family.default_instruction())

    def encode(prompt: str, with_instruction: bool) -> EncodedText:
        encoded = family.encode_captions(parts, [prompt], text, with_instruction)
        return EncodedText(encoded.embeds.cpu(), encoded.mask.cpu())

    pipeline = family.pipeline(parts, with_text=False)
    if loading.sampler:
        pipeline.scheduler = family.sampler(loading.sampler, parts.scheduler, facts.shift)
    dtype = parts.transformer.dtype
    # An adapter is float32 beside a base of another dtype: the products are made in the base's, as in validation.
    autocast = adapted and dtype != torch.float32
    parts.text_encoder.to(where)
    validator = Validator(
        pipeline,
        settings,
        encode,
        folder,
        where,
        lambda: torch.autocast(where.type, dtype) if autocast else nullcontext(),
        lambda: family.decode_in_tiles(parts.vae),
    )
    parts.text_encoder.to("cpu")
    parts.vae.to(where)
    parts.transformer.to(where)
    return validator


def _draw(
    validator: Validator, pictures: list[Picture], adapter: Adapter | None, strength: float, reporter: Reporter
) -> Rendering:
    def adapted(own: float | None) -> AbstractContextManager[object]:
        return adapter.scaled(strength if own is None else own) if adapter else nullcontext()

    with reporter.bar("Drawing", len(pictures)) as bar:
        return validator.render(pictures, lambda picture, failure: bar.advance(1, picture.nickname), None, adapted)


def _failures(failed: list[Failure]) -> str:
    """Each reason once, with an example."""
    sentences = []
    for reason, times in Counter(failure.reason for failure in failed).items():
        one = next(failure for failure in failed if failure.reason == reason)
        sentences.append(
            f"{counted(times, 'picture')} could not be drawn ({one.picture.nickname!r} at {one.picture.size}): {reason}."
        )
    if any(failure.out_of_memory for failure in failed):
        sentences.append("What to do: a smaller --size or --batch.")
    return " ".join(sentences)


def _record(
    drawn: list[Picture], folder: Path, loading: Loading, source: LoadSource, settings: ValidationSettings
) -> None:
    """What it takes to draw each of them again."""
    own: Mapping[str, float] = settings.strengths
    lines: list[dict[str, Any]] = []
    for picture in drawn:
        line = {key: value for key, value in picture.line(folder).items() if key not in ("step", "label")}
        strength = {"strength": own.get(picture.nickname, loading.strength)} if loading.subject.adapter else {}
        lines.append(line | strength)
    content = {
        "model": loading.subject.words,
        "base": source.path,
        "adapter": str(loading.subject.adapter) if loading.subject.adapter else None,
        "dtype": str(source.weight_dtype).removeprefix("torch."),
        "negative_prompt": settings.negative_prompt,
        "steps": settings.steps,
        "guidance": settings.guidance,
        "sampler": loading.sampler,
        "pictures": lines,
    }
    write_atomic(folder / RECORD, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def sheet(drawn: list[Picture], out: Path) -> Path:
    """The contact sheet: seeds of one prompt in a row, a few prompts side by side, many one below the other."""
    by_key = {picture.key: picture.path for picture in drawn}
    prompts = list(dict.fromkeys((picture.nickname, picture.prompt) for picture in drawn))
    if len(prompts) == 1:
        return _seeds(drawn, out)
    takes = list(dict.fromkeys((*picture.key[1:], picture.seed) for picture in drawn))
    sizes = list(dict.fromkeys(str(picture.size) for picture in drawn))
    title = sizes[0] if len(sizes) == 1 else ""
    said = [f"seed {seed}" if title else f"{width}x{height} seed {seed}" for width, height, _, seed in takes]
    if len(prompts) <= _WIDE:
        rows = [
            (label, [by_key.get((nick, *take[:3])) for nick, _ in prompts])
            for label, take in zip(said, takes, strict=True)
        ]
        return grid(rows, [prompt or "no prompt" for _, prompt in prompts], out, title)
    rows = [(nick, [by_key.get((nick, *take[:3])) for take in takes]) for nick, _ in prompts]
    return grid(rows, said, out, title)


def _seeds(drawn: list[Picture], out: Path) -> Path:
    """The sheet of one prompt: for each size its seeds in a row, or near a square where there are many."""
    paths = {(picture.size, picture.seed): picture.path for picture in drawn}
    seeds = sorted({seed for _, seed in paths})
    across = len(seeds) if len(seeds) <= _WIDE else math.ceil(math.sqrt(len(seeds)))
    parts = [seeds[start : start + across] for start in range(0, len(seeds), across)]
    rows = [
        (
            str(size) if len(parts) == 1 else f"{size} {_from_to(part)}",
            [paths.get((size, seed)) for seed in part],
        )
        for size in dict.fromkeys(picture.size for picture in drawn)
        for part in parts
    ]
    heads = [f"seed {seed}" if len(parts) == 1 else "" for seed in seeds[:across]]
    return grid(rows, heads, out, drawn[0].prompt or "no prompt", title_lines=_TITLE_LINES)


def _from_to(seeds: list[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
