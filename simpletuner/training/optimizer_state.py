"""Room 8, Step: an optimizer's state as named tensors and a readable structure, and back, bit for bit.

Every optimizer's state is a tree of tensors and numbers per parameter, so these two functions serve them all.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from simpletuner.errors import ResumeError

# Changed by a schedule or by the machine, not by the user: no news.
_UNTOLD = ("lr", "fused", "foreach")
# None lets the optimizer choose at its first step, and optimi writes down what it chose.
_CHOSEN = ("kahan_sum", "triton", "foreach", "fused")
# Tensors that are made of others (8-bit states): only classes of these packages are built again from a file.
_WRAPPERS = ("torchao.",)


def pack(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The optimizer's state as tensors and a readable structure.

    Returns:
        Tensors by name, for a safetensors file, and a JSON-able tree in which each tensor stands as ``{"tensor": name}``,
        or with its strides where it does not lie in memory row by row: a file keeps no strides, and products over another
        order in memory differ in their last bits (SOAP's eigenbases lie column by column).
    """
    tensors: dict[str, torch.Tensor] = {}
    known: dict[tuple[Any, ...], str] = {}

    def keep(value: torch.Tensor, name: str) -> Any:
        if hasattr(value, "__tensor_flatten__"):
            inner, context = value.__tensor_flatten__()
            cls = type(value)
            parts = {key: keep(getattr(value, key), f"{name}.{key}") for key in inner}
            about = {"class": f"{cls.__module__}.{cls.__qualname__}", "context": walk(context, name)}
            return {"wrapper": {**about, "shape": list(value.shape), "parts": parts}}
        # Tables that all parameters share (quantisation maps) are kept once.
        place = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        if not (value.numel() and place in known):
            tensors[name], known[place] = value.detach().cpu().contiguous(), name
        stored = {"tensor": known.get(place, name)}
        return stored if value.is_contiguous() else {"strided": {**stored, "strides": list(value.stride())}}

    def walk(value: Any, name: str) -> Any:
        if isinstance(value, torch.Tensor):
            return keep(value, name)
        if isinstance(value, Mapping):
            return {"map": {str(key): walk(item, f"{name}.{key}") for key, item in value.items()}}
        if isinstance(value, tuple | list):
            kind = "tuple" if isinstance(value, tuple) else "list"
            return {kind: [walk(item, f"{name}.{i}") for i, item in enumerate(value)]}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        return value

    state = torch.optim.Optimizer.state_dict(optimizer)  # bitsandbytes' own adds a wrapper of its own
    groups = [{k: v for k, v in group.items() if k != "params"} for group in state["param_groups"]]
    shapes = [list(p.shape) for group in optimizer.param_groups for p in group["params"]]
    tree = {"state": walk(state["state"], "state"), "groups": walk(groups, "groups"), "shapes": shapes}
    return tensors, {**tree, "sizes": _sizes(optimizer)}


def _rebuild(tensors: Mapping[str, torch.Tensor], device_of: Callable[[torch.Tensor], torch.device], value: Any) -> Any:
    """``pack``'s tree back into tensors, tuples, lists and dicts."""
    if not isinstance(value, Mapping):
        return value
    ((kind, inner),) = value.items()

    def again(item: Any) -> Any:
        return _rebuild(tensors, device_of, item)

    if kind == "tensor":
        return tensors[inner].to(device_of(tensors[inner]), copy=True)
    if kind == "strided":
        plain = again({"tensor": inner["tensor"]})
        lying = torch.empty_strided(plain.shape, inner["strides"], dtype=plain.dtype, device=plain.device)
        return lying.copy_(plain)
    if kind == "dtype":
        return getattr(torch, inner)
    if kind == "map":
        return {key: again(item) for key, item in inner.items()}
    if kind == "wrapper":
        module, _, name = inner["class"].rpartition(".")
        if not module.startswith(_WRAPPERS):
            raise ResumeError(f"the checkpoint's optimizer state has a tensor of unknown kind {inner['class']}.")
        parts = {key: again(part) for key, part in inner["parts"].items()}
        cls = getattr(importlib.import_module(module), name)
        stride = torch.empty(inner["shape"], device="meta").stride()
        return cls.__tensor_unflatten__(parts, again(inner["context"]), torch.Size(inner["shape"]), stride)
    return (tuple if kind == "tuple" else list)(again(item) for item in inner)


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
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    saved = {int(index): values for index, values in structure["state"]["map"].items()}
    trees = _regrouped(optimizer, structure["groups"]["list"], structure.get("sizes"))
    if trees is None or any(index >= len(parameters) for index in saved):
        raise ResumeError("the checkpoint's optimizer state belongs to another model; start a fresh run.")
    shapes = structure.get("shapes")
    if shapes is not None and shapes != [list(p.shape) for p in parameters]:
        raise ResumeError("the checkpoint's optimizer state does not fit these weights; start afresh.")
    # A fused optimizer keeps its step counter beside the parameter; others keep scalars on the CPU.
    fused = any(group.get("fused") for group in optimizer.param_groups)
    changes: list[str] = []
    # load_state_dict would cast states to the parameter's dtype, so the state is put in place directly.
    for group, tree in zip(optimizer.param_groups, trees, strict=True):
        fields = _rebuild(tensors, lambda tensor: tensor.device, tree)
        for name in [n for n in fields if n in configured and n in group]:
            if name in _CHOSEN and group[name] is None:
                continue
            saved_value = fields.pop(name)
            if name not in _UNTOLD and saved_value != group[name]:
                changes.append(f"{name} {saved_value} → {group[name]}")
        group.update(fields)
    for index, tree in saved.items():
        parameter = parameters[index]

        def beside(tensor: torch.Tensor, home: torch.device = parameter.device) -> torch.device:
            return home if tensor.ndim or fused else tensor.device

        values = _rebuild(tensors, beside, tree)
        for name, value in values.items():
            optimizer.state[parameter][name] = _paged(optimizer, parameter, value)
    return list(dict.fromkeys(changes))


def _sizes(optimizer: torch.optim.Optimizer) -> list[int]:
    return [len(group["params"]) for group in optimizer.param_groups]


def _regrouped(optimizer: torch.optim.Optimizer, saved: list[Any], sizes: list[int] | None) -> list[Any] | None:
    """For each group of the optimizer the saved group of its first parameter; None where these are other parameters.

    Gradient release has groups of equal arguments, for blocks or for parameters, so a run that is continued with it, without,
    or on another device has others.

    Args:
        optimizer: As it is now.
        saved: Its groups as they were.
        sizes: How many parameters each had; None in checkpoints that do not say so, whose groups must be those of now.
    """
    here = _sizes(optimizer)
    sizes = sizes or here
    if len(sizes) != len(saved) or sum(sizes) != sum(here):
        return None
    of_parameter = [tree for tree, size in zip(saved, sizes, strict=True) for _ in range(size)]
    return [of_parameter[end - size] for end, size in zip(itertools.accumulate(here), here, strict=True)]


def _paged(optimizer: Any, parameter: torch.Tensor, value: Any) -> Any:
    """The value in pageable memory where the optimizer keeps such states there (bitsandbytes on a GPU)."""
    if not getattr(optimizer, "is_paged", False) or not isinstance(value, torch.Tensor):
        return value
    if parameter.device.type != "cuda" or value.shape != parameter.shape:
        return value
    buffer: torch.Tensor = optimizer.get_state_buffer(parameter, dtype=value.dtype)
    return buffer.copy_(value)
