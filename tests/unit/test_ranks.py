"""Several processes without starting any: slices of batches and noise, what is asked and refused, what is launched."""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from simpletuner.config.options import Options
from simpletuner.config.process_options import ProcessOptions, from_launcher, is_one_of_several
from simpletuner.config.rules import check, without_effect
from simpletuner.data.cache import TensorStore
from simpletuner.data.encode import text_key
from simpletuner.data.loader import LatentRef, Loader
from simpletuner.data.sampler import Bucket, Drawing, Plan
from simpletuner.data.types import Batch, Size
from simpletuner.errors import DataError, LostProcessError, ModelError, NonFiniteError, TunerError
from simpletuner.flow.densities import Listed
from simpletuner.flow.perturbation import Perturbation
from simpletuner.flow.rollout import Ramp, Rollout
from simpletuner.flow.schedules import Bias, Density
from simpletuner.training import device
from simpletuner.training.launch import Launch
from simpletuner.training.ranks import Ranks
from simpletuner.training.step import noise_batch, position_generator, rolled_out
from simpletuner.training.trainee import Recipe

WORLDS = (2, 4)


def slice_of(batch: Batch, rank: int, world: int) -> Batch:
    size = len(batch.latents) // world
    rows = slice(rank * size, (rank + 1) * size)
    return replace(batch, latents=batch.latents[rows], text=batch.text[rows], mask=batch.mask[rows])


DRAWS: dict[str, dict[str, Any]] = {
    "plain": {},
    "spread evenly": {"density": Density(stratified=True)},
    "biased": {"density": Density(bias=Bias(0.2, 0.6, 3.0))},
    "in turn": {"density": Density(Listed((0.1, 0.4, 0.9), "round-robin"))},
    "perturbed": {"perturbation": Perturbation(0.1, 0, 0.2, 0.5, 0.3)},
    "rolled out": {"rollout": Rollout(6, Ramp(0.7, 0.7))},
}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", DRAWS)
def test_the_noise_of_all_ranks_together_is_that_of_one(name: str, world: int) -> None:
    """To the bit: what is drawn is drawn for the whole global micro-batch, and each rank keeps its rows."""
    recipe, batch = toy.recipe(**DRAWS[name]), toy.batch(*range(8))

    def shown(ranks: Ranks, mine: Batch, recipe: Recipe = recipe) -> list[torch.Tensor]:
        trainee = toy.trainee()
        trainee.ranks = ranks
        generator = position_generator(recipe.seed, 5, torch.device("cpu"))
        noisy = noise_batch(mine, trainee, recipe, 5, generator)
        noisy = rolled_out(mine, noisy, trainee, recipe, 5, generator)
        return [getattr(noisy, field.name) for field in fields(noisy)]

    alone = shown(Ranks(), batch)
    parts = [shown(Ranks(rank, world), slice_of(batch, rank, world)) for rank in range(world)]
    for whole, pieces in zip(alone, zip(*parts, strict=True), strict=True):
        if name == "rolled out":  # the model meets other companies of samples
            torch.testing.assert_close(torch.cat(pieces), whole)
        else:
            assert torch.equal(torch.cat(pieces), whole)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 40), st.integers(0, 3))
@settings(max_examples=20)
def test_the_batches_of_all_ranks_together_are_that_of_one(world: int, size: int, position: int, seed: int) -> None:
    class Texts:
        def get(self, key: str) -> torch.Tensor:
            number = captions.index(key)
            return torch.full((1 + number % 3, 2), number + 1.0)

    class Masks:
        def get(self, key: str) -> torch.Tensor:
            return torch.full((1, 2, 2), float(int(key) % 2))

    captions = [text_key(c) for c in ("", *(f"{n}, {way}" for n in range(20) for way in "ab"))]
    samples = [LatentRef(f"{n}.png", None, str(n), (f"{n}, a", f"{n}, b"), (Masks(), str(n), 0.5)) for n in range(20)]

    def loader(world: int, size: int, rank: int) -> Loader:
        plan = Plan([Bucket("set", Size(64, 64), tuple(range(20)))], Drawing(size, world_size=world), seed)
        numbers: Callable[[Any], torch.Tensor] = lambda chosen: torch.stack(  # noqa: E731
            [torch.full((1, 2, 2), float(sample.key)) for sample in chosen]
        )
        return Loader(samples, Texts(), plan, seed, 0.3, {}, numbers, share=(rank, world))

    whole = loader(1, size * world, 0).batch(position)
    parts = [loader(world, size, rank).batch(position) for rank in range(world)]
    assert torch.equal(torch.cat([part.latents for part in parts]), whole.latents)
    assert torch.equal(torch.cat([part.text[:, 0] for part in parts]), whole.text[:, 0])
    assert torch.equal(torch.cat([part.mask.sum(1) for part in parts]), whole.mask.sum(1))
    weights = [torch.ones(size, 1, 2, 2) if part.loss_weights is None else part.loss_weights for part in parts]
    assert torch.equal(
        torch.cat(weights), torch.ones_like(whole.latents) if whole.loss_weights is None else whole.loss_weights
    )
    assert all(part.sample_ids == whole.sample_ids and part.first == whole.first for part in parts)


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 5))
@settings(max_examples=30)
def test_work_is_shared_without_a_gap_or_a_double(items: list[int], world: int) -> None:
    parts = [Ranks(rank, world, rank, world).part(items) for rank in range(world)]
    assert [item for part in parts for item in part] == items
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_names_come_in_the_order_of_gathered_figures() -> None:
    assert Ranks(0, 2).in_order([["a", "b"], ["c", "d", "e", "f"]]) == ["a", "c", "d", "b", "e", "f"]
    assert Ranks().in_order([("a", "b"), ("c",)]) == ["a", "b", "c"]


