"""The averaged weights of a schedule-free optimizer, from a checkpoint, which holds the point that it trains at.

In: a checkpoint's folder, and a model that has its weights. Out: the model with the weights that validation and export use,
to the bit as the optimizer's own ``eval`` makes them. Trains nothing; a resumed run never comes here.

Source: Defazio et al. 2024, "The Road Less Scheduled", eq. 1: y = (1 - β1) z + β1 x, so x = y + (1 - 1/β1) (z - y).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from simpletuner.errors import ModelError
from simpletuner.models import adapters
from simpletuner.models.adapters import Adapter, AdapterFile
from simpletuner.models.freezing import bias_and_norms_only
from simpletuner.models.lora import file_key
from simpletuner.training import checkpoint
from simpletuner.training.checkpoint import OPTIMIZER_STRUCTURE, OPTIMIZER_TENSORS

WORDS = "the optimizer's averaged weights"


def keeper(path: Path) -> Path | None:
    """The checkpoint whose optimizer averages the weights at ``path``; None where they are for use as they are.

    Args:
        path: A checkpoint's folder, the adapter's file in it, or any other.

    Raises:
        ModelError: What is written of the optimizer is damaged, so that nobody can tell.
    """
    folder = path.parent if path.name == adapters.WEIGHTS else path
    if not checkpoint.is_one(folder):
        return None
    try:
        structure = json.loads((folder / OPTIMIZER_STRUCTURE).read_text(encoding="utf-8"))
        return folder if any(group["map"].get("train_mode") is True for group in structure["groups"]["list"]) else None
    except FileNotFoundError:  # taken out, as from weights that are given away
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{folder} is damaged: {OPTIMIZER_STRUCTURE} cannot be read ({error}). What to do: name another checkpoint, or what "
            "the run exported."
        ) from error


@torch.no_grad()
def put(folder: Path, transformer: torch.nn.Module, adapter: Adapter | None) -> None:
    """Put the average into a model that has the checkpoint's weights.

    Args:
        folder: A checkpoint that ``keeper`` has named.
        transformer: Of any dtype: the sum is made in that of the files.
        adapter: On it, in float32, if the checkpoint holds one; its weights are changed then, and not the model's.

    Raises:
        ModelError: The optimizer's state cannot be read, or is of other weights.
    """
    try:
        structure = json.loads((folder / OPTIMIZER_STRUCTURE).read_text(encoding="utf-8"))
        shapes = structure["shapes"]
        named = (
            _trained(transformer, shapes) if adapter is None else zip(adapter.names, adapter.parameters, strict=True)
        )
        files = {} if adapter else _files(folder / "transformer")
        with safe_open(folder / OPTIMIZER_TENSORS, "pt") as tensors:
            for (name, parameter), (beta, key) in zip(named, _states(structure), strict=True):
                if key:
                    point = _saved(files[name], name) if files else parameter
                    _lerp(name, parameter, point.to(parameter.device), tensors.get_tensor(key), beta)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"the average that the optimizer keeps in {folder} does not fit its weights ({error}). What to do: use the "
            "export of the run, or draw with --live: with the weights at the point that it trains at."
        ) from error


def averaged(folder: Path, file: AdapterFile) -> AdapterFile:
    """A LoRA's file as a checkpoint holds it → with the average in it, without any model.

    Raises:
        ModelError: The checkpoint does not tell which state is of which weight, as older ones do not; or is damaged.
    """
    try:
        structure = json.loads((folder / OPTIMIZER_STRUCTURE).read_text(encoding="utf-8"))
        tensors = {key: tensor.clone() for key, tensor in file.tensors.items()}
        with safe_open(folder / OPTIMIZER_TENSORS, "pt") as states:
            for name, (beta, key) in zip(structure["names"], _states(structure), strict=True):
                if key:
                    tensor = tensors[file_key(name)]
                    _lerp(name, tensor, tensor, states.get_tensor(key), beta)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{folder} holds its weights at the point that its optimizer trains at, and does not tell to which of them its "
            f"average belongs ({error}), as older checkpoints do not. What to do: name the adapter that the run exported, or "
            "`simpletuner merge` the checkpoint."
        ) from error
    return replace(file, tensors=tensors)


def _trained(transformer: torch.nn.Module, shapes: Sequence[Sequence[int]]) -> list[tuple[str, torch.nn.Parameter]]:
    """The parameters that were trained, in their order: all, or with bitfit biases and norms, which alone ask for gradients then."""
    every = list(transformer.named_parameters())
    if len(every) == len(shapes):
        return every
    bias_and_norms_only(transformer)
    return [(name, parameter) for name, parameter in every if parameter.requires_grad]


def _states(structure: dict[str, Any]) -> Iterator[tuple[float, str]]:
    """For each parameter β1 and the name of its z, "" where it never had a gradient: its average is the weight itself."""
    states, groups = structure["state"]["map"], structure["groups"]["list"]
    of_parameter = [group["map"] for group, size in zip(groups, structure["sizes"], strict=True) for _ in range(size)]
    for index, group in enumerate(of_parameter):
        z = states.get(str(index), {"map": {}})["map"].get("z", {})
        yield group["betas"]["tuple"][0], z.get("tensor") or z.get("strided", {}).get("tensor", "")


def _files(folder: Path) -> dict[str, Path]:
    """Name of a weight → its file."""
    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as content:
            found |= dict.fromkeys(content.keys(), file)
    return found


def _saved(file: Path, name: str) -> torch.Tensor:
    with safe_open(file, "pt") as content:
        tensor: torch.Tensor = content.get_tensor(name)
    return tensor


def _lerp(name: str, parameter: torch.Tensor, point: torch.Tensor, z: torch.Tensor, beta: float) -> None:
    """Put x into ``parameter``, from y and z, as schedulefree's ``eval`` reckons it.

    With PiSSA and OLoRA the trained half stands first in the file's matrices, and the frozen one stays.
    """
    if point.numel() == 2 * z.numel():
        axis = 0 if ".lora_A." in name else 1
        parameter, point = (tensor.narrow(axis, 0, tensor.shape[axis] // 2) for tensor in (parameter, point))
    average = torch.lerp(point.reshape(z.shape), z.to(point), 1 - 1 / beta)
    parameter.copy_(average.reshape(parameter.shape))
