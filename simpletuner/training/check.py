"""Look at the data before an hour is spent on it: rooms 1 and 2, without any weights.

The same rooms, rules and plan as ``run.train``, so that what is said here is what training does.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from simpletuner.config.read import RunConfig
from simpletuner.data import undecodable
from simpletuner.data.cache import TensorStore, write_atomic
from simpletuner.data.images import cut
from simpletuner.data.sampler import Bucket, Drawing, Plan, shortfalls
from simpletuner.data.survey import Survey, look_at, picture_of
from simpletuner.data.types import Skipped
from simpletuner.errors import DataError, ModelError, UnreachableError
from simpletuner.models import imports
from simpletuner.models.base import Facts, Family, LoadSource, TextSettings
from simpletuner.models.families import FAMILIES
from simpletuner.reporting.dataset_lines import once_more, short, sizes
from simpletuner.reporting.dataset_page import page
from simpletuner.reporting.progress import Reporter
from simpletuner.training import (
    cache_places,
    checking_drawing,
    checking_resume,
    picture_sizes,
    prepare,
    translate,
    translate_data,
    translate_precision,
    translate_validation,
)
from simpletuner.training.checking_memory import memory_lines, memory_problems
from simpletuner.training.device import here
from simpletuner.training.disk import free_bytes, latent_bytes
from simpletuner.training.precision import choose
from simpletuner.training.redraw import Samples
from simpletuner.wording import counted

PROCESSES = max(1, os.cpu_count() or 1)
PAGE, REFUSED_PAGE = "dataset.html", "dataset-refused.html"


@dataclass(slots=True)
class Checked:
    """Everything that was found out.

    Attributes:
        surveys: One a dataset that could be read.
        lines: Sentences about the run.
        problems: Why training would refuse to start; empty if it would not.
        unknown: What could not be asked for, so that nobody can tell whether training would start; empty if nothing.
        left: Optimizer steps still to be done.
    """

    surveys: list[Survey]
    lines: list[str]
    problems: list[str]
    unknown: str = ""
    left: int = 0


def check(config: RunConfig, reporter: Reporter, page_at: Path | None = None, reconstruct: bool = False) -> bool:
    """Check the data of a configuration, print what was found and write the page.

    Args:
        config: What ``config.read.load`` gave.
        reporter: Where to print.
        page_at: The HTML file; by default ``dataset.html`` in the output folder, or ``dataset-refused.html`` where
            training would not start.
        reconstruct: Load the VAE and measure how well it reproduces each picture.

    Returns:
        Whether nothing that was found keeps training from starting.
    """
    for notice in config.notices:
        reporter.say(notice)
    cannot = [*translate_precision.quantisation_problems(config, here()), *memory_problems(config)]
    imports.libraries()
    precision = choose(config.options.precision.mixed_precision, low_precision_safe=False)
    family, source = FAMILIES[config.options.model.model_family], translate.load_source(config.options, precision)
    checked = Checked([], [], [])
    checked.problems += [str(problem) for problem in cannot]
    facts = _facts(family, source, checked)
    found = _find(config, facts, checked, reporter)
    cut_off = _cut_off(config, family, source, checked, has_model=facts is not None)
    for item, role in found:
        survey = _look_over(item, role, cut_off, reporter)
        _tell(item, checked.surveys, reporter)
        checked.surveys.append(survey)
    if reconstruct:
        _reconstruct(family, source, found, checked.surveys, reporter)
    training = [item for item, role in found if role == "image"]
    for item in training:
        if item.source.redraw:
            checked.lines.append(
                f"[{item.source.id}] places are drawn anew in each epoch; the page shows those of the first"
            )
    if facts is not None:
        checked.lines += picture_sizes.notes(training, facts)
    checked.lines += translate_precision.slow_on(here(), precision)
    held_out = [item for item, role in found if role == "eval"]
    checked.lines += translate_validation.notes_on_held_out(config, training, held_out)
    disk_room([item for item, _ in found], facts, precision.cache, checked)
    checked.problems += cache_places.problems(config.datasets, [item for item, _ in found])
    resumed = checking_resume.look(config, family, source, has_model=facts is not None)
    checked.lines += resumed.lines
    checked.problems += resumed.problems
    drawing = checking_drawing.look(config, family, source, facts)
    checked.lines += drawing.lines
    checked.problems += drawing.problems
    checked.unknown = checked.unknown or drawing.unknown
    steps, course = _plan(config, training, checked)
    checked.left = max(0, steps - resumed.state.step)
    course += resumed.course(config, steps, (p.digest for item in training for p in item.placed))
    place = len(checked.lines)
    if facts is not None and not resumed.unfit:
        lines, refused = memory_lines(config, family, facts, [item for item, _ in found], checked.left)
        checked.lines += lines
        checked.problems += map(str, refused)
    if not checked.problems:  # what cannot start has no steps, and no picture is seen
        checked.lines[place:place] = course
    for line in describe(checked):
        reporter.say(line)
    file = page_at or _page_place(Path(config.options.checkpoints.output_dir).expanduser(), bool(checked.problems))
    _write_page(file, f"Data of {config.config_file}", checked)
    reporter.say(f"Page with every picture: {file}")
    reporter.say(_verdict(checked))
    return not checked.problems


def _page_place(folder: Path, refused: bool) -> Path:
    """Where the page goes: what is refused leaves the page of a run that is there as it is; one that is right ends that."""
    if refused:
        return folder / REFUSED_PAGE
    with contextlib.suppress(OSError):
        (folder / REFUSED_PAGE).unlink(missing_ok=True)
    return folder / PAGE


def _write_page(file: Path, title: str, checked: Checked) -> None:
    text = page(title, checked.surveys, checked.lines, checked.problems)
    write_atomic(file, text.encode("utf-8", "backslashreplace"))


def _verdict(checked: Checked) -> str:
    """The last sentence."""
    if checked.problems:
        return "Training would not start: see above."
    if not checked.left:
        return "Nothing would be trained: all steps are done. The model would be exported as it is."
    if checked.unknown:
        return f"All that could be looked at is right; whether training would start cannot be told without {checked.unknown}."
    return "Training would start."


def _look_over(item: prepare.Found, role: str, cut_off: Callable[[str], str], reporter: Reporter) -> Survey:
    """Decode the pictures of a dataset; those that cannot be are left out of it, too."""
    pictures = [picture_of(p, max((cut_off(c) for c in p.sample.captions), key=len)) for p in item.placed]
    rules = item.source.placement
    unit = "megapixels" if rules.resolution_type == "area" else "px"
    survey = Survey(item.source.id, item.source.folder, role, pictures, item.skipped)
    survey.resolution = f"{rules.resolution:g} {unit}"
    survey.cached, survey.cache_bytes = _cache(item)
    track = partial(reporter.track, f"Decoding pictures [{item.source.id}]")
    survey.looks = look_at([p.path for p in pictures], PROCESSES, track)
    _leave_out_broken(item, survey)
    return survey


def _leave_out_broken(item: prepare.Found, survey: Survey) -> None:
    """Pictures that cannot be decoded are skipped, as training skips them once it caches."""
    broken = {path: seen.problem for path, seen in survey.looks.items() if seen.problem}
    if (
        item.source.caching == "ahead" and not item.source.redraw
    ):  # so that the run counts it at once, as a second one does
        failures = [(p.sample.path, p.digest, broken[p.sample.path]) for p in item.placed if p.sample.path in broken]
        undecodable.remember(item.source.latent_dir, failures)
    item.skipped = [*(Skipped(path, reason) for path, reason in broken.items()), *item.skipped]
    item.placed = [p for p in item.placed if p.sample.path not in broken]
    survey.skipped = item.skipped
    survey.pictures = [p for p in survey.pictures if p.path not in broken]


def _tell(item: prepare.Found, before: Sequence[Survey], reporter: Reporter) -> None:
    """Print the sums of a dataset whose pictures were decoded; what was said of a file in another is not said again."""
    prepare.tell_sum(item, reporter)
    told = {skipped.path for survey in before for skipped in survey.skipped}
    prepare.tell_skipped(item.source.id, [one for one in item.skipped if one.path not in told], reporter)


def describe(checked: Checked) -> list[str]:
    """The survey in sentences, for a terminal."""
    lines: list[str] = []
    told: set[Path] = set()
    for number, survey in enumerate(checked.surveys):
        lines += short(survey, listed=10, told=told)
        same = [b for b in checked.surveys[:number] if survey.looks and b.looks.keys() == survey.looks.keys()]
        lines += once_more(survey, [other for other in same if other.role == survey.role == "image"])
        lines += sizes(survey, looked_at=bool(same))
        told |= survey.looks.keys()
    return [*lines, *checked.lines, *checked.problems]


def _facts(family: Family, source: LoadSource, checked: Checked) -> Facts | None:
    """The model's facts from its configuration files; None, with what it means, where they cannot be read."""
    try:
        return family.peek(source)
    except UnreachableError as error:
        checked.unknown = "the model"
        checked.lines.append(f"The model cannot be looked at, so buckets are for 32 px steps: {error}")
    except ModelError as error:
        checked.problems.append(str(error))
    return None


