"""Standard LoRA and DoRA through PEFT, on diffusers' transformer.

The base weights are never changed, also with PiSSA and OLoRA: where these take the start of the adapter out of the base
weight, a second, frozen adapter takes it out here. The file holds both side by side, as one plain LoRA of twice the rank,
so that it loads on the untouched base model anywhere.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from simpletuner.errors import ModelError
from simpletuner.models import imports, lora_layout, quantize, targets
from simpletuner.models.adapters import WEIGHTS, AdapterFile, LoraSettings, read_file, write
from simpletuner.models.linears import is_inside, published
from simpletuner.models.lora_start import STARTS

TRAINED, START = "default", "start"
_PREFIX = lora_layout.DIFFUSERS_PREFIX


def file_key(name: str, adapter: str = TRAINED) -> str:
    """A PEFT parameter's name → its key in diffusers' layout (a 1x1 convolution held as a linear has its own name)."""
    layer, _, part = name.partition(".lora_")
    part = part.replace(f".{adapter}", "", 1)
    part = part.removesuffix(".weight") if part.startswith("magnitude") else part
    return f"{_PREFIX}{published(layer)}.lora_{part}"


class Lora:
    """LoRA or DoRA; see the ``Adapter`` protocol."""

    def __init__(self, transformer: Any, settings: LoraSettings) -> None:
        """Put it on ``transformer``. Raises ModelError if a target matches nothing."""
        from peft import LoraConfig, inject_adapter_in_model

        self.transformer = transformer
        self.settings = settings
        self.about: dict[str, str] = {}
        self.layers = targets.resolve(transformer, settings.targets)
        self.draws = settings.draws
        weights = {n: quantize.dense(transformer.get_submodule(n)) for n in self.layers} if self._starts else {}
        self._check_rank(weights)
        common: dict[str, Any] = {
            "r": settings.rank,
            "lora_alpha": settings.alpha,
            "use_rslora": settings.rslora,
            "target_modules": self.layers,
        }
        config = LoraConfig(
            **common,
            lora_dropout=settings.dropout,
            use_dora=settings.dora,
            init_lora_weights="gaussian" if settings.init == "gaussian" else True,
        )
        with imports.without_optional(), warnings.catch_warnings():
            # PEFT asks whether two adapters are meant (they are), and says that none can be merged over torchao.
            warnings.simplefilter("ignore", UserWarning)
            inject_adapter_in_model(config, transformer, TRAINED)
            if self._starts:
                inject_adapter_in_model(LoraConfig(**common), transformer, START)
        transformer._hf_peft_config_loaded = True  # as diffusers' own add_adapter leaves it
        named = [(name, p) for name, p in transformer.named_parameters() if ".lora_" in name]
        for _, parameter in named:
            parameter.data = parameter.data.float()  # small updates are lost in bf16
        for layer in self._tuned() if not settings.dora else []:
            # Otherwise each layer keeps a copy of its input for backward, by way of float32; autocast needs none.
            layer.cast_input_dtype_enabled = False
        if self._starts:
            self._start(weights)
            self._activate()
        trained = [(name, p) for name, p in named if f".{TRAINED}" in name]
        self.names = [name for name, _ in trained]
        self.parameters = [p for _, p in trained]
        self._require_gradients()

    @property
    def _starts(self) -> bool:
        return self.settings.init in STARTS

    def _tuned(self) -> list[Any]:
        from peft.tuners.tuners_utils import BaseTunerLayer

        return [module for module in self.transformer.modules() if isinstance(module, BaseTunerLayer)]

    def _check_rank(self, weights: Mapping[str, torch.Tensor]) -> None:
        for name, weight in weights.items():
            sides = weight.shape[:2]
            if self.settings.rank > min(sides):
                raise ModelError(
                    f"lora_init_type {self.settings.init} needs lora_rank of at most {min(sides)}, the smaller side of "
                    f"{name}. What to do: lower lora_rank, leave that layer out, or use lora_init_type default."
                )

    @torch.no_grad()
    def _start(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Fill both adapters: the trained one along the weight, the frozen one with its negative."""
        settings = self.settings
        for name, weight in weights.items():
            first, second = STARTS[settings.init](weight.flatten(1), settings.rank, settings.scale)
            layer = self.transformer.get_submodule(name)
            for adapter, sign in ((TRAINED, 1.0), (START, -1.0)):
                for side, value in ((layer.lora_A, first), (layer.lora_B, sign * second)):
                    side[adapter].weight.copy_(value.reshape(side[adapter].weight.shape))

    def _activate(self) -> None:
        for layer in self._tuned():
            layer.set_adapter([TRAINED, START])

    def _require_gradients(self) -> None:
        self.transformer.requires_grad_(False)
        for parameter in self.parameters:
            parameter.requires_grad_(True)

    def describe(self) -> list[str]:
        """What was put where."""
        settings = self.settings
        trained = sum(p.numel() for p in self.parameters)
        share = trained / quantize.weights(self.transformer)
        kind = ("DoRA" if settings.dora else "LoRA") + (
            f", {settings.init} start" if settings.init != "default" else ""
        )
        return [
            f"Adapter: {kind}, rank {settings.rank}, scale {settings.scale:g}, {trained:,} trained weights in float32 "
            f"({share:.1%}) on {targets.summary(self.layers)}"
        ]

    def notes(self) -> list[str]:
        """Nothing: a name that matches no layer is refused."""
        return []

    def shape(self) -> dict[str, Any]:
        """Kind, rank, alpha, start and layers."""
        settings = self.settings
        return {
            "adapter": "dora" if settings.dora else "lora",
            "lora_rank": settings.rank,
            "lora_alpha": [settings.alpha, settings.rslora],
            "lora_init_type": settings.init if self._starts else "default",
            "adapted layers": targets.fingerprint(self.layers),
        }

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside, the base model."""
        try:
            for layer in self._tuned():
                layer.enable_adapters(False)
            yield
        finally:
            for layer in self._tuned():
                layer.enable_adapters(True)
            self._require_gradients()  # enabling them makes PEFT ask for gradients of its own choice

    @contextmanager
    def scaled(self, strength: float) -> Iterator[None]:
        """Inside, at another strength."""
        from peft.helpers import rescale_adapter_scale

        with rescale_adapter_scale(self.transformer, strength):
            yield

    def tensors(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The adapter in diffusers' layout, and the facts diffusers needs to load it."""
        settings = self.settings
        trained = {file_key(n): self._published(n, p) for n, p in zip(self.names, self.parameters, strict=True)}
        rank, alpha, rslora = settings.rank, settings.alpha, settings.rslora
        if self._starts:
            frozen = {
                file_key(name, START): self._published(name, p)
                for name, p in self.transformer.named_parameters()
                if ".lora_" in name and f".{START}" in name
            }
            trained = {k: torch.cat([v, frozen[k]], 0 if ".lora_A." in k else 1) for k, v in trained.items()}
            rank, alpha, rslora = 2 * rank, 2 * rank * settings.scale, False
        return trained, {
            "r": rank,
            "lora_alpha": alpha,
            "target_modules": [published(name) for name in self.layers],
            "use_dora": settings.dora,
            "use_rslora": rslora,
        }

    def _published(self, name: str, parameter: torch.Tensor) -> torch.Tensor:
        """As the layer of the published model would have it: 1x1 convolutions have four dimensions."""
        layer, value = name.partition(".lora_")[0], parameter.detach()
        if not is_inside(layer):
            return value
        return value.reshape(1, -1, 1, 1) if value.ndim == 1 else value[..., None, None]

    def save(self, folder: Path, layout: str = "diffusers") -> None:
        """Write ``pytorch_lora_weights.safetensors``."""
        tensors, facts = self.tensors()
        described = json.dumps({_PREFIX + key: value for key, value in facts.items()})
        metadata = {lora_layout.METADATA: described, "simpletuner_start": self.settings.init, **self.about}
        if layout == "comfyui":
            tensors = lora_layout.to_comfyui(tensors, metadata)
        write(folder / WEIGHTS, tensors, metadata)

    def read(self, folder: Path) -> dict[str, torch.Tensor]:
        """The trained half of what ``save`` wrote; with PiSSA and OLoRA the frozen half is put in place."""
        file = read_file(folder)
        stored = diffusers_tensors(file)
        values: dict[str, torch.Tensor] = {}
        live = dict(self.transformer.named_parameters())
        try:
            for name in self.names:
                whole = stored[file_key(name)]
                if self._starts:
                    whole, frozen = whole.chunk(2, 0 if ".lora_A." in name else 1)
                    start = live[name.replace(f".{TRAINED}", f".{START}")]
                    start.data.copy_(frozen.reshape(start.shape))
                values[name] = whole.reshape(live[name].shape)
        except (KeyError, RuntimeError) as error:
            raise ModelError(
                f"{file.path} is another adapter than the configured one ({error}). What to do: use the lora_rank, "
                "peft_lora_target_modules and use_dora it was trained with."
            ) from error
        return values

    def merge(self) -> None:
        """Add to the base weights, and leave a plain transformer."""
        for layer in self._tuned():
            layer.merge()
        for layer in self._tuned():  # unload_lora would build new layers in the adapter's dtype
            layer.get_base_layer().requires_grad_(False)
        self.transformer.unload_lora()


