"""LoKr, LoHa and their kin through the LyCORIS library, with its file format.

Three things of the library are taken out of its hands: presets live on its class and leak from one network to the next,
so every key is always passed; ``merge_to`` of LoKr and LoHa applies alpha / rank twice, so merging is done here; and its
weight sums would be rounded to the base's dtype, so that small updates over a bf16 base were lost.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from simpletuner.data.cache import write_atomic
from simpletuner.errors import ModelError
from simpletuner.models import imports, quantize, targets
from simpletuner.models.adapters import LYCORIS_CONFIG, PARAMETERS, WEIGHTS, LycorisSettings, read_file, write
from simpletuner.models.linears import is_inside, published

# The library would time Triton kernels and compile graphs on a GPU, and a resumed run might then take others.
os.environ.setdefault("LYCORIS_KERNEL_BACKEND", "torch")

PREFIX = "lycoris"  # of every key, and the name under which the transformer holds the network
# Arguments of the configuration → of the network; the rest have the same name.
_RENAMED = {"algo": "network_module", "linear_dim": "lora_dim", "linear_alpha": "alpha", "conv_dim": "conv_lora_dim"}
_RENAMED |= {"dora_wd": "weight_decompose", "wd_on_output": "wd_on_out"}
_NEAREST = {"FeedForward": "GLUMBConv", "Transformer2DModel": "SanaTransformerBlock"}
_NOT_LAYERS = ("apply_preset", "multiplier")


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The network's arguments; dimensions and alphas as the library would fill them in, but never cut to integers."""
    given = {key: value for key, value in config.items() if key not in _NOT_LAYERS}
    dim = int(given.pop("linear_dim", None) or 4)
    alpha = float(given.pop("linear_alpha", 1.0))
    arguments = {
        "lora_dim": dim,
        "alpha": alpha,
        "conv_lora_dim": int(given.pop("conv_dim", dim)),
        "conv_alpha": float(given.pop("conv_alpha", alpha)),
        "multiplier": float(config.get("multiplier", 1.0)),
    }
    return arguments | {_RENAMED.get(key, key): value for key, value in given.items()}


def _preset(config: Mapping[str, Any]) -> dict[str, Any]:
    """Every key of a preset, so that nothing of an earlier network is left on the class."""
    return {
        "enable_conv": True,
        "target_module": [],
        "target_name": [],
        "module_algo_map": {},
        "name_algo_map": {},
        "exclude_name": [],
        "use_fnmatch": False,
        **config.get("apply_preset", {}),
        "lora_prefix": PREFIX,
    }


def unmatched(network: Any, transformer: nn.Module, preset: Mapping[str, Any]) -> list[str]:
    """``key: name`` for every class and name of a preset that no module has."""
    names = [name for name, _ in transformer.named_modules() if name]
    present = {type(module).__name__ for module in transformer.modules()}
    classes = {"target_module": preset["target_module"], "module_algo_map": preset["module_algo_map"]}
    patterns = {key: preset[key] for key in ("target_name", "name_algo_map", "exclude_name")}
    found = [f"{key}: {name}" for key, wanted in classes.items() for name in wanted if name not in present]
    return found + [
        f"{key}: {pattern}"
        for key, wanted in patterns.items()
        for pattern in wanted
        if pattern not in names and not any(network.match_fn(pattern, name) for name in names)
    ]


def _network(transformer: Any, preset: dict[str, Any], arguments: dict[str, Any]) -> Any:
    """The library's network of modules for the layers that match, not yet put in their place.

    Raises:
        ModelError: The algorithm cannot be put on one of them.
    """
    with imports.without_optional():
        from lycoris import LycorisNetwork
        from lycoris.logging import logger

    class Network(LycorisNetwork):
        """Names in presets are those of the published model."""

        def match_fn(self, pattern: str, name: str) -> bool:
            matches: bool = super().match_fn(pattern, published(name))
            return matches

    logger.setLevel("ERROR")  # what matched is said by describe
    LycorisNetwork.apply_preset(preset)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # a line for each layer; config.lycoris says it once
            return Network(transformer, warn_on_unmatched=False, **arguments)
    except ValueError as error:  # a width that cannot be taken apart: all that was left of 600 settings tried
        raise ModelError(
            f"lycoris_config: {arguments.get('algo')} cannot be put on these layers: {error}. What to do: choose other "
            "layers, or another linear_dim or factor."
        ) from error


