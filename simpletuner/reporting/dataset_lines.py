"""What a survey found, in sentences for a terminal; ``dataset_page`` shows the same with its pictures.

In: a Survey. Out: lines. Reads nothing and prints nothing.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from pathlib import Path

from simpletuner.data.survey import Picture, Survey
from simpletuner.wording import counted


def once_more(survey: Survey, same: Sequence[Survey]) -> list[str]:
    """What sets a training dataset apart from those before it with the same pictures; nothing where there is none."""
    if not same:
        return []
    nearest = next((other for other in same if other.resolution == survey.resolution), same[0])
    captions = [{picture.path: picture.captions for picture in one.pictures} for one in (nearest, survey)]
    others = "the same captions" if captions[0] == captions[1] else "other captions"
    if nearest.resolution == survey.resolution:
        apart = f"at {survey.resolution} too, with {others}"
    else:
        apart = f"at {survey.resolution}, there at {nearest.resolution}"
    return [f"[{survey.id}] these are the pictures of [{nearest.id}] once more: {apart}"]


def short(survey: Survey, listed: int = 3, told: Set[Path] = frozenset()) -> list[str]:
    """What a person should know of one dataset, a line each; nothing where all is well.

    Args:
        survey: The dataset.
        listed: Examples named in each line.
        told: Pictures of other datasets whose pixels have been spoken of.
    """
    head = f"[{survey.id}]"
    lines: list[str] = []

    def tell(pictures: Sequence[Picture], one: str, many: str) -> None:
        if pictures:
            names = ", ".join(p.path.name for p in pictures[:listed])
            more = f" and {len(pictures) - listed} more" if len(pictures) > listed else ""
            lines.append(f"{head} {counted(len(pictures), one, many)}: {names}{more}")

    enlarged = survey.enlarged
    if enlarged:
        most = f"{enlarged[0].enlarged:.2f} times"
        tell(
            enlarged,
            f"picture is smaller than its bucket and enlarged {most}",
            f"pictures are smaller than their bucket and enlarged, up to {most}",
        )
    tell(survey.without_caption, "picture has an empty caption", "pictures have an empty caption")
    tell(
        survey.cut_captions,
        "caption is too long, so the model does not see its end",
        "captions are too long, so the model does not see their end",
    )
    lines += [f"{head}   {p.path.name}: not seen: …{p.cut[:200]}" for p in survey.cut_captions[:listed]]
    lines += _and_more(head, len(survey.cut_captions) - listed)
    repeated = survey.repeated_captions
    if repeated and len({c for p in survey.pictures for c in p.captions}) > 1:
        caption, count = repeated[0]
        lines.append(
            f"{head} {counted(len(repeated), 'caption belongs', 'captions belong')} to several pictures, most often {caption[:80]!r} ({count})"
        )
    lines += _copies(survey, listed, told)
    doubtful = {path: found for path, found in survey.doubtful.items() if path not in told}
    if doubtful:
        lines.append(
            f"{head} {counted(len(doubtful), 'picture looks', 'pictures look')} doubtful; the page shows each:"
        )
    lines += [f"{head}   {path.name}: {' '.join(found)}" for path, found in list(doubtful.items())[:listed]]
    return [*lines, *_and_more(head, len(doubtful) - listed)]


def _and_more(head: str, number: int) -> list[str]:
    """A line on what is not listed; nothing where all is."""
    return [f"{head}   … and {number} more"] if number > 0 else []


def _copies(survey: Survey, listed: int, told: Set[Path]) -> list[str]:
    """Pictures that are there more than once: they are trained more often than the others."""
    lines = []
    copies = survey.copies
    keep = "keep one of each, or it is trained more often"
    look = "of copies keep one; other pictures of one place may stay"
    kinds = (
        (copies.exact, "are exact copies of one another", "=", keep),
        (copies.near, "look nearly the same", "≈", look),
    )
    for all_groups, what, sign, remedy in kinds:
        groups = [group for group in all_groups if not told >= set(group)]
        if groups:
            count = sum(map(len, groups))
            groups_of = counted(len(groups), "group")
            lines.append(f"[{survey.id}] {counted(count, 'picture')} {what}, in {groups_of} ({remedy}):")
            lines += [
                f"[{survey.id}]   {f' {sign} '.join(path.name for path in group[:6])}{' …' if len(group) > 6 else ''}"
                for group in groups[:listed]
            ]
            lines += _and_more(f"[{survey.id}]", len(groups) - listed)
    return lines


def sizes(survey: Survey, looked_at: bool = False) -> list[str]:
    """Smallest and largest picture, unless another dataset told of them, and what the cache holds."""
    head = f"[{survey.id}]"
    lines: list[str] = []
    if survey.pictures and not looked_at:
        ordered = sorted(survey.pictures, key=lambda p: p.size.width * p.size.height)
        low, high = ordered[0], ordered[-1]
        lines.append(f"{head} smallest by area {low.size} ({low.path.name}), largest {high.size} ({high.path.name})")
    if survey.pictures and survey.cache_bytes:
        state = f"{survey.cached} of {counted(len(survey.pictures), 'latent is', 'latents are')} in the cache"
        lines.append(f"{head} {state} ({survey.cache_bytes / 2**20:.1f} MiB)")
    return lines
