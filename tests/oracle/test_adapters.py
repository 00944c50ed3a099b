"""Adapters against their references: PEFT through plain diffusers, LyCORIS through its own loader, and the base model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SanaPipeline
from safetensors import safe_open
from safetensors.torch import load_file
from small_sana import base, velocity

from simpletuner.errors import ModelError
from simpletuner.models import adapters, lora, lora_layout, targets
from simpletuner.models.adapters import WEIGHTS, Adapter, LoraSettings, LycorisSettings
from simpletuner.models.checkpointing import enable
from simpletuner.models.linears import pointwise_as_linear

SIDES = {"target_module": ["Attention", "GLUMBConv"]}


def lycoris(algo: str, **more: Any) -> LycorisSettings:
    config = {"algo": algo, "multiplier": 1.0, "linear_dim": 3, "linear_alpha": 0.75, "apply_preset": SIDES}
    return LycorisSettings({**config, **more})


PEFT = {
    "lora": LoraSettings(3, 1.5),
    "lora-all-rslora": LoraSettings(3, 1.5, rslora=True, targets=("all",)),
    "dora": LoraSettings(3, 1.5, dora=True, targets=("all",)),
    "gaussian": LoraSettings(3, 1.5, init="gaussian"),
    "pissa": LoraSettings(3, 1.5, init="pissa", targets=("all",)),
    "olora-rslora": LoraSettings(3, 1.5, init="olora", rslora=True),
}
LYCORIS = {
    "lokr": lycoris("lokr", factor=4),
    "lokr-dropout": lycoris("lokr", factor=4, rank_dropout=0.2),
    "lokr-full": lycoris("lokr", factor=4, full_matrix=True),
    "lokr-dora": lycoris("lokr", factor=4, dora_wd=True),
    "lokr-scalar": lycoris("lokr", factor=4, use_scalar=True),
    "loha": lycoris("loha"),
    "locon": lycoris("locon"),
    "diag-oft": lycoris("diag-oft"),
    "mixed": lycoris("lora", apply_preset={**SIDES, "module_algo_map": {"GLUMBConv": {"algo": "lokr", "factor": 2}}}),
}
ALL = {**PEFT, **LYCORIS}
ABOUT_ZERO = {"pissa": 1e-4, "olora-rslora": 1e-4, "lokr-dora": 1e-4}  # sums in another order; the others are exact


def move(adapter: Adapter) -> None:
    """As if trained."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in adapter.parameters:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def saved(kind: str, folder: Path) -> Any:
    """A model with a trained adapter, whose file is in the folder."""
    model = base()
    adapter = adapters.put_on(model, ALL[kind], seed=1)
    move(adapter)
    adapter.save(folder)
    return model


@pytest.fixture(autouse=True)
def _no_preset_is_left() -> Iterator[None]:
    yield
    from lycoris import LycorisNetwork

    LycorisNetwork.apply_preset({"target_name": ["left over"], "module_algo_map": {"Attention": {"algo": "loha"}}})


@pytest.mark.parametrize("kind", ALL)
def test_an_adapter_from_its_start_to_its_end(kind: str, tmp_path: Path) -> None:
    """Starts as the base model, trains alone, goes off, comes back from disk, and merges into the weights."""
    untouched = base()
    weights = {name: tensor.clone() for name, tensor in untouched.state_dict().items()}
    with torch.no_grad():
        before = velocity(untouched)
    model = base()
    adapter = adapters.put_on(model, ALL[kind], seed=1)
    start = velocity(model)
    if kind in ABOUT_ZERO:
        torch.testing.assert_close(start, before, rtol=0, atol=ABOUT_ZERO[kind])
    else:
        assert torch.equal(start, before)
    start.square().mean().backward()
    assert all(p.dtype == torch.float32 for p in adapter.parameters)
    assert any(p.grad is not None and p.grad.any() for p in adapter.parameters)
    trained = {id(p) for p in adapter.parameters}
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters() if id(p) not in trained)
    move(adapter)
    with torch.no_grad():
        after = velocity(model)
        assert (after - before).abs().max() > 1e-3
        with adapter.disabled():
            assert torch.equal(velocity(model), before)
        assert torch.equal(velocity(model), after) and all(p.requires_grad for p in adapter.parameters)
        adapter.save(tmp_path)
        other = base()
        again = adapters.put_on(other, ALL[kind], seed=2)
        adapters.load(again, again.read(tmp_path))
        assert torch.equal(velocity(other), after)
        assert all(torch.equal(a, b) for a, b in zip(adapter.parameters, again.parameters, strict=True))
        adapter.merge()
        merged = velocity(model)
    assert (merged - after).abs().max() / after.abs().max() <= 1e-5
    assert model.state_dict().keys() == weights.keys(), "a plain transformer is left"


