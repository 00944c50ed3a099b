"""NVLabs Sana: the transformer, DC-AE and Gemma-2 of diffusers, seen through the Family protocol."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from simpletuner.models import checkpointing, load
from simpletuner.models.base import (
    Activations,
    Adapt,
    Components,
    EncodedText,
    Facts,
    Footprint,
    LoadSource,
    PreviewDecoder,
    StepShape,
    TextSettings,
)
from simpletuner.models.sana import (
    attention,
    block_forward,
    encoder,
    footprint,
    preview_decoder,
    prompts,
    samplers,
    tiling,
)
from simpletuner.models.sana.kernels import ahead
from simpletuner.models.sana.transformer import KERNELS, run_block

# The official recipe's shift for a scheduler that names none (facts: NVlabs/Sana trains at 3.0).
OFFICIAL_SHIFT = 3.0


def _decode(vae: Any, decode: Callable[..., Any], latents: torch.Tensor, *arguments: Any, **named: Any) -> Any:
    """Decode without autocast, where the latents are: the decoder comes there for that long, if it is elsewhere.

    A pipeline that draws under autocast would decode in half precision, and float16 overflows.
    """
    home = next(vae.decoder.parameters()).device
    try:
        vae.decoder.to(latents.device)
        with torch.autocast(latents.device.type, enabled=False):
            return decode(latents, *arguments, **named)
    finally:
        vae.decoder.to(home)


class Sana:
    """Facts and functions of the Sana family. Holds no state."""

    name = "sana"

    def load(self, source: LoadSource) -> Components:
        """Load every part. Raises ModelError with what to do."""
        from diffusers import SanaTransformer2DModel

        index = load.read_index(source)
        transformer = load.part(SanaTransformer2DModel, source, source.transformer_subfolder, source.weight_dtype)
        attention.use_float32_sums(transformer)
        return Components(
            transformer=transformer,
            vae=self.autoencoder(source),
            text_encoder=self.text_encoder(source),
            tokenizer=self.tokenizer(source),
            scheduler=load.scheduler(source, index),
        )

    def peek(self, source: LoadSource) -> Facts:
        """Facts read off the configuration files; nothing is assumed of the flavour."""
        load.read_index(source)  # says clearly when there is no pipeline at all
        transformer = load.config(source, source.transformer_subfolder)
        vae = load.config(source, "vae")
        scheduler = load.config(source, "scheduler")
        load.expect_class(source, "vae", vae, "AutoencoderDC")
        load.expect_class(source, source.transformer_subfolder, transformer, "SanaTransformer2DModel")
        # Each stage of DC-AE but the last halves the picture.
        stride = 2 ** (len(vae["encoder_block_out_channels"]) - 1)
        shift = scheduler.get("flow_shift", scheduler.get("shift"))
        patch = int(transformer.get("patch_size", 1))
        return Facts(
            alignment=stride * patch,
            stride=stride,
            patch_size=patch,
            shift=float(shift) if shift is not None else OFFICIAL_SHIFT,
            native_resolution=int(transformer.get("sample_size", 32)) * stride,
            latent_channels=int(transformer.get("in_channels", 32)),
            vae_tile=tiling.TILE * stride,
            vae_tile_rules=tiling.RULES,
        )

    def default_instruction(self) -> tuple[str, ...]:
        """Sana's Complex Human Instruction."""
        return prompts.default_instruction()

    @torch.no_grad()
    def encode_pixels(self, vae: Any, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels → latents * scaling_factor, and nothing else.

        Args:
            vae: AutoencoderDC in float32; deterministic, it has no distribution.
            pixels: [B, 3, H, W] in [-1, 1], sides multiples of the alignment.

        Returns:
            [B, C, H/stride, W/stride] float32.

        Source: NVlabs/Sana's training and diffusers' ``train_dreambooth_lora_sana.py``.
        """
        pixels = pixels.to(dtype=torch.float32)
        if pixels.is_cuda:  # cuDNN's fast convolutions and the norms want channels last; nothing is copied in between
            pixels = pixels.to(memory_format=torch.channels_last)
        latents = vae.encode(pixels, return_dict=False)[0].contiguous()
        return latents * vae.config.scaling_factor

    def encode_captions(
        self, parts: Components, captions: list[str], settings: TextSettings, with_instruction: bool
    ) -> EncodedText:
        """Captions → padded text embeds, as SanaPipeline encodes them."""
        return prompts.encode_captions(parts.tokenizer, parts.text_encoder, captions, settings, with_instruction)

    def tokenizer(self, source: LoadSource) -> Any:
        """The tokenizer alone."""
        return load.tokenizer(source)

    def cut_off(self, tokenizer: Any, caption: str, settings: TextSettings) -> str:
        """The end of a caption that is beyond ``settings.max_tokens``, "" if all of it fits."""
        return prompts.cut_off(tokenizer, caption, settings)

    def autoencoder(self, source: LoadSource) -> Any:
        """The VAE alone, in float32."""
        from diffusers import AutoencoderDC

        vae = encoder.quicken(load.part(AutoencoderDC, source, "vae", torch.float32).eval().requires_grad_(False))
        tiling.enable(vae, source.vae_tiling, source.vae_slicing)
        vars(vae)["decode"] = partial(_decode, vae, vae.decode)
        return vae

    def decode_in_tiles(self, vae: Any) -> bool:
        """From now on decode by tiles what is larger than one; False where that is so already."""
        return tiling.decode_only(vae)

    def text_encoder(self, source: LoadSource) -> Any:
        """The text encoder alone, frozen."""
        return load.text_encoder(source, load.read_index(source)).eval().requires_grad_(False)

    def blocks(self, transformer: Any) -> torch.nn.ModuleList:
        """The transformer's repeated blocks: attentions and GLUMBConv."""
        blocks: torch.nn.ModuleList = transformer.transformer_blocks
        return blocks

    @torch.no_grad()
    def decode_latents(self, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents [B, C, h, w] → pixels [B, 3, H, W] in [-1, 1] float32."""
        pixels: torch.Tensor = vae.decode(latents.float() / vae.config.scaling_factor, return_dict=False)[0]
        return pixels.clamp(-1, 1)

    def preview_decoder(self, source: LoadSource, chosen: str) -> PreviewDecoder | None:
        """A tiny decoder: the chosen one, or that in the model's folder. Raises ModelError."""
        file = preview_decoder.find(chosen, source.path)
        if file is None:
            return None
        facts, vae = self.peek(source), load.config(source, "vae")
        return preview_decoder.read(file, facts.latent_channels, facts.stride, float(vae.get("scaling_factor", 1.0)))

    def predict(
        self,
        transformer: Any,
        noisy_latents: torch.Tensor,
        timesteps: torch.Tensor,
        text: torch.Tensor,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """The model's velocity.

        Args:
            transformer: SanaTransformer2DModel (or a wrapper with the same call).
            noisy_latents: [B, C, h, w].
            timesteps: [B] float32 in [0, 1000]; kept in float32, as in the pipeline.
            text: [B, n, D] text embeds.
            mask: [B, n], 1 for real tokens; on the CPU or beside the latents.

        Returns:
            [B, C, h, w] in the transformer's dtype.
        """
        config = transformer.config
        dtype = transformer.dtype
        shown = block_forward.needed_mask(mask) if block_forward.in_use(transformer) else mask
        output = transformer(
            noisy_latents.to(dtype),
            encoder_hidden_states=text.to(dtype),
            encoder_attention_mask=None if shown is None else shown.to(noisy_latents.device),
            timestep=timesteps * getattr(config, "timestep_scale", 1.0),
            return_dict=False,
        )[0]
        if config.out_channels == 2 * config.in_channels:  # learned variance: the first half is the velocity
            output = output.chunk(2, dim=1)[0]
        return output

    def use_plain_forward(self, transformer: Any) -> str | None:
        """In training mode, our forward of the blocks over the same weights; returns the obstacle, if there is one."""
        return block_forward.use_plain(transformer)

    def use_fast_forward(self, transformer: Any, compiled: bool) -> str | None:
        """As ``use_plain_forward``, with hand-written kernels, and blocks compiled if asked for."""
        run = block_forward.compiled_block() if compiled else run_block
        return block_forward.use_plain(transformer, KERNELS, run)

    def compile_ahead(
        self, source: LoadSource, dtype: torch.dtype, device: torch.device, adapter: bool
    ) -> Callable[[], None]:
        """Start compiling the kernels of the fast forward in processes of their own; returns what waits for them."""
        return ahead.begin(load.config(source, source.transformer_subfolder), dtype, device, adapter)

    def checkpoint_blocks(self, transformer: Any, interval: int, random: bool = True) -> int:
        """Recompute every ``interval``-th transformer block in backward; returns how many."""
        random = random or bool(transformer.config.dropout)
        return checkpointing.enable(transformer, transformer.transformer_blocks, interval, random)

    def bare(self, source: LoadSource) -> Any:
        """From the transformer's configuration alone."""
        return footprint.bare(source)

    def footprint(self, source: LoadSource) -> Footprint:
        """How many weights there are, read off the configuration files."""
        return footprint.footprint(source)

    def activations(self, source: LoadSource, shape: StepShape, adapt: Adapt | None = None) -> Activations:
        """What a training step keeps, by running its blocks on tensors without numbers."""
        return footprint.activations(source, shape, adapt)

    def vae_activations(self, source: LoadSource, width: int, height: int, decode: bool) -> int:
        """Bytes that encoding or decoding one picture of this size takes beside the VAE's weights."""
        return footprint.vae_activations(source, width, height, decode)

    def pipeline(self, parts: Components, with_text: bool) -> Any:
        """Diffusers' SanaPipeline over these very parts, quiet; without its text parts if embeds are at hand."""
        from diffusers import SanaPipeline

        pipe: Any = SanaPipeline(
            tokenizer=parts.tokenizer if with_text else None,
            text_encoder=parts.text_encoder if with_text else None,
            vae=parts.vae,
            transformer=parts.transformer,
            scheduler=parts.scheduler,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def sampler(self, name: str, own: Any, shift: float) -> Any:
        """Another sampler than the model's ``own``: ``flow_match``, ``dpm++`` or ``unipc``."""
        return samplers.sampler(name, own, shift)

    def sampler_line(self, name: str, shift: float) -> tuple[str, dict[str, Any]]:
        """The class of that sampler in diffusers, and what its ``from_config`` is given besides the own settings."""
        return samplers.CLASSES[name], samplers.arguments(name, shift)
