"""Tiny decoders for previews: a few convolutions that stand in for DC-AE's decoder.

In: a file of weights in the layout of the taesd project (TAESANA is the one for Sana), of diffusers' AutoencoderTiny, or
our own for the pocket model, which is the same. Out: scaled latents → pixels, roughly, in a hundredth of the time.

Layers are deduced from names and shapes, so that no list of variants can go stale. Trains nothing; writes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from simpletuner.errors import ModelError
from simpletuner.models.base import signal_to_noise

SUBFOLDER = "preview_decoder"  # of a model's folder
# Names in a folder or repository, the first that is there.
FILES = (
    "decoder.safetensors",
    "taesana_decoder.safetensors",
    "taesana_decoder.pth",
    "diffusion_pytorch_model.safetensors",
)
_LATENT_BOUND = 3.0  # latents are squeezed into (-3, 3)
_INDEXED = re.compile(r"^(?:decoder\.)?(?:layers\.)?(\d+)\.(.+)$")


class Block(nn.Module):
    """Three 3x3 convolutions around a shortcut. Source: the taesd project (MIT), ``Block``; diffusers' AutoencoderTinyBlock."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        """The shortcut is a 1x1 convolution where the numbers of channels differ."""
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, padding=1),
        )
        same = channels_in == channels_out
        self.skip: nn.Module = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B, in, H, W] → [B, out, H, W]."""
        return torch.relu(self.conv(features) + self.skip(features))


class Squeeze(nn.Module):
    """Latents into (-3, 3), smoothly: noise far outside would drown the rest."""

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Any shape."""
        return torch.tanh(latents / _LATENT_BOUND) * _LATENT_BOUND


def layers(weights: Mapping[str, torch.Tensor]) -> nn.Sequential:
    """The decoder that these weights belong to, filled with them, in float32.

    A number stands before each name: the layer's place. Layers without weights leave gaps in the numbers: one before a
    later convolution is an enlargement by 2, the one after the first convolution a ReLU.

    Args:
        weights: By name, with or without ``decoder.`` or ``decoder.layers.`` before the number; an encoder beside them is
            passed over.

    Raises:
        ValueError: These are not the weights of such a decoder; says why.
    """
    places: dict[int, dict[str, torch.Tensor]] = {}
    prefixed = any(name.startswith("decoder.") for name in weights)
    for name, tensor in weights.items():
        if prefixed and not name.startswith("decoder."):
            continue
        found = _INDEXED.match(name)
        if not found:
            raise ValueError(f"{name!r} is no layer of a tiny decoder")
        places.setdefault(int(found[1]), {})[found[2]] = tensor
    if len(places) < 2:
        raise ValueError("it has fewer than two layers")
    first, last = min(places), max(places)
    if "weight" not in places[first] or "weight" not in places[last]:
        raise ValueError("it does not begin and end with a convolution")
    built: list[nn.Module] = [Squeeze()]
    for place in sorted(places):
        if "weight" in places[place] and place not in (first, last) and place - 1 not in places:
            built.append(nn.Upsample(scale_factor=2, mode="nearest"))
        built.append(_filled(place, places[place]))
        if place == first:
            built.append(nn.ReLU())
    return nn.Sequential(*built)


