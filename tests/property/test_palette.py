"""Palette figures: 1 and 0 for the same picture, between that and the worst for any other."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from simpletuner.evaluation.palette import colour_distance, histogram, moments, overlap


def pictures(seed: int, count: int = 3, side: int = 6) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@given(st.integers(0, 10_000), st.integers(1, 12))
def test_histograms_are_shares_and_know_no_places(seed: int, side: int) -> None:
    made = pictures(seed, side=side)
    shares = histogram(made)
    assert shares.shape == (3, 64) and torch.allclose(shares.sum(1), torch.ones(3)) and (shares >= 0).all()
    order = torch.randperm(side * side, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(histogram(made.flatten(2)[:, :, order].reshape(made.shape)), shares)


def test_every_colour_has_its_cell() -> None:
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, -0.4, 0.4, 1.0])] * 3)
    assert (histogram(corners.T.reshape(1, 3, 8, 8)) * 64 == 1).all()


@given(st.integers(0, 10_000))
def test_the_same_palette_overlaps_fully_and_others_less(seed: int) -> None:
    shares = histogram(pictures(seed))
    assert torch.allclose(overlap(shares, shares[0])[0], torch.tensor(1.0))
    assert ((overlap(shares, shares[0]) >= 0) & (overlap(shares, shares[0]) <= 1 + 1e-6)).all()
    assert overlap(histogram(torch.ones(1, 3, 4, 4)), histogram(-torch.ones(1, 3, 4, 4))[0]) == 0


def test_moments_are_levels() -> None:
    black_and_white = torch.tensor([-1.0, 1.0]).repeat(8).reshape(1, 1, 4, 4).expand(1, 3, 4, 4)
    assert torch.allclose(moments(black_and_white), torch.full((1, 6), 127.5))
    assert torch.allclose(moments(torch.ones(1, 3, 4, 4)), torch.tensor([[255.0] * 3 + [0.0] * 3]))
    apart = colour_distance(moments(torch.ones(1, 3, 4, 4)), moments(-torch.ones(1, 3, 4, 4))[0])
    assert apart.item() == 127.5
