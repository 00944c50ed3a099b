"""What every model family must do; a new one needs a small model here and is tested at once."""

import inspect
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from simpletuner.config.options import ModelOptions
from simpletuner.models.base import Components, Facts, Family, LoadSource, TextSettings
from simpletuner.models.families import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"sana": ROOT / "simpletuner" / "pocket" / "model"}
TEXT = TextSettings(("describe it: ",), 24)
CAPTIONS = ["a red house by the sea", "fox", ""]


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def source(family: Family) -> LoadSource:
    return LoadSource(str(SMALL[family.name]))


@pytest.fixture(scope="module")
def facts(family: Family, source: LoadSource) -> Facts:
    return family.peek(source)


@pytest.fixture(scope="module")
def parts(family: Family, source: LoadSource) -> Components:
    return family.load(source)


def protocol() -> dict[str, inspect.Signature]:
    return {name: inspect.signature(f) for name, f in inspect.getmembers(Family, inspect.isfunction) if name[0] != "_"}


def inputs(facts: Facts, parts: Components, family: Family, count: int = 3) -> tuple[torch.Tensor, ...]:
    """Noisy latents, timesteps, text and mask of a batch."""
    generator = torch.Generator().manual_seed(0)
    cells = 4 * facts.patch_size
    latents = torch.randn(count, facts.latent_channels, cells, cells, generator=generator)
    text = family.encode_captions(parts, CAPTIONS[:count], TEXT, True)
    return latents, torch.linspace(100, 900, count), text.embeds, text.mask


def test_every_family_is_an_option_and_has_a_small_model() -> None:
    option = get_args(ModelOptions.model_fields["model_family"].annotation)
    assert set(option) == set(FAMILIES) == set(SMALL)
    assert all(family.name == name for name, family in FAMILIES.items())


def test_it_has_every_function_of_the_protocol_with_the_same_arguments(family: Family) -> None:
    assert len(protocol()) > 8
    for name, signature in protocol().items():
        own = inspect.signature(getattr(type(family), name))
        assert list(own.parameters) == list(signature.parameters), name
    assert not vars(family), "a family holds no state"


