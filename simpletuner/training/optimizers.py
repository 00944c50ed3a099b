"""Room 8, Step: optimizers by the names users know.

A table from name to builder and defaults. Every optimizer's state is a tree of tensors and numbers per parameter, so
one function saves and loads them all.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from simpletuner.errors import ResumeError


@dataclass(frozen=True, slots=True)
class OptimizerEntry:
    """One optimizer.

    Attributes:
        module: Import path, imported only when chosen.
        cls: Class name in it.
        defaults: Arguments where the user is silent.
        low_precision_safe: Small updates survive in bf16 weights.
        fused: Accepts ``fused=True`` on this device.
    """

    module: str
    cls: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    low_precision_safe: bool = False
    fused: bool = False


# Changed by a schedule or by the machine, not by the user: no news.
_UNTOLD = ("lr", "fused")

OPTIMIZERS: dict[str, OptimizerEntry] = {
    "optimi-adamw": OptimizerEntry(
        "optimi",
        "AdamW",
        {"betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.0},
        low_precision_safe=True,
    ),
    "torch-adamw": OptimizerEntry(
        "torch.optim", "AdamW", {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}, fused=True
    ),
}


def build(
    name: str, parameters: Iterable[torch.nn.Parameter], lr: float, overrides: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """Make the optimizer.

    Args:
        name: A key of ``OPTIMIZERS``.
        parameters: The trained parameters.
        lr: First learning rate; the loop sets it anew at each step.
        overrides: Arguments that replace the defaults.
    """
    entry = OPTIMIZERS[name]
    arguments = {**entry.defaults, **overrides}
    if entry.fused:
        arguments["fused"] = True
    cls = getattr(importlib.import_module(entry.module), entry.cls)
    optimizer: torch.optim.Optimizer = cls(list(parameters), lr=lr, **arguments)
    return optimizer


def arguments_of(name: str, overrides: Mapping[str, Any]) -> set[str]:
    """Names of the arguments that ``build`` sets: the configuration decides them, also on resume."""
    return {*OPTIMIZERS[name].defaults, *overrides, "lr", "fused", "beta1", "beta2"}  # optimi splits the betas


def pack(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The optimizer's state as tensors and a readable structure.

    Returns:
        Tensors by name, for a safetensors file, and a JSON-able tree in which each tensor stands as ``{"tensor": name}``.
    """
    tensors: dict[str, torch.Tensor] = {}

    def walk(value: Any, name: str) -> Any:
        if isinstance(value, torch.Tensor):
            tensors[name] = value.detach().cpu().contiguous()
            return {"tensor": name}
        if isinstance(value, Mapping):
            return {"map": {str(key): walk(item, f"{name}.{key}") for key, item in value.items()}}
        if isinstance(value, tuple | list):
            return {type(value).__name__: [walk(item, f"{name}.{i}") for i, item in enumerate(value)]}
        return value

    state = optimizer.state_dict()
    groups = [{k: v for k, v in group.items() if k != "params"} for group in state["param_groups"]]
    return tensors, {"state": walk(state["state"], "state"), "groups": walk(groups, "groups")}


def unpack(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, torch.Tensor],
    structure: Mapping[str, Any],
    configured: Collection[str] = (),
) -> list[str]:
    """Put ``pack``'s result back, bit for bit, dtypes included.

    Args:
        optimizer: Freshly built; changed in place.
        tensors: From ``pack``.
        structure: From ``pack``.
        configured: Names of arguments that the configuration decides (see ``arguments_of``): they keep their new value.

    Returns:
        A sentence for each configured argument whose value differs from the saved one.

    Raises:
        ResumeError: The state was saved by another optimizer or for another model.
    """

    def build_up(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        ((kind, inner),) = value.items()
        if kind == "tensor":
            return tensors[inner].clone()
        if kind == "map":
            return {key: build_up(item) for key, item in inner.items()}
        return (tuple if kind == "tuple" else list)(build_up(item) for item in inner)

    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    saved = {int(index): values for index, values in build_up(structure["state"]).items()}
    if any(index >= len(parameters) for index in saved):
        raise ResumeError("the checkpoint's optimizer state belongs to another model; start a fresh run.")
    changes: list[str] = []
    # load_state_dict would cast states to the parameter's dtype, so the state is put in place directly.
    for group, fields in zip(optimizer.param_groups, build_up(structure["groups"]), strict=True):
        for name in [n for n in fields if n in configured and n in group]:
            saved_value = fields.pop(name)
            if name not in _UNTOLD and saved_value != group[name]:
                changes.append(f"{name} {saved_value} → {group[name]}")
        group.update(fields)
    for index, values in saved.items():
        parameter = parameters[index]
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                if value.ndim and value.numel() > 1 and value.shape != parameter.shape:
                    raise ResumeError("the checkpoint's optimizer state does not fit these weights; start afresh.")
                # A fused optimizer keeps its step counter beside the parameter; others keep scalars on the CPU.
                if value.ndim or any(group.get("fused") for group in optimizer.param_groups):
                    value = value.to(parameter.device)
            optimizer.state[parameter][name] = value
    return list(dict.fromkeys(changes))
