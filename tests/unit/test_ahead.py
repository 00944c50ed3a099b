"""Kernels are compiled before the first step asks for them: all of them, on the shapes that a block has."""

from __future__ import annotations

import atexit
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from simpletuner.models import adapters
from simpletuner.models.adapters import LoraSettings
from simpletuner.models.sana import block_forward
from simpletuner.models.sana.kernels import ahead
from simpletuner.models.sana.transformer import KERNELS
from tests.small_sana import base, velocity


class Seen(TorchDispatchMode):
    """Writes down our operators, with the dimensions of their tensors, which may be left out, and what is a yes or a no."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: set[tuple[Any, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "simpletuner" and "joined" not in func.name():
            kept = (a.dim() if isinstance(a, torch.Tensor) else repr(a) for a in args if not isinstance(a, float))
            self.calls.add((func.name(), *kept))
        return func(*args, **(kwargs or {}))


def in_a_step(model: Any) -> set[tuple[Any, ...]]:
    assert block_forward.use_plain(model.train(), KERNELS) is None
    with Seen() as seen:
        velocity(model).sum().backward()
    return seen.calls


def called_ahead(config: Any, adapter: bool) -> set[tuple[Any, ...]]:
    with Seen() as seen, torch.no_grad():
        for job in ahead.jobs(config, torch.float32, torch.device("cpu"), adapter):
            job()
    return seen.calls


def of_the_stream(calls: set[tuple[Any, ...]]) -> set[tuple[Any, ...]]:
    """Those whose kernels differ by what may be left out."""
    return {call for call in calls if "norm" in call[0] or "gated_add" in call[0]}


@pytest.mark.parametrize("adapted", [None, ("to_q", "to_out.0"), ("all",), ("to_v", "time_embed.linear")], ids=str)
def test_every_operator_of_a_training_step_is_called_ahead(adapted: tuple[str, ...] | None) -> None:
    """Also with what may be left out: each is another kernel, and a frozen table or bias leaves much out."""
    model = base().requires_grad_(True)
    if adapted:
        adapters.put_on(model, LoraSettings(rank=2, targets=adapted), 0)
    step, before = in_a_step(model), called_ahead(model.config, adapted is not None)
    names = {name for name, *_ in step}
    # Two of depthwise, linear attention, cross-attention and the seam each, four of the residual stream.
    assert len(names) == 12, names
    assert names == {name for name, *_ in before}
    assert of_the_stream(step) <= before, of_the_stream(step) - before
    if not adapted:
        assert of_the_stream(before) == of_the_stream(step), "a run waits for what it does not use"


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
