"""Memory on a real GPU: a budget is chosen for and kept, and batches come there unchanged."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from simpletuner.config.read import load
from simpletuner.data.types import Batch
from simpletuner.errors import ConfigError
from simpletuner.reporting.progress import Reporter
from simpletuner.training.check import check
from simpletuner.training.prefetch import on_device

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    # Of libraries, where the pocket's sizes do not suit them; errors elsewhere.
    pytest.mark.filterwarnings("ignore:inner dimension.*not aligned:UserWarning"),
]


@pytest.fixture(autouse=True)
def unbounded() -> Iterator[None]:
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def run(file: Path) -> str:
    from simpletuner.training.run import train

    said = StringIO()
    train(load(str(file), environ={}), Reporter(Console(file=said, width=300)))
    return said.getvalue()


def test_a_budget_is_chosen_for_and_kept(pocket_run: Callable[..., Path], tmp_path: Path) -> None:
    options = {"mixed_precision": "bf16", "optimizer": "adamw_bf16", "validation_disable": False, "memory": 2}
    file = pocket_run(**options, validation_prompt="a fox", validation_resolution="64x64")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    said = run(file)
    assert "of 2.0 GiB" in said and re.search(r"Memory: about [01]\.\d GiB of GPU memory", said)
    assert torch.cuda.max_memory_reserved() < 1.5 * 2**30
    assert list((tmp_path / "out" / "validation_images").glob("*.png"))


def test_more_than_the_card_has_is_refused(pocket_run: Callable[..., Path]) -> None:
    file = pocket_run(memory=4000)
    with pytest.raises(ConfigError, match="this card has") as refused:
        run(file)
    assert_check_refuses(file, str(refused.value.problems[0]))


def test_check_refuses_a_budget_that_nothing_fits(pocket_run: Callable[..., Path]) -> None:
    file = pocket_run(memory=0.4)
    with pytest.raises(ConfigError, match="at least") as refused:
        run(file)
    assert_check_refuses(file, str(refused.value.problems[0]))


def assert_check_refuses(file: Path, words: str) -> None:
    """In the same words as training."""
    said = StringIO()
    assert not check(load(str(file), environ={}), Reporter(Console(file=said, width=2000)))
    assert said.getvalue().count(words) == 1 and "would not start" in said.getvalue()


def test_batches_come_as_they_are() -> None:
    generator = torch.Generator().manual_seed(0)
    device = torch.device("cuda")
    whole = [
        Batch(torch.randn(2, 4, 8, 8, generator=generator).pin_memory(), torch.randn(2, 9, 16).pin_memory(),
              torch.ones(2, 9, dtype=torch.int64).pin_memory(), ("a", "b"), "set", 0.0)
        for _ in range(20)
    ]  # fmt: skip
    for before, after in zip(whole, on_device(iter(whole), device), strict=True):
        assert after.latents.is_cuda and after.loss_weights is None and after.sample_ids == before.sample_ids
        busy = torch.randn(512, 512, device=device)
        for _ in range(20):
            busy = busy @ busy
        assert torch.equal(after.latents.cpu(), before.latents) and torch.equal(after.text.cpu(), before.text)
        assert torch.equal(after.mask.cpu(), before.mask)