def test_alone_everything_is_the_plain_thing() -> None:
    ranks, tensor = Ranks.of({}), torch.arange(3.0)
    ranks.average([tensor])
    ranks.spread([tensor])
    with ranks.first():
        ranks.wait()
    ranks.must_agree("pictures", "x")
    assert ranks.main and not ranks.several and ranks.any(True) and not ranks.any(False) and ranks.least(3.0) == 3.0
    assert ranks.of_all("x") == ["x"] and ranks.by_main(lambda: "y") == "y" and ranks.part([1, 2]) == [1, 2]
    assert ranks.gathered(tensor)[0] is tensor and ranks.whole(tensor) is tensor and ranks.rows(tensor) is tensor
    assert torch.equal(tensor, torch.arange(3.0)) and ranks.are_equal([tensor])


LAUNCHED = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


def test_who_this_is_stands_in_the_environment() -> None:
    ranks = Ranks.of(LAUNCHED)
    assert (ranks.rank, ranks.world, ranks.local, ranks.local_world) == (3, 4, 1, 2) and not ranks.main
    assert is_one_of_several(LAUNCHED) and not is_one_of_several({"WORLD_SIZE": "4"})
    assert Ranks.of({"WORLD_SIZE": "4", "RANK": "1"}).world == 1, "a cloud's own WORLD_SIZE starts nothing"


def test_the_launcher_decides_and_the_original_s_variables_count() -> None:
    assert from_launcher({"TRAINING_NUM_PROCESSES": "2"}) == {"num_processes": "2"}
    assert from_launcher(LAUNCHED) == {"num_processes": "4", "num_machines": "1"}
    several = LAUNCHED | {"GROUP_WORLD_SIZE": "2", "GROUP_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "7"}
    assert from_launcher(several | {"TRAINING_NUM_PROCESSES": "9"}) == {
        **{"num_processes": "4", "num_machines": "2", "machine_rank": "1"},
        **{"main_process_ip": "a", "main_process_port": "7"},
    }


PROBLEMS: list[tuple[dict[str, Any], str]] = [
    ({"num_processes": 3, "num_machines": 2, "main_process_ip": "a"}, "num_processes"),
    ({"num_processes": 2, "num_machines": 2}, "main_process_ip"),
    ({"num_processes": 2, "num_machines": 2, "main_process_ip": "a", "machine_rank": 2}, "machine_rank"),
]


@pytest.mark.parametrize(("asked", "key"), PROBLEMS)
def test_wrong_combinations_are_problems(asked: Mapping[str, Any], key: str) -> None:
    options = Options(processes=ProcessOptions(**asked))
    assert key in {problem.key for problem in check(options, {}, "config.json")}


def test_gradient_release_needs_one_process_and_addresses_need_machines() -> None:
    training = Options().training.model_copy(
        update={"fuse_optimizer": True, "max_train_steps": 1, "max_grad_norm": 0.0}
    )
    options = Options(training=training, processes=ProcessOptions(num_processes=2, main_process_port=7))
    found = {problem.key for problem in check(options, {}, "config.json")}
    assert "fuse_optimizer" in found
    assert any("main_process_port" in line for line in without_effect(options, {"main_process_port": "config.json"}))
    alone = Options(training=training)
    assert "num_processes" not in " ".join(str(problem) for problem in check(alone, {}, "config.json"))


def test_too_few_gpus_are_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    Launch(2).check(0)  # CPUs, by gloo
    Launch(4, machines=2, address="a").check(2)
    with pytest.raises(TunerError, match="at most 2"):
        Launch(4).check(2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ModelError, match="has no GPU of its own"):
        device.choose(False, Ranks(1, 2, 1, 2))


def test_what_torchrun_is_told() -> None:
    here, there = Launch(2).config(), Launch(8, 2, 1, "10.0.0.1", 29511).config()
    assert (here.nproc_per_node, here.min_nodes, here.max_restarts, here.rdzv_backend) == (2, 1, 0, "c10d")
    assert (there.nproc_per_node, there.max_nodes, there.rdzv_backend) == (4, 2, "static")
    assert (there.rdzv_endpoint, there.rdzv_configs["rank"]) == ("10.0.0.1:29511", 1)


def test_a_rank_that_was_left_alone_says_nothing_and_rank_0_says_it_once() -> None:
    def fails(ranks: Ranks, error: BaseException) -> None:
        with ranks.ending_together():
            raise error

    lost = LostProcessError("x")
    with pytest.raises(LostProcessError):
        fails(Ranks(0, 2), lost)
    with pytest.raises(SystemExit):
        fails(Ranks(1, 2), lost)
    with pytest.raises(DataError, match=r"^too few$"):
        fails(Ranks(), DataError("too few"))
    with pytest.raises(KeyboardInterrupt):
        fails(Ranks(0, 2), KeyboardInterrupt())
    fails(Ranks(1, 2), KeyboardInterrupt())  # quietly: rank 0 tells it
    with pytest.raises(ZeroDivisionError):
        fails(Ranks(1, 2), ZeroDivisionError())
    with pytest.raises(NonFiniteError):
        fails(Ranks(), NonFiniteError("x"))


def test_a_store_has_no_other_writer_s_shards_until_it_is_opened_again(tmp_path: Any) -> None:
    """Why stores are opened anew after caching: two processes have written."""
    first, second = TensorStore(tmp_path), TensorStore(tmp_path)
    for store, key in ((first, "aa"), (second, "bb")):
        with store.writer() as writer:
            writer.add(key, torch.ones(1), key)
    assert "bb" not in first and {"aa", "bb"} <= set(TensorStore(tmp_path)._entries)
