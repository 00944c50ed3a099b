"""Room 8, Step: the size of gradients, and how they are bounded. In: parameters with gradients. Out: a norm; gradients in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def gradients_of(parameters: Sequence[torch.nn.Parameter]) -> list[torch.Tensor]:
    """Every gradient there is, in the order of the parameters."""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def global_norm(parameters: Sequence[torch.nn.Parameter]) -> torch.Tensor:
    """[] float32: the Euclidean norm of all gradients together."""
    grads = gradients_of(parameters)
    if not grads:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads, 2, torch.float32)))


def clip(parameters: Sequence[torch.nn.Parameter], bound: float, by_value: bool) -> torch.Tensor:
    """Clip the gradients and return their global norm before clipping (infinite or NaN if any element is).

    Args:
        parameters: Whose gradients.
        bound: Of the global norm, or of each element; 0 is off.
        by_value: Bound each element.
    """
    norm = global_norm(parameters)
    if bound and by_value:
        torch.nn.utils.clip_grad_value_(parameters, bound)
    elif bound:
        torch.nn.utils.clip_grads_with_norm_(parameters, bound, norm)
    return norm
