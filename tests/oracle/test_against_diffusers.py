"""Our rooms against computations that call only diffusers and transformers, in float32."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC, SanaPipeline, SanaTransformer2DModel
from PIL import Image

from simpletuner.data.cache import TensorStore
from simpletuner.data.encode import text_key
from simpletuner.data.images import cut
from simpletuner.data.loader import pad
from simpletuner.data.placement import PlacementRules, place
from simpletuner.data.types import Batch, Size
from simpletuner.flow.path import add_noise
from simpletuner.flow.schedules import Density
from simpletuner.models.base import Components, LoadSource, TextSettings
from simpletuner.models.sana.block_forward import use_diffusers
from simpletuner.models.sana.family import Sana
from simpletuner.models.sana.prompts import default_instruction
from simpletuner.training.learning_rate import Schedule
from simpletuner.training.precision import choose
from simpletuner.training.step import score
from simpletuner.training.trainee import Recipe, Trainee

CAPTIONS = ["A Fox on a hill ", "a crown", ""]


@pytest.fixture(scope="module", params=["pocket", "tiny"])
def model(request: pytest.FixtureRequest, pocket: Path, tiny_sana: Path) -> tuple[Path, TextSettings, Size]:
    if request.param == "pocket":
        return pocket / "model", TextSettings((), 32), Size(128, 96)
    return tiny_sana, TextSettings(default_instruction(), 300), Size(128, 96)


@pytest.fixture(scope="module")
def parts(model: tuple[Path, TextSettings, Size]) -> Components:
    return Sana().load(LoadSource(str(model[0])))


def relative(ours: torch.Tensor, reference: torch.Tensor, floor: float = 0.0) -> float:
    return ((ours - reference).norm() / max(reference.norm().item(), floor)).item()


def test_text_embeds_are_the_pipelines(model: tuple[Path, TextSettings, Size], parts: Components) -> None:
    pipe = SanaPipeline.from_pretrained(model[0], dtype=torch.float32)
    settings = model[1]
    ours = Sana().encode_captions(parts, CAPTIONS, settings, with_instruction=True)
    embeds, mask, negative, negative_mask = pipe.encode_prompt(
        CAPTIONS,
        negative_prompt="",
        device=torch.device("cpu"),
        max_sequence_length=settings.max_tokens,
        complex_human_instruction=list(settings.instruction) or None,
    )
    assert torch.equal(ours.mask, mask) and torch.equal(ours.embeds, embeds)
    dropped = Sana().encode_captions(parts, [""], settings, with_instruction=False)
    assert torch.equal(dropped.mask, negative_mask[:1]) and relative(dropped.embeds, negative[:1]) < 1e-6


def test_captions_are_cut_where_the_pipeline_cuts_them(tiny_sana: Path) -> None:
    """At most 298 tokens of caption survive, whatever the prefix."""
    pipe = SanaPipeline.from_pretrained(tiny_sana, dtype=torch.float32)
    settings = TextSettings(default_instruction(), 300)
    parts = Sana().load(LoadSource(str(tiny_sana)))
    long = " ".join(f"thing {i} on a hill" for i in range(200))
    ours = Sana().encode_captions(parts, [long], settings, with_instruction=True)
    embeds, mask, _, _ = pipe.encode_prompt(
        long, False, device=torch.device("cpu"), complex_human_instruction=list(settings.instruction)
    )
    assert ours.embeds.shape[1] == 300 and torch.equal(ours.embeds, embeds) and torch.equal(ours.mask, mask)


@pytest.mark.parametrize("forward", ["diffusers", "plain"])
def test_loss_and_every_gradient_from_pixels_and_caption(
    model: tuple[Path, TextSettings, Size], parts: Components, tmp_path: Path, forward: str
) -> None:
    folder, settings, size = model
    use_diffusers(parts.transformer)
    if forward == "plain":
        assert Sana().use_plain_forward(parts.transformer) is None
    files = []
    for index in range(2):
        files.append(tmp_path / f"{index}.png")
        Image.linear_gradient("L").resize(size).rotate(90 * index).convert("RGB").save(files[-1])
    noise = torch.randn(2, *_latent_shape(parts, size), generator=torch.Generator().manual_seed(1))
    sigmas = torch.tensor([0.3, 0.85])
    losses, gradients = _ours(parts, settings, size, files, noise, sigmas, tmp_path)
    expected_losses, expected = _reference(folder, settings, files, noise, sigmas)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-5, atol=0)
    largest = max(g.norm().item() for g in expected.values())
    assert set(gradients) == set(expected)
    zero = _zero_by_algebra(parts)
    for name in zero:  # a comparison of rounding errors would say nothing: both must be nothing
        assert max(gradients[name].norm().item(), expected[name].norm().item()) <= 1e-6 * largest
    worst = max((relative(gradients[n], expected[n], 1e-6 * largest), n) for n in expected.keys() - zero)
    assert worst[0] <= 1e-5, worst


def _zero_by_algebra(parts: Components) -> set[str]:
    """Key biases of cross-attention without q/k norms: softmax does not see a constant added to every key."""
    if parts.transformer.config.qk_norm:
        return set()
    return {n for n, _ in parts.transformer.named_parameters() if n.endswith("attn2.to_k.bias")}


def _latent_shape(parts: Components, size: Size) -> tuple[int, int, int]:
    stride = 2 ** (len(parts.vae.config.encoder_block_out_channels) - 1)
    return parts.vae.config.latent_channels, size.height // stride, size.width // stride


def _ours(
    parts: Components,
    settings: TextSettings,
    size: Size,
    files: list[Path],
    noise: torch.Tensor,
    sigmas: torch.Tensor,
    folder: Path,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Rooms 2-7, through the cache."""
    family = Sana()
    store = TensorStore(folder / "cache")
    rules = PlacementRules(min(size), "pixel", 32)
    pixels = torch.stack([cut(f, place(size, rules, 0)) for f in files])
    with store.writer() as writer:
        for file, latent in zip(files, family.encode_pixels(parts.vae, pixels), strict=True):
            writer.add(file.name, latent, file.name)
        for caption in CAPTIONS[:2]:
            text = family.encode_captions(parts, [caption], settings, True)
            writer.add(text_key(caption), text.real()[0], caption)
    text, mask = pad([store.get(text_key(c)) for c in CAPTIONS[:2]])
    latents = torch.stack([store.get(f.name) for f in files])
    batch = Batch(latents, text, mask, ("a", "b"), "set")
    transformer = parts.transformer.train().requires_grad_(True)
    transformer.zero_grad()
    trainee = Trainee(family, None, transformer, None, None, torch.device("cpu"))  # type: ignore[arg-type]
    schedule = Schedule("constant", 1.0, 0.0, 0, 1)
    recipe = Recipe(Density(), schedule, 1, 0.0, False, 0, choose("no", True))
    losses = score(trainee, recipe, batch, add_noise(latents, noise, sigmas))
    losses.mean().backward()
    return losses.detach(), {n: p.grad for n, p in transformer.named_parameters() if p.grad is not None}


