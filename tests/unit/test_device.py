"""What torch is told of a GPU, where there is none: its own judge of devices is asked, CUDA itself is stood in for."""

from types import SimpleNamespace

import accelerate
import pytest
import torch
from torch.cuda._utils import _get_device_index

from simpletuner.training import device
from simpletuner.training.ranks import Ranks

GIB = 2**30
BARE = torch.device("cuda")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A card of 80 GiB, 70 of them free; the bound that was put on torch, and what torch has reserved."""
    said = {"fraction": 1.0, "reserved": 0.0}

    def bounded(fraction: float, where: object) -> None:
        _get_device_index(where)  # as torch does: a bare "cuda" is an error there
        said["fraction"] = fraction

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda where: SimpleNamespace(total_memory=80 * GIB))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda where: (70 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda where: int(said["reserved"]))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", bounded)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda where: said["fraction"])
    return said


def test_a_bound_holds_the_driver_s_part_and_is_kept_to(card: dict[str, float]) -> None:
    assert device.memory(BARE) == device.Memory(70 * GIB, 80 * GIB)
    device.bound_memory(BARE, 8 * GIB)
    card["reserved"] = 3 * GIB
    assert card["fraction"] == 7.5 / 80
    assert device.memory(BARE) == device.Memory(int(4.5 * GIB), 8 * GIB)
    device.bound_memory(torch.device("cuda:0"), 800 * GIB)
    assert card["fraction"] == 1.0


@pytest.mark.parametrize("exact", [False, True])
def test_exact_float32_is_exact_in_products_and_in_convolutions(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(accelerate, "PartialState", lambda: SimpleNamespace(device=BARE))
    try:
        assert device.choose(disable_tf32=exact, ranks=Ranks()) == BARE
        assert (torch.get_float32_matmul_precision() == "highest") is exact
        assert torch.backends.cudnn.allow_tf32 is not exact
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
