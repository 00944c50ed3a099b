"""Bytes that an optimizer's state takes on the GPU, for each trained weight. A table; nothing is built."""

from __future__ import annotations

_SCALED = 1.016  # 8-bit states have a float32 scale for each 256 numbers
_OPTIMI = {"adam": (6, 8), "adamw": (6, 8), "stableadamw": (6, 8), "radam": (6, 8), "lion": (4, 4), "sgd": (2, 0)}
# Name → (bytes with bf16 weights, bytes with float32 weights), as measured: tests/unit/test_memory_estimate.py.
_STATES: dict[str, tuple[float, float]] = {
    **{f"optimi-{name}": sizes for name, sizes in _OPTIMI.items()},
    "optimi-adan": (10, 16),
    "optimi-ranger": (8, 12),
    "adamw_bf16": (4, 4),
    "ao-adamw8bit": (2 * _SCALED, 2 * _SCALED),
    "ao-adamw4bit": (1.06, 1.06),
    **dict.fromkeys(("torch-adamw", "torch-adam", "torch-nadam", "torch-radam", "torch-adamax"), (4, 8)),
    "torch-adadelta": (4, 8),
    **dict.fromkeys(("torch-rmsprop", "torch-adagrad", "torch-asgd"), (2, 4)),
    "torch-sgd": (0, 0),
    "torch-adafactor": (0, 0),
    "came": (2, 4),
    "muon": (2, 4),
    "soap": (12, 24),
    "prodigy": (8, 16),
    "adamw_schedulefree": (4, 8),
    "radam_schedulefree": (4, 8),
}
_BNB = {"adam": 8.0, "adamw": 8.0, "lion": 4.0, "ademamix": 12.0, "adagrad": 4.0}


def state_bytes(name: str, weight_bytes: int) -> float:
    """Bytes of state on the GPU for one trained weight.

    Args:
        name: An optimizer's name.
        weight_bytes: 2 for bf16 weights, 4 for float32.

    Returns:
        0 for paged states: they move to the host's memory where the GPU's is short.
    """
    if not name.startswith("bnb-"):
        return float(_STATES[name][0 if weight_bytes == 2 else 1])
    if name.endswith("-paged"):
        return 0.0
    kind = name.removeprefix("bnb-")
    return _BNB[kind.removesuffix("8bit")] * (_SCALED / 4 if kind.endswith("8bit") else 1.0)