def test_an_earlier_adapter_in_the_folder_is_not_read_in_place_of_a_new_one(tmp_path: Path) -> None:
    for seed, kind in enumerate(("lokr-scalar", "lokr")):  # the first keeps exact values beside its file
        adapter = adapters.put_on(base(), LYCORIS[kind], seed)
        move(adapter)
        adapter.save(tmp_path)
    again = adapter.read(tmp_path)
    assert all(torch.equal(again[n], p) for n, p in zip(adapter.names, adapter.parameters, strict=True))


@pytest.mark.parametrize("kind", PEFT)
def test_plain_diffusers_loads_the_file_and_gives_the_same(kind: str, tmp_path: Path) -> None:
    model, reference = saved(kind, tmp_path), base()
    tensors, metadata = SanaPipeline.lora_state_dict(tmp_path, return_lora_metadata=True)
    SanaPipeline.load_lora_into_transformer(tensors, reference, metadata=metadata)
    with torch.no_grad():
        got, expected = velocity(model), velocity(reference.eval())
    if kind in ABOUT_ZERO:
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    else:
        assert torch.equal(got, expected)


@pytest.mark.parametrize("kind", LYCORIS)
def test_lycoris_itself_loads_the_file_and_gives_the_same(kind: str, tmp_path: Path) -> None:
    from lycoris import create_lycoris_from_weights

    model, reference = saved(kind, tmp_path), base()
    network, _ = create_lycoris_from_weights(1.0, str(tmp_path / WEIGHTS), reference)
    network.apply_to()
    with torch.no_grad():
        torch.testing.assert_close(velocity(reference), velocity(model), rtol=1e-5, atol=1e-5)
    with safe_open(tmp_path / WEIGHTS, "pt") as file:
        assert '"linear_alpha": 0.75' in file.metadata()["lycoris_config"], "alphas keep their fraction"


@pytest.mark.parametrize("kind", ["lora", "lora-all-rslora", "dora", "pissa"])
def test_comfyui_and_back_is_the_same_to_the_bit(kind: str, tmp_path: Path) -> None:
    adapter = adapters.put_on(base(), PEFT[kind], seed=1)
    move(adapter)
    adapter.save(tmp_path / "diffusers")
    adapter.save(tmp_path / "comfyui", "comfyui")
    comfyui = load_file(tmp_path / "comfyui" / WEIGHTS)
    layer = "diffusion_model.transformer_blocks.0.attn1.to_q"
    expected = {f"{layer}.lora_down.weight", f"{layer}.lora_up.weight", f"{layer}.alpha"}
    assert {key for key in comfyui if key.startswith(layer) and "dora" not in key} == expected
    down, up, alpha = (comfyui[key] for key in sorted(expected, key=lambda k: ("down" not in k, "up" not in k)))
    settings = PEFT[kind]
    assert float(alpha) / down.shape[0] == pytest.approx(settings.scale) and up.shape[1] == down.shape[0]
    back, facts = lora_layout.to_diffusers(comfyui)
    original = load_file(tmp_path / "diffusers" / WEIGHTS)
    assert back.keys() == original.keys() and all(torch.equal(back[key], original[key]) for key in back)
    assert facts["use_dora"] is settings.dora
    again = lora_layout.to_comfyui(back, {})
    assert again.keys() == comfyui.keys()


def test_our_keys_are_those_peft_writes() -> None:
    from peft import get_peft_model_state_dict

    model = base()
    adapter = lora.Lora(model.requires_grad_(False), PEFT["dora"])
    reference = {f"transformer.{key}": value for key, value in get_peft_model_state_dict(model).items()}
    ours, _ = adapter.tensors()
    assert ours.keys() == reference.keys() and all(torch.equal(ours[key], reference[key]) for key in ours)