class Lycoris:
    """A LyCORIS network; see the ``Adapter`` protocol."""

    def __init__(self, transformer: Any, settings: LycorisSettings) -> None:
        """Put it on ``transformer``. Raises ModelError if nothing matches."""
        self.transformer = transformer
        self.settings = settings
        self.about: dict[str, str] = {}
        preset, arguments = _preset(settings.config), _arguments(settings.config)
        network = _network(transformer, preset, arguments)
        self._unmatched = unmatched(network, transformer, preset)
        if not network.loras:
            raise ModelError(
                f"lycoris_config: nothing in this model matches {'; '.join(self._unmatched) or 'an empty apply_preset'}. "
                f'What to do: write "apply_preset": {{"target_module": ["Attention", "GLUMBConv"]}}, or choose '
                f"among the classes {targets.classes(transformer)} and the layers {targets.listing(transformer)}."
            )
        self._refuse_depthwise(network)
        network.float()
        self._beside = sum(bool(layer.bypass_mode) for layer in network.loras)  # as it must, or as the user says
        self._by_factors: list[Any] = []
        for layer in network.loras:
            layer.lora_name = published(layer.lora_name)  # so that its file fits the published model
            self._keep_small_updates(layer)
            if not (arguments.get("dropout") or arguments.get("rank_dropout")):  # these act on ΔW, or on its factors
                self._use_factors(layer)
        network.apply_to()
        if settings.lokr_norm is not None:
            perturb(network.loras, settings.lokr_norm)
        transformer.add_module(PREFIX, network)  # so that .train() and .to() reach it
        network.requires_grad_(True)
        self.network = network
        self.draws = settings.draws
        named = list(network.named_parameters())
        self.names = [name for name, _ in named]
        paths = {id(module): name for name, module in transformer.named_modules() if not name.startswith(PREFIX)}
        self.layers = [paths[id(layer.org_module[0])] for layer in network.loras]
        inside = zip(network.loras, self.layers, strict=True)
        self._inside = {layer.lora_name for layer, name in inside if is_inside(name)}
        self.parameters = [parameter for _, parameter in named]

    @staticmethod
    def _refuse_depthwise(network: Any) -> None:
        """GLoRA and BOFT are made for one, and fail only in the first step."""
        for layer in network.loras:
            algo = {"GLoRAModule": "glora", "ButterflyOFTModule": "boft"}.get(type(layer).__name__)
            if algo and getattr(layer.org_module[0], "groups", 1) > 1:
                raise ModelError(
                    f"lycoris_config: {algo} cannot adapt GLUMBConv's depthwise convolution. What to do: target Attention "
                    'alone, or write "module_algo_map": {"GLUMBConv": {"algo": "lokr"}}.'
                )

    def _use_factors(self, layer: Any) -> None:
        """ΔW·x by ΔW's factors where the user does not say (``bypass_mode``): the same sum, and ΔW is never made.

        Of one block of the 1.6B model, 256 tokens, one CPU core: LoKr 0.4 s in place of 1.8 s, and 54 MiB kept for backward
        in place of 168 (bench/figures.py).
        """
        factored = layer.name == "kron" or type(layer).__name__ == "LoConModule"
        if layer.bypass_mode is None and factored and not layer.wd and getattr(layer.org_module[0], "groups", 1) == 1:
            layer.bypass_mode = True
            self._by_factors.append(layer)

    @staticmethod
    def _keep_small_updates(layer: Any) -> None:
        """W + ΔW in float32: in bf16 a ΔW below W's last bit would vanish from the forward pass."""
        base = layer.org_module[0]
        if base.weight.dtype in (torch.bfloat16, torch.float16):
            vars(layer)["_current_weight"] = lambda: base.weight.detach().float()

    def describe(self) -> list[str]:
        """What was put where, and what matched nothing."""
        trained = sum(p.numel() for p in self.parameters)
        share = trained / quantize.weights(self.transformer)
        lines = [
            f"Adapter: LyCORIS {self.settings.config['algo']}, {trained:,} trained weights in float32 ({share:.1%}) on "
            f"{targets.summary(self.layers)}"
        ]
        if self._beside:
            lines.append(f"  its output is added beside {self._beside} of these layers; their weights are not rebuilt")
        return [*lines, *self.notes()]

    def notes(self) -> list[str]:
        """What matched nothing."""
        lines = []
        for entry in self._unmatched:
            key, _, name = entry.partition(": ")
            hint = f"in Sana it is called {_NEAREST[name]}" if name in _NEAREST else "leave it out or correct it"
            lines.append(f"Note: lycoris_config, {key}: {name!r} matches nothing in this model; {hint}")
        return lines

    def shape(self) -> dict[str, Any]:
        """Algorithm, its arguments and the layers."""
        config = {key: value for key, value in self.settings.config.items() if key not in _NOT_LAYERS}
        return {
            "adapter": f"lycoris {config.pop('algo')}",
            "lycoris_config": config,
            "adapted layers": targets.fingerprint(self.layers),
        }

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside, the base model. A multiplier of 0 would not do: DoRA's does not go away with it."""
        try:
            for layer in self.network.loras:
                layer.restore()
            yield
        finally:
            for layer in self.network.loras:
                layer.apply_to()

    @contextmanager
    def scaled(self, strength: float) -> Iterator[None]:
        """Inside, at another strength; and by ΔW, as the library has it elsewhere, so that pictures agree to the pixel."""
        before = self.network.multiplier
        self.network.set_multiplier(before * strength)
        for layer in self._by_factors:
            layer.bypass_mode = None
        try:
            yield
        finally:
            self.network.set_multiplier(before)
            for layer in self._by_factors:
                layer.bypass_mode = True

    def save(self, folder: Path, layout: str = "diffusers") -> None:
        """Write the weights and ``lycoris_config.json``; LyCORIS' own keys in either layout, ComfyUI reads them."""
        written = json.dumps(dict(self.settings.config), indent=1)
        tensors = {name: self._published(name, tensor) for name, tensor in self.network.state_dict().items()}
        write(folder / WEIGHTS, tensors, {"lycoris_config": written, **self.about})
        write_atomic(folder / LYCORIS_CONFIG, f"{written}\n".encode())
        extra = {name: p for name, p in zip(self.names, self.parameters, strict=True) if name.endswith(".scalar")}
        if extra:  # the file has them multiplied in, which a resumed run could not take apart
            exact = {n: self._published(n, p) for n, p in zip(self.names, self.parameters, strict=True)}
            write(folder / PARAMETERS, exact, {})
        else:  # an earlier adapter's, which would be read in place of these weights
            (folder / PARAMETERS).unlink(missing_ok=True)

    def _published(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """As for the published model, whose 1x1 convolutions have four dimensions."""
        layer, _, part = name.partition(".")
        if layer not in self._inside:
            return tensor
        rescales = part == "rescale" and type(getattr(self.network, layer)).__name__ == "DiagOFTModule"
        kernel = tensor.ndim == 2 and (rescales or part in ("lokr_w2", "dora_scale") or part.endswith(".weight"))
        return tensor[..., None, None] if kernel else tensor

    def read(self, folder: Path) -> dict[str, torch.Tensor]:
        """What ``save`` wrote, by parameter name."""
        file = read_file(folder)
        exact = file.path.parent / PARAMETERS
        stored = {**file.tensors, **(load_file(exact) if exact.is_file() else {})}
        own = self.network.state_dict()
        values: dict[str, torch.Tensor] = {}
        for name, parameter in zip(self.names, self.parameters, strict=True):
            value = stored.get(name)
            if value is None and name.endswith(".scalar"):
                value = torch.ones_like(parameter)
            if value is None or value.shape not in (self._published(name, parameter).shape, parameter.shape):
                raise self._other(file.path, name)
            values[name] = value.reshape(parameter.shape)
        for name, alpha in own.items():
            if name.endswith(".alpha") and name in file.tensors and float(alpha) != float(file.tensors[name]):
                raise self._other(file.path, name)
        return values

    def _other(self, path: Path, name: str) -> ModelError:
        return ModelError(
            f"{path} is another adapter than the configured one (first difference: {name}). "
            "What to do: use the lycoris_config it was trained with; it lies beside the file."
        )

    @torch.no_grad()
    def merge(self) -> None:
        """Add to the base weights, and leave a plain transformer."""
        self.network.eval()  # no dropout in what is added
        for layer in self.network.loras:
            layer.restore()
            base = layer.org_module[0]
            if hasattr(layer, "hada_w1_a") or layer.name == "kron":  # their own get_diff_weight scales twice
                change = layer.get_weight(layer.shape) * layer.scalar
                if layer.wd:
                    merged = layer.apply_weight_decompose(base.weight.float() + change, layer.multiplier)
                else:
                    merged = base.weight.float() + change * layer.multiplier
                base.weight.copy_(merged)
            else:
                layer.merge_to(layer.multiplier)
        del self.transformer._modules[PREFIX]


@torch.no_grad()
def perturb(layers: list[Any], scale: float) -> None:
    """Start LoKr with noise in place of nothing: w1 = 1, and w2 normal with the base weight's mean and deviation.

    Args:
        layers: LoKr modules with both factors whole (``full_matrix``).
        scale: Multiplies the noise; 1e-4 to 1e-2 disturbs the model little.

    Raises:
        ModelError: A layer has a decomposed factor.
    """
    for layer in layers:
        if not (getattr(layer, "use_w1", False) and getattr(layer, "use_w2", False)):
            raise ModelError(
                f"init_lokr_norm needs whole LoKr factors, and {layer.lora_name} has decomposed ones. What to do: set "
                '"algo": "lokr" and "full_matrix": true in lycoris_config, or remove init_lokr_norm.'
            )
        weight = quantize.dense(layer.org_module[0]).float()
        layer.lokr_w1.fill_(1.0)
        layer.lokr_w2.normal_(weight.mean().item() * scale, max(weight.std().item(), 1e-12) * scale)
