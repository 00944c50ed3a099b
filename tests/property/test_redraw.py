"""Crops drawn anew in each epoch: a pure function of dataset, file and epoch, whoever asks and whatever is cached."""

from __future__ import annotations

import random
from io import StringIO
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from simpletuner.data.cache import TensorStore
from simpletuner.data.captions import CaptionRules
from simpletuner.data.encode import text_key
from simpletuner.data.loader import Loader
from simpletuner.data.masks import MaskSource
from simpletuner.data.ondemand import OnDemand
from simpletuner.data.placement import PlacementRules
from simpletuner.data.sampler import Drawing
from simpletuner.reporting.progress import Reporter
from simpletuner.training import keeping, prepare
from simpletuner.training.redraw import Samples

CELL = 16
COUNT = 7


def encode(pixels: torch.Tensor) -> torch.Tensor:
    """[B, 3, H, W] → the pixels' means by cell: other crops give other latents."""
    return torch.nn.functional.avg_pool2d(pixels, CELL)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(COUNT):
        size = [(60, 40), (40, 90), (64, 64)][number % 3]
        for name, mode in (("set", "RGB"), ("masks", "L")):
            (folder / name).mkdir(exist_ok=True)
            channels = 3 if mode == "RGB" else 1
            noise = random.Random(f"{number}{mode}").randbytes(size[0] * size[1] * channels)
            Image.frombytes(mode, size, noise).save(folder / name / f"p{number}.png")
    return folder


class Run:
    """One start of the program."""

    def __init__(self, pictures: Path, cache: Path, aspects: bool, seed: int, redraw: bool = True) -> None:
        rules = PlacementRules(
            resolution=32,
            resolution_type="pixel",
            alignment=CELL,
            crop=True,
            crop_aspect="random" if aspects else "square",
            aspect_buckets=(1.0, 0.5, 2.0) if aspects else (),
            crop_style="random",
        )
        source = prepare.DatasetSource(
            id="set",
            folder=pictures / "set",
            captions=CaptionRules("null"),
            placement=rules,
            repeats=1,
            latent_dir=cache,
            encode_batch=4,
            caching="ondemand",
            mask=MaskSource("masks", pictures / "masks", "mask"),
            redraw=redraw,
            stride=CELL,
        )
        reporter = Reporter(Console(file=StringIO()))
        self.found = prepare.find([source], reporter)
        refs = keeping.keep_latents(self.found, "print", encode, torch.float32, reporter)
        self.store = TensorStore(cache / "print", read_only=True)
        self.on_demand = OnDemand(encode, torch.float32, 4, lambda line: None)
        self.samples = Samples(self.found, refs, self.on_demand.forget)
        self.plan = self.samples.plan(Drawing(2), seed)
        texts = TensorStore(cache / "texts")
        with texts.writer() as writer:
            writer.add(text_key(""), torch.zeros(1, 1), "nothing")
        self.loader = Loader(self.samples, texts, self.plan, seed, 0.0, {}, self.on_demand)


