"""When a step is captured, replayed, given up or made again; CUDA itself is stood in for, as there is none here."""

import weakref
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from simpletuner.training import step_graph
from simpletuner.training.step_graph import WARM_UP, StepGraphs

POOL = (0, 7)


class Recorder:
    """Stands for torch.cuda: what is run while capturing is kept, and run again at replay."""

    def __init__(self) -> None:
        self.capturing: Recorder.Graph | None = None
        self.captures = self.replays = 0
        self.free = 100
        self.streams: list[str] = []
        self.held = 0  # captures that failed and were not undone
        self.fraction, self.reserved, self.allocated = 1.0, 0, 0
        self.grows = 0  # by what a capture takes

    class Graph:
        def __init__(self) -> None:
            self.run: Callable[[], object] | None = None

        def replay(self) -> None:
            RECORDER.replays += 1
            assert self.run is not None
            self.run()

    class Generator:
        captured = True

        def clone_state(self) -> str:
            return "fresh"

        def graphsafe_set_state(self, state: str) -> None:
            self.captured = state != "fresh"

    def end(self, device: int, pool: Any) -> None:
        assert (device, pool) == (0, POOL)
        if not self.held:
            raise RuntimeError("not currently recording to this pool")

    def let_go(self, device: int, pool: Any) -> None:
        self.held -= 1

    @contextmanager
    def graph(self, graph: Any, pool: Any, capture_error_mode: str) -> Any:
        assert capture_error_mode == "thread_local", "the loader's thread goes on beside it"
        assert pool == POOL, "all graphs share one"
        self.captures += 1
        self.reserved += self.grows
        self.capturing = graph
        try:
            yield
        except RuntimeError:
            self.held += 1
            raise
        finally:
            self.capturing = None


RECORDER = Recorder()


@pytest.fixture(autouse=True)
def cuda(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    RECORDER.__init__()  # type: ignore[misc]
    monkeypatch.setattr(
        step_graph.gc, "collect", lambda: 0
    )  # half a second each time, among all that tests have imported
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorder.Graph)
    monkeypatch.setattr(torch.cuda, "graph", RECORDER.graph)
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", RECORDER.end, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", RECORDER.let_go, raising=False)
    monkeypatch.setattr(torch.cuda, "default_generators", (RECORDER.Generator(),))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "the usual one")
    monkeypatch.setattr(torch.cuda, "set_stream", RECORDER.streams.append)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: POOL)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda index=0: RECORDER.reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: RECORDER.allocated)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (RECORDER.free, 100 + 0 * index))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda index: RECORDER.fraction + 0 * index)
    return RECORDER


class Work:
    """Doubles its input; in a capture it is written down instead, as a GPU would."""

    def __init__(self, fails: Callable[["Work"], Exception | None] = lambda work: None) -> None:
        self.prepared = False
        self.fails, self.plain, self.cleared, self.after, self.said = fails, 0, 0, 0, list[str]()
        self.graphs = StepGraphs(self.captured, self.clear, self.said.append, self.prepare)

    def prepare(self) -> None:
        assert not self.plain and not self.prepared, "once, before anything else"
        self.prepared = True

    def captured(self) -> None:
        self.after += 1

    def clear(self) -> None:
        self.cleared += 1

    def __call__(self, x: torch.Tensor, extra: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        if error := self.fails(self):
            raise error
        if graph := RECORDER.capturing:
            out = torch.empty_like(x)
            graph.run = lambda: torch.mul(x, 2, out=out)
            return (out,)
        self.plain += 1
        return (2 * x,)

    def step(self, value: float, rows: int = 2, extra: bool = False) -> list[float]:
        (out,) = self.graphs(self, (torch.full((rows,), value), torch.ones(1) if extra else None))
        return out.tolist()


def test_a_shape_is_captured_after_its_first_steps_and_replayed_on_new_numbers() -> None:
    work = Work()
    kept = [work.step(float(n)) for n in range(8)]
    assert kept == [[2.0 * n] * 2 for n in range(8)], "earlier results are not written over"
    assert (work.plain, RECORDER.captures, RECORDER.replays, work.after) == (WARM_UP, 1, 8 - WARM_UP, 1)
    assert work.prepared
    assert len(work.said) == 1 and "one CUDA graph" in work.said[0]
    for n in range(WARM_UP + 2):  # other shapes are graphs of their own
        assert work.step(float(n), rows=3) == [2.0 * n] * 3 and work.step(1.0, extra=True) == [2.0, 2.0]
    assert RECORDER.captures == 3 and len(work.said) == 1


def test_there_is_a_limit_to_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_graph, "LIMIT", 2)
    work = Work()
    for rows in range(1, 5):
        for n in range(WARM_UP + 2):
            assert work.step(float(n), rows=rows) == [2.0 * n] * rows
    assert RECORDER.captures == 2