def diffusers_tensors(file: AdapterFile) -> dict[str, torch.Tensor]:
    """A file's tensors in diffusers' layout, whichever it is in.

    Raises:
        ModelError: It is neither.
    """
    return _in_diffusers(file)[0]


def _in_diffusers(file: AdapterFile) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    try:
        if lora_layout.is_comfyui(file.tensors):
            return lora_layout.to_diffusers(file.tensors)
    except ValueError as error:
        raise ModelError(f"{file.path}: {error}. What to do: give one that was trained for Sana.") from error
    facts = lora_layout.facts(file.metadata)
    down = [key for key in file.tensors if key.startswith(_PREFIX) and key.endswith(".lora_A.weight")]
    if not down:
        raise ModelError(
            f"{file.path} holds no LoRA in diffusers' or ComfyUI's layout (its first key is "
            f"{next(iter(file.tensors), 'none')!r}). What to do: give one that was trained for Sana."
        )
    ranks = {file.tensors[key].shape[0] for key in down}
    if len(ranks) > 1:
        raise ModelError(
            f"{file.path} has layers of different rank ({sorted(ranks)}), which cannot be trained on. "
            "What to do: give one with the same rank everywhere."
        )
    (rank,) = ranks
    return file.tensors, {
        "r": rank,
        "lora_alpha": float(facts.get("lora_alpha", rank)),  # type: ignore[arg-type]
        "target_modules": [key.removeprefix(_PREFIX).removesuffix(".lora_A.weight") for key in down],
        "use_dora": any(key.endswith(".lora_magnitude_vector") for key in file.tensors),
        "use_rslora": bool(facts.get("use_rslora", False)),
    }


def settings_of(file: AdapterFile, dropout: float = 0.0) -> LoraSettings:
    """The settings that continue a file: its rank, alpha, kind and layers.

    Args:
        file: In either layout.
        dropout: Of the run that continues it.

    Raises:
        ModelError: It holds no LoRA, or layers of different ranks.
    """
    _, facts = _in_diffusers(file)
    return LoraSettings(
        rank=facts["r"],
        alpha=facts["lora_alpha"],
        dropout=dropout,
        dora=facts["use_dora"],
        rslora=facts["use_rslora"],
        targets=tuple(facts["target_modules"]),
    )
