"""Our form of the transformer's blocks against diffusers' own: output, every gradient, adapters, files and pictures.

Float64 is the judge where float32 is not exact enough: the pocket's query gradients through linear attention are sums that
nearly cancel, and diffusers' own float32 is up to 5e-4 off there.
"""

from __future__ import annotations

import copy
import math
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SanaTransformer2DModel
from safetensors.torch import load_file
from small_sana import base
from torch._dynamo.testing import CompileCounterWithBackend

from simpletuner.data.types import Size
from simpletuner.evaluation.pictures import ValidationSettings
from simpletuner.evaluation.validation import Validator
from simpletuner.models import adapters, checkpointing, quantize
from simpletuner.models.adapters import LoraSettings, LycorisSettings
from simpletuner.models.base import LoadSource, TextSettings
from simpletuner.models.sana import attention, block_forward, joined
from simpletuner.models.sana import transformer as ours
from simpletuner.models.sana.family import Sana

TOOLS = Path(__file__).resolve().parents[2] / "tools"
WAYS = {"cpu": ours.CPU, "accelerator": ours.ACCELERATOR, "kernels": ours.KERNELS}
# Latents' sides in tokens, and the length of each caption: odd sizes, ragged, all but one masked, one alone.
CASES = {
    "ragged": ((5, 7), (9, 4)),
    "all-but-one": ((3, 5), (8, 1, 1)),
    "alone": ((7, 3), (6,)),
    "row": ((1, 9), (5, 2)),
}
Gradients = dict[str, torch.Tensor]


