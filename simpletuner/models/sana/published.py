"""The configuration of each published flavour, so that memory can be estimated before anything is downloaded.

In: a flavour's name. Out: a folder of small JSON files as the hub has them; no weights. What is downloaded later decides.

Source: the published configurations of NVLabs' diffusers repositories, and Gemma-2-2b's.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

_SHALLOW = {  # 1.6B, 20 blocks
    "num_attention_heads": 70,
    "num_layers": 20,
    "num_cross_attention_heads": 20,
    "cross_attention_head_dim": 112,
    "cross_attention_dim": 2240,
}
_SIZES: dict[str, dict[str, Any]] = {
    "1.6b": _SHALLOW,
    "4.8b": {**_SHALLOW, "num_layers": 60},
    "600m": {
        "num_attention_heads": 36,
        "num_layers": 28,
        "num_cross_attention_heads": 16,
        "cross_attention_head_dim": 72,
        "cross_attention_dim": 1152,
    },
}
_SCALES = {2048: 1.0, 4096: 2.0}  # of positions; smaller flavours have none
_STAGES = [[], [], [], [5], [5], [5]]
_WIDTHS = [128, 256, 512, 512, 1024, 1024]
_KINDS = ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3
_VAE = {
    "_class_name": "AutoencoderDC",
    "latent_channels": 32,
    "encoder_block_types": _KINDS,
    "decoder_block_types": _KINDS,
    "encoder_qkv_multiscales": _STAGES,
    "decoder_qkv_multiscales": _STAGES,
    "encoder_block_out_channels": _WIDTHS,
    "decoder_block_out_channels": _WIDTHS,
    "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
    "decoder_layers_per_block": [3] * 6,
    "downsample_block_type": "Conv",
    "upsample_block_type": "interpolate",
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "scaling_factor": 0.41407,
}
_GEMMA = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 256000,
}


def transformer(flavour: str) -> dict[str, Any]:
    """Arguments of SanaTransformer2DModel for a flavour such as ``sana1.5-4.8b-1024``.

    Raises:
        ValueError: Its name is not of this form.
    """
    named = re.fullmatch(r"sana(\d\.\d)-(\w+(?:\.\w+)?)-(\d+)", flavour)
    if named is None or named[2] not in _SIZES:
        raise ValueError(f"{flavour!r} is no published flavour")
    version, size, edge = named.groups()
    return {
        "_class_name": "SanaTransformer2DModel",
        "in_channels": 32,
        "out_channels": 32,
        "attention_head_dim": 32,
        "mlp_ratio": 2.5,
        "attention_bias": False,
        "sample_size": int(edge) // 32,
        "patch_size": 1,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "interpolation_scale": _SCALES.get(int(edge)),
        "caption_channels": 2304,
        "qk_norm": "rms_norm_across_heads" if version == "1.5" else None,
        **_SIZES[size],
    }


def write(flavour: str, folder: Path) -> Path:
    """The configuration files of a flavour, into a folder that is made; returns it."""
    shift = 6.0 if flavour.endswith("-4096") else 3.0
    files: dict[str, Any] = {
        "model_index.json": {"_class_name": "SanaPipeline"},
        "transformer/config.json": transformer(flavour),
        "vae/config.json": _VAE,
        "text_encoder/config.json": _GEMMA,
        "scheduler/scheduler_config.json": {"_class_name": "DPMSolverMultistepScheduler", "flow_shift": shift},
    }
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content), encoding="utf-8")
    return folder
