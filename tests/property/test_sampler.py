from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpletuner.data.sampler import Bucket, Plan, shortfalls
from simpletuner.data.types import Size
from simpletuner.errors import DataError


@st.composite
def bucket_lists(draw: st.DrawFn) -> list[Bucket]:
    buckets, start = [], 0
    for number in range(draw(st.integers(1, 5))):
        count = draw(st.integers(1, 30))
        members = tuple(range(start, start + count))
        buckets.append(Bucket(f"set{number % 2}", Size(64 * (number + 1), 64), members, draw(st.integers(0, 3))))
        start += count
    return buckets


@given(bucket_lists(), st.integers(1, 9), st.integers(0, 1000), st.integers(0, 5))
def test_an_epoch_draws_every_sample_its_repeats_and_fills_only_the_last_batch(
    buckets: list[Bucket], size: int, seed: int, epoch: int
) -> None:
    plan = Plan(buckets, size, seed)
    length = plan.batches_per_epoch
    batches = [plan.batch(epoch * length + k) for k in range(length)]
    drawn = Counter(m for batch in batches for m in batch.members)
    for bucket in buckets:
        total = sum(drawn[m] for m in bucket.members)
        assert all(drawn[m] >= bucket.repeats + 1 for m in bucket.members)
        assert total - len(bucket.members) * (bucket.repeats + 1) < size
    owner = {m: b for b in buckets for m in b.members}
    for batch in batches:
        assert len(batch.members) == size
        assert len({owner[m].size for m in batch.members}) == 1
        assert {owner[m].dataset_id for m in batch.members} == {batch.dataset_id}


@given(bucket_lists(), st.integers(1, 9), st.integers(0, 1000), st.integers(0, 300))
def test_any_position_can_be_asked_for_alone(buckets: list[Bucket], size: int, seed: int, position: int) -> None:
    """Exact resume: a fresh plan gives the same batch at position k as one that was followed from the start."""
    followed = Plan(buckets, size, seed)
    for k in range(position):
        followed.batch(k)
    assert followed.batch(position) == Plan(buckets, size, seed).batch(position)


def test_epochs_and_seeds_differ() -> None:
    buckets = [Bucket("set", Size(64, 64), tuple(range(40)))]
    plan = Plan(buckets, 4, 0)
    first = [plan.batch(k) for k in range(10)]
    assert first != [plan.batch(k) for k in range(10, 20)]
    assert first != [Plan(buckets, 4, 1).batch(k) for k in range(10)]


def test_the_shortfall_sentence() -> None:
    buckets = [Bucket("subject", Size(1024, 1024), tuple(range(5))), Bucket("subject", Size(512, 512), tuple(range(8)))]
    assert shortfalls(buckets, 4, 2) == ["[subject] bucket 1024x1024 has 5, needs 8: set repeats ≥ 1"]
    assert shortfalls(buckets, 2, 2) == []


@given(st.integers(1, 40), st.integers(1, 16), st.integers(1, 4))
def test_the_repeats_asked_for_are_enough_and_not_too_many(count: int, size: int, accumulation: int) -> None:
    bucket = Bucket("s", Size(64, 64), tuple(range(count)))
    for sentence in shortfalls([bucket], size, accumulation):
        repeats = int(sentence.rsplit("≥ ", 1)[1])
        enough = Bucket("s", Size(64, 64), tuple(range(count)), repeats)
        fewer = Bucket("s", Size(64, 64), tuple(range(count)), repeats - 1)
        assert not shortfalls([enough], size, accumulation)
        assert shortfalls([fewer], size, accumulation)


def test_no_bucket_is_an_error() -> None:
    with pytest.raises(DataError, match="no pictures"):
        Plan([], 4, 0)