def _find(
    config: RunConfig, facts: Facts | None, checked: Checked, reporter: Reporter
) -> list[tuple[prepare.Found, str]]:
    """Rooms 1 and 2 of every dataset; one that cannot be used is a problem, and the others are looked at all the same."""
    alignment = (
        translate.bucket_alignment(config, facts) if facts else config.options.data.aspect_bucket_alignment or 32
    )
    stride = facts.stride if facts else 32
    found: list[tuple[prepare.Found, str]] = []
    for entry in (*config.datasets.train, *config.datasets.eval):
        try:
            item = prepare.find_in(translate_data.dataset_source(config, entry, alignment, stride), reporter)
            if not item.placed:
                _tell(item, [], reporter)
                prepare.refuse_empty(item)
        except DataError as error:
            checked.problems.append(str(error))
        else:
            found.append((item, entry.dataset_type))
    return found


def _cut_off(
    config: RunConfig, family: Family, source: LoadSource, checked: Checked, has_model: bool
) -> Callable[[str], str]:
    """A function that gives the end of a caption that the model never sees; without a model nothing is said of that."""
    text: TextSettings = translate.text_settings(config.options, family.default_instruction())
    if has_model:
        try:
            tokenizer = family.tokenizer(source)
        except ModelError as error:
            checked.lines.append(f"Captions are not counted in tokens: {error}")
            has_model = False
    if not has_model:
        return lambda caption: ""
    return lambda caption: family.cut_off(tokenizer, caption, text)


