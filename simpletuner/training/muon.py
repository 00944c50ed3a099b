"""Room 8, Step: Muon for the weight matrices and AdamW for everything else, as one optimizer.

Muon makes each update of a matrix nearly orthogonal, so that all its directions learn alike; biases, norms,
depthwise convolutions and small tables have no such directions. Both halves are torch's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from simpletuner.training.matrix_views import is_pointwise, lend, view_of

# Sana's modulation tables have 2 and 6 rows: lists of vectors, not maps from one space to another.
SMALLEST_SIDE = 8


def is_matrix(parameter: torch.Tensor) -> bool:
    """Whether Muon takes it: 2-D, or a 1x1 convolution (the same product, written with two more dimensions)."""
    return (parameter.ndim == 2 or is_pointwise(parameter)) and min(parameter.shape[:2]) >= SMALLEST_SIDE


class Muon(torch.optim.Optimizer):
    """One learning rate for both halves: Muon's updates are scaled to AdamW's size.

    Source: Jordan et al. 2024 (Newton-Schulz, https://kellerjordan.github.io/posts/muon/); the scaling
        0.2 sqrt(max(rows, columns)) is Liu et al. 2025, "Muon is scalable for LLM training", section 2.2.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-5,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = "match_rms_adamw",
        betas: tuple[float, float] = (0.9, 0.999),
        adam_eps: float = 1e-8,
    ) -> None:
        """Split ``params`` into matrices and the rest. ``betas`` and ``adam_eps`` are AdamW's."""
        flat = [p for entry in params for p in (entry["params"] if isinstance(entry, dict) else [entry])]
        matrices = [p for p in flat if is_matrix(p)]
        rest = [p for p in flat if not is_matrix(p)]
        muon: dict[str, Any] = {
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "eps": eps,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
        }
        shared: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        groups: list[dict[str, Any]] = []
        self._parts: list[torch.optim.Optimizer] = []
        self._views: dict[torch.Tensor, torch.nn.Parameter] = {}  # 1x1 convolutions are matrices too
        if matrices:
            self._views = {p: view_of(p) for p in matrices}
            groups.append({"params": matrices, **muon})
            self._parts.append(torch.optim.Muon(list(self._views.values()), **shared, **muon))
        if rest:
            groups.append({"params": rest, "betas": betas, "eps": adam_eps})
            self._parts.append(torch.optim.AdamW(rest, betas=betas, eps=adam_eps, **shared))
        super().__init__(groups, shared)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient. ``closure`` is not supported."""
        lend(self._views, self, self._parts[0])
        for part, group in zip(self._parts, self.param_groups, strict=True):
            if isinstance(part, torch.optim.AdamW):
                part.state = self.state
            part.param_groups[0].update({key: value for key, value in group.items() if key != "params"})
            part.step()
        for view in self._views.values():
            view.grad = None
