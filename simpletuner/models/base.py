"""What the rest of the program may know of a model family: facts and a handful of functions.

A family never samples noise and never sees options, optimizer or trackers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch


@dataclass(frozen=True, slots=True)
class Facts:
    """What can be read off a loaded model, in plain numbers.

    Attributes:
        alignment: Picture sides must be multiples of this, in pixels.
        stride: Pixels per latent cell.
        patch_size: Latent cells per transformer token, along one side.
        shift: The model's own flow shift.
        native_resolution: Edge in pixels the weights were made for.
        latent_channels: Channels of a latent cell.
        vae_tile: Edge in pixels above which a tiling VAE works in tiles.
        vae_tile_rules: How it cuts them: tiled latents are other latents, so this is part of their fingerprint.
    """

    alignment: int
    stride: int
    patch_size: int
    shift: float
    native_resolution: int
    latent_channels: int = 32
    vae_tile: int = 512
    vae_tile_rules: str = ""

    def tokens(self, latent_height: int, latent_width: int) -> int:
        """Transformer tokens of one picture with this latent grid."""
        return (latent_height // self.patch_size) * (latent_width // self.patch_size)


@dataclass(frozen=True, slots=True)
class Footprint:
    """How many weights a pipeline has, and where, in plain numbers.

    Attributes:
        blocks: Repeated blocks of the transformer.
        block_weights: Weights of one of them.
        other_weights: Weights of the transformer outside its blocks.
        block_matrices: Of a block's weights those in matrices, which can be quantised.
        largest_matrix: Weights of the largest matrix of a block.
        token_width: Channels of a token.
        vae_weights: Weights of the VAE.
        vae_decoder_weights: Of these, its decoder's.
        text_weights: Weights of the text encoder.
        text_matrices: Of these, what can be quantised.
        text_token_numbers: Numbers that the text encoder has at hand for one token, at most.
        text_heads: Its attention's heads, each of which has a score for every two tokens.
    """

    blocks: int
    block_weights: int
    other_weights: int
    block_matrices: int
    largest_matrix: int
    token_width: int
    vae_weights: int
    vae_decoder_weights: int
    text_weights: int
    text_matrices: int
    text_token_numbers: int
    text_heads: int

    @property
    def weights(self) -> int:
        """Weights of the transformer."""
        return self.blocks * self.block_weights + self.other_weights


Forward = Literal["fast", "plain", "diffusers"]
Adapt = Callable[[Any], Any]  # puts an adapter on a transformer, and returns it


@dataclass(frozen=True, slots=True)
class StepShape:
    """What decides how much a training step keeps for backward.

    Attributes:
        batch: Pictures.
        latents: Rows and columns of latent cells.
        text_tokens: Of each caption, padding included.
        forward: Of the blocks.
        compiled: Blocks are compiled.
        weights: Dtype of the transformer's weights.
        autocast: Dtype of products under autocast, or None.
    """

    batch: int
    latents: tuple[int, int]
    text_tokens: int
    forward: Forward
    compiled: bool
    weights: torch.dtype
    autocast: torch.dtype | None = None


@dataclass(frozen=True, slots=True)
class Activations:
    """What a step keeps, in bytes.

    Attributes:
        block: Kept by one block for its backward.
        outside: Kept by the rest of the transformer.
        transient: The most that lives beside what is kept, in backward.
        trained_block: How many weights one block trains.
        trained_outside: How many are trained outside the blocks.
    """

    block: int
    outside: int
    transient: int
    trained_block: int
    trained_outside: int


@dataclass(slots=True)
class Components:
    """The parts of one loaded pipeline. ``scheduler`` is the sampler used for validation and export."""

    transformer: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any


@dataclass(frozen=True, slots=True)
class TextSettings:
    """How captions become tokens; the same in training and validation.

    Attributes:
        instruction: Lines put before every non-empty caption, or empty for none.
        max_tokens: Tokens kept of each caption, the first token included.
    """

    instruction: tuple[str, ...]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class EncodedText:
    """Text embeds as the model takes them: [B, n, D], and the mask [B, n] (1 real, 0 padding)."""

    embeds: torch.Tensor
    mask: torch.Tensor

    def real(self) -> list[torch.Tensor]:
        """Each caption's real tokens alone, [n, D].

        Exact for the model: padded positions carry a mask bias that removes them from cross-attention.
        """
        return [row[: int(m.sum())].clone() for row, m in zip(self.embeds, self.mask, strict=True)]


class PreviewDecoder(Protocol):
    """Latents → pixels, roughly and quickly.

    Attributes:
        name: For messages.
        stride: Pixels per latent cell.
    """

    name: str
    stride: int

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """[B, C, h, w] scaled latents → [B, 3, h * stride, w * stride] in [-1, 1], float32."""

    def fit(self, latents: torch.Tensor, pixels: torch.Tensor) -> float:
        """Settle what the file leaves open by what the VAE makes of the same latents.

        Args:
            latents: [B, C, h, w] scaled.
            pixels: The VAE's, [B, 3, H, W] in [-1, 1].

        Returns:
            Peak signal-to-noise ratio in dB against these pixels.
        """

    def to(self, device: torch.device) -> PreviewDecoder:
        """Move the weights; returns itself."""


def signal_to_noise(made: torch.Tensor, wanted: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pixels in [-1, 1]; infinite for equal ones."""
    error = (made.float() - wanted.float().to(made.device)).square().mean().item()
    return 10 * math.log10(4 / error) if error else math.inf


