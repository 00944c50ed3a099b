"""CUDA graphs of a step: the same numbers as plain steps, and a plain way out of everything that fails."""

import pytest
import torch

from simpletuner.training.step_graph import WARM_UP, StepGraphs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = torch.device("cuda")


class Work:
    """Training by hand: gradient descent on one matrix, and what happened besides."""

    def __init__(self, forbidden: bool = False) -> None:
        torch.manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(64, 64, device=GPU))
        self.forbidden, self.ran, self.cleared, self.said = forbidden, 0, 0, list[str]()
        self.graphs = StepGraphs(lambda: None, self.clear, self.said.append)

    def clear(self) -> None:
        self.cleared += 1
        self.weight.grad = None

    def __call__(self, x: torch.Tensor, rate: torch.Tensor, weights: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        self.ran += 1
        error = (x @ self.weight).square()
        loss = (error if weights is None else error * weights).mean(1)
        loss.mean().backward()
        if self.forbidden:
            loss.sum().item()  # the host waits: no graph can do that
        with torch.no_grad():
            self.weight -= rate * self.weight.grad
        self.weight.grad = None
        return loss.detach(), self.weight.detach().norm()

    def step(self, number: int, rows: int, weighted: bool = False) -> tuple[torch.Tensor, ...]:
        x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(number)).to(GPU)
        rate = torch.full((), 0.1 / (1 + number), device=GPU)
        return self.graphs(self, (x, rate, torch.rand_like(x).round() * 0 + 2 if weighted else None))


def plain(steps: list[tuple[int, int, bool]]) -> list[torch.Tensor]:
    work = Work()
    work.graphs.obstacle = "asked for"
    return [torch.cat([t.flatten() for t in work.step(*step)]) for step in steps]


def test_graphs_of_several_shapes_give_the_numbers_of_plain_steps() -> None:
    steps = [(n, 4 + 4 * (n % 2), n % 3 == 0) for n in range(40)]
    work = Work()
    found = [torch.cat([t.flatten() for t in work.step(*step)]) for step in steps]
    assert work.ran == 4 * (WARM_UP + 1), "four shapes: three plain steps each, and one that was captured"
    for a, b in zip(found, plain(steps), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert len(work.said) == 1 and "one CUDA graph" in work.said[0]


def test_what_cannot_be_captured_runs_as_it_is() -> None:
    steps = [(n, 4, False) for n in range(8)]
    work = Work(forbidden=True)
    found = [torch.cat([t.flatten() for t in work.step(*step)]) for step in steps]
    for a, b in zip(found, plain(steps), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert work.graphs.obstacle and len(work.said) == 1 and work.cleared == 1


def test_graphs_give_their_memory_back_and_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [(n, 8, False) for n in range(12)]
    work, found = Work(), []
    for step in steps:
        found.append(torch.cat([t.flatten() for t in work.step(*step)]))
        if step[0] == 6:
            monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1, 100))
            work.graphs.make_room()
    assert work.ran == WARM_UP + 2, "captured twice"
    for a, b in zip(found, plain(steps), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_graphs_give_way_where_a_step_of_another_shape_has_no_room_beside_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A step takes about 1.9 GiB: two do not fit into 3, and yet both shapes get graphs, and the numbers stay."""
    rows = 16384  # 128 MiB an activation
    given_back: list[int] = []

    def course(bound: float) -> tuple[list[float], StepGraphs]:
        weight = torch.nn.Parameter(torch.eye(2048, device=GPU))

        def work(x: torch.Tensor, rate: torch.Tensor) -> tuple[torch.Tensor, ...]:
            for _ in range(6):
                x = torch.sin(x @ weight)  # keeps two activations of x's size
            x.mean().backward()
            with torch.no_grad():
                weight.sub_(rate * weight.grad)
            weight.grad = None
            return (x.detach().mean(),)

        graphs = StepGraphs(lambda: None, lambda: None, lambda said: None)
        release = graphs.release
        monkeypatch.setattr(graphs, "release", lambda: (given_back.append(len(graphs._captured)), release()))
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(GPU).total_memory
        torch.cuda.set_per_process_memory_fraction(
            min(1.0, (torch.cuda.memory_reserved() + bound * 2**30) / total) if bound else 1.0
        )
        found = []
        # The second shape's first steps come beside a graph; the first comes again, where pieces are too small for it.
        for some in [rows] * 5 + [rows - 1024] * 5 + [rows] * 2 + [rows - 1024] * 2:
            (mean,) = graphs(work, (torch.ones(some, 2048, device=GPU), torch.full((), 1e-2, device=GPU)))
            found.append(float(mean))
        return found, graphs

    try:
        tight, graphs = course(3.0)
        assert not graphs.obstacle and given_back == [1, 1]  # for a plain step, and for the larger graph
        assert len(graphs._captured) == 2, "the smaller shape's graph lies in the larger's memory"
        graphs.release()
        given_back.clear()
        roomy, graphs = course(0.0)
        assert len(graphs._captured) == 2 and not given_back
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert tight == pytest.approx(roomy, rel=1e-5) and tight[0] != tight[-1]