def test_facts_agree_with_the_loaded_parts(family: Family, facts: Facts, parts: Components) -> None:
    side = 2 * facts.alignment
    latents = family.encode_pixels(parts.vae, torch.zeros(1, 3, side, 2 * side))
    assert latents.shape == (1, facts.latent_channels, side // facts.stride, 2 * side // facts.stride)
    assert facts.alignment % (facts.stride * facts.patch_size) == 0 and facts.shift > 0
    assert facts.native_resolution % facts.alignment == 0
    assert facts.tokens(*latents.shape[-2:]) * facts.patch_size**2 == latents[0, 0].numel()


def test_pixels_and_latents_are_float32_repeatable_and_independent_of_the_batch(
    family: Family, facts: Facts, parts: Components
) -> None:
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latents = family.encode_pixels(parts.vae, pixels)
    assert latents.dtype == torch.float32 and not latents.requires_grad
    assert torch.equal(family.encode_pixels(parts.vae, pixels), latents)
    torch.testing.assert_close(family.encode_pixels(parts.vae, pixels[1:]), latents[1:], rtol=1e-3, atol=1e-4)
    back = family.decode_latents(parts.vae, latents)
    assert back.shape == pixels.shape and back.dtype == torch.float32 and back.abs().max() <= 1


def test_decode_is_the_inverse_of_encode_and_latents_are_scaled(family: Family, parts: Components) -> None:
    """A gradient with a square comes back best from the very latents, not from smaller or larger ones."""
    slope = torch.linspace(-1, 1, 64)
    picture = torch.stack([slope[:, None].expand(64, 64)] * 3)[None].clone()
    picture[..., 8:30, 8:40] = torch.tensor([0.6, -0.5, -0.3])[:, None, None]
    latents = family.encode_pixels(parts.vae, picture)

    def error(scale: float) -> float:
        return (family.decode_latents(parts.vae, latents * scale) - picture).square().mean().item()

    assert error(1.0) < min(error(0.85), error(1.15)) and error(1.0) < 0.01


def test_text_embeds_have_their_length_a_mask_and_do_not_depend_on_the_batch(family: Family, parts: Components) -> None:
    text = family.encode_captions(parts, CAPTIONS, TEXT, True)
    assert text.embeds.shape[:2] == text.mask.shape == (3, TEXT.max_tokens)
    assert ((text.mask == 0) | (text.mask == 1)).all() and not text.embeds.requires_grad
    assert (text.mask.diff(dim=1) <= 0).all() and (text.mask[:, 0] == 1).all(), "real tokens first"
    alone = family.encode_captions(parts, CAPTIONS[:1], TEXT, True)
    real = text.mask[0].bool()
    torch.testing.assert_close(alone.embeds[0][real], text.embeds[0][real], rtol=1e-3, atol=1e-3)


def test_the_instruction_acts_only_where_it_is_asked_for(family: Family, parts: Components) -> None:
    without = family.encode_captions(parts, CAPTIONS[:1], TEXT, False)
    none = family.encode_captions(parts, CAPTIONS[:1], TextSettings((), TEXT.max_tokens), True)
    prefixed = family.encode_captions(parts, CAPTIONS[:1], TEXT, True)
    assert torch.equal(without.embeds, none.embeds) and torch.equal(without.mask, none.mask)
    assert not torch.equal(prefixed.embeds, without.embeds)
    assert all(isinstance(line, str) for line in family.default_instruction())


def test_what_is_cut_off_changes_no_embed_and_the_rest_does(family: Family, parts: Components) -> None:
    caption = " ".join(f"word{number}" for number in range(40))
    cut = family.cut_off(parts.tokenizer, caption, TEXT)
    assert cut and caption.endswith(cut) and family.cut_off(parts.tokenizer, "fox", TEXT) == ""
    kept = caption.removesuffix(cut)
    texts = [caption, kept + "another end altogether", caption.replace("word0 ", "elsewhere ")]
    embeds = [family.encode_captions(parts, [text], TEXT, True).embeds[:, : TEXT.max_tokens - 2] for text in texts]
    torch.testing.assert_close(embeds[1], embeds[0])
    assert not torch.allclose(embeds[2], embeds[0])


def test_the_prediction_is_a_velocity_for_each_sample_alone(family: Family, facts: Facts, parts: Components) -> None:
    transformer = parts.transformer.eval()
    batch = inputs(facts, parts, family)
    velocity = family.predict(transformer, *batch)
    assert velocity.shape == batch[0].shape and velocity.isfinite().all()
    assert torch.equal(family.predict(transformer, *batch), velocity)
    for row in range(3):
        alone = family.predict(transformer, *(tensor[row : row + 1] for tensor in batch))
        torch.testing.assert_close(alone, velocity[row : row + 1], rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_padding_is_not_read_and_everything_else_is(family: Family, facts: Facts, parts: Components) -> None:
    latents, timesteps, text, mask = inputs(facts, parts, family)
    velocity = family.predict(parts.transformer, latents, timesteps, text, mask)

    def moved(*batch: torch.Tensor) -> float:
        return float((family.predict(parts.transformer, *batch) - velocity).abs().max())

    longest = int(mask.sum(1).max())
    assert moved(latents, timesteps, text[:, :longest], mask[:, :longest]) < 1e-4
    assert moved(latents, timesteps, text + 5 * (1 - mask[:, :, None]), mask) < 1e-4
    assert moved(latents + 0.1, timesteps, text, mask) > 1e-3
    assert moved(latents, timesteps + 50, text, mask) > 1e-3
    assert moved(latents, timesteps, text.flip(0), mask.flip(0)) > 1e-3


def gradients(family: Family, transformer: Any, batch: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    transformer.zero_grad(set_to_none=True)
    family.predict(transformer, *batch).square().mean().backward()
    return [p.grad.clone() for p in transformer.parameters() if p.grad is not None]


def test_recomputing_blocks_changes_no_gradient(family: Family, source: LoadSource, facts: Facts) -> None:
    parts = family.load(source)
    transformer = parts.transformer.train().requires_grad_(True)
    batch = inputs(facts, parts, family)
    plain = gradients(family, transformer, batch)
    assert len(plain) > 0.9 * len(list(transformer.parameters()))
    counts = []
    for interval in (1, 2, 100):
        counts.append(family.checkpoint_blocks(transformer, interval))
        again = gradients(family, transformer, batch)
        assert len(again) == len(plain) and all(torch.equal(a, b) for a, b in zip(again, plain, strict=True))
    assert counts[0] > counts[1] > counts[2] == 1 and counts[1] == (counts[0] + 1) // 2


def test_recomputing_blocks_calls_them_twice(family: Family, source: LoadSource, facts: Facts) -> None:
    """The number returned is the number of modules that run once more in backward."""
    parts = family.load(source)
    transformer = parts.transformer.train().requires_grad_(True)
    batch = inputs(facts, parts, family)
    calls: dict[str, int] = {}
    lists = [name for name, module in transformer.named_modules() if isinstance(module, torch.nn.ModuleList)]
    for name, module in transformer.named_modules():
        if name.rpartition(".")[0] in lists and "." not in name.rpartition(".")[0]:
            module.register_forward_pre_hook(lambda *_, name=name: calls.update({name: calls.get(name, 0) + 1}))
    count = family.checkpoint_blocks(transformer, 3)
    gradients(family, transformer, batch)
    assert list(calls.values()).count(2) == count > 1 and 1 in calls.values()


def test_the_pipeline_is_made_of_these_very_parts(family: Family, parts: Components) -> None:
    pipeline = family.pipeline(parts, with_text=True)
    assert pipeline.transformer is parts.transformer and pipeline.vae is parts.vae
    assert pipeline.text_encoder is parts.text_encoder
    assert family.pipeline(parts, with_text=False).text_encoder is None


def test_the_weights_come_in_the_dtype_asked_for(family: Family, source: LoadSource) -> None:
    low = family.load(LoadSource(source.path, weight_dtype=torch.bfloat16, text_dtype=torch.bfloat16))
    assert {p.dtype for p in low.transformer.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in low.vae.parameters()} == {torch.float32}, "latents are encoded in float32 always"
    assert not any(p.requires_grad for part in (low.vae, low.text_encoder) for p in part.parameters())
