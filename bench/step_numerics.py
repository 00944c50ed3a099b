"""What a way of making a step does to its numbers: output and every gradient, beside diffusers' own. Part of bench/step.py."""

from __future__ import annotations

import copy
import json
import statistics
from dataclasses import dataclass
from typing import Any

import torch
from step_variants import ROOT, VARIANTS, arrange, build


@dataclass(frozen=True, slots=True)
class Question:
    """Two pictures of 7 x 9 tokens (the pocket: 7 x 7) under noise, and their captions of unequal length."""

    latents: torch.Tensor
    text: torch.Tensor
    mask: torch.Tensor
    target: torch.Tensor


SIGMAS = torch.tensor([0.13, 0.81])


def question(config: Any, size: str, seed: int) -> Question:
    """The pocket is asked what it knows, since far from it its gradients are mostly cancellation; others random numbers."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, config.in_channels, 7 * config.patch_size, 9 * config.patch_size)
    noise, text = (
        torch.randn(shape, generator=generator),
        torch.randn(2, 12, config.caption_channels, generator=generator),
    )
    mask = (torch.arange(12)[None] < torch.tensor([[12], [5]])).long()
    if size != "pocket":
        return Question(noise, text, mask, torch.randn(shape, generator=generator))
    from simpletuner.data.images import cut
    from simpletuner.data.loader import pad
    from simpletuner.data.placement import PlacementRules, place
    from simpletuner.data.types import Size
    from simpletuner.models.base import LoadSource, TextSettings
    from simpletuner.models.sana.family import Sana

    folder = ROOT / "simpletuner" / "pocket"
    files = sorted(folder.glob("blueprint/**/*.png"))[seed : seed + 2]
    parts = Sana().load(LoadSource(str(folder / "model")))
    whole = place(Size(128, 128), PlacementRules(128, "pixel", 16), 0)
    latents = Sana().encode_pixels(parts.vae, torch.stack([cut(file, whole) for file in files]))[..., :14, :14]
    noise = noise[..., :14, :14]
    captions = [file.with_suffix(".txt").read_text(encoding="utf-8").strip() for file in files]
    words = [
        Sana().encode_captions(parts, [caption], TextSettings((), 32), False).real()[0]
        for caption in (captions[0], captions[1][:9])
    ]
    sigmas = SIGMAS[:, None, None, None]
    return Question((1 - sigmas) * latents + sigmas * noise, *pad(words), noise - latents)


def gradients(model: Any, asked: Question) -> dict[str, torch.Tensor]:
    """Output and every gradient, on the CPU in float64."""
    device, dtype = model.device, model.dtype
    exact = torch.promote_types(dtype, torch.float32)
    model.zero_grad(set_to_none=True)
    output = model(
        asked.latents.to(device, dtype),
        encoder_hidden_states=asked.text.to(device, dtype),
        encoder_attention_mask=asked.mask.to(device),
        timestep=1000 * SIGMAS.to(device),
        return_dict=False,
    )[0]
    (output.to(exact) - asked.target.to(device, exact)).square().mean().backward()
    found = {name: p.grad.double().cpu() for name, p in model.named_parameters() if p.grad is not None}
    if not model.config.qk_norm:  # softmax does not see a constant added to every key: these are 0 but for rounding
        found = {name: g for name, g in found.items() if not name.endswith("attn2.to_k.bias")}
    return {"output": output.detach().double().cpu(), **found}


def in_float64(model: Any) -> Any:
    """A copy whose every sum is float64."""
    from diffusers.models.attention_processor import SanaLinearAttnProcessor2_0

    class Exact(SanaLinearAttnProcessor2_0):
        """Linear attention without the casts to float32."""

        def __call__(self, attn: Any, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            parts = (layer(hidden_states) for layer in (attn.to_q, attn.to_k, attn.to_v))
            norms = (attn.norm_q, attn.norm_k, None)
            query, key, value = (
                (part if norm is None else norm(part)).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
                for part, norm in zip(parts, norms, strict=True)
            )
            query, key = query.relu(), key.relu()
            below = query @ key.sum(2, keepdim=True).transpose(2, 3) + 1e-15
            out = query @ (key.transpose(2, 3) @ value) / below
            return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))

    exact = copy.deepcopy(model).double()
    for block in exact.transformer_blocks:
        block.attn1.processor = Exact()
    return exact


def errors(found: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> dict[str, float]:
    """‖a − b‖ / max(‖b‖, 1e-6 of the largest) for each tensor, and of all gradients together (``all``)."""
    assert found.keys() == truth.keys()
    norms = {name: float(t.norm()) for name, t in truth.items()}
    floor = 1e-6 * max(n for name, n in norms.items() if name != "output")
    apart = {name: float((found[name] - t).norm()) for name, t in truth.items()}
    every = [name for name in truth if name != "output"]
    whole = sum(apart[n] ** 2 for n in every) ** 0.5 / sum(norms[n] ** 2 for n in every) ** 0.5
    return {**{name: apart[name] / max(norms[name], floor) for name in truth}, "all": whole}


def numerics(job: dict[str, Any]) -> None:
    """Float32 against diffusers; then bf16's error against float32 beside diffusers' own. A line for each way."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    exact = build(job["size"], layers=2 if job["size"] == "1.6b" else 0, device=job["device"])
    low = copy.deepcopy(exact).bfloat16()
    asked = [question(exact.config, job["size"], seed) for seed in range(job["seeds"])]
    truth = [gradients(exact, one) for one in asked]
    whole = in_float64(exact)
    apart = [errors(t, gradients(whole, one)) for t, one in zip(truth, asked, strict=True)]
    own_worst = max(e for row in apart for e in row.values())  # diffusers' own float32

    def beside(model: Any) -> list[dict[str, float]]:
        return [errors(gradients(model, one), t) for one, t in zip(asked, truth, strict=True)]

    own = beside(low)
    for name in job["variants"]:
        variant = VARIANTS[name]
        if variant.theirs:
            continue
        arrange(exact, variant)
        full = beside(exact)
        arrange(low, variant)
        half = beside(low)
        tensor, worst = max(((n, e) for row in full for n, e in row.items()), key=lambda pair: pair[1])
        mean = {
            key: [statistics.geometric_mean(max(row[n], 1e-12) for row in rows) for n in own[0]]
            for key, rows in (("own", own), ("half", half))
        }
        ratios = [mine / theirs for mine, theirs in zip(mean["half"], mean["own"], strict=True)]
        line = {
            "variant": name,
            "float32 output": max(row["output"] for row in full),
            "float32 all gradients": max(row["all"] for row in full),
            "float32 worst gradient": worst,
            "of": tensor,
            "own worst": own_worst,
            "bf16 all gradients": statistics.mean(row["all"] for row in half),
            "diffusers' bf16": statistics.mean(row["all"] for row in own),
            "bf16 ratio, mean": statistics.geometric_mean(ratios),
            "bf16 ratio, worst tensor": max(ratios),
        }
        # Query and key gradients nearly cancel where ReLU leaves few features: diffusers' own float32 is as far off there.
        line["ok"] = (
            max(line["float32 output"], line["float32 all gradients"]) <= 1e-5
            and worst <= max(1e-4, 3 * own_worst)
            and line["bf16 all gradients"] <= 1.2 * line["diffusers' bf16"]
            and line["bf16 ratio, mean"] <= 1.2
            and line["bf16 ratio, worst tensor"] <= 4
        )
        print(json.dumps(line), flush=True)
