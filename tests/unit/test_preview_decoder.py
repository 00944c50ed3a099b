"""Tiny decoders: the published layout is read from names and shapes, and what does not fit is refused in words."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file

from simpletuner.errors import ModelError
from simpletuner.models.base import LoadSource
from simpletuner.models.linear_preview import LinearDecoder
from simpletuner.models.sana import preview_decoder
from simpletuner.models.sana.family import Sana

Weights = dict[str, torch.Tensor]
# TAESANA's decoder by the taesd project's description: place → (channels in, channels out); see docs/previews.md.
TAESANA_BLOCKS = {
    **dict.fromkeys((3, 4, 5), 256),
    **dict.fromkeys((8, 9, 10), 128),
    **dict.fromkeys((13, 14, 15, 18, 19, 20, 23, 24, 25, 28), 64),
}
TAESANA_CONVS = {1: (32, 256), 7: (256, 128), 12: (128, 64), 17: (64, 64), 22: (64, 64), 27: (64, 64), 29: (64, 3)}


def taesana(divide: int = 1) -> Weights:
    """Random weights under TAESANA's names, with ``divide`` times fewer channels inside."""
    generator = torch.Generator().manual_seed(0)

    def conv(inside: int, out: int) -> torch.Tensor:
        return torch.randn(out, inside, 3, 3, generator=generator) / (3 * inside**0.5)

    def width(channels: int) -> int:
        return channels if channels in (3, 32) else channels // divide

    weights: Weights = {}
    for place, (inside, out) in TAESANA_CONVS.items():
        weights[f"{place}.weight"] = conv(width(inside), width(out))
        if place in (1, 29):
            weights[f"{place}.bias"] = torch.randn(width(out), generator=generator)
    for place, channels in TAESANA_BLOCKS.items():
        for number in (0, 2, 4):
            weights[f"{place}.conv.{number}.weight"] = conv(width(channels), width(channels))
            weights[f"{place}.conv.{number}.bias"] = torch.randn(width(channels), generator=generator)
    return weights


def by_hand(weights: Weights, latents: torch.Tensor) -> torch.Tensor:
    """The taesd project's decoder, written out."""
    x = torch.tanh(latents / 3) * 3
    for place in range(1, 30):
        if place in (6, 11, 16, 21, 26):
            x = torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest")
        elif place == 2:
            x = x.relu()
        elif f"{place}.weight" in weights:
            x = torch.nn.functional.conv2d(x, weights[f"{place}.weight"], weights.get(f"{place}.bias"), padding=1)
        else:
            y = x
            for number in (0, 2, 4):
                w, b = weights[f"{place}.conv.{number}.weight"], weights[f"{place}.conv.{number}.bias"]
                y = torch.nn.functional.conv2d(y.relu() if number else y, w, b, padding=1)
            x = (x + y).relu()
    return x * 2 - 1


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_taesana_by_its_layout(tmp_path: Path, ending: str) -> None:
    weights, file = taesana(divide=8), tmp_path / f"taesana_decoder.{ending}"
    if ending == "pth":
        torch.save(weights, file)
    else:
        save_file(weights, file)
    decoder = preview_decoder.read(file, 32, 32, 0.41407)
    latents = torch.randn(2, 32, 2, 3, generator=torch.Generator().manual_seed(1))
    made = decoder(latents)
    assert made.shape == (2, 3, 64, 96)
    assert torch.allclose(made, by_hand(weights, latents).clamp(-1, 1), atol=1e-5)


def test_taesana_at_its_full_width_has_the_parameters_of_its_description() -> None:
    net = preview_decoder.layers(taesana())
    assert sum(p.numel() for p in net.parameters()) == sum(w.numel() for w in taesana().values())
    assert sum(isinstance(layer, torch.nn.Upsample) for layer in net) == 5