def test_a_capture_that_fails_is_the_last_one_and_leaves_nothing() -> None:
    work = Work(lambda work: RuntimeError("operation not permitted") if RECORDER.capturing else None)
    assert [work.step(float(n)) for n in range(7)] == [[2.0 * n] * 2 for n in range(7)]
    assert (work.plain, RECORDER.captures, work.cleared, work.after) == (7, 1, 1, 0)
    assert work.graphs.obstacle == "operation not permitted" and "without a CUDA graph" in work.said[0]
    assert not RECORDER.held and not torch.cuda.default_generators[0].captured, "what torch leaves behind is undone"
    assert RECORDER.streams == ["the usual one"]


def test_memory_is_given_back_to_other_shapes_and_the_step_is_made_again() -> None:
    full = [False]

    def fails(work: Work) -> Exception | None:
        return torch.OutOfMemoryError("out of memory") if full[0] and work.graphs._captured else None

    work = Work(fails)
    for n in range(WARM_UP + 1):
        work.step(float(n))
    full[0] = True
    assert work.step(5.0, rows=9) == [10.0] * 9 and work.cleared == 1
    assert work.graphs.obstacle and not work.graphs._captured
    assert work.step(6.0) == [12.0, 12.0] and RECORDER.captures == 1


@pytest.mark.parametrize(("free", "unused", "captures"), [(40, 0, 2), (20, 0, 3), (20, 25, 2)])
def test_graphs_give_way_to_a_step_of_another_shape_where_both_do_not_fit(
    free: int, unused: int, captures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """30 of 100 bytes are the graph's: another step fits beside it if 30 more are free, or kept by torch and unused."""
    monkeypatch.setattr(step_graph, "WARM_UP", 1)
    work = Work()
    RECORDER.grows, RECORDER.allocated = 30, 10
    RECORDER.reserved = 10
    work.step(1.0), work.step(2.0)
    assert RECORDER.captures == 1 and work.graphs._size == 30
    RECORDER.free, RECORDER.reserved, RECORDER.grows = free, 40 + unused, 0
    assert work.step(3.0, rows=5) == [6.0] * 5
    assert bool(work.graphs._captured) == (captures == 2) and not work.graphs.obstacle
    assert work.step(4.0) == [8.0] * 2 and work.step(5.0, rows=5) == [10.0] * 5
    assert RECORDER.captures == captures, "what gave way is captured anew"


@pytest.mark.parametrize("changes", [1, step_graph.FRESH_STARTS + 1])
def test_a_graph_that_has_no_room_beside_others_gets_theirs_but_not_for_ever(changes: int) -> None:
    """Two shapes that never fit together take turns a few times; then steps run the plain way."""

    def fails(work: Work) -> Exception | None:
        alone = not RECORDER.capturing or not work.graphs._captured
        return None if alone else torch.OutOfMemoryError("out of memory\nTried to allocate")

    work = Work(fails)
    for n in range(WARM_UP + 1):
        assert work.step(float(n)) == [2.0 * n] * 2
    for n in range(WARM_UP):
        assert work.step(float(n), rows=3) == [2.0 * n] * 3
    for n in range(changes):
        rows = 2 + (n + 1) % 2
        assert work.step(7.0, rows=rows) == [14.0] * rows
    lasting = changes <= step_graph.FRESH_STARTS
    assert len(work.graphs._captured) == lasting and work.cleared == changes
    assert work.graphs.obstacle == (None if lasting else "out of memory")
    assert work.step(8.0) == [16.0, 16.0]


def test_what_has_reached_others_is_not_made_again() -> None:
    full = [False]
    work = Work(lambda work: torch.OutOfMemoryError("out of memory") if full[0] else None)
    work.graphs._repeatable = False
    for n in range(WARM_UP + 1):
        work.step(float(n))
    full[0] = True
    with pytest.raises(torch.OutOfMemoryError):
        work.step(5.0, rows=9)
    assert work.graphs._captured and not work.graphs.obstacle


def test_room_made_for_pictures_again_and_again_is_no_end_of_graphs() -> None:
    """A larger shape that comes after a smaller one wants a fresh start, after every picture."""

    def fails(work: Work) -> Exception | None:
        return torch.OutOfMemoryError("out of memory") if RECORDER.capturing and work.graphs._captured else None

    work = Work(fails)
    for rows in (2, 3):
        for n in range(WARM_UP):
            work.step(float(n), rows=rows)
    for _ in range(2 * step_graph.FRESH_STARTS):
        work.step(1.0), work.step(1.0, rows=3)
        RECORDER.free = 1
        work.graphs.make_room()
        RECORDER.free = 100
    assert not work.graphs.obstacle


def test_memory_that_was_short_is_told_as_that_though_the_capture_is_found_unfinished() -> None:
    def fails(work: Work) -> Exception | None:
        if RECORDER.capturing and work.graphs._captured:
            try:
                raise torch.OutOfMemoryError("out of memory")
            except torch.OutOfMemoryError:
                raise RuntimeError("capture of unjoined work")  # noqa: B904 - as torch's way out of a capture does
        return None

    work = Work(fails)
    for rows in (2, 3):
        for n in range(WARM_UP):
            work.step(float(n), rows=rows)
    assert work.step(1.0) == [2.0, 2.0] and work.step(1.0, rows=3) == [2.0] * 3
    assert work.graphs._fresh_starts == 1 and not work.graphs.obstacle


def test_without_graphs_too_little_memory_is_too_little() -> None:
    work = Work(lambda work: torch.OutOfMemoryError("out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        work.step(1.0)


@pytest.mark.parametrize(
    ("free", "fraction", "reserved", "captures"), [(80, 1.0, 0, 1), (10, 1.0, 0, 2), (80, 0.5, 45, 2), (80, 0.5, 5, 1)]
)
def test_pictures_get_room_where_there_is_little(free: int, fraction: float, reserved: int, captures: int) -> None:
    """Little of the card, or of the part of it that torch may take."""
    work = Work()
    for n in range(WARM_UP + 1):
        work.step(float(n))
    RECORDER.free, RECORDER.fraction, RECORDER.reserved = free, fraction, reserved
    work.graphs.make_room()
    assert work.step(9.0) == [18.0, 18.0] and RECORDER.captures == captures


def test_graphs_that_read_what_moves_go_before_hooks_act_and_not_before_a_rollout() -> None:
    work = Work()
    work.graphs = StepGraphs(work.captured, work.clear, work.said.append, yields=True)
    for n in range(WARM_UP + 1):
        work.step(float(n))
    work.graphs.make_room()
    assert work.step(9.0) == [18.0, 18.0] and RECORDER.captures == 1
    work.graphs.make_room(acting=True)
    assert work.step(9.0) == [18.0, 18.0] and RECORDER.captures == 2


def test_what_a_graph_reads_lives_as_long_as_the_graph() -> None:
    made: list[weakref.ref[torch.Tensor]] = []

    def after_capture() -> list[torch.Tensor]:
        table = torch.zeros(2)
        made.append(weakref.ref(table))
        return [table]

    work = Work()
    work.graphs = StepGraphs(after_capture, work.clear, work.said.append)
    for n in range(WARM_UP + 2):
        work.step(float(n))
    (table,) = made
    assert table() is not None
    work.graphs.release()
    assert table() is None


def test_what_work_leaves_behind_is_put_back_after_each_replay() -> None:
    """Gradients: the next user takes them away, and a replay writes into the same memory as the capture."""
    weight = torch.nn.Parameter(torch.zeros(2))

    def work(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        weight.grad = torch.empty_like(x)
        run = lambda: torch.mul(x, 3, out=weight_grad)  # noqa: E731
        weight_grad = weight.grad
        if RECORDER.capturing:
            RECORDER.capturing.run = run
        else:
            run()
        return (x,)

    def put_back(left: Any) -> None:
        weight.grad = left

    graphs = StepGraphs(lambda: None, lambda: None, lambda said: None, left=lambda: weight.grad, put_back=put_back)
    for number in range(8):
        graphs(work, (torch.full((2,), float(number)),))
        assert weight.grad is not None and weight.grad.tolist() == [3.0 * number] * 2
        weight.grad = None
    assert RECORDER.replays == 8 - WARM_UP