def _reference(
    folder: Path, settings: TextSettings, files: list[Path], noise: torch.Tensor, sigmas: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The diffusers training recipe, written out: no function of ours."""
    pipe = SanaPipeline.from_pretrained(folder, dtype=torch.float32)
    vae: AutoencoderDC = pipe.vae
    transformer: SanaTransformer2DModel = pipe.transformer
    arrays = []
    for file in files:
        with Image.open(file) as picture:
            arrays.append(np.asarray(picture.convert("RGB")))
    pixels = torch.stack([torch.from_numpy(a.copy()).permute(2, 0, 1).float() / 127.5 - 1 for a in arrays])
    with torch.no_grad():
        latents = vae.encode(pixels).latent * vae.config.scaling_factor
        text, mask, _, _ = pipe.encode_prompt(
            CAPTIONS[:2],
            False,
            device=torch.device("cpu"),
            max_sequence_length=settings.max_tokens,
            complex_human_instruction=list(settings.instruction) or None,
        )
    weight = sigmas[:, None, None, None]
    transformer.train().requires_grad_(True)
    prediction = transformer(
        (1 - weight) * latents + weight * noise,
        encoder_hidden_states=text,
        encoder_attention_mask=mask,
        timestep=sigmas * 1000,
        return_dict=False,
    )[0]
    losses = (prediction - (noise - latents)).square().mean((1, 2, 3))
    losses.mean().backward()
    return losses.detach(), {n: p.grad for n, p in transformer.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("interval", [1, 2, 3])
def test_checkpointed_blocks_give_the_same_gradients(pocket: Path, interval: int) -> None:
    def gradients(every: int | None) -> list[torch.Tensor]:
        torch.manual_seed(0)
        parts = Sana().load(LoadSource(str(pocket / "model")))
        transformer = parts.transformer.train().requires_grad_(True)
        if every:
            blocks = len(transformer.transformer_blocks)
            assert Sana().checkpoint_blocks(transformer, every) == -(-blocks // every)
        out = Sana().predict(
            transformer, torch.randn(1, 8, 16, 16), torch.tensor([500.0]), torch.randn(1, 5, 96), torch.ones(1, 5)
        )
        out.square().mean().backward()
        return [p.grad for p in transformer.parameters() if p.grad is not None]

    for plain, recomputed in zip(gradients(None), gradients(interval), strict=True):
        assert torch.equal(plain, recomputed)


def test_facts_are_read_off_the_configurations(pocket: Path, tiny_sana: Path) -> None:
    small, real = (Sana().peek(LoadSource(str(p))) for p in (pocket / "model", tiny_sana))
    assert (small.alignment, small.stride, small.shift) == (16, 8, 2.0)
    assert (real.alignment, real.stride, real.shift, real.tokens(32, 32)) == (32, 32, 3.0, 1024)