def test_a_diffusers_folder_decodes_as_diffusers_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    widths = (16, 16, 16, 16)
    tiny = AutoencoderTiny(
        latent_channels=8, decoder_block_out_channels=widths, encoder_block_out_channels=widths
    ).eval()  # stride 8
    tiny.save_pretrained(tmp_path / "tiny")
    file = preview_decoder.find(str(tmp_path / "tiny"), "")
    assert file is not None
    decoder = preview_decoder.read(file, 8, 8)
    latents = torch.randn(1, 8, 3, 4)
    with torch.no_grad():
        wanted = tiny.decode(latents).sample
    assert torch.allclose(decoder(latents), wanted.clamp(-1, 1), atol=1e-5)


def test_the_scale_of_the_latents_is_settled_by_the_vae(tmp_path: Path) -> None:
    file = tmp_path / "decoder.safetensors"
    save_file(taesana(divide=8), file)
    latents = torch.randn(1, 32, 2, 2, generator=torch.Generator().manual_seed(2))
    for divisor in (1.0, 0.41407):
        decoder = preview_decoder.read(file, 32, 32, 0.41407)
        wanted = preview_decoder.TinyDecoder("", decoder.net, 32, (divisor,))(latents)
        assert decoder.fit(latents, wanted) > 60 and decoder.divisors[0] == divisor
        assert torch.equal(decoder(latents), wanted)


def test_what_is_no_such_decoder_is_refused(tmp_path: Path) -> None:
    good = taesana(divide=8)
    cases: dict[str, Weights] = {
        "no layer": {"conv_in.weight": torch.zeros(3, 3, 3, 3)},
        "fewer than two": {"1.weight": torch.zeros(3, 3, 3, 3)},
        "another kind": {**good, "3.pool.0.weight": torch.zeros(4, 4, 1, 1)},
        "need 3, 32": {name: tensor for name, tensor in good.items() if not name.startswith(("5.", "7.", "8."))},
        "of 16": {**good, "1.weight": torch.zeros(32, 16, 3, 3)},
        "makes 12 channels": {**good, "29.weight": torch.zeros(12, 8, 3, 3), "29.bias": torch.zeros(12)},
    }
    for reason, weights in cases.items():
        save_file(weights, tmp_path / "decoder.safetensors")
        with pytest.raises(ModelError, match=reason) as refused:
            preview_decoder.read(tmp_path / "decoder.safetensors", 32, 32)
        assert "What to do" in str(refused.value)


def test_damaged_files_and_code_in_them_are_refused(tmp_path: Path) -> None:
    (tmp_path / "decoder.safetensors").write_bytes(b"{}")
    (tmp_path / "decoder.pth").write_bytes(b"garbage")
    torch.save({"1.weight": Path("a class, not a tensor")}, tmp_path / "code.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    for name in ("decoder.safetensors", "decoder.pth", "code.pth", "list.pth"):
        with pytest.raises(ModelError, match="tiny decoder"):
            preview_decoder.read(tmp_path / name, 32, 32)


def test_what_was_chosen_and_is_not_there_is_an_error(tmp_path: Path) -> None:
    for chosen in (str(tmp_path), str(tmp_path / "none"), "somebody/not-here"):
        with pytest.raises(ModelError, match="validation_preview_decoder"):
            preview_decoder.find(chosen, "")
    assert preview_decoder.find("", str(tmp_path)) is None and preview_decoder.find("", "some/hub-id") is None


def test_the_pocket_has_a_small_one_that_draws_like_its_vae(pocket: Path) -> None:
    source = LoadSource(str(pocket / "model"))
    decoder = Sana().preview_decoder(source, "")
    file = preview_decoder.find("", source.path)
    assert decoder is not None and file is not None and file.stat().st_size < 500_000
    assert all(tensor.dtype == torch.float16 for tensor in load_file(file).values())
    vae = Sana().autoencoder(source)
    pictures = [torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    pixels = torch.nn.functional.interpolate(torch.stack(pictures), size=(128, 128), mode="bicubic").clamp(0, 1) * 2 - 1
    latents = Sana().encode_pixels(vae, pixels)
    wanted = Sana().decode_latents(vae, latents)
    grey = LinearDecoder(torch.zeros(9, 3), 8)
    assert decoder.fit(latents, wanted) > grey.fit(latents, wanted) + 8
