"""Room 8, Step: what is trained, and how a step of it is made: the nouns of ``step`` and ``loop``. Holds things, does nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from simpletuner.flow.losses import Loss, Weighting
from simpletuner.flow.perturbation import Perturbation
from simpletuner.flow.rollout import Rollout
from simpletuner.flow.schedules import Density
from simpletuner.models.adapters import Adapter
from simpletuner.models.base import Facts, Family
from simpletuner.training.averaging import Averaging
from simpletuner.training.ema import Ema
from simpletuner.training.gradient_release import GradientRelease
from simpletuner.training.gradient_sums import Float32Sums
from simpletuner.training.learning_rate import Schedule
from simpletuner.training.precision import Precision
from simpletuner.training.ranks import Ranks
from simpletuner.training.step_graph import StepGraphs


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one step is made, in plain values.

    Attributes:
        density: How sigmas are drawn.
        schedule: Learning rate by step.
        accumulation: Micro-batches per optimizer step.
        clip_norm: Global norm or element bound; 0 is off.
        clip_by_value: Clip each element instead of the global norm.
        seed: Everything random is drawn from it and the position.
        precision: Dtypes in force.
        perturbation: What the model sees instead of the plain line from data to noise.
        loss: Prediction and target become one number per sample.
        weighting: How much that number counts, by sigma.
        rollout: Samples that the model itself leads to their sigma, or None.
    """

    density: Density
    schedule: Schedule
    accumulation: int
    clip_norm: float
    clip_by_value: bool
    seed: int
    precision: Precision
    perturbation: Perturbation = field(default_factory=Perturbation)
    loss: Loss = field(default_factory=Loss)
    weighting: Weighting = field(default_factory=Weighting)
    rollout: Rollout | None = None


@dataclass(slots=True)
class Trainee:
    """What is trained: the model, its optimizer and what goes with them.

    Attributes:
        release: Steps the optimizer inside backward, or None for one step after it.
        sums: Adds up micro-batches in float32, or None for the weights' dtype.
        graphs: Replays the steady step as one CUDA graph for each shape of batch, or None.
        ranks: The processes that train the same weights.
        averaging: Of gradients over these, begun within backward; None begins after it.
    """

    family: Family
    facts: Facts
    transformer: Any
    optimizer: torch.optim.Optimizer
    ema: Ema | None
    device: torch.device
    scaler: torch.amp.GradScaler | None = None
    parameters: list[torch.nn.Parameter] = field(default_factory=list)
    adapter: Adapter | None = None
    release: GradientRelease | None = None
    sums: Float32Sums | None = None
    graphs: StepGraphs | None = None
    ranks: Ranks = field(default_factory=Ranks)
    averaging: Averaging | None = None

    @property
    def guards_itself(self) -> bool:
        """Whether the device decides if a step is taken."""
        able = self.release.guards_itself if self.release else hasattr(self.optimizer, "guarded_step")
        return able and self.scaler is None
