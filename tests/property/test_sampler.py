import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpletuner.data.sampler import Bucket, Drawing, Plan, Turn, shortfalls
from simpletuner.data.types import Size
from simpletuner.errors import DataError
from simpletuner.flow.densities import Listed


@st.composite
def bucket_lists(draw: st.DrawFn) -> list[Bucket]:
    buckets, start = [], 0
    for number in range(draw(st.integers(1, 5))):
        count = draw(st.integers(1, 30))
        members = tuple(range(start, start + count))
        buckets.append(Bucket(f"set{number % 2}", Size(64 * (number + 1), 64), members, draw(st.integers(0, 3))))
        start += count
    return buckets


@st.composite
def drawings(draw: st.DrawFn) -> Drawing:
    def turn() -> Turn:
        start = draw(st.integers(0, 4))
        return Turn(
            probability=draw(st.sampled_from([0.1, 1.0, 3.0])),
            start_epoch=draw(st.integers(1, 3)),
            end_epoch=draw(st.none() | st.integers(3, 5)),
            start_step=draw(st.sampled_from([0, start, 25])),
            end_step=draw(st.none() | st.integers(start + 1, 60)),
            batch_size=draw(st.none() | st.integers(1, 4)),
        )

    return Drawing(
        batch_size=draw(st.integers(1, 6)),
        accumulation=draw(st.integers(1, 3)),
        world_size=draw(st.integers(1, 3)),
        mixing=draw(st.sampled_from(["auto-weighting", "uniform"])),
        turns={"set1": turn()},  # set0 is always open
    )


@given(bucket_lists(), st.integers(1, 9), st.integers(0, 1000), st.integers(0, 5))
def test_an_epoch_draws_every_sample_its_repeats_and_fills_only_the_last_batch(
    buckets: list[Bucket], size: int, seed: int, epoch: int
) -> None:
    plan = Plan(buckets, Drawing(size), seed)
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
    followed = Plan(buckets, Drawing(size), seed)
    for k in range(position):
        followed.batch(k)
    assert followed.batch(position) == Plan(buckets, Drawing(size), seed).batch(position)


@given(bucket_lists(), drawings(), st.integers(1, 40), st.integers(1, 60))
def test_timesteps_in_turn_come_equally_often_whatever_the_batch_sizes(
    buckets: list[Bucket], drawing: Drawing, timesteps: int, length: int
) -> None:
    plan, shape = Plan(buckets, drawing, 0), Listed(tuple(n / 64 for n in range(timesteps)), "round-robin")
    taken: Counter[float] = Counter()
    for position in range(length):
        taken.update(shape.turn(plan.pictures_before(position), len(plan.batch(position).members)).tolist())
    counts = [taken.get(n / 64, 0) for n in range(timesteps)]
    assert max(counts) - min(counts) <= 1


def test_epochs_and_seeds_differ() -> None:
    buckets = [Bucket("set", Size(64, 64), tuple(range(40)))]
    plan = Plan(buckets, Drawing(4), 0)
    first = [plan.batch(k) for k in range(10)]
    assert first != [plan.batch(k) for k in range(10, 20)]
    assert first != [Plan(buckets, Drawing(4), 1).batch(k) for k in range(10)]