@pytest.mark.parametrize("kind", ["lora", "dora", "lokr", "loha"])
def test_gradients_are_the_same_with_checkpointing_and_in_bf16_about_so(kind: str) -> None:
    def gradient(checkpointed: bool = False, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        model = base().to(dtype)
        adapter = adapters.put_on(model, ALL[kind], seed=1)
        move(adapter)
        if checkpointed:
            enable(model, model.transformer_blocks, 1)
        model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
            velocity(model).float().square().mean().backward()
        return torch.cat([p.grad.flatten() for p in adapter.parameters if p.grad is not None])

    plain = gradient()
    assert torch.equal(gradient(checkpointed=True), plain)
    half = gradient(dtype=torch.bfloat16)
    assert half.dtype == torch.float32 and (half - plain).norm() / plain.norm() < 0.05


@pytest.mark.parametrize("kind", ["lora", "lokr", "loha", "locon"])
def test_an_update_below_the_last_bit_of_a_bf16_base_acts(kind: str) -> None:
    """LyCORIS by itself adds in bf16, where such an update vanishes. The base weights cancel, so that it shows alone."""
    model = base()
    layer = model.transformer_blocks[0].attn1.to_q
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, -1.0]).repeat(16, 8))
    model = model.bfloat16()
    adapter = adapters.put_on(model, ALL[kind], seed=1)
    layer = model.transformer_blocks[0].attn1.to_q
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for parameter in adapter.parameters:
            parameter.fill_(1e-1 if kind == "loha" else 1e-2)
        on = layer(torch.ones(1, 16))
        with adapter.disabled():
            assert not layer(torch.ones(1, 16)).any()
    assert on.all() and on.abs().max() < 16 * 2**-9, "each weight's change is below half a bit of 1"


def test_the_start_of_pissa_is_the_best_part_of_the_weight() -> None:
    from simpletuner.models.lora_start import olora, pissa

    weight = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    first, second = pissa(weight, 3, scale=0.5)
    left, values, right = torch.linalg.svd(weight)
    torch.testing.assert_close(
        0.5 * second @ first, left[:, :3] @ torch.diag(values[:3]) @ right[:3], atol=1e-5, rtol=0
    )
    first, second = olora(weight, 5, scale=0.5)
    torch.testing.assert_close(second @ first, weight, atol=1e-5, rtol=0)
    torch.testing.assert_close(second.T @ second, torch.eye(5), atol=1e-5, rtol=0)


def test_a_large_weight_has_its_start_by_way_of_random_directions() -> None:
    from simpletuner.models.lora_start import SMALL, pissa

    generator = torch.Generator().manual_seed(0)
    large = torch.randn(SMALL + 40, 6, generator=generator) @ torch.randn(6, SMALL + 8, generator=generator)
    first, second = pissa(large, 6, scale=2.0)  # of rank 6, so that nothing is left over
    torch.testing.assert_close(2.0 * second @ first, large, atol=1e-3, rtol=1e-3)
    assert first.shape == (6, SMALL + 8) and second.shape == (SMALL + 40, 6)


def test_layers_share_their_input_for_backward() -> None:
    """Under autocast q, k and v of an adapted attention keep one tensor between them, as without an adapter."""

    def kept(casts: bool) -> int:
        model = base().bfloat16()
        adapter = adapters.put_on(model, PEFT["lora"], seed=1)
        for module in model.modules() if casts else []:
            if hasattr(module, "cast_input_dtype_enabled"):
                module.cast_input_dtype_enabled = True
        seen: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = velocity(model).float().square().mean()
        total = sum(seen.values())
        loss.backward()
        assert all(p.grad is not None for p in adapter.parameters)
        return total

    assert kept(casts=False) < 0.95 * kept(casts=True)


@pytest.mark.parametrize("kind", ["lokr", "lokr-full", "lokr-scalar", "locon", "mixed"])
def test_by_its_factors_or_by_its_whole_matrix_it_is_the_same(kind: str) -> None:
    def gradient(config: dict[str, Any]) -> tuple[bool, torch.Tensor]:
        model = base()
        adapter: Any = adapters.put_on(model, LycorisSettings(config), seed=1)
        move(adapter)
        velocity(model).square().mean().backward()
        by_factors = any(layer.bypass_mode for layer in adapter.network.loras)
        return by_factors, torch.cat([p.grad.flatten() for p in adapter.parameters])

    config = dict(LYCORIS[kind].config)
    (fast, first), (slow, second) = gradient(config), gradient({**config, "bypass_mode": False})
    assert fast and not slow
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4 * float(second.abs().max()))


def test_a_rank_beyond_a_layer_is_told_for_pissa() -> None:
    with pytest.raises(ModelError, match="lora_rank of at most"):
        adapters.put_on(base(), LoraSettings(64, 64.0, init="pissa"), seed=1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (LoraSettings(targets=("to_q", "to_qq")), ["'to_qq' matches no layer", "attn1.to_q (Linear) ×2", "'all'"]),
        (LoraSettings(targets=("ff.conv_depth",)), ["depthwise", "lycoris"]),
        (
            lycoris("lokr", apply_preset={"target_module": ["FeedForward"]}),
            ["FeedForward", "GLUMBConv ×2", "Attention"],
        ),
        (lycoris("glora"), ["glora cannot adapt", "depthwise"]),
    ],
)
def test_layers_that_do_not_exist_are_told_with_those_that_do(settings: Any, said: list[str]) -> None:
    with pytest.raises(ModelError) as error:
        adapters.put_on(base(), settings, seed=1)
    assert all(part in str(error.value) for part in said), error.value


