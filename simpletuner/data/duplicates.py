"""Which pictures of a dataset are there twice: the same pixels, or nearly the same picture.

In: a content digest, a 64-bit perceptual hash and coarse colours for each picture (``quality.measure``). Out: groups of
positions.
Knows neither files nor pixels, and decides nothing: variations of one picture can be wanted.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

BITS = 64
# Bits that may differ. Of 4,656 pairs of different photographs and 1,128 of drawings in one style, the nearest differ in
# 16; of copies at JPEG quality 10, half size, 1.3 times as bright or 1 % cropped, nine of ten differ in at most 8.
NEAR = 8
# Levels that the colour of a coarse cell may differ by (Cb or Cr). Red and orange are 55 apart, JPEG quality 10 moves
# a cell of the pocket's pictures by at most 9, a crop of 3 % by 18, 1.3 times the brightness by 20.
NEAR_COLOUR = 24

Group = tuple[int, ...]
Integers = NDArray[np.intp]
Hashes = NDArray[np.uint64]
Colours = NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Duplicates:
    """What is there more than once; positions in the sequences given, ascending, groups by their first position.

    Attributes:
        exact: Groups of at least two pictures with the same pixels.
        near: Groups of at least two pictures that differ and look alike. Of exact copies only the first stands here.
            Alike is passed on: if A is near B and B near C, all three are one group.
    """

    exact: tuple[Group, ...]
    near: tuple[Group, ...]


def find_duplicates(
    contents: Sequence[Hashable],
    hashes: Sequence[int | None],
    threshold: int = NEAR,
    colours: Sequence[bytes] | None = None,
) -> Duplicates:
    """Tell exact copies from near ones.

    Args:
        contents: Digest of each picture's pixels.
        hashes: 64-bit perceptual hash of each, or None where it says nothing (a picture of one colour): such a
            picture has exact copies only.
        threshold: Largest Hamming distance of near-duplicates, in bits, 0 to 63.
        colours: Of each picture, equally many bytes; near-duplicates differ by at most ``NEAR_COLOUR`` in each. None
            compares no colours.

    Raises:
        ValueError: The sequences differ in length, or the threshold is out of range.
    """
    if len(contents) != len(hashes):
        raise ValueError(f"{len(contents)} contents, but {len(hashes)} hashes")
    copies: dict[Hashable, list[int]] = {}
    for position, content in enumerate(contents):
        copies.setdefault(content, []).append(position)
    shown = [members[0] for members in copies.values() if hashes[members[0]] is not None]
    theirs = [colours[position] for position in shown] if colours is not None else None
    near = near_groups([hashes[position] or 0 for position in shown], threshold, theirs)
    return Duplicates(
        exact=tuple(tuple(members) for members in copies.values() if len(members) > 1),
        near=tuple(tuple(shown[member] for member in group) for group in near),
    )


def near_groups(hashes: Sequence[int], threshold: int = NEAR, colours: Sequence[bytes] | None = None) -> list[Group]:
    """Connected components of "at most ``threshold`` bits differ, and no colour by much" with at least two members.

    Pigeonhole: cut 64 bits into ``threshold + 1`` bands; two hashes that differ in at most ``threshold`` bits agree
    in at least one whole band, so only pairs that share a band are compared. Nothing is missed. Source: Manku, Jain
    and Das Sarma, "Detecting Near-Duplicates for Web Crawling", WWW 2007, section 3; Norouzi, Punjani and Fleet,
    "Fast Search in Hamming Space with Multi-Index Hashing", CVPR 2012.

    Args:
        hashes: 64-bit unsigned numbers.
        threshold: In bits, 0 to 63. Time grows with it: about n² / 2^(64 / (threshold + 1)) comparisons in each band.
        colours: As in ``find_duplicates``.

    Returns:
        Positions, ascending within a group, groups by their first position.

    Raises:
        ValueError: The threshold is out of range.
    """
    if not 0 <= threshold < BITS:
        raise ValueError(f"the threshold must be 0 to {BITS - 1} bits, not {threshold}")
    # Equal ones first: a thousand copies would be half a million pairs.
    places: dict[tuple[int, bytes], int] = {}
    seen = zip(hashes, colours, strict=True) if colours is not None else ((value, b"") for value in hashes)
    inverse = np.array([places.setdefault(one, len(places)) for one in seen], dtype=np.intp)
    unique = np.array([value for value, _ in places], dtype=np.uint64)
    levels = np.array([list(colour) for _, colour in places], dtype=np.int16).reshape(len(places), -1 if places else 0)
    labels = np.arange(len(unique))
    for band in _bands(unique, threshold + 1):
        for left, right in _pairs_that_share(band):
            near = np.bitwise_count(unique[left] ^ unique[right]) <= threshold
            left, right = left[near], right[near]
            alike = _colours_alike(levels, left, right)
            labels = _join(labels, left[alike], right[alike])
    return _members(labels[inverse])


def _colours_alike(levels: Colours, left: Integers, right: Integers) -> NDArray[np.bool_]:
    """Whether no colour of these pairs differs by much. levels: [n, k], left and right: [e] → [e]."""
    return (np.abs(levels[left] - levels[right]) <= NEAR_COLOUR).all(axis=1)


def _bands(hashes: Hashes, count: int) -> Iterator[Hashes]:
    """Cut 64 bits into ``count`` bands, as equal as can be; every bit is in exactly one."""
    edges = [BITS * index // count for index in range(count + 1)]
    for low, high in pairwise(edges):
        yield (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)


def _pairs_that_share(keys: Hashes) -> Iterator[tuple[Integers, Integers]]:
    """All pairs of positions with equal keys, each once, at most ``len(keys)`` at a time.

    Sorted, equal keys are runs; the d-th round pairs each position with the d-th after it. Whoever has no partner at
    distance d has none farther on and drops out.
    """
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    first = np.arange(len(keys))
    for distance in range(1, len(keys)):
        first = first[first + distance < len(keys)]
        first = first[keys[first] == keys[first + distance]]
        if not len(first):
            return
        yield order[first], order[first + distance]


def _join(labels: Integers, left: Integers, right: Integers) -> Integers:
    """Connected components after adding edges; each label is the smallest position of its component.

    Hooking and pointer jumping. Source: Shiloach and Vishkin, "An O(log n) Parallel Connectivity Algorithm",
    Journal of Algorithms 3, 1982.

    Args:
        labels: [n] position of the root of each; a root's label is itself.
        left: [e] one end of each edge.
        right: [e] the other.
    """
    while len(left):
        one, other = labels[left], labels[right]
        apart = one != other
        if not apart.any():
            break
        left, right, one, other = left[apart], right[apart], one[apart], other[apart]
        np.minimum.at(labels, np.maximum(one, other), np.minimum(one, other))
        while (jumped := labels[labels]).tobytes() != labels.tobytes():
            labels = jumped
    return labels


def _members(labels: Integers) -> list[Group]:
    """Positions with equal labels, where there are several."""
    order = np.argsort(labels, kind="stable")
    cuts = np.flatnonzero(np.diff(labels[order])) + 1
    groups = [tuple(group.tolist()) for group in np.split(order, cuts) if len(group) > 1]
    return sorted(groups)
