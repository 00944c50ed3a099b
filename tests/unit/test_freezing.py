import torch

from simpletuner.models.freezing import bias_and_norms_only


def test_bitfit_trains_biases_and_norms_only() -> None:
    model = torch.nn.ModuleDict(
        {
            "linear": torch.nn.Linear(4, 3),
            "norm": torch.nn.RMSNorm(4),
            "conv": torch.nn.Conv2d(2, 2, 1, bias=False),
        }
    )
    assert bias_and_norms_only(model) == (3 + 4, 4 * 3 + 3 + 4 + 4)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"linear.bias", "norm.weight"}