@settings(max_examples=12)
@given(seed=st.integers(0, 2**31), aspects=st.booleans(), start=st.integers(0, 40), count=st.integers(1, 25))
def test_a_resumed_run_sees_the_very_same_batches(
    pictures: Path, tmp_path_factory: pytest.TempPathFactory, seed: int, aspects: bool, start: int, count: int
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    whole = Run(pictures, cache / "whole", aspects, seed)
    seen = [whole.loader.batch(k) for k in range(start + count)]
    resumed = Run(pictures, cache / "resumed", aspects, seed)  # nothing is cached here
    again = Run(pictures, cache / "whole", aspects, seed)  # and here whatever the first run left
    for position in range(start, start + count):
        for run in (resumed, again):
            batch = run.loader.batch(position)
            assert batch.sample_ids == seen[position].sample_ids
            assert torch.equal(batch.latents, seen[position].latents)
            assert batch.loss_weights is not None and seen[position].loss_weights is not None
            assert torch.equal(batch.loss_weights, seen[position].loss_weights)
    for run in (whole, resumed, again):
        run.on_demand.close()


@pytest.mark.parametrize("aspects", [True, False])
def test_epochs_differ_and_each_shows_every_picture_at_one_place(pictures: Path, tmp_path: Path, aspects: bool) -> None:
    run = Run(pictures, tmp_path, aspects, 3)
    places = []
    for epoch in range(4):
        refs = run.samples(epoch)
        for bucket in run.samples.buckets(epoch):
            for member in bucket.members:
                placed = refs[member].placed
                assert placed is not None and placed.placement.bucket == bucket.size and placed.key == refs[member].key
        drawn = sorted(
            member
            for k in range(run.plan.micro_batches(epoch), run.plan.micro_batches(epoch + 1))
            for member in run.plan.batch(k).members
        )
        assert all(drawn.count(member) >= 2 for member in range(COUNT)), "one pass and one repeat"
        places.append([ref.placed.placement for ref in refs if ref.placed])
    assert all(a != b for a, b in pairwise(places))
    assert places[0] == [p.placement for p in run.found[0].placed], "the first epoch is as without the option"
    still = Run(pictures, tmp_path, aspects, 3, redraw=False)
    assert [r.key for r in still.samples(5)] == [r.key for r in run.samples(0)]
    run.on_demand.close()


@pytest.mark.parametrize("aspects", [True, False])
def test_the_longest_side_is_that_of_any_epoch(pictures: Path, tmp_path: Path, aspects: bool) -> None:
    """What is encoded in tiles is decided once for the run: its latents are kept apart from untiled ones."""
    run = Run(pictures, tmp_path, aspects, 0)
    longest = [max(max(bucket.size) for bucket in run.samples.buckets(epoch)) for epoch in range(30)]
    assert prepare.longest_side(run.found) == max(longest) == (64 if aspects else 32)
    run.found[0].placed = [p for p in run.found[0].placed if max(p.placement.bucket) == 32]
    assert prepare.longest_side(run.found) == max(longest), "also where the first epoch has no such picture"
    still = Run(pictures, tmp_path, aspects, 0, redraw=False)
    still.found[0].placed = [p for p in still.found[0].placed if max(p.placement.bucket) == 32]
    assert prepare.longest_side(still.found) == 32
    for each in (run, still):
        each.on_demand.close()


def test_the_cache_does_not_grow_with_the_epochs(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simpletuner.data.cache.FLUSH_COUNT", 3)  # shards are written in the middle of an epoch
    other = tmp_path / "print" / "shard-0000000000000000.safetensors"
    with TensorStore(tmp_path / "print").writer() as writer:
        writer.add("f" * 64, torch.ones(2), "of another dataset")
    (kept,) = (tmp_path / "print").glob("shard-*.safetensors")
    kept.rename(other)
    run = Run(pictures, tmp_path, True, 5)
    sizes = []
    for epoch in range(20):
        for position in range(run.plan.micro_batches(epoch), run.plan.micro_batches(epoch + 1)):
            run.loader.batch(position)
        sizes.append(len(list((tmp_path / "print").glob("shard-*.safetensors"))))
    run.on_demand.close()
    assert max(sizes) <= 2 * -(-COUNT // 3) + 1 + 3 and other.exists() and sizes[0] > 1


def test_a_faded_dataset_comes_less_and_less_and_then_no_more() -> None:
    from simpletuner.data.sampler import Bucket, Plan, Turn
    from simpletuner.data.types import Size

    buckets = [Bucket(name, Size(32, 32), tuple(range(100 * n, 100 * n + 100)), 2) for n, name in enumerate("ab")]
    plan = Plan(buckets, Drawing(1, turns={"b": Turn(fade_step=200)}), 1)
    names = [plan.batch(k).dataset_id for k in range(300)]
    shares = [names[i : i + 50].count("b") for i in range(0, 300, 50)]
    assert shares[0] > 15 and shares[0] > shares[2] > shares[3] and shares[4] == shares[5] == 0
