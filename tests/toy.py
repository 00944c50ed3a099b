"""A toy family of a few weights: training code is tested against sums that can be done by hand."""

from __future__ import annotations

from typing import Any

import torch

from simpletuner.data.types import Batch
from simpletuner.flow.schedules import Density
from simpletuner.models.base import Facts
from simpletuner.training.ema import Ema
from simpletuner.training.learning_rate import Schedule
from simpletuner.training.precision import choose
from simpletuner.training.trainee import Recipe, Trainee

CHANNELS, CELLS, WIDTH = 2, 3, 4


class ToyTransformer(torch.nn.Module):
    """Velocity = scale * latents + bias + time * sigma + words of the caption's mean embed."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor([[[0.5]], [[-0.3]]]))
        self.time = torch.nn.Parameter(torch.tensor([[[0.1]], [[0.2]]]))
        self.words = torch.nn.Linear(WIDTH, CHANNELS)
        torch.nn.init.constant_(self.words.weight, 0.05)
        torch.nn.init.zeros_(self.words.bias)

    def forward(self, latents: torch.Tensor, sigmas: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        words: torch.Tensor = self.words(text)[:, :, None, None]
        return self.scale * latents + self.time * sigmas[:, None, None, None] + words


class ToyFamily:
    """Of the Family protocol only what the loop calls; keeps what the model was shown."""

    name = "toy"

    def __init__(self) -> None:
        self.shown: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self.in_training: list[bool] = []

    def predict(
        self, transformer: Any, noisy: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        real = mask[:, :, None].to(text.dtype)
        mean = (text * real).sum(1) / real.sum(1).clamp(min=1)
        self.shown.append((noisy.detach().clone(), timesteps / 1000, mean))
        self.in_training.append(transformer.training)
        prediction: torch.Tensor = transformer(noisy, timesteps / 1000, mean)
        return prediction


FACTS = Facts(alignment=32, stride=32, patch_size=1, shift=3.0, native_resolution=64, latent_channels=CHANNELS)


def trainee(lr: float = 1.0, ema: bool = False) -> Trainee:
    """Plain gradient descent on a fresh toy: an update is -lr times the clipped gradient."""
    transformer = ToyTransformer()
    parameters = list(transformer.parameters())
    family: Any = ToyFamily()
    return Trainee(
        family=family,
        facts=FACTS,
        transformer=transformer,
        optimizer=torch.optim.SGD(parameters, lr),
        ema=Ema(parameters, 0.5) if ema else None,
        device=torch.device("cpu"),
        parameters=parameters,
    )


class Replayed:
    """Stands for CUDA graphs: the work is a function of tensors alone."""

    def __call__(self, work: Any, inputs: Any) -> Any:
        return tuple(output.clone() for output in work(*inputs))

    def make_room(self, acting: bool = False) -> None: ...


def recipe(**changes: Any) -> Recipe:
    """Constant rate 1, no clipping, float32."""
    values: dict[str, Any] = {
        "density": Density(),
        "schedule": Schedule("constant", 1.0, 0.0, 0, 100),
        "accumulation": 1,
        "clip_norm": 0.0,
        "clip_by_value": False,
        "seed": 3,
        "precision": choose("no", low_precision_safe=False),
    }
    return Recipe(**{**values, **changes})


def latents_of(number: int) -> torch.Tensor:
    """The latents of sample ``number``, [C, h, w]."""
    return torch.randn(CHANNELS, CELLS, CELLS, generator=torch.Generator().manual_seed(1000 + number))


def text_of(number: int) -> torch.Tensor:
    """The text embeds of sample ``number``, [n, D]."""
    return torch.randn(1 + number % 4, WIDTH, generator=torch.Generator().manual_seed(2000 + number))


def batch(*numbers: int, timestep_offset: float = 0.0) -> Batch:
    """A micro-batch of these samples."""
    from simpletuner.data.loader import pad

    text, mask = pad([text_of(n) for n in numbers])
    latents = torch.stack([latents_of(n) for n in numbers])
    return Batch(latents, text, mask, tuple(f"{n}.png" for n in numbers), "toys", timestep_offset)


def flat(module: torch.nn.Module) -> torch.Tensor:
    """All weights as one vector, copied."""
    return torch.cat([p.detach().clone().flatten() for p in module.parameters()])