def test_the_shortfall_sentence() -> None:
    buckets = [Bucket("subject", Size(1024, 1024), tuple(range(5))), Bucket("subject", Size(512, 512), tuple(range(8)))]
    assert shortfalls(buckets, Drawing(4, 2)) == [
        "[subject] bucket 1024x1024 has 5, needs 8: set repeats ≥ 1, or train_batch_size ≤ 2"
    ]
    assert shortfalls(buckets, Drawing(2, 2)) == []
    (both,) = shortfalls(buckets, Drawing(16, 4))
    assert both == (
        "[subject] 2 buckets are too small, each needs 64 (1024x1024 has 5, 512x512 has 8): "
        "set repeats ≥ 12, or train_batch_size ≤ 1"
    )
    often = [Bucket("toy", Size(112, 144), tuple(range(6)), 20), Bucket("toy", Size(128, 128), (6, 7), 20)]
    assert shortfalls(often, Drawing(500)) == [
        "[toy] 2 buckets are too small, each needs 500 (112x144 has 6 × 21 = 126, 128x128 has 2 × 21 = 42; "
        "each picture counts 21 times, as repeats is 20): set repeats ≥ 249, or train_batch_size ≤ 42"
    ]
    assert shortfalls(often, Drawing(50)) == [
        "[toy] bucket 128x128 has 2 × 21 = 42, needs 50; each picture counts 21 times, as repeats is 20: "
        "set repeats ≥ 24, or train_batch_size ≤ 42"
    ]
    assert shortfalls(buckets, Drawing(1, 9))[0].endswith("needs 9 (1024x1024 has 5, 512x512 has 8): set repeats ≥ 1")


@given(st.integers(1, 40), st.integers(1, 16), st.integers(1, 4))
def test_the_repeats_asked_for_are_enough_and_not_too_many(count: int, size: int, accumulation: int) -> None:
    bucket = Bucket("s", Size(64, 64), tuple(range(count)))
    for sentence in shortfalls([bucket], Drawing(size, accumulation)):
        repeats, _, smaller = sentence.rsplit("≥ ", 1)[1].partition(", or train_batch_size ≤ ")
        repeats = int(repeats)
        if smaller:
            assert not shortfalls([bucket], Drawing(int(smaller), accumulation))
            assert shortfalls([bucket], Drawing(int(smaller) + 1, accumulation))
        else:
            assert shortfalls([bucket], Drawing(1, accumulation))
        enough = Bucket("s", Size(64, 64), tuple(range(count)), repeats)
        fewer = Bucket("s", Size(64, 64), tuple(range(count)), repeats - 1)
        assert not shortfalls([enough], Drawing(size, accumulation))
        assert shortfalls([fewer], Drawing(size, accumulation))


def test_no_bucket_is_an_error() -> None:
    with pytest.raises(DataError, match="no pictures"):
        Plan([], Drawing(4), 0)


