"""Write a Sana pipeline folder with random weights and the real configuration keys, offline.

    python tools/random_sana.py OUT --size tiny     # a few MB, stride 32, captions 2304 wide: for tests
    python tools/random_sana.py OUT --size 1.6b     # the shape of Sana 1.6B at 1024 px: for speed and memory

The tokenizer is a small byte-fallback BPE trained on a few sentences; only shapes and code paths matter here.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

TEXT_WIDTH = 2304
SENTENCES = [
    f"a {medium} of a {colour} {thing} {place}"
    for medium in ("photo", "painting", "drawing", "blueprint")
    for colour in ("red", "green", "blue", "white", "black")
    for thing in ("fox", "house", "boat", "tree", "bicycle", "crown")
    for place in ("on a hill", "at night", "in the rain", "under a clear sky")
]


def _write_tokenizer(folder: Path) -> int:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=special + alphabet, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    bos = tokenizer.token_to_id("<bos>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
    names = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk", "mask")}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=8192, padding_side="right", **names)
    fast.save_pretrained(folder)
    return tokenizer.get_vocab_size()


def _shapes(size: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Transformer, VAE and text encoder arguments. Source: the published configs of Sana 1.6B 1024px (diffusers)."""
    transformer = {
        "in_channels": 32,
        "out_channels": 32,
        "mlp_ratio": 2.5,
        "attention_bias": False,
        "sample_size": 32,
        "patch_size": 1,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "interpolation_scale": None,
        "caption_channels": TEXT_WIDTH,
    }
    vae = {
        "latent_channels": 32,
        "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
        "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
        "encoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
        "decoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
        "downsample_block_type": "Conv",
        "upsample_block_type": "interpolate",
        "decoder_norm_types": "rms_norm",
        "decoder_act_fns": "silu",
        "scaling_factor": 0.41407,
    }
    text = {"hidden_size": TEXT_WIDTH, "num_hidden_layers": 2}
    if size == "tiny":
        widths = (16, 16, 32, 32, 32, 32)
        transformer |= {
            "num_attention_heads": 2,
            "attention_head_dim": 32,
            "num_layers": 3,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 32,
            "cross_attention_dim": 64,
        }
        vae |= {
            "encoder_block_out_channels": widths,
            "decoder_block_out_channels": widths,
            "encoder_layers_per_block": (1,) * 6,
            "decoder_layers_per_block": (1,) * 6,
        }
        text |= {"intermediate_size": 64, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 32}
    else:
        widths = (128, 256, 512, 512, 1024, 1024)
        transformer |= {
            "num_attention_heads": 70,
            "attention_head_dim": 32,
            "num_layers": 20,
            "num_cross_attention_heads": 20,
            "cross_attention_head_dim": 112,
            "cross_attention_dim": 2240,
        }
        vae |= {
            "encoder_block_out_channels": widths,
            "decoder_block_out_channels": widths,
            "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
            "decoder_layers_per_block": (3,) * 6,
        }
        text |= {"intermediate_size": 9216, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256}
        transformer |= _OTHER.get(size, {})
    return transformer, vae, text


# What the other published sizes have otherwise (SANA 0.6B, SANA1.5 4.8B).
_OTHER: dict[str, dict[str, Any]] = {
    "0.6b": {
        "num_attention_heads": 36,
        "num_layers": 28,
        "num_cross_attention_heads": 16,
        "cross_attention_head_dim": 72,
        "cross_attention_dim": 1152,
    },
    "4.8b": {"num_layers": 60, "qk_norm": "rms_norm_across_heads"},
}
SIZES = ("tiny", "1.6b", *_OTHER)
WHOLE_GEMMA = {"num_hidden_layers": 26}


def vae_config(size: str) -> dict[str, Any]:
    """Arguments of AutoencoderDC for one of ``SIZES``."""
    return _shapes(size)[1]


def transformer_config(size: str) -> dict[str, Any]:
    """Arguments of SanaTransformer2DModel for one of ``SIZES``."""
    return _shapes(size)[0]


def write(
    folder: Path,
    size: str = "tiny",
    device: str = "cpu",
    seed: int = 0,
    gemma: bool = False,
    beside: Path | None = None,
) -> Path:
    """Write the pipeline folder; float32 for ``tiny``, else bf16 transformer and text encoder.

    Args:
        folder: Where; it exists.
        size: One of ``SIZES``.
        device: Where weights are drawn.
        seed: Of the weights.
        gemma: The text encoder has all its 26 layers and tokens, 2.6 G weights, instead of 2 layers.
        beside: A folder written before, whose other parts this one shares; only the transformer is made.
    """
    import diffusers
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    torch.manual_seed(seed)
    dtype = torch.float32 if size == "tiny" else torch.bfloat16
    transformer, vae, text = _shapes(size)
    with torch.device(device):
        SanaTransformer2DModel(**transformer).to(dtype).save_pretrained(folder / "transformer")
    if beside:
        for part in beside.iterdir():
            if part.name != "transformer":
                (folder / part.name).symlink_to(part)
        return folder
    vocabulary = _write_tokenizer(folder / "tokenizer")
    if gemma and size != "tiny":
        text, vocabulary = {**text, **WHOLE_GEMMA}, 256000
    with torch.device(device):
        AutoencoderDC(**vae).save_pretrained(folder / "vae")
        config = Gemma2Config(
            vocab_size=vocabulary, max_position_embeddings=8192, query_pre_attn_scalar=text["head_dim"], **text
        )
        Gemma2Model(config).to(dtype).save_pretrained(folder / "text_encoder")
    DPMSolverMultistepScheduler(
        flow_shift=3.0, use_flow_sigmas=True, prediction_type="flow_prediction"
    ).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "SanaPipeline",
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "text_encoder": ["transformers", "Gemma2Model"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "SanaTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderDC"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gemma", action="store_true", help="A text encoder of full size: 5 GiB.")
    parser.add_argument("--beside", type=Path, help="A model whose other parts are shared, instead of new ones.")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    chosen = arguments.size, arguments.device, arguments.seed, arguments.gemma, arguments.beside
    print(write(arguments.out, *chosen))


if __name__ == "__main__":
    main()