def _cache(item: prepare.Found) -> tuple[int, int]:
    """Used pictures whose latents are cached under any fingerprint, and the bytes of the dataset's cache."""
    folder = item.source.latent_dir
    shards = list(folder.glob("*/shard-*.safetensors"))
    keys = {p.key for p in item.placed}
    stores = [TensorStore(home, read_only=True) for home in {shard.parent for shard in shards}]
    cached = max((sum(key in store for key in keys) for store in stores), default=0)
    return cached, sum(shard.stat().st_size for shard in shards)


def _plan(config: RunConfig, training: list[prepare.Found], checked: Checked) -> tuple[int, list[str]]:
    """The steps of the whole run, and sentences on its course; 0 where it cannot start, and why goes to the problems."""
    if not training:
        return 0, []
    samples = Samples(training, {})
    buckets = samples.buckets(0)
    if not buckets:
        checked.problems.append(
            "no picture of any training dataset can be decoded. What to do: see above why each was skipped, and replace the "
            "files or name another instance_data_dir in the dataloader file."
        )
        return 0, []
    drawing = translate_data.drawing(config)
    sentences = shortfalls(buckets, drawing)
    if sentences and not config.options.data.allow_dataset_oversubscription:
        checked.problems += [f"too few pictures: {sentence}" for sentence in sentences]
    try:
        plan = samples.plan(drawing, config.options.training.seed)
    except DataError as error:
        checked.problems.append(str(error))
    if checked.problems:
        return 0, []
    total = translate.total_steps(config, plan)
    batches = total * drawing.accumulation
    steps = plan.batches_per_epoch / drawing.accumulation
    each = counted(int(steps) if steps.is_integer() else round(steps, 1), "step")
    said = f"{each} per epoch, {counted(total, 'step')} in all"
    alike = not any(item.source.redraw for item in training)
    try:
        epochs, seen = float(plan.epochs_before(batches)), _seen(training, plan.drawn(batches))
        said += f": {epochs:.1f} epochs, {_draws(plan, buckets, drawing, alike)}; {seen}"
    except DataError as error:  # training starts, and ends there
        said += f"; WARNING: {error}"
    return total, [said, *translate.notes_on_course(config, total)]