@given(bucket_lists(), drawings(), st.integers(0, 99), st.integers(0, 120))
def test_windows_weights_and_batch_sizes_hold_at_every_position(
    buckets: list[Bucket], drawing: Drawing, seed: int, position: int
) -> None:
    plan = Plan(buckets, drawing, seed)
    spec, epoch = plan.batch(position), plan.epoch_of(position)
    assert len(spec.members) == drawing.global_batch(spec.dataset_id)
    turn = drawing.turn(spec.dataset_id)
    assert turn.in_epoch(epoch) and turn.at_step(position // drawing.accumulation)
    assert spec == Plan(buckets, drawing, seed).batch(position)
    earlier = sum(len(plan.batch(k).members) for k in range(position))
    assert plan.pictures_before(position) == earlier == Plan(buckets, drawing, seed).pictures_before(position)
    assert plan.micro_batches(epoch) <= position < plan.micro_batches(epoch + 1)
    shares = [spec.share(rank, drawing.world_size) for rank in range(drawing.world_size)]
    assert sum((share.members for share in shares), ()) == spec.members
    assert len({len(share.members) for share in shares}) == 1


@given(bucket_lists(), drawings(), st.integers(0, 99))
def test_a_dataset_that_is_open_all_epoch_gives_every_draw_in_it(
    buckets: list[Bucket], drawing: Drawing, seed: int
) -> None:
    plan = Plan(buckets, drawing, seed)
    for epoch in range(3):
        positions = range(plan.micro_batches(epoch), plan.micro_batches(epoch + 1))
        drawn = Counter(m for k in positions for m in plan.batch(k).members)
        for bucket in buckets:
            if bucket.dataset_id == "set0":
                assert all(drawn[m] >= bucket.repeats + 1 for m in bucket.members)


@given(bucket_lists(), st.integers(0, 99), st.integers(0, 40))
def test_more_ranks_with_smaller_batches_keep_the_order(buckets: list[Bucket], seed: int, position: int) -> None:
    plans = [Plan(buckets, Drawing(12 // world, world_size=world), seed) for world in (1, 2, 3, 4, 6)]
    assert len({plan.batch(position) for plan in plans}) == 1


def test_probability_moves_batches_and_zero_excludes() -> None:
    buckets = [Bucket(name, Size(64, 64), tuple(range(n * 100, n * 100 + 100))) for n, name in enumerate("abc")]
    turns = {"a": Turn(probability=9.0), "c": Turn(probability=0.0)}
    plan = Plan(buckets, Drawing(1, turns=turns), 0)
    early = Counter(plan.batch(k).dataset_id for k in range(60))
    assert plan.batches_per_epoch == 200 and early["a"] > 4 * early["b"] and "c" not in early
    small = [Bucket("a", Size(64, 64), tuple(range(10))), Bucket("b", Size(64, 64), tuple(range(10, 200)))]
    shares = {}
    for mixing in ("auto-weighting", "uniform"):
        drawing = Drawing(1, mixing=mixing, turns={"a": Turn(probability=1.01)})  # type: ignore[arg-type]
        shares[mixing] = sum(Plan(small, drawing, 0).batch(k).dataset_id == "a" for k in range(10))
    assert shares["uniform"] >= 3 > shares["auto-weighting"]


def test_no_open_dataset_is_an_error_that_says_so() -> None:
    buckets = [Bucket("a", Size(64, 64), tuple(range(10)))]
    with pytest.raises(DataError, match="at the start"):
        Plan(buckets, Drawing(1, turns={"a": Turn(start_step=5)}), 0)
    plan = Plan(buckets, Drawing(1, turns={"a": Turn(end_epoch=2)}), 0)
    assert plan.batch(19)
    with pytest.raises(DataError, match="epoch 3"):
        plan.batch(20)


@given(st.data(), st.integers(1, 5), st.integers(1, 4), st.integers(0, 99), st.integers(0, 80))
def test_buckets_that_change_with_the_epoch(
    data: st.DataObject, size: int, world: int, seed: int, position: int
) -> None:
    """Random aspects drawn anew: every sample once an epoch, one bucket a batch, equal shares, and no state."""
    count = data.draw(st.integers(1, 12))

    def buckets(epoch: int) -> list[Bucket]:
        dice = random.Random(f"{seed}/{epoch}/aspects")
        where = [dice.randrange(3) for _ in range(count)]
        members = [tuple(i for i in range(count) if where[i] == b) for b in range(3)]
        return [Bucket("set", Size(32 * (b + 1), 32), m) for b, m in enumerate(members) if m]

    drawing = Drawing(size, world_size=world)
    plan, fresh = (Plan(buckets(0), drawing, seed, buckets) for _ in range(2))
    before = [plan.batch(k) for k in range(position + 1)]
    spec, epoch = fresh.batch(position), fresh.epoch_of(position)
    assert spec == before[position] and plan.epoch_of(position) == epoch
    assert fresh.pictures_before(position) == sum(len(earlier.members) for earlier in before[:-1])
    assert any(set(spec.members) <= set(b.members) for b in buckets(epoch))
    assert {len(spec.share(rank, world).members) for rank in range(world)} == {size}
    start, end = fresh.micro_batches(epoch), fresh.micro_batches(epoch + 1)
    assert start <= position < end
    assert {m for k in range(start, end) for m in fresh.batch(k).members} == set(range(count))


@given(bucket_lists(), drawings(), st.integers(0, 5), st.integers(0, 120))
def test_what_is_drawn_of_each_dataset_is_what_its_batches_hold(
    buckets: list[Bucket], drawing: Drawing, seed: int, positions: int
) -> None:
    try:
        plan = Plan(buckets, drawing, seed)
        wanted: Counter[str] = Counter()
        for k in range(positions):
            wanted[plan.batch(k).dataset_id] += len(plan.batch(k).members)
    except DataError:
        return
    assert Plan(buckets, drawing, seed).drawn(positions) == wanted
