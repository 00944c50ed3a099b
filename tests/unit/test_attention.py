import pytest
import torch

from simpletuner.models.sana.attention import linear_attention


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("spread", [1.0, 10.0, 30.0])
def test_sums_over_1024_tokens_stay_exact_under_autocast(dtype: torch.dtype, spread: float) -> None:
    """The products overflow float16 if autocast gets hold of them (diffusers' processor gives infinity here)."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 4, 32, 1024, generator=generator).to(dtype) * spread for _ in range(3))
    exact = linear_attention(query.double().float(), key.float().transpose(2, 3), value.float())
    with torch.autocast("cpu", dtype=dtype):
        ours = linear_attention(query, key.transpose(2, 3), value)
    assert ours.dtype == torch.float32 and torch.isfinite(ours).all()
    assert torch.equal(ours, exact)


def test_it_is_the_formula() -> None:
    """Each output is the mean of values weighted by relu(q) · relu(k), computed here token by token in float64."""
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(2, 3, 8, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    weights = torch.einsum("bhdi,bhdj->bhij", query.relu(), key.relu())
    expected = torch.einsum("bhij,bhdj->bhdi", weights / (weights.sum(-1, keepdim=True) + 1e-15), value)
    ours = linear_attention(query.float(), key.float().transpose(2, 3), value.float())
    assert torch.allclose(ours.double(), expected, atol=1e-5)
