"""Gradients of two processes: averaged while backward goes on, in one order, and in a step that is one piece."""

import json
import math
import subprocess
import sys
import time
from contextlib import ExitStack
from datetime import timedelta
from io import StringIO
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ranks_averaging
import torch
import toy
from processes import PATIENCE_S, ended
from rich.console import Console

from simpletuner.errors import LostProcessError
from simpletuner.reporting.progress import Reporter
from simpletuner.training import neighbours, ranks
from simpletuner.training.adamw_bf16 import AdamWBF16
from simpletuner.training.assemble import make_graphs, may_average_early
from simpletuner.training.averaging import Averaging
from simpletuner.training.ranks import Ranks


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes has found."""
    folder = tmp_path_factory.mktemp("ranks")
    with ExitStack() as stack:
        commands = [[sys.executable, ranks_averaging.__file__, str(rank), str(folder)] for rank in range(2)]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        running = [stack.enter_context(ended(subprocess.Popen(command, **pipes))) for command in commands]
        said = [process.communicate(timeout=PATIENCE_S)[0] for process in running]
        assert [process.returncode for process in running] == [0, 0], "\n".join(said)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_gradients_that_come_in_different_orders_are_averaged_each_with_its_own(both: list[dict[str, Any]]) -> None:
    each = []
    for turn in range(2):
        parameters, loss = ranks_averaging.crossing(turn)
        loss.backward()
        each.append([p.grad.flatten()[:: ranks_averaging.EDGE // 4] for p in parameters if p.grad is not None])
    means = [(a + b) / 2 for a, b in zip(*each, strict=True)]
    for rank in range(2):
        for number, found in enumerate(both[rank]["crossed"]):
            torch.testing.assert_close(torch.tensor(found), means[number % 3])
    assert both[0]["crossed"] == both[1]["crossed"]
    assert not torch.allclose(each[0][0], each[1][0])


@pytest.mark.parametrize("way", ["whole", "parts", "each in its own way"])
def test_two_processes_take_the_steps_of_one(way: str, both: list[dict[str, Any]]) -> None:
    alone = ranks_averaging.toy_steps(Ranks(), way == "whole")  # a graph's step and a plain one are the same, below
    assert both[0][way] == both[1][way], "the same bits everywhere"
    for one, two in zip(alone, both[0][way], strict=True):
        torch.testing.assert_close(torch.tensor(two), torch.tensor(one), rtol=1e-5, atol=1e-6)


def test_a_step_in_one_piece_is_the_step_in_parts() -> None:
    assert ranks_averaging.toy_steps(Ranks(), True) == ranks_averaging.toy_steps(Ranks(), False)


def test_alone_nothing_is_sent_and_no_hook_is_put_on() -> None:
    weight = torch.nn.Parameter(torch.ones(ranks_averaging.EDGE, ranks_averaging.EDGE))
    averaging = Averaging(Ranks(), [weight], early=True)
    weight.sum().backward()
    assert weight.grad is not None and not averaging._sent
    averaging.finish([weight.grad])
    assert torch.equal(weight.grad, torch.ones_like(weight))


WHOLE_AT_ONCE = {
    "micro-batches": (2, {}),
    "sums": (1, {"sums": True}),
    "scaler": (1, {"scaler": True}),
    "release": (1, {"release": True}),
}


@pytest.mark.parametrize("name", WHOLE_AT_ONCE)
def test_gradients_that_are_not_whole_after_backward_wait(name: str) -> None:
    accumulation, held = WHOLE_AT_ONCE[name]
    trainee = toy.trainee()
    assert may_average_early(trainee, 1)
    for field in held:
        setattr(trainee, field, object())
    assert not may_average_early(trainee, accumulation)


class Moment:
    """Stands for an event of a device that comes after some looks, or never."""

    def __init__(self, looks: float) -> None:
        self.looks = looks

    def record(self) -> None: ...

    def query(self) -> bool:
        self.looks -= 1
        return self.looks < 0


def test_a_device_is_waited_for_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    several, moment = Ranks(0, 2), Moment(3)
    several.wait_for(moment)  # type: ignore[arg-type]
    assert moment.looks == -1 and not several.lost
    monkeypatch.setattr(ranks, "PATIENCE_DEVICES", timedelta(seconds=0.01))
    with pytest.raises(LostProcessError):
        several.wait_for(Moment(float("inf")))  # type: ignore[arg-type]
    assert several.lost


def test_a_device_is_not_waited_for_where_a_process_beside_this_one_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended and waited for by nobody, which is all that is left where torchrun is busy, or gone."""
    monkeypatch.setattr(ranks, "LOOK_S", 0.01)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        several = Ranks(0, 2)
        several._beside = [psutil.Process(other.pid)]
        several.wait_for(Moment(200))  # type: ignore[arg-type]
        other.kill()
        with pytest.raises(LostProcessError):
            several.wait_for(Moment(float("inf")))  # type: ignore[arg-type]
    assert not neighbours.is_running(several._beside[0])