def test_a_part_that_matches_nothing_is_told_with_its_right_name() -> None:
    adapter = adapters.put_on(base(), lycoris("lokr", apply_preset={"target_module": ["Attention", "FeedForward"]}), 1)
    (note,) = adapter.describe()[1:]
    assert "'FeedForward' matches nothing" in note and "GLUMBConv" in note
    assert "ff." not in adapter.describe()[0]


def test_names_of_layers() -> None:
    model = base()
    assert len(targets.resolve(model, None)) == 2 * 8 and len(targets.resolve(model, ("all",))) == 2 * 10
    assert targets.resolve(model, ("transformer_blocks.1.attn2.to_v",)) == ["transformer_blocks.1.attn2.to_v"]
    assert targets.resolve(model, ("attn1.to_out.0",))[0] == "transformer_blocks.0.attn1.to_out.0"
    linear = targets.resolve(model, ("all-linear",))
    assert "proj_out" in linear and not any("conv" in name for name in linear)


def test_strength_scales_the_adapter() -> None:
    for kind in ("lora", "lokr"):
        model = base()
        adapter = adapters.put_on(model, ALL[kind], seed=1)
        move(adapter)
        with torch.no_grad():
            full = velocity(model)
            with adapter.scaled(0.0), torch.no_grad():
                none = velocity(model)
            with adapter.scaled(0.5):
                half = velocity(model)
            assert torch.equal(velocity(model), full)
        torch.testing.assert_close(none, velocity(base()), rtol=1e-5, atol=1e-6)
        assert 0 < (half - none).norm() < (full - none).norm()


@pytest.mark.parametrize("kind", ["lora", "lokr"])
def test_another_shape_on_disk_is_refused(kind: str, tmp_path: Path) -> None:
    adapters.put_on(base(), ALL[kind], seed=1).save(tmp_path)
    other = LoraSettings(5) if kind == "lora" else lycoris("lokr", factor=2)
    adapter = adapters.put_on(base(), other, seed=1)
    with pytest.raises(ModelError, match="another adapter"):
        adapter.read(tmp_path)
    with pytest.raises(ModelError, match="no such file"):
        adapter.read(tmp_path / "nowhere")


def test_lokr_noise_starts_like_the_weights() -> None:
    settings = LycorisSettings(LYCORIS["lokr-full"].config, lokr_norm=1e-2)
    model = base()
    adapter: Any = adapters.put_on(model, settings, seed=1)
    layer = next(x for x in adapter.network.loras if x.lora_name.endswith("conv_inverted"))
    assert layer.lokr_w1.eq(1).all()
    ratio = layer.lokr_w2.detach().std() / layer.org_module[0].weight.std()
    assert 0.007 < float(ratio) < 0.013
    with pytest.raises(ModelError, match="full_matrix"):
        adapters.put_on(base(), LycorisSettings(LYCORIS["lokr"].config, lokr_norm=1e-2), seed=1)


@pytest.mark.parametrize(
    "kind", ["lora-all-rslora", "dora", "pissa", "lokr", "lokr-full", "lokr-dora", "loha", "locon"]
)
def test_trained_over_convolutions_as_linears_it_fits_the_published_model(kind: str, tmp_path: Path) -> None:
    """As a quantised base holds them: the file has the names and shapes of the plain model, and goes both ways."""
    model = base()
    assert pointwise_as_linear(model) == 2 * 2 + 1
    adapter = adapters.put_on(model, ALL[kind], seed=1)
    move(adapter)
    adapter.save(tmp_path)
    plain = base()
    put = adapters.put_on(plain, ALL[kind], seed=2)
    adapters.load(put, put.read(tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(velocity(plain), velocity(model), rtol=1e-4, atol=1e-5)
    assert put.shape() == adapter.shape() and "conv_inverted ×2" in put.describe()[0]
    put.save(tmp_path / "again")
    adapters.load(adapter, adapter.read(tmp_path / "again"))
    first, second = load_file(tmp_path / WEIGHTS), load_file(tmp_path / "again" / WEIGHTS)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
