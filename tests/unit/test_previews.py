"""Previews: when they are made, what they show, and that drawing neither waits for them nor falls over them."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from simpletuner.evaluation import previews
from simpletuner.evaluation.previews import LARGEST, Preview, Previewer, as_image, clean_latents, due
from simpletuner.models.linear_preview import LinearDecoder

SCHEDULERS = {
    "dpm": lambda: DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, algorithm_type="dpmsolver++"
    ),
    "euler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "unipc": lambda: UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
}


@dataclass(frozen=True)
class Drawn:
    path: Path


def decoder(stride: int = 4) -> LinearDecoder:
    return LinearDecoder(torch.cat([torch.eye(3), torch.zeros(1, 3)]), stride)


@given(st.integers(1, 60), st.integers(1, 70))
def test_previews_come_at_every_nth_step_and_at_the_last(total: int, every: int) -> None:
    steps = [step for step in range(1, total + 1) if due(step, total, every)]
    assert steps == sorted({*range(every, total + 1, every), total})


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_clean_latents_are_those_that_the_velocity_points_to(name: str) -> None:
    """With the exact velocity of a straight path x0 is known: it is found at every step but the first of Euler."""
    generator = torch.Generator().manual_seed(0)
    wanted, noise = torch.randn(2, 2, 4, 5, 5, generator=generator).unbind(0)
    scheduler: Any = SCHEDULERS[name]()
    scheduler.set_timesteps(7)
    latents, before = noise, None
    for index, timestep in enumerate(scheduler.timesteps):
        latents = scheduler.step(noise - wanted, timestep, latents, return_dict=False)[0]
        clean = clean_latents(scheduler, index, latents, before)
        if name == "euler" and index == 0:
            assert clean is latents
        else:
            assert (clean - wanted).abs().max() < 2e-3, (index, float((clean - wanted).abs().max()))
        before = latents


def sampler(total: int) -> Any:
    config = {"algorithm_type": "dpmsolver"}
    return SimpleNamespace(scheduler=SimpleNamespace(timesteps=torch.linspace(1000, 1, total), config=config))


def draw(previewer: Previewer, pictures: list[Drawn], total: int, latents: Callable[[int], torch.Tensor]) -> None:
    """What a pipeline does with the callback."""
    pipeline, callback = sampler(total), previewer.watch(pictures)
    for index, timestep in enumerate(pipeline.scheduler.timesteps):
        tensors = {"latents": latents(index)}
        assert callback(pipeline, index, timestep, tensors) is tensors


def test_each_picture_of_a_batch_has_its_preview_until_it_is_finished(tmp_path: Path) -> None:
    told: list[Preview] = []
    seen: list[Image.Image] = []

    def on_preview(preview: Preview) -> None:
        told.append(preview)
        with Image.open(preview.path) as image:
            seen.append(image.convert("RGB"))

    previewer = Previewer(decoder(), tmp_path / "previews", 3, on_preview, pytest.fail)
    pictures = [Drawn(tmp_path / "step_1_a.png"), Drawn(tmp_path / "step_1_b.png")]
    colours = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.5]])[:, :, None, None].expand(2, 3, 5, 6)
    draw(previewer, pictures, 8, lambda index: colours * (index + 1) / 8)
    previewer.finished(pictures)
    previewer.close()
    assert [(p.sampler_step, p.of, p.path.name) for p in told] == [
        (step, 8, f"step_1_{name}.png") for step in (3, 6, 8) for name in "ab"
    ]
    assert [(p.width, p.height) for p in told] == [(24, 20)] * 6 and told[-1].timestep == 1.0
    assert seen[-2].getpixel((0, 0)) == (255, 0, 128) and seen[-1].getpixel((3, 7)) == (0, 255, 191)
    assert seen[0].getpixel((0, 0)) == (175, 80, 128), "the first shows the latents of its own step"
    assert not list((tmp_path / "previews").iterdir())


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "previews").mkdir()
    (tmp_path / "previews" / "old.png").write_bytes(b"")
    Previewer(decoder(), tmp_path / "previews", 1, lambda _: None, pytest.fail).close()
    assert not list((tmp_path / "previews").iterdir())


def test_drawing_never_waits_for_a_slow_decoder(tmp_path: Path) -> None:
    gate, said = threading.Event(), list[str]()

    class Slow(LinearDecoder):
        def __call__(self, latents: torch.Tensor) -> torch.Tensor:
            gate.wait(30)
            return super().__call__(latents)

    told: list[Preview] = []
    slow = Slow(torch.zeros(4, 3), 4)
    previewer = Previewer(slow, tmp_path / "previews", 1, told.append, said.append)
    pictures = [Drawn(tmp_path / "a.png")]
    draw(previewer, pictures, 40, lambda _: torch.zeros(1, 3, 4, 4))  # would hang here
    previewer.finished(pictures)
    gate.set()
    previewer.close()
    assert previews.WAITING <= len(told) <= previews.WAITING + 1
    assert said == [f"{40 - len(told)} previews were left out: decoding them was slower than drawing"]
    assert not list((tmp_path / "previews").iterdir()), "none outlives its picture"


def test_a_broken_decoder_or_disk_is_said_once_and_stops_nothing(tmp_path: Path) -> None:
    class Broken(LinearDecoder):
        def __call__(self, latents: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no memory\nfor this")

    said: list[str] = []
    previewer = Previewer(Broken(torch.zeros(4, 3), 4), tmp_path / "previews", 1, lambda _: None, said.append)
    draw(previewer, [Drawn(tmp_path / "a.png")], 3, lambda _: torch.zeros(1, 3, 4, 4))
    previewer.close()
    (tmp_path / "file").write_text("in the way")
    elsewhere = Previewer(decoder(), tmp_path / "file" / "previews", 1, lambda _: None, said.append)
    draw(elsewhere, [Drawn(tmp_path / "a.png")], 3, lambda _: torch.zeros(1, 3, 4, 4))
    elsewhere.close()
    assert len(said) == 2 and "no memory." in said[0] and "Drawing goes on" in said[1]


def test_it_can_be_used_again_after_it_was_closed(tmp_path: Path) -> None:
    told: list[Preview] = []
    previewer = Previewer(decoder(), tmp_path / "previews", 1, told.append, pytest.fail)
    for _ in range(2):
        draw(previewer, [Drawn(tmp_path / "a.png")], 2, lambda _: torch.zeros(1, 3, 4, 4))
        previewer.close()
    assert len(told) == 4


def test_the_number_of_threads_stays(tmp_path: Path) -> None:
    usual = torch.get_num_threads()
    previewer = Previewer(decoder(), tmp_path / "previews", 1, lambda _: None, pytest.fail)
    draw(previewer, [Drawn(tmp_path / "a.png")], 1, lambda _: torch.zeros(1, 3, 4, 4))
    assert torch.get_num_threads() == usual
    previewer.close()


@settings(max_examples=20)
@given(st.integers(1, 200), st.integers(1, 200))
def test_large_pictures_are_shown_smaller(height: int, width: int) -> None:
    image = as_image(decoder(stride=32), torch.zeros(3, height, width))
    assert max(image.size) == min(LARGEST, 32 * max(height, width))
    factor = max(image.size) / max(height, width)
    assert max(abs(image.width - width * factor), abs(image.height - height * factor)) <= 32


def test_latents_that_are_not_finite_are_grey_and_no_error() -> None:
    assert as_image(decoder(), torch.full((3, 2, 2), float("nan"))).getpixel((0, 0)) == (128, 128, 128)