def _filled(place: int, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """One convolution or block with its weights."""
    try:
        if "weight" in tensors:
            out, inside, height, width = tensors["weight"].shape
            module: nn.Module = nn.Conv2d(inside, out, (height, width), padding=height // 2, bias="bias" in tensors)
        else:
            out, inside = tensors["conv.0.weight"].shape[:2]
            module = Block(inside, out)
        module.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except (KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"its layer {place} is of another kind ({', '.join(sorted(tensors))})") from error
    return module


@dataclass(slots=True)
class TinyDecoder:
    """Latents → pixels by a tiny decoder.

    Attributes:
        name: For messages.
        net: Latents → pixels in [0, 1].
        stride: Pixels per latent cell.
        divisors: What scaled latents may have to be divided by: 1 where the decoder takes them as the transformer
            does, the taesd project's way, or the VAE's own scaling factor. No file says which.
    """

    name: str
    net: nn.Sequential
    stride: int
    divisors: tuple[float, ...] = (1.0,)

    @torch.no_grad()
    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """[B, C, h, w] scaled latents → [B, 3, h * stride, w * stride] in [-1, 1], float32."""
        with torch.autocast(latents.device.type, enabled=False):
            pixels: torch.Tensor = self.net(latents.float() / self.divisors[0])
        return pixels.mul(2).sub(1).clamp(-1, 1)

    def fit(self, latents: torch.Tensor, pixels: torch.Tensor) -> float:
        """Put the divisor first that comes nearest to the VAE's pixels; returns its signal-to-noise ratio in dB."""
        found = []
        for divisor in self.divisors:
            made = TinyDecoder(self.name, self.net, self.stride, (divisor,))(latents)
            found.append((signal_to_noise(made, pixels), divisor))
        best, chosen = max(found, key=lambda pair: pair[0])
        self.divisors = (chosen, *(d for d in self.divisors if d != chosen))
        return best

    def to(self, device: torch.device) -> TinyDecoder:
        """Move the weights; returns itself."""
        self.net.to(device)
        return self


def find(chosen: str, model: str) -> Path | None:
    """The file of a tiny decoder.

    Args:
        chosen: A file, a folder or a hub id; empty looks into the model's own folder.
        model: The model's folder or hub id; only a folder is looked into.

    Returns:
        None if nothing was chosen and the model has none.

    Raises:
        ModelError: What was chosen is not there.
    """
    if not chosen:
        folder = Path(model).expanduser() / SUBFOLDER
        return _inside(folder) if folder.is_dir() else None
    path = Path(chosen).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        file = _inside(path) or _inside(path / SUBFOLDER)
        if file is None:
            raise ModelError(f"{chosen!r} (validation_preview_decoder) holds none of {', '.join(FILES)}.")
        return file
    return _from_hub(chosen)


def _inside(folder: Path) -> Path | None:
    return next((folder / name for name in FILES if (folder / name).is_file()), None)


def _from_hub(repository: str) -> Path:
    """The first file of ``FILES`` that a hub repository has."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    advice = "give the file, for example taesana_decoder.pth of the taesd project, or leave it out"
    if repository.startswith((".", "/", "~")):
        raise ModelError(
            f"there is no file or folder {repository!r} (validation_preview_decoder). What to do: {advice}."
        )
    reason = "it has none of " + ", ".join(FILES)
    for name in FILES if repository.count("/") == 1 else ():
        try:
            return Path(hf_hub_download(repository, name))
        except LocalEntryNotFoundError:
            reason = "it was not downloaded earlier, and the hub cannot be asked"
        except EntryNotFoundError:
            continue
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            break
    raise ModelError(
        f"there is no file or folder {repository!r} (validation_preview_decoder), and as a hub id it gave nothing: "
        f"{reason.rstrip('.')}. What to do: {advice}."
    )


def read(file: Path, channels: int, stride: int, scaling_factor: float = 1.0) -> TinyDecoder:
    """A tiny decoder from its file.

    Args:
        file: ``.safetensors``, or ``.pth`` with tensors alone: no code of a file is ever run.
        channels: Of the model's latents.
        stride: Pixels per latent cell.
        scaling_factor: The VAE's.

    Raises:
        ModelError: It cannot be read, or is one of another model.
    """
    remedy = "What to do: for Sana give TAESANA's decoder, or leave validation_preview_decoder out."
    try:
        net = layers(_weights(file)).eval().requires_grad_(False)
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} is no tiny decoder that can be read: {error}. {remedy}") from error
    begin, end = (layer for layer in (net[1], net[-1]) if isinstance(layer, nn.Conv2d))
    takes, gives = begin.in_channels, end.out_channels
    enlarges = 2 ** sum(isinstance(layer, nn.Upsample) for layer in net)
    if (takes, gives, enlarges) != (channels, 3, stride):
        raise ModelError(
            f"{file} makes {gives} channels, {enlarges} times as large, of {takes}; this model's latents need 3, {stride} "
            f"times as large, of {channels}. {remedy}"
        )
    name = file.name if file.parent.name != SUBFOLDER else "the model's own tiny decoder"
    return TinyDecoder(name, net, stride, tuple(dict.fromkeys((1.0, scaling_factor))))


def _weights(file: Path) -> dict[str, torch.Tensor]:
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(file)
        except SafetensorError as error:
            raise ValueError(f"it is no whole safetensors file ({error})") from error
    import pickle

    try:
        found: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError("it is no file of tensors alone") from error
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ValueError("it is no table of tensors")
    return found