def _draws(plan: Plan, buckets: Sequence[Bucket], drawing: Drawing, alike: bool) -> str:
    """How many pictures an epoch draws, and how many of these only make its batches full; ``alike``: buckets stay."""
    drawn = sum(plan.drawn(plan.batches_per_epoch).values())
    turns = [drawing.turn(bucket.dataset_id) for bucket in buckets]
    if not alike or not all(turn.always for turn in turns):  # epochs differ
        return f"the first of {counted(drawn, 'draw')}"
    own = [len(b.members) * (b.repeats + 1) for b, turn in zip(buckets, turns, strict=True) if turn.probability > 0]
    filling = drawn - sum(own)
    filled = f", {filling} of them to fill the last batch of a bucket" if filling else ""
    return f"each of {counted(drawn, 'draw')}{filled}"


def _seen(training: Sequence[prepare.Found], drawn: Mapping[str, int]) -> str:
    """How often a picture is seen, by dataset where that differs; ``drawn`` has all draws of each."""
    files = {item.source.id: {p.sample.path for p in item.placed} for item in training if item.placed}
    times = {name: round(drawn.get(name, 0) / len(paths)) for name, paths in files.items()}
    if len(set(times.values())) > 1:
        each = ", ".join(f"{counted(count, 'time')} in [{name}]" for name, count in times.items())
        return f"each picture is seen about {each}"
    everything = len(set().union(*files.values()))
    count = round(sum(drawn.values()) / everything)
    return f"each of {counted(everything, 'picture')} is seen about {counted(count, 'time')}"


def disk_room(found: Sequence[prepare.Found], facts: Facts | None, dtype: torch.dtype, checked: Checked) -> None:
    """Room on the disk against what the caches, in this dtype, will need."""
    kept = [item for item in found if item.source.caching != "never"]
    missing = {p.key: p.placement.bucket for item in kept for p in item.placed}
    if not missing:
        return
    stride = facts.stride if facts else 32
    channels = facts.latent_channels if facts else 32
    need = latent_bytes(missing.values(), stride, channels, dtype.itemsize)
    homes = list(dict.fromkeys(item.source.latent_dir for item in kept))
    tightest = min(homes, key=free_bytes)
    free = free_bytes(tightest)
    checked.lines.append(
        f"The latents need about {need / 2**20:.1f} MiB in {', '.join(map(str, homes[:3]))}{' …' if homes[3:] else ''}; "
        f"{free / 2**30:.1f} GiB are free there"
    )
    if need > free:
        checked.problems.append(
            f"the disk of {tightest} has no room for the latents. What to do: free {(need - free) / 2**20:.1f} MiB or more "
            "there, or name a cache_dir_vae on another disk in the dataloader file."
        )


@torch.no_grad()
def _reconstruct(
    family: Family,
    source: LoadSource,
    found: list[tuple[prepare.Found, str]],
    surveys: list[Survey],
    reporter: Reporter,
) -> None:
    """PSNR of each picture after encoding and decoding, worst told first: what the model can never draw better."""
    vae = family.autoencoder(source)
    device = here()
    vae.to(device)
    for (item, _), survey in zip(found, surveys, strict=True):
        measured: dict[Path, float] = {}
        for placed in reporter.track(f"Reconstructing [{item.source.id}]", item.placed):
            # Decoded once already, so it can be.
            pixels = cut(placed.sample.path, placed.placement)[None].to(device)
            error = (
                (family.decode_latents(vae, family.encode_pixels(vae, pixels)) - pixels).div(2).square().mean().item()
            )
            measured[placed.sample.path] = -10 * math.log10(max(error, 1e-10))
        survey.pictures = [replace(p, reconstruction=measured.get(p.path)) for p in survey.pictures]
        worst = sorted(measured.items(), key=lambda pair: pair[1])[:3]
        told = ", ".join(f"{path.name} {value:.1f} dB" for path, value in worst)
        mean = sum(measured.values()) / max(1, len(measured))
        reporter.say(f"[{item.source.id}] the VAE reproduces pictures at {mean:.1f} dB on average; worst: {told}")
