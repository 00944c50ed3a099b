"""Kernels are compiled before the first step asks for them: all of them, on the shapes that a block has."""

from __future__ import annotations

import atexit
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from simpletuner.models.sana import transformer
from simpletuner.models.sana.kernels import ahead
from tests.small_sana import CAPTION, CHANNELS, base


class Seen(TorchDispatchMode):
    """Writes down our operators, with the dimensions of their tensors and which may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: set[tuple[Any, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "simpletuner" and "joined" not in func.name():
            given = tuple(a.dim() if isinstance(a, torch.Tensor) else a is None for a in args)
            self.calls.add((func.name(), given))
        return func(*args, **(kwargs or {}))


def test_every_operator_of_a_training_step_is_called_ahead() -> None:
    """Also with what may be left out: each is another kernel."""
    model = base().train().requires_grad_(True)
    assert transformer.use_plain(model, transformer.KERNELS) is None
    with Seen() as in_a_step:
        answer = model(
            torch.randn(2, CHANNELS, 4, 4),
            encoder_hidden_states=torch.randn(2, 5, CAPTION),
            encoder_attention_mask=torch.ones(2, 5),
            timestep=torch.tensor([100.0, 800.0]),
            return_dict=False,
        )[0]
        answer.sum().backward()
    with Seen() as before, torch.no_grad():
        for job in ahead.jobs(model.config, torch.float32, torch.device("cpu")):
            job()
    names = {name for name, _ in in_a_step.calls}
    assert len(names) == 12, (
        names
    )  # two of depthwise, linear attention, cross-attention and the seam each, four of the residual stream
    assert names == {name for name, _ in before.calls}
    residual = {call for call in in_a_step.calls if "norm" in call[0] or "gated_add" in call[0]}
    assert residual <= before.calls, residual - before.calls


def test_it_is_done_in_processes_that_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device without kernels their plain twins run; a process that fails is no error here."""
    codes: list[int] = []
    wait = ahead._code

    def noted(process: subprocess.Popen[bytes]) -> int:
        codes.append(wait(process))
        return codes[-1]

    monkeypatch.setattr(ahead, "_code", noted)
    ahead.begin(base().config, torch.float32, torch.device("cpu"))()
    ahead.begin(base().config, torch.float32, torch.device("mps"))()  # which is not here
    assert codes[:2] == [0, 0] and any(codes[2:])


def test_a_run_that_ends_early_leaves_no_process() -> None:
    before = atexit._ncallbacks()
    running = ahead._start({"part": 0})
    assert atexit._ncallbacks() == before + 1, "which is _end"
    ahead._end(running)
    assert running.returncode is not None and running.returncode < 0
    ended = subprocess.Popen([sys.executable, "-c", ""])
    assert ended.wait(30) == 0
    ahead._end(ended)
    assert ended.returncode == 0
