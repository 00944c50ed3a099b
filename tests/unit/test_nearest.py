"""The nearest training picture: copies are found wherever they were cut out, others are not taken for copies."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from simpletuner.evaluation.nearest import MEMORISED, Match, Thumbnails, correlations


def pixels(file: Path) -> torch.Tensor:
    with Image.open(file) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 127.5 - 1


@pytest.fixture(scope="module")
def shown() -> dict[str, torch.Tensor]:
    folder = Path(__file__).resolve().parents[2] / "simpletuner" / "pocket" / "blueprint" / "train"
    return {file.stem: pixels(file) for file in sorted(folder.glob("*.png"))[:12]}


@pytest.fixture(scope="module")
def thumbnails(shown: dict[str, torch.Tensor]) -> Thumbnails:
    return Thumbnails(shown.items())


def nearest(thumbnails: Thumbnails, picture: torch.Tensor) -> Match:
    match = thumbnails.nearest(picture)
    assert match is not None
    return match


@pytest.mark.parametrize("share", [1.0, 0.8, 0.55])
def test_a_copy_is_flagged_cropped_mirrored_darker_and_noisy(
    shown: dict[str, torch.Tensor], thumbnails: Thumbnails, share: float
) -> None:
    rng, side = np.random.default_rng(4), round(128 * share)
    for number, (name, picture) in enumerate(list(shown.items())[:4]):
        top, left = rng.integers(0, 129 - side, 2)
        part = picture[:, top : top + side, left : left + side]
        part = F.interpolate(part[None], size=(128, 128), mode="bilinear", antialias=True)[0]
        noise = torch.randn(part.shape, generator=torch.Generator().manual_seed(number)) * 0.03
        part = (part * 0.8 + noise).clamp(-1, 1)
        match = nearest(thumbnails, part.flip(2) if number % 2 else part)
        assert match.name == name and match.memorised and match.distance < 1 - MEMORISED


def test_other_subjects_in_the_same_style_are_not(thumbnails: Thumbnails) -> None:
    folder = Path(__file__).resolve().parents[2] / "simpletuner" / "pocket" / "blueprint" / "eval"
    matches = [nearest(thumbnails, pixels(file)) for file in sorted(folder.glob("*.png"))[:6]]
    assert not any(match.memorised for match in matches) and max(m.similarity for m in matches) < 0.8


def test_other_shapes_and_sizes_are_compared_too(shown: dict[str, torch.Tensor]) -> None:
    wide = {name: F.interpolate(p[None], size=(96, 160))[0] for name, p in shown.items()}
    among = Thumbnails([*shown.items(), *((f"wide {name}", p) for name, p in wide.items())])
    tall = wide["banana"][:, :, 30:110]
    assert len(among) == 24 and nearest(among, tall).name.endswith("banana")
    assert nearest(among, F.interpolate(shown["bear"][None], size=(512, 512))[0]).similarity > 0.99


def test_nothing_is_said_of_one_colour_or_without_training_pictures(thumbnails: Thumbnails) -> None:
    assert thumbnails.nearest(torch.zeros(3, 64, 64)) is None
    assert Thumbnails([]).nearest(torch.rand(3, 64, 64)) is None
    flat = Thumbnails([("flat", torch.zeros(3, 64, 64))])
    assert nearest(flat, torch.rand(3, 64, 64)).similarity == 0.0


def test_correlation_by_hand() -> None:
    """A window of the size of the picture: Pearson's correlation over all channels, each centred."""
    one, other = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    a, b = (p - p.mean(dim=(1, 2), keepdim=True) for p in (one, other))
    mirrored = a.flip(2)
    wanted = max(float((x * b).sum() / (x.norm() * b.norm())) for x in (a, mirrored))
    assert correlations(one, [other])[0] >= wanted - 1e-5
    assert correlations(one, [one * 0.3 + 0.5])[0] == pytest.approx(1.0, abs=1e-4)


def light(seed: int) -> torch.Tensor:
    """A photograph: light from above, and what is in it."""
    fresh = torch.Generator().manual_seed(seed)
    things = F.interpolate(torch.rand(1, 3, 24, 24, generator=fresh), size=(128, 128), mode="bicubic")[0] - 0.5
    return (torch.linspace(-0.8, 0.8, 128)[None, :, None] + 0.6 * things).clamp(-1, 1)


def smeared(picture: torch.Tensor, side: int) -> torch.Tensor:
    small = F.interpolate(picture[None], size=(side, side), mode="bilinear", antialias=True)
    return F.interpolate(small, size=picture.shape[1:], mode="bicubic")[0].clamp(-1, 1)


def test_a_smear_is_no_copy_though_its_colours_are_near_and_a_soft_copy_is_one() -> None:
    among = Thumbnails((f"{n}", light(n)) for n in range(8))
    for n in range(4):
        smear, copy = nearest(among, smeared(light(n), 8)), nearest(among, smeared(light(n), 64) * 0.8 + 0.1)
        new = nearest(among, light(50 + n))
        assert not smear.memorised and not new.memorised and new.similarity < 0.5
        assert copy.name == f"{n}" and copy.memorised and copy.similarity > 0.9


def test_what_is_no_nearer_than_training_pictures_are_to_each_other_is_no_copy() -> None:
    """One studio: the same things on the table, and something of its own in each. The first is there twice."""
    table = light(1)
    own = [0.6 * table + 0.4 * light(10 + n) for n in range(5)]
    among = Thumbnails((f"{n}", picture) for n, picture in enumerate([own[0], *own[:4]]))
    new, copy = nearest(among, own[4]), nearest(among, own[0])
    assert new.similarity > MEMORISED and new.usual > MEMORISED and not new.memorised
    assert copy.memorised and copy.similarity > 0.99
