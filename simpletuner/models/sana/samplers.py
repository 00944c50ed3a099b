"""Samplers for validation pictures that diffusers can drive with Sana: by name, over the model's own shift.

What is exported keeps the sampler of the model's own folder.
"""

from __future__ import annotations

from typing import Any

# What a solver made for noise prediction must be told, to integrate a velocity over shifted sigmas.
# Source: diffusers' DPMSolverMultistepScheduler and UniPCMultistepScheduler, as Sana's own folders configure the first.
_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
CLASSES = {
    "flow_match": "FlowMatchEulerDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}


def arguments(name: str, shift: float) -> dict[str, Any]:
    """What ``from_config`` is given besides the folder's own settings.

    Args:
        name: A key of ``CLASSES``.
        shift: The model's own flow shift.
    """
    if name == "flow_match":
        return {"shift": shift, "use_dynamic_shifting": False}
    extra = {"algorithm_type": "dpmsolver++"} if name == "dpm++" else {}
    return {**_FLOW, "flow_shift": shift, **extra}


def sampler(name: str, own: Any, shift: float) -> Any:
    """The sampler of this name, with the model's own settings where it knows them.

    Args:
        name: A key of ``CLASSES``.
        own: The model's own sampler; unchanged.
        shift: The model's own flow shift.
    """
    import diffusers

    return getattr(diffusers, CLASSES[name]).from_config(own.config, **arguments(name, shift))
