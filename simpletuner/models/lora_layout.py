"""Key layouts of a LoRA file: diffusers' own, and the one ComfyUI and kohya's tools read. Pure functions.

diffusers: ``transformer.<layer>.lora_A.weight``, ``….lora_B.weight``, ``….lora_magnitude_vector`` (DoRA), alpha in the
file's metadata. ComfyUI: ``diffusion_model.<layer>.lora_down.weight``, ``….lora_up.weight``, ``….dora_scale``, and
``….alpha`` as a tensor of each layer.

Source: kohya's suffixes as in diffusers' ``convert_state_dict_to_kohya`` (lora_down, lora_up, alpha); the prefix as in
diffusers' converters of ComfyUI files (``_convert_non_diffusers_*_lora_to_diffusers`` strip ``diffusion_model.``). Layers
keep diffusers' names: a loader that fuses q, k and v under NVLabs' names needs a conversion of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch

DIFFUSERS_PREFIX = "transformer."
COMFYUI_PREFIX = "diffusion_model."
METADATA = "lora_adapter_metadata"  # the key diffusers reads rank and alpha from
_SUFFIXES = {
    ".lora_A.weight": ".lora_down.weight",
    ".lora_B.weight": ".lora_up.weight",
    ".lora_magnitude_vector": ".dora_scale",
}
Tensors = Mapping[str, torch.Tensor]


def is_comfyui(tensors: Tensors) -> bool:
    """Whether the keys are in ComfyUI's layout."""
    return any(key.startswith(COMFYUI_PREFIX) for key in tensors)


def facts(metadata: Mapping[str, str]) -> dict[str, object]:
    """Rank, alpha and kind from a file's metadata, without the prefix; empty if it has none."""
    written = json.loads(metadata.get(METADATA, "{}"))
    return {key.removeprefix(DIFFUSERS_PREFIX): value for key, value in written.items()}


def to_comfyui(tensors: Tensors, metadata: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Diffusers' layout → ComfyUI's.

    Args:
        tensors: By key.
        metadata: Of the file; alpha is read from it, and is the rank where it says nothing.

    Raises:
        ValueError: A key that is not of diffusers' layout.
    """
    known = facts(metadata)
    result: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        old = next((suffix for suffix in _SUFFIXES if key.endswith(suffix)), None)
        if old is None or not key.startswith(DIFFUSERS_PREFIX):
            raise ValueError(f"{key!r} is no key of a LoRA in diffusers' layout")
        layer = key.removeprefix(DIFFUSERS_PREFIX).removesuffix(old)
        if old == ".lora_magnitude_vector":
            tensor = tensor.reshape(-1, *[1] * (tensors[key.removesuffix(old) + ".lora_A.weight"].ndim - 1))
        result[COMFYUI_PREFIX + layer + _SUFFIXES[old]] = tensor
        if old == ".lora_A.weight":
            rank = tensor.shape[0]
            alpha = float(known.get("lora_alpha", rank))  # type: ignore[arg-type]
            if known.get("use_rslora"):  # the readers divide by the rank, whatever trained it
                alpha *= rank**0.5
            result[COMFYUI_PREFIX + layer + ".alpha"] = torch.tensor(alpha)
    return result


def to_diffusers(tensors: Tensors) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """ComfyUI's layout → diffusers', and the facts for its metadata.

    Raises:
        ValueError: A key that is not of ComfyUI's layout, or layers of different rank or alpha.
    """
    back = {new: old for old, new in _SUFFIXES.items()}
    result: dict[str, torch.Tensor] = {}
    ranks, alphas, layers = set(), set(), []
    for key, tensor in tensors.items():
        if key.endswith(".alpha"):
            alphas.add(float(tensor))
            continue
        new = next((suffix for suffix in back if key.endswith(suffix)), None)
        if new is None or not key.startswith(COMFYUI_PREFIX):
            raise ValueError(f"{key!r} is no key of a LoRA in ComfyUI's layout")
        layer = key.removeprefix(COMFYUI_PREFIX).removesuffix(new)
        if new == ".lora_down.weight":
            ranks.add(tensor.shape[0])
            layers.append(layer)
        if new == ".dora_scale":
            tensor = tensor.reshape(-1) if tensor.ndim == 2 else tensor.reshape(1, -1, 1, 1)
        result[DIFFUSERS_PREFIX + layer + back[new]] = tensor
    if len(ranks) != 1 or len(alphas) > 1:
        raise ValueError(f"its layers have different ranks {sorted(ranks)} or alphas {sorted(alphas)}")
    (rank,) = ranks
    dora = any(key.endswith(".lora_magnitude_vector") for key in result)
    return result, {
        "r": rank,
        "lora_alpha": alphas.pop() if alphas else float(rank),
        "target_modules": layers,
        "use_dora": dora,
        "use_rslora": False,
    }