class Family(Protocol):
    """One model family."""

    name: str

    def load(self, source: LoadSource) -> Components:
        """Load every part from a folder or a hub id. Raises ModelError with what to do."""

    def peek(self, source: LoadSource) -> Facts:
        """Facts read off the configuration files alone, before any weights are loaded."""

    def default_instruction(self) -> tuple[str, ...]:
        """The instruction prefix the family was trained with."""

    def encode_pixels(self, vae: Any, pixels: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] in [-1, 1] → scaled latents [B, C, H/stride, W/stride] float32."""

    def encode_captions(
        self, parts: Components, captions: list[str], settings: TextSettings, with_instruction: bool
    ) -> EncodedText:
        """Captions → padded text embeds, exactly as the reference pipeline encodes them."""

    def tokenizer(self, source: LoadSource) -> Any:
        """The tokenizer alone."""

    def cut_off(self, tokenizer: Any, caption: str, settings: TextSettings) -> str:
        """The end of a caption that the model never sees, "" if all of it fits."""

    def autoencoder(self, source: LoadSource) -> Any:
        """The VAE alone, in float32."""

    def decode_in_tiles(self, vae: Any) -> bool:
        """From now on decode in less memory, nearly the same; False where that is so already, or cannot be."""

    def text_encoder(self, source: LoadSource) -> Any:
        """The text encoder alone, frozen."""

    def blocks(self, transformer: Any) -> torch.nn.ModuleList:
        """The transformer's repeated blocks; what lies outside them is few weights that matter much."""

    def decode_latents(self, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents → pixels [B, 3, H, W] in [-1, 1] float32; the inverse of ``encode_pixels``."""

    def preview_decoder(self, source: LoadSource, chosen: str) -> PreviewDecoder | None:
        """A tiny decoder: the chosen one (file, folder or hub id), or the model's own; None if it has none.

        Raises:
            ModelError: What was chosen is not there, or belongs to other latents.
        """

    def predict(
        self,
        transformer: Any,
        noisy_latents: torch.Tensor,
        timesteps: torch.Tensor,
        text: torch.Tensor,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """The model's velocity, same shape as ``noisy_latents``; the mask may be on the CPU."""

    def use_plain_forward(self, transformer: Any) -> str | None:
        """In training mode, the family's own forward over the same weights; returns the obstacle, if there is one."""

    def use_fast_forward(self, transformer: Any, compiled: bool) -> str | None:
        """As ``use_plain_forward``, with hand-written kernels on a GPU, and blocks compiled if asked for."""

    def compile_ahead(
        self, source: LoadSource, dtype: torch.dtype, device: torch.device, adapter: bool
    ) -> Callable[[], None]:
        """Start compiling the kernels of the fast forward beside other work; returns what waits for them.

        ``adapter`` says that the weights are frozen, so that other gradients are made.
        """

    def checkpoint_blocks(self, transformer: Any, interval: int, random: bool = True) -> int:
        """Recompute every ``interval``-th block in backward; returns how many.

        ``random`` False says that nothing random is drawn in a block: random states are then not kept for the second time.
        """

    def bare(self, source: LoadSource) -> Any:
        """The transformer with all its blocks and no weights, read off the configuration files: on the meta device."""

    def footprint(self, source: LoadSource) -> Footprint:
        """How many weights there are, read off the configuration files."""

    def activations(self, source: LoadSource, shape: StepShape, adapt: Adapt | None = None) -> Activations:
        """What a training step keeps, without weights; ``adapt`` puts the adapter on a transformer, if there is one."""

    def vae_activations(self, source: LoadSource, width: int, height: int, decode: bool) -> int:
        """Bytes that encoding or decoding one picture of this size in pixels takes beside the VAE's weights."""

    def pipeline(self, parts: Components, with_text: bool) -> Any:
        """The reference pipeline over these very parts (no copies)."""

    def sampler(self, name: str, own: Any, shift: float) -> Any:
        """Another sampler for the pipeline than the model's ``own``: ``flow_match``, ``dpm++`` or ``unipc``."""

    def sampler_line(self, name: str, shift: float) -> tuple[str, dict[str, Any]]:
        """The class of that sampler in diffusers, and what its ``from_config`` is given besides the own settings."""


@dataclass(frozen=True, slots=True)
class LoadSource:
    """Where and how to load.

    Attributes:
        path: A local folder or a hub id.
        revision: Hub revision, or None.
        variant: Weight variant (``fp16``, ``bf16``), or None.
        transformer_path: Other transformer weights, or None for those of ``path``.
        transformer_subfolder: Subfolder of the transformer.
        weight_dtype: Dtype of the transformer's parameters.
        text_dtype: Dtype of the text encoder.
        vae_tiling: The VAE works in tiles on anything larger than one.
        vae_slicing: The VAE works on one picture of a batch at a time.
        key: The option that names ``path``, for messages.
    """

    path: str
    revision: str | None = None
    variant: str | None = None
    transformer_path: str | None = None
    transformer_subfolder: str = "transformer"
    weight_dtype: torch.dtype = torch.float32
    text_dtype: torch.dtype = torch.float32
    vae_tiling: bool = False
    vae_slicing: bool = False
    key: str = "pretrained_model_name_or_path"

    @property
    def local(self) -> Path | None:
        """The folder, if ``path`` names one that exists."""
        folder = Path(self.path).expanduser()
        return folder if folder.is_dir() else None
