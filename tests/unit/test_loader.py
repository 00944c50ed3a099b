"""The loader's draws: which captions are dropped, which alternative is taken, which offset a dataset has."""

import pytest
import torch

from simpletuner.data.cache import TensorStore
from simpletuner.data.encode import text_key
from simpletuner.data.loader import DROPPED, LatentRef, Loader
from simpletuner.data.sampler import Bucket, Drawing, Plan
from simpletuner.data.types import Size

PICTURES, SIZE, POSITIONS = 40, 4, 100
DRAWS = SIZE * POSITIONS
CAPTIONS = {f"picture {number}, {way}": 2 * number + way for number in range(PICTURES) for way in (0, 1)}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> TensorStore:
    """The embed of caption k says k + 1; that of the empty caption says 0."""
    store = TensorStore(tmp_path_factory.mktemp("texts"))
    with store.writer() as writer:
        for caption, number in {**CAPTIONS, DROPPED: -1}.items():
            writer.add(text_key(caption), torch.full((1 + number % 3, 2), number + 1.0), caption)
    return store


def captions(texts: TensorStore, dropout: float, seed: int = 3, positions: range = range(POSITIONS)) -> list[int]:
    """What the captions drawn say, in order: 0 for a dropped one."""
    samples = [
        LatentRef(f"{n}.png", None, str(n), tuple(c for c, number in CAPTIONS.items() if number // 2 == n))
        for n in range(PICTURES)
    ]
    plan = Plan([Bucket("set", Size(64, 64), tuple(range(PICTURES)))], Drawing(SIZE), seed=0)
    loader = Loader(samples, texts, plan, seed, dropout, {}, lambda chosen: torch.zeros(len(chosen), 1, 2, 2))
    said: list[int] = []
    for position in positions:
        batch = loader.batch(position)
        assert batch.first == SIZE * position
        assert batch.mask.sum(1).ge(1).all() and batch.text.shape[:2] == batch.mask.shape
        said += [int(v) for v in batch.text[:, 0, 0].tolist()]
    return said


def test_captions_are_dropped_at_the_rate_asked_for(texts: TensorStore) -> None:
    for dropout in (0.1, 0.5, 0.9):
        dropped = captions(texts, dropout).count(0)
        spread = (DRAWS * dropout * (1 - dropout)) ** 0.5
        assert abs(dropped - DRAWS * dropout) < 4 * spread
    assert captions(texts, 0.0).count(0) == 0
    assert captions(texts, 1.0).count(0) == DRAWS


def test_dropout_is_repeatable_seeded_and_a_function_of_the_position(texts: TensorStore) -> None:
    whole = captions(texts, 0.3)
    assert captions(texts, 0.3) == whole
    assert captions(texts, 0.3, positions=range(60, POSITIONS)) == whole[60 * SIZE :], "as after a resume"
    assert [c == 0 for c in captions(texts, 0.3, seed=4)] != [c == 0 for c in whole]
    epochs = [tuple(c == 0 for c in whole[start : start + PICTURES]) for start in range(0, DRAWS, PICTURES)]
    assert len(set(epochs)) > 1, "other captions are dropped in the next epoch"


def test_dropout_changes_no_other_caption_and_all_alternatives_come(texts: TensorStore) -> None:
    plain = captions(texts, 0.0)
    assert all(found in (0, kept) for found, kept in zip(captions(texts, 0.5), plain, strict=True))
    assert set(plain) == {number + 1 for number in CAPTIONS.values()}


def test_a_stream_is_the_batches_in_order_and_offsets_go_by_dataset(texts: TensorStore) -> None:
    samples = [LatentRef(f"{n}.png", None, str(n), ("",)) for n in range(8)]
    buckets = [Bucket("a", Size(64, 64), (0, 1, 2, 3)), Bucket("b", Size(64, 64), (4, 5, 6, 7))]
    loader = Loader(
        *(samples, texts, Plan(buckets, Drawing(2), 0), 0, 0.1, {"b": 0.7}),
        latents_of=lambda chosen: torch.zeros(len(chosen), 1, 2, 2),
    )
    streamed = list(loader.stream(3, 12))
    assert [b.sample_ids for b in streamed] == [loader.batch(k).sample_ids for k in range(3, 12)]
    assert {(b.dataset_id, b.timestep_offset) for b in streamed} == {("a", 0.0), ("b", 0.7)}