def test_a_process_is_known_by_its_number_and_its_beginning() -> None:
    me = psutil.Process()
    assert neighbours.process_of(me.pid, me.create_time()) == me
    assert neighbours.process_of(me.pid, me.create_time() - 60) is None, "another machine's"
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    assert neighbours.process_of(gone.pid, me.create_time()) is None


def test_what_is_hidden_of_processes_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a sandbox whose /proc has processes and nothing else: then they are not looked after."""

    def hidden(process: psutil.Process) -> float:
        raise FileNotFoundError("/proc/stat")

    def denied(process: psutil.Process) -> str:
        raise psutil.AccessDenied(process.pid)

    me = psutil.Process()
    began = neighbours.beginning(me.pid)
    assert neighbours.process_of(me.pid, began) == me
    monkeypatch.setattr(psutil.Process, "create_time", hidden)
    assert math.isnan(neighbours.beginning(me.pid))
    assert neighbours.process_of(me.pid, began) is None and neighbours.process_of(me.pid, math.nan) is None
    monkeypatch.setattr(psutil.Process, "status", denied)
    assert neighbours.is_running(me)


def test_a_host_that_is_to_read_a_figure_looks_after_the_others_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy from the device would wait for one that waits for a process that has ended, and hear nothing."""
    monkeypatch.setattr(torch.cuda, "Event", lambda: Moment(float("inf")))
    monkeypatch.setattr(ranks, "PATIENCE_DEVICES", timedelta(seconds=0.01))
    Ranks(0, 1).wait_until_now(torch.device("cuda"))
    Ranks(0, 2).wait_until_now(torch.device("cpu"))
    with pytest.raises(LostProcessError):
        Ranks(0, 2).wait_until_now(torch.device("cuda"))


def test_a_process_that_was_left_alone_ends_though_a_call_blocks_it() -> None:
    """As one of CUDA does: the interpreter's lock is held, so that no other thread of Python runs, and no signal is heard."""
    blocked = "import ctypes; from simpletuner.training import neighbours; neighbours.leave_within(0.5); ctypes.PyDLL(None).sleep(120)"
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", blocked], timeout=PATIENCE_S, capture_output=True, check=False)
    assert done.returncode == 1 and not done.stderr and time.monotonic() - began < 100


@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_tells_of_its_own_obstacle_and_says_nothing_else(
    rank: int, capsys: pytest.CaptureFixture[str]
) -> None:
    trainee = toy.trainee()
    trainee.optimizer = AdamWBF16(trainee.parameters, lr=1.0)
    said = Console(record=True, file=StringIO(), quiet=rank > 0)
    session: Any = SimpleNamespace(ranks=Ranks(rank, 2), reporter=Reporter(said), aside=False)
    graphs = make_graphs(session, trainee)
    graphs._say("From here on")
    graphs._give_up("no memory")
    told, aside = said.export_text(), capsys.readouterr().err
    if rank:
        assert not told and "process 1 of 2: Note:" in aside and "no memory" in aside and "From" not in aside
    else:
        assert "From here on" in told and "no memory" in told and not aside
