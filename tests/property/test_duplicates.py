"""Banded search against comparing every pair with every other."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpletuner.data.duplicates import NEAR, Duplicates, find_duplicates, near_groups

TOP = 2**64 - 1


def every_pair(hashes: list[int], threshold: int) -> list[tuple[int, ...]]:
    """Connected components by comparing all pairs: too slow, plainly right."""
    parent = list(range(len(hashes)))

    def root(member: int) -> int:
        while parent[member] != member:
            member = parent[member]
        return member

    for one in range(len(hashes)):
        for other in range(one):
            if (hashes[one] ^ hashes[other]).bit_count() <= threshold:
                low, high = sorted((root(one), root(other)))
                parent[high] = low
    groups: dict[int, list[int]] = {}
    for member in range(len(hashes)):
        groups.setdefault(root(member), []).append(member)
    return sorted(tuple(group) for group in groups.values() if len(group) > 1)


@st.composite
def crowds(draw: st.DrawFn) -> list[int]:
    """Hashes around a few centres, some bits away: pairs just within and just beyond any threshold."""
    centres = draw(st.lists(st.integers(0, TOP), min_size=1, max_size=4))
    rng = random.Random(draw(st.integers(0, 2**32)))
    most = draw(st.integers(0, 16))
    found = []
    for _ in range(draw(st.integers(0, 40))):
        flips = rng.sample(range(64), rng.randint(0, most))
        found.append(rng.choice(centres) ^ sum(1 << bit for bit in flips))
    return found


@given(crowds(), st.integers(0, 20))
def test_the_same_groups_as_comparing_every_pair(hashes: list[int], threshold: int) -> None:
    assert near_groups(hashes, threshold) == every_pair(hashes, threshold)


@given(st.lists(st.integers(0, 15), max_size=30), st.integers(0, 63))
def test_hashes_that_share_most_bands(hashes: list[int], threshold: int) -> None:
    assert near_groups(hashes, threshold) == every_pair(hashes, threshold)


@given(st.integers(0, TOP), st.integers(0, 63), st.randoms(use_true_random=False))
def test_exactly_the_threshold_is_near_and_one_more_is_not(value: int, threshold: int, rng: random.Random) -> None:
    flips = rng.sample(range(64), threshold + 1)
    near, far = (value ^ sum(1 << bit for bit in some) for some in (flips[:-1], flips))
    assert near_groups([value, near], threshold) == [(0, 1)]
    assert near_groups([value, far], threshold) == []


@given(crowds(), st.integers(0, 12), st.randoms(use_true_random=False))
def test_order_does_not_matter(hashes: list[int], threshold: int, rng: random.Random) -> None:
    order = rng.sample(range(len(hashes)), len(hashes))
    shuffled = near_groups([hashes[place] for place in order], threshold)
    named = sorted(tuple(sorted(order[member] for member in group)) for group in shuffled)
    assert named == near_groups(hashes, threshold)


@given(crowds(), st.data(), st.integers(0, 12))
def test_exact_copies_are_told_from_near_ones(hashes: list[int], data: st.DataObject, threshold: int) -> None:
    # The content decides the hash, as it does for pictures; several contents may share one hash.
    contents = [(value, data.draw(st.integers(0, 1))) for value in hashes]
    found = find_duplicates(contents, hashes, threshold)
    exact = {tuple(i for i, c in enumerate(contents) if c == content) for content in contents}
    assert set(found.exact) == {group for group in exact if len(group) > 1}
    first = [i for i, content in enumerate(contents) if content not in contents[:i]]
    expected = [tuple(first[m] for m in group) for group in every_pair([hashes[i] for i in first], threshold)]
    assert list(found.near) == expected
    for group in (*found.exact, *found.near):
        assert list(group) == sorted(set(group))


def test_pictures_of_one_colour_have_exact_copies_only() -> None:
    assert find_duplicates("aabcc", [None, None, None, 7, 7]) == Duplicates(exact=((0, 1), (3, 4)), near=())


def test_being_near_is_passed_on() -> None:
    steps = [0, (1 << NEAR) - 1, (1 << 2 * NEAR) - 1]
    assert near_groups(steps) == [(0, 1, 2)]


def test_nothing_and_one() -> None:
    assert near_groups([]) == near_groups([5]) == []
    assert find_duplicates([], []) == Duplicates((), ())


def test_many_copies_are_no_many_pairs() -> None:
    assert near_groups([3] * 20_000) == [tuple(range(20_000))]


@pytest.mark.parametrize("threshold", [-1, 64])
def test_impossible_thresholds_are_refused(threshold: int) -> None:
    with pytest.raises(ValueError, match="0 to 63"):
        near_groups([1, 2], threshold)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="2 contents, but 1 hashes"):
        find_duplicates(["a", "b"], [1])
