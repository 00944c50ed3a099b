"""What of a model goes to disk: all of the transformer, or the adapter alone. Checkpoints and resume know this protocol."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file

from simpletuner.errors import ModelError, ResumeError
from simpletuner.models import adapters
from simpletuner.models.adapters import Adapter
from simpletuner.training.ema import Ema

_FILE = "diffusion_pytorch_model.safetensors"


class Weights(Protocol):
    """The trained weights of a run on disk."""

    names: list[str]  # of what is trained, in the optimizer's order

    def save(self, folder: Path, ema: Ema | None) -> None:
        """Write live weights, and the average if there is one, into a checkpoint's folder."""

    def load(self, folder: Path) -> None:
        """Put the live weights back. Raises ResumeError if they do not fit."""

    def load_ema(self, folder: Path, ema: Ema, updates: int) -> bool:
        """Put the average back; False if the checkpoint has none."""


class AllWeights:
    """The whole transformer, in diffusers' layout: ``transformer/`` and ``transformer_ema/``."""

    def __init__(self, transformer: Any) -> None:
        """Of this model."""
        self._transformer = transformer
        self.names = [name for name, p in transformer.named_parameters() if p.requires_grad]

    def save(self, folder: Path, ema: Ema | None) -> None:
        """See ``Weights``."""
        self._transformer.save_pretrained(folder / "transformer")
        if ema:
            (folder / "transformer_ema").mkdir()
            save_file(self._whole(ema.state(self.names)), folder / "transformer_ema" / _FILE)
            shutil.copy(folder / "transformer" / "config.json", folder / "transformer_ema" / "config.json")

    def _whole(self, average: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The average with what is not trained (bitfit) beside it, so that the folder is a model like any other."""
        state = self._transformer.state_dict()
        rest = {name: value.detach().cpu().contiguous() for name, value in state.items() if name not in average}
        return average | {name: value.float() if value.is_floating_point() else value for name, value in rest.items()}

    def load(self, folder: Path) -> None:
        """See ``Weights``."""
        tensors: dict[str, torch.Tensor] = {}
        for file in sorted((folder / "transformer").glob("*.safetensors")):
            tensors.update(load_file(file))
        try:
            self._transformer.load_state_dict(tensors)
        except RuntimeError as error:
            raise ResumeError(f"{folder} holds another model than the configured one: start a fresh run.") from error

    def load_ema(self, folder: Path, ema: Ema, updates: int) -> bool:
        """See ``Weights``."""
        file = folder / "transformer_ema" / _FILE
        if not file.is_file():
            return False
        ema.load(self.names, load_file(file), updates)
        return True


class AdapterWeights:
    """An adapter's own files, and those of its average in ``ema/``; the base model is not written."""

    def __init__(self, adapter: Adapter) -> None:
        """Of this adapter."""
        self._adapter = adapter
        self.names = adapter.names

    def save(self, folder: Path, ema: Ema | None) -> None:
        """See ``Weights``."""
        self._adapter.save(folder)
        if ema:
            with ema.applied():  # both are float32, so nothing is rounded
                self._adapter.save(folder / "ema")

    def load(self, folder: Path) -> None:
        """See ``Weights``."""
        try:
            adapters.load(self._adapter, self._adapter.read(folder))
        except ModelError as error:
            raise ResumeError(str(error)) from error

    def load_ema(self, folder: Path, ema: Ema, updates: int) -> bool:
        """See ``Weights``."""
        if not (folder / "ema" / adapters.WEIGHTS).is_file():
            return False
        ema.load(self.names, self._adapter.read(folder / "ema"), updates)
        return True