def made(**changes: Any) -> Any:
    """A small model with parts that the pocket and the published models have not."""
    shape = {
        **{"in_channels": 4, "out_channels": 4, "num_attention_heads": 3, "attention_head_dim": 8, "num_layers": 2},
        **{"num_cross_attention_heads": 2, "cross_attention_head_dim": 12, "cross_attention_dim": 24},
        **{"caption_channels": 10, "mlp_ratio": 2.5, "sample_size": 8, "patch_size": 1},
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return SanaTransformer2DModel(**{**shape, **changes})


def real_shape() -> Any:
    """The published architecture with few and narrow blocks."""
    sys.path.insert(0, str(TOOLS))
    from random_sana import transformer_config

    sys.path.remove(str(TOOLS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return SanaTransformer2DModel(**transformer_config("tiny"))


MODELS: dict[str, Callable[[], Any]] = {
    "real": real_shape,
    "norms-and-biases": lambda: made(
        attention_bias=True, norm_elementwise_affine=True, qk_norm="rms_norm_across_heads"
    ),
    "patch-2-places": lambda: made(patch_size=2, interpolation_scale=1.0),
    "guidance": lambda: made(guidance_embeds=True),
}


def question(model: Any, case: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Latents, time, text and mask of a case; the same for every dtype."""
    (rows, columns), lengths = CASES[case]
    config, count = model.config, len(lengths)
    generator = torch.Generator().manual_seed(len(case) + 100 * seed)
    real = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    asked = {
        "hidden_states": torch.randn(
            *(count, config.in_channels, rows * config.patch_size, columns * config.patch_size), generator=generator
        ),
        "timestep": torch.rand(count, generator=generator) * 1000,
        "encoder_hidden_states": torch.randn(count, max(lengths), config.caption_channels, generator=generator),
        "encoder_attention_mask": real.long(),
    }
    if config.guidance_embeds:
        asked["guidance"] = torch.full((count,), 0.45)
    return asked


def answer(model: Any, asked: dict[str, torch.Tensor], **more: Any) -> tuple[torch.Tensor, Gradients]:
    """The model's output and the gradient of every trained parameter (and of latents and text), in double."""
    model.zero_grad(set_to_none=True)
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    given = {
        k: v.detach().to(dtype) if k in ("hidden_states", "encoder_hidden_states") else v for k, v in asked.items()
    }
    inputs = {k: given[k].requires_grad_() for k in ("hidden_states", "encoder_hidden_states")}
    output = model(**given, **more, return_dict=False)[0]
    target = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    (output.float() - target).square().mean().backward()
    leaves = {**dict(model.named_parameters()), **inputs}
    return output.detach().double(), {n: p.grad.double() for n, p in leaves.items() if p.grad is not None}


def errors(found: Gradients, expected: Gradients) -> dict[str, float]:
    """‖a − b‖ / max(‖b‖, 1e-6 of the largest), tensor by tensor."""
    assert set(found) == set(expected)
    floor = 1e-6 * max(float(g.norm()) for g in expected.values())
    return {n: float((found[n] - g).norm()) / max(float(g.norm()), floor) for n, g in expected.items()}


def zero_by_algebra(model: Any) -> set[str]:
    """Key biases of cross-attention without q/k norms: softmax does not see a constant added to every key."""
    names = {n for n, _ in model.named_parameters() if n.endswith("attn2.to_k.bias")}
    return set() if model.config.qk_norm else names


def agree(
    found: tuple[torch.Tensor, Gradients],
    expected: tuple[torch.Tensor, Gradients],
    skip: set[str],
    own: dict[str, float] | None = None,
) -> None:
    """Output and gradients to 1e-5, or to a few times ``own``, what diffusers' float32 errs by itself."""
    assert float((found[0] - expected[0]).norm() / expected[0].norm()) <= 1e-5
    allowed = {name: max(1e-5, 20 * error) for name, error in (own or {}).items()}
    worst = errors(found[1], expected[1])
    assert not {n: e for n, e in worst.items() if n not in skip and e > allowed.get(n, 1e-5)}
    largest = max(float(g.norm()) for g in expected[1].values())
    assert all(float(found[1][name].norm()) <= 1e-6 * largest for name in skip)


class Exact:
    """Self-attention wholly in the dtype of its input: for float64."""

    def __call__(self, attn: Any, tokens: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        query, key = (n(x) if n else x for n, x in ((attn.norm_q, attn.to_q(tokens)), (attn.norm_k, attn.to_k(tokens))))
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query.relu(), key.relu(), attn.to_v(tokens)))
        kept = torch.einsum("bnhd,bnhe->bhde", key, value)
        weights = torch.einsum("bnhd,bhd->bnh", query, key.sum(1))
        result = torch.einsum("bnhd,bhde->bnhe", query, kept) / (weights[..., None] + 1e-15)
        return torch.as_tensor(attn.to_out[0](result.flatten(2)))


def in_float64(model: Any) -> Any:
    """A copy that is exact."""
    exact = copy.deepcopy(model).double()
    for block in exact.transformer_blocks:
        block.attn1.processor = Exact()
    return exact


@pytest.mark.parametrize("ways", WAYS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", MODELS)
def test_output_and_every_gradient_in_float32(name: str, case: str, ways: str) -> None:
    model = MODELS[name]().train()
    asked = question(model, case)
    expected = answer(model, asked)
    assert len(expected[1]) == len(list(model.parameters())) + 2
    own = None if name == "real" else errors(expected[1], answer(in_float64(model), asked)[1])
    assert block_forward.use_plain(model, WAYS[ways]) is None and block_forward.in_use(model)
    found = answer(model, asked)
    assert not torch.equal(found[0], expected[0]), "the sums are in another order"
    agree(found, expected, zero_by_algebra(model), own)
    block_forward.use_diffusers(model)
    assert not block_forward.in_use(model) and torch.equal(answer(model, asked)[0], expected[0])


def beside_diffusers(
    model: Any, low: Any, truth: Any, ways: str, context: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> dict[str, list[float]]:
    """Our error over diffusers' own against ``truth``, by tensor (and "output"), over six questions."""
    ratios: dict[str, list[float]] = {}
    for seed in range(6):
        asked = question(model, "ragged", seed)
        exact = answer(truth, asked)
        with context():
            block_forward.use_diffusers(low)
            theirs = answer(low, asked)
            block_forward.use_plain(low, WAYS[ways])
            found = answer(low, asked)
        mine, own = errors(found[1], exact[1]), errors(theirs[1], exact[1])
        mine["output"], own["output"] = (float((a[0] - exact[0]).norm()) for a in (found, theirs))
        for name in own.keys() - zero_by_algebra(model):
            ratios.setdefault(name, []).append(mine[name] / own[name])
    return ratios


def no_less_exact(ratios: dict[str, list[float]]) -> None:
    """Single errors scatter, most of all where ReLU turns at 0; their geometric means do not."""
    logs = {name: sum(map(math.log, values)) / len(values) for name, values in ratios.items()}
    assert math.exp(sum(logs.values()) / len(logs)) <= 1.2
    assert not {n: ratios[n] for n, mean in logs.items() if mean > math.log(2.5)}
    assert not {n: values for n, values in ratios.items() if max(values) > 20}, "not rounding, but wrong"


@pytest.mark.parametrize("ways", WAYS)
def test_the_pocket_in_float32_is_as_near_to_float64_as_with_diffusers(pocket: Path, ways: str) -> None:
    model = SanaTransformer2DModel.from_pretrained(pocket / "model", subfolder="transformer").train()
    no_less_exact(beside_diffusers(model, model, in_float64(model), ways))


@pytest.mark.parametrize("ways", WAYS)
@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
def test_bfloat16_is_no_less_exact_than_diffusers(weights: torch.dtype, ways: str) -> None:
    """bf16 weights, and float32 weights under autocast."""
    model = real_shape().train()
    attention.use_float32_sums(model)

    def context() -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16, enabled=weights == torch.float32)

    no_less_exact(beside_diffusers(model, copy.deepcopy(model).to(weights), model, ways, context))


@pytest.mark.filterwarnings(r"ignore:The \.grad attribute of a Tensor that is not a leaf")  # see compiled_block
@pytest.mark.parametrize("name", ["real", "norms-and-biases"])
def test_compiled_whole_the_block_with_kernels_has_the_same_gradients(name: str) -> None:
    torch._dynamo.reset()
    model = MODELS[name]().train()
    assert block_forward.use_plain(model, ours.KERNELS) is None
    asked = question(model, "ragged")
    expected = answer(model, asked)
    run = torch.compile(ours.run_block, backend="aot_eager", fullgraph=True)
    assert block_forward.use_plain(model, ours.KERNELS, run) is None
    agree(answer(model, asked), expected, zero_by_algebra(model))
    torch._dynamo.reset()


def test_a_bias_is_lent_only_where_nothing_stands_between() -> None:
    attn = real_shape().train().transformer_blocks[0].attn1
    layer, dropout = attn.to_out
    assert ours.lent_bias(attn, ours.KERNELS) is layer.bias and ours.lent_bias(attn, ours.ACCELERATOR) is None
    dropout.p = 0.1
    assert ours.lent_bias(attn, ours.KERNELS) is None
    assert ours.lent_bias(attn.eval(), ours.KERNELS) is layer.bias
    hook = layer.register_forward_hook(lambda *_: None)
    assert ours.lent_bias(attn, ours.KERNELS) is None
    hook.remove()
    with torch.autocast("cpu", torch.float16):
        assert ours.lent_bias(attn, ours.KERNELS) is None
    assert ours.lent_bias(attn.half(), ours.KERNELS) is None


@pytest.mark.parametrize("chosen", [r"to_out|scale_shift", r"bias$", r"patch_embed|to_q", r"time_embed"])
def test_where_only_some_weights_are_trained_their_gradients_are_diffusers(chosen: str) -> None:
    model = real_shape().train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(re.search(chosen, name) is not None)
    asked = question(model, "ragged")
    expected = answer(model, asked)
    block_forward.use_plain(model, ours.KERNELS)
    agree(answer(model, asked), expected, zero_by_algebra(model) & expected[1].keys())


@pytest.mark.filterwarnings(r"ignore:The \.grad attribute of a Tensor that is not a leaf")  # as ``compiled_block`` does
def test_one_compilation_serves_every_block_and_a_second_every_shape() -> None:
    """In one graph; a batch of one is a shape of its own to the compiler."""
    torch._dynamo.reset()
    model, count = real_shape().train(), CompileCounterWithBackend("aot_eager")
    for case, graphs in (("ragged", 1), ("all-but-one", 2), ("row", 2)):
        asked = question(model, case)
        block_forward.use_plain(model, ours.KERNELS)
        expected = answer(model, asked)
        block_forward.use_plain(model, ours.KERNELS, torch.compile(ours.run_block, backend=count, fullgraph=True))
        agree(answer(model, asked), expected, zero_by_algebra(model))
        assert count.frame_count == graphs
    torch._dynamo.reset()


@pytest.mark.parametrize("interval", [1, 2])
def test_recomputed_blocks_give_the_same_bits(interval: int) -> None:
    model = real_shape().train()
    block_forward.use_plain(model)
    asked = question(model, "ragged")
    plain = answer(model, asked)
    checkpointing.enable(model, model.transformer_blocks, interval)
    output, gradients = answer(model, asked)
    assert torch.equal(output, plain[0]) and all(torch.equal(gradients[n], g) for n, g in plain[1].items())


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # the compiler's own, as in use
@pytest.mark.parametrize("interval", [0, 1, 2, 3])
def test_recomputed_blocks_with_kernels_compiled_give_the_same_bits(interval: int) -> None:
    torch._dynamo.reset()
    model = real_shape().train()
    run = torch.compile(ours.run_block, backend="aot_eager")
    assert block_forward.use_plain(model, ours.KERNELS, run) is None
    asked = question(model, "ragged")
    plain = answer(model, asked)
    if interval:
        chosen = checkpointing.enable(model, model.transformer_blocks, interval, random=False)
        assert chosen == -(-len(model.transformer_blocks) // interval)
    else:
        checkpointing.enable(model, model.transformer_blocks, 1)
        model.disable_gradient_checkpointing()  # as bench/recompute_chart.py does
    output, gradients = answer(model, asked)
    assert torch.equal(output, plain[0]) and all(torch.equal(gradients[n], g) for n, g in plain[1].items())
    torch._dynamo.reset()


SIDES = {"target_module": ["Attention", "GLUMBConv"]}
LOKR = {"algo": "lokr", "multiplier": 1.0, "linear_dim": 3, "linear_alpha": 0.75, "factor": 4, "apply_preset": SIDES}
ADAPTERS = {
    "lora": LoraSettings(3, 1.5),
    "lora-all": LoraSettings(3, 1.5, targets=("all",)),
    "dora-all": LoraSettings(3, 1.5, dora=True, targets=("all",)),
    "lokr": LycorisSettings(LOKR),
    "lokr-rebuilt": LycorisSettings({**LOKR, "bypass_mode": False}),
}


@pytest.mark.parametrize("ways", WAYS)
@pytest.mark.parametrize(
    ("kind", "quantised"),
    [*((kind, "") for kind in ADAPTERS), *((kind, "nf4-bnb") for kind in ADAPTERS if kind != "lokr-rebuilt")],
)
def test_adapters_act_as_in_diffusers_forward(kind: str, quantised: str, ways: str) -> None:
    model = base()
    if quantised:
        settings = quantize.Settings(quantised, torch.device("cpu"), torch.float32)
        quantize.quantise(model, model.transformer_blocks, settings)
    else:
        model.requires_grad_(False)
    adapter = adapters.put_on(model, ADAPTERS[kind], seed=1)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in adapter.parameters:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.train()
    asked = question(model, "ragged")
    expected = answer(model, asked)
    assert len(expected[1]) == len(adapter.parameters) + 2
    assert block_forward.use_plain(model, WAYS[ways]) is None
    agree(answer(model, asked), expected, set())
    with adapter.disabled():
        without = answer(model, asked)[0]
    assert float((without - expected[0]).norm()) > 1e-3 * float(expected[0].norm())


@pytest.mark.parametrize("ways", [None, ours.KERNELS], ids=["plain", "kernels"])
def test_state_dict_files_and_copies_are_diffusers(ways: ours.Ways | None, tmp_path: Path) -> None:
    """With kernels weights lie together in memory, which files do not know."""
    model = real_shape()
    names, layers = list(model.state_dict()), [name for name, _ in model.named_modules()]
    model.save_pretrained(tmp_path / "theirs")
    assert block_forward.use_plain(model, ways) is None and block_forward.use_plain(model, ways) is None
    query, key = model.transformer_blocks[1].attn1.to_q.weight, model.transformer_blocks[1].attn1.to_k.weight
    assert joined.lie_together([query, key]) == (ways is not None)
    assert list(model.state_dict()) == names and [name for name, _ in model.named_modules()] == layers
    model.save_pretrained(tmp_path / "ours")
    for file in sorted((tmp_path / "theirs").iterdir()):
        assert (tmp_path / "ours" / file.name).read_bytes() == file.read_bytes()
    twin = copy.deepcopy(model).train()
    assert block_forward.in_use(twin)
    with torch.no_grad():  # the copy runs its own weights, not those of the model it was made of
        for parameter in twin.parameters():
            parameter.zero_()
    asked = question(model, "alone")
    assert not answer(twin, asked)[0].any() and answer(model.train(), asked)[0].any()
    weights = load_file(tmp_path / "ours" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())


def test_what_is_hooked_or_of_another_kind_keeps_diffusers_forward() -> None:
    model = made()
    hook = model.transformer_blocks[1].attn2.register_forward_hook(lambda *_: None)
    assert "hooked" in str(block_forward.use_plain(model)) and not block_forward.in_use(model.train())
    hook.remove()
    assert block_forward.use_plain(model) is None
    model.transformer_blocks[0].attn1.processor = Exact()
    assert "attn1 of block 0" in str(block_forward.use_plain(model)) and not block_forward.in_use(model)
    model = made()
    model.transformer_blocks[0].ff.residual_connection = True
    assert "feed-forward of block 0" in str(block_forward.use_plain(model))


def test_a_mask_that_hides_nothing_is_left_out_and_one_that_hides_is_not(pocket: Path) -> None:
    parts = Sana().load(LoadSource(str(pocket / "model")))
    model = parts.transformer.train()
    assert Sana().use_plain_forward(model) is None
    seen: list[Any] = []
    model.transformer_blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[3]))
    latents, text = torch.randn(2, 8, 6, 10), torch.randn(2, 5, 96)
    full, ragged = torch.ones(2, 5, dtype=torch.int64), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    times = torch.tensor([200.0, 700.0])
    with torch.no_grad():
        results = [Sana().predict(model, latents, times, text, mask) for mask in (full, ragged)]
        beside = torch.cat([text[:1], torch.cat([text[1:, :2], torch.randn(1, 3, 96)], 1)])
        again = Sana().predict(model, latents, times, beside, ragged)
        model.eval()
        diffusers = [Sana().predict(model, latents, times, text, mask) for mask in (full, ragged)]
    assert seen[0] is None and seen[1].shape == (2, 1, 5) and seen[3] is not None
    for mine, theirs in zip([*results, again], [*diffusers, diffusers[1]], strict=True):
        assert float((mine - theirs).norm() / theirs.norm()) < 1e-5
    assert not torch.allclose(results[0], results[1])


def test_validation_draws_diffusers_own_pixels(pocket: Path, tmp_path: Path) -> None:
    """In the middle of training: the validator's pictures have the bits that the untouched model gives."""
    settings = ValidationSettings((("fox", "a fox"),), "", 3.0, 3, (Size(64, 32),), 1, 5)
    pictures = []
    for name in ("diffusers", "plain"):
        parts = Sana().load(LoadSource(str(pocket / "model")))

        def encode(prompt: str, _: bool, parts: Any = parts) -> Any:
            return Sana().encode_captions(parts, [prompt], TextSettings((), 32), False)

        if name == "plain":
            assert Sana().use_plain_forward(parts.transformer) is None
        parts.transformer.train()
        validator = Validator(
            Sana().pipeline(parts, with_text=False), settings, encode, tmp_path / name, torch.device("cpu")
        )
        (picture,) = validator.render(validator.expected(1), lambda *_: None).drawn
        pictures.append(picture.path.read_bytes())
        assert block_forward.in_use(parts.transformer) == (name == "plain")
    assert pictures[0] == pictures[1]
