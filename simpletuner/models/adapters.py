"""Adapters: small trained weights beside a frozen model, behind one protocol.

In: a transformer, loaded (and quantised, if at all). Out: an Adapter that holds the only trained parameters. The loop,
EMA, checkpoints and validation know this protocol and not which library is behind it (``lora`` for PEFT, ``lycoris``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from simpletuner.errors import ModelError

WEIGHTS = "pytorch_lora_weights.safetensors"
PARAMETERS = "adapter_parameters.safetensors"
LYCORIS_CONFIG = "lycoris_config.json"


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """Standard LoRA in plain values.

    Attributes:
        rank: Inner dimension.
        alpha: The update is scaled by alpha / rank (by alpha / √rank with ``rslora``).
        dropout: Probability in [0, 1) before the first matrix.
        dora: Whether row lengths are trained as well.
        rslora: See ``alpha``.
        init: ``default``, ``gaussian``, ``olora`` or ``pissa``.
        targets: Names for ``targets.resolve``, or None for the default.
    """

    rank: int = 16
    alpha: float = 16.0
    dropout: float = 0.0
    dora: bool = False
    rslora: bool = False
    init: str = "default"
    targets: tuple[str, ...] | None = None

    @property
    def draws(self) -> bool:
        """Whether a forward pass draws random numbers."""
        return self.dropout > 0

    @property
    def scale(self) -> float:
        """What the product of the two matrices is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


@dataclass(frozen=True, slots=True)
class LycorisSettings:
    """LyCORIS in plain values.

    Attributes:
        config: In the original's format, checked by ``config.lycoris``.
        lokr_norm: Start of LoKr, see ``lycoris.perturb``; None starts at nothing.
    """

    config: Mapping[str, Any]
    lokr_norm: float | None = None

    @property
    def draws(self) -> bool:
        """Whether a forward pass draws random numbers."""
        return any(self.config.get(key) for key in ("dropout", "rank_dropout", "module_dropout"))


class Adapter(Protocol):
    """Trained weights beside a frozen transformer."""

    names: list[str]
    parameters: list[torch.nn.Parameter]
    draws: bool  # whether a forward pass draws random numbers (dropout)
    about: dict[str, str]  # for the metadata of its files

    def describe(self) -> list[str]:
        """Sentences: what was put where, how many weights, what matched nothing."""

    def notes(self) -> list[str]:
        """Of ``describe`` the part that needs no weights: what matched nothing."""

    def shape(self) -> dict[str, Any]:
        """What two adapters must share to continue one another: algorithm, rank, alpha, layers."""

    def disabled(self) -> AbstractContextManager[None]:
        """Inside, the model is the base model, to the bit."""

    def scaled(self, strength: float) -> AbstractContextManager[None]:
        """Inside, the adapter acts with ``strength`` times its weight."""

    def save(self, folder: Path, layout: str = "diffusers") -> None:
        """Write the adapter's files; ``layout`` is ``diffusers`` or ``comfyui``."""

    def read(self, folder: Path) -> dict[str, torch.Tensor]:
        """What ``save`` wrote in the diffusers layout, by parameter name. Raises ModelError if it does not fit."""

    def merge(self) -> None:
        """Add the adapter to the base weights and take it off the model."""


@torch.no_grad()
def load(adapter: Adapter, values: Mapping[str, torch.Tensor]) -> None:
    """Put ``Adapter.read``'s result into the live parameters."""
    for name, parameter in zip(adapter.names, adapter.parameters, strict=True):
        parameter.copy_(values[name])


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """An adapter on disk.

    Attributes:
        path: The safetensors file.
        tensors: By key, as written.
        metadata: The file's own.
        config: The LyCORIS settings that lie beside it or in its metadata, if any.
    """

    path: Path
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] | None = None

    @property
    def is_lycoris(self) -> bool:
        """Whether LyCORIS wrote it."""
        return any(key.startswith("lycoris_") for key in self.tensors)

    @property
    def base_model(self) -> str | None:
        """Folder or hub id of the model it was trained on, if the file tells."""
        try:
            return str(json.loads(self.metadata["simpletuner"])["base_model"])
        except (KeyError, ValueError, TypeError):
            return None


def read_file(path: Path) -> AdapterFile:
    """Read an adapter.

    Args:
        path: A safetensors file, or a folder that holds ``pytorch_lora_weights.safetensors``.

    Raises:
        ModelError: There is none, or it cannot be read.
    """
    path = path.expanduser()
    file = path / WEIGHTS if path.is_dir() else path
    try:
        with safe_open(file, "pt") as content:
            metadata = dict(content.metadata() or {})
            tensors = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118 - not a mapping
        beside = file.parent / LYCORIS_CONFIG
        written = [metadata.get("lycoris_config"), beside.read_text(encoding="utf-8") if beside.is_file() else None]
        config: dict[str, Any] = {}
        for text in filter(None, written):  # the original's metadata leaves keys out; the file beside it has them
            config |= json.loads(text)
    except (OSError, SafetensorError, ValueError) as error:
        reason = "there is no such file" if not file.is_file() else str(error)
        raise ModelError(
            f"cannot read the adapter {file}: {reason}. What to do: name a .safetensors file, or a folder that holds "
            f"{WEIGHTS}."
        ) from error
    return AdapterFile(file, tensors, metadata, config or None)


def write(file: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata; the old file stays until the new one is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.tmp")
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(kept, temporary, metadata={"format": "pt", **metadata})
    os.replace(temporary, file)


def put_on(transformer: Any, settings: LoraSettings | LycorisSettings, seed: int) -> Adapter:
    """Freeze the transformer and put a fresh adapter on it.

    Args:
        transformer: Loaded, and quantised if it is to be; its weights are not changed.
        settings: What kind.
        seed: First weights are drawn from it alone.

    Raises:
        ModelError: Nothing matches the settings' layers.
    """
    transformer.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(settings, LoraSettings):
            from simpletuner.models.lora import Lora

            adapter: Adapter = Lora(transformer, settings)
        else:
            from simpletuner.models.lycoris import Lycoris

            adapter = Lycoris(transformer, settings)
    transformer.train(transformer.training)  # dropout of the new modules too
    return adapter
