"""Steps that the device takes or leaves by itself: the optimizer's arithmetic, the loop around it, what is told when."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import toy

from simpletuner.data.loader import pad
from simpletuner.data.types import Batch
from simpletuner.errors import CacheError, NonFiniteError
from simpletuner.models.sana.family import Sana
from simpletuner.training import adamw8bit, adamw_bf16, fast_path, library_adam, loop
from simpletuner.training.adamw_bf16 import AdamWBF16
from simpletuner.training.ema import Ema, effective_decay
from simpletuner.training.gradient_sums import Float32Sums
from simpletuner.training.guard import PATIENCE, Guard
from simpletuner.training.guarded_adam import adam_where, control_of, debiased_mix, plain_mix
from simpletuner.training.learning_rate import Schedule
from simpletuner.training.loop import StepResult, train
from simpletuner.training.optimizers import build, pack, unpack
from simpletuner.training.precision import choose
from simpletuner.training.step import one_step
from simpletuner.training.trainee import Trainee

YES, NO, ONE = torch.tensor(True), torch.tensor(False), torch.tensor(1.0)


def pair(dtype: torch.dtype, **settings: Any) -> tuple[list[AdamWBF16], list[list[torch.nn.Parameter]]]:
    """Two optimizers over the same weights."""
    torch.manual_seed(3)
    weights = [torch.randn(5, 7), torch.randn(3), torch.tensor(0.7)]
    copies = [[torch.nn.Parameter(w.to(dtype, copy=True)) for w in weights] for _ in range(2)]
    return [AdamWBF16(c, lr=1e-2, weight_decay=0.1, **settings) for c in copies], copies


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 2e-7), (torch.bfloat16, 0.017)])
def test_clipping_is_a_factor_on_the_gradients(dtype: torch.dtype, near: float) -> None:
    (host, device), (first, second) = pair(dtype)
    for step in range(6):
        for a, b in zip(first, second, strict=True):
            a.grad = torch.randn(a.shape, generator=torch.Generator().manual_seed(step)).to(dtype)
            b.grad = 2 * a.grad
        host.step()
        device.guarded_step(torch.tensor(1e-2), torch.tensor(0.5), YES)
    for a, b in zip(first, second, strict=True):
        assert (a - b).abs().max() <= near, "bf16 differs by a rounding here and there"
    states = [optimizer.state_dict()["state"] for optimizer in (host, device)]
    assert [s[i]["step"] for s in states for i in range(3)] == [6] * 6


def test_steps_that_a_graph_takes_are_counted_at_every_checkpoint() -> None:
    """A replay runs no Python: it counts on the device alone, after a checkpoint too."""
    optimizer = pair(torch.float32)[0][0]
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.guarded_step(ONE, ONE, YES)
    optimizer.after_capture()
    for taken in (2, 3, 4):
        assert optimizer._taken is not None
        optimizer._taken.add_(1)
        assert {state["step"] for state in optimizer.state_dict()["state"].values()} == {taken}


ARGUMENTS: list[tuple[str, dict[str, Any]]] = [
    *[("optimi-adamw", given) for given in ({}, {"decouple_lr": True, "max_lr": 0.1}, {"kahan_sum": False})],
    *[("torch-adamw", given) for given in ({}, {"amsgrad": True}, {"maximize": True}, {"amsgrad": False})],
    *[("ao-adamw8bit", given) for given in ({}, {"amsgrad": True}, {"block_size": 128}, {"block_size": 256})],
    *[("ao-adamw8bit", {"bf16_stochastic_round": False}), ("adamw_bf16", {}), ("optimi-lion", {}), ("torch-adam", {})],
]


@pytest.mark.parametrize(("name", "given"), ARGUMENTS)
@pytest.mark.parametrize("half", [False, True])
def test_what_a_gpu_guards_is_known_before(
    name: str, given: dict[str, Any], half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The estimate of memory says what the optimizer itself will say on a GPU."""
    for module in (adamw8bit, adamw_bf16, library_adam):
        monkeypatch.setattr(module, "available", lambda tensor: True)
    weight = torch.nn.Parameter(torch.zeros(64, 64, dtype=torch.bfloat16 if half else torch.float32))
    assert hasattr(build(name, [weight], 0.1, given), "guarded_step") is fast_path.guards(name, given, half)


@pytest.mark.parametrize("name", ["adamw_bf16", "optimi-adamw", "torch-adamw", "ao-adamw8bit"])
def test_states_made_ahead_change_nothing(name: str) -> None:
    found = []
    for ahead in (False, True):
        torch.manual_seed(3)
        weights = [torch.nn.Parameter(torch.randn(n, 5).bfloat16()) for n in (7, 3)]
        optimizer: Any = build(name, weights, 1e-2, {}, seed=0)
        if ahead:
            optimizer.make_states()
            made = {id(t) for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)}
            assert len(made) >= 4 and all(w.grad is None for w in weights)
        for step in range(4):
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step)).bfloat16()
            optimizer._guarded_step(torch.tensor(1e-2), ONE, YES if step != 2 else NO)
        if ahead:
            assert made <= {id(t) for s in optimizer.state.values() for t in s.values()}, "the same tensors still"
        found.append((weights, optimizer.state_dict()["state"]))
    (plain, states), (other, states_ahead) = found
    assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))
    for index, state in states.items():
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(states_ahead[index][k])) for k, v in state.items())


def test_a_step_that_is_left_changes_nothing_and_is_not_counted() -> None:
    (optimizer, _), (weights, _) = pair(torch.bfloat16)
    for good in (NO, YES, NO, YES):
        before = [w.detach().clone() for w in weights]
        for weight in weights:
            weight.grad = torch.full_like(weight, 1.0 if good else float("nan"))
        optimizer.guarded_step(torch.tensor(1e-2), ONE, good)
        assert [torch.equal(a, b) for a, b in zip(weights, before, strict=True)] == [not good] * 3
    assert optimizer.state_dict()["state"][0]["step"] == 2
    assert all(torch.isfinite(s["exp_avg"]).all() for s in optimizer.state.values())
    optimizer.step()  # and the host may go on
    assert optimizer.state_dict()["state"][0]["step"] == 3


@pytest.mark.parametrize("mix", [plain_mix, debiased_mix])
def test_the_formula_is_that_of_torch(mix: Any) -> None:
    weight = torch.nn.Parameter(torch.rand(4, 9, dtype=torch.float64))
    reference = torch.optim.AdamW([weight], 3e-3, (0.9, 0.99), 1e-6, 0.1)
    ours = [weight.detach().clone(), *(torch.zeros(4, 9, dtype=torch.float64) for _ in range(2))]
    for step in range(1, 8):
        weight.grad = torch.randn(4, 9, dtype=torch.float64)
        reference.step()
        taken = torch.tensor(float(step), dtype=torch.float64)
        control = control_of(mix((0.9, 0.99), taken), taken, torch.tensor(3e-3), ONE, YES).double()
        change, *states = adam_where((ours[0], weight.grad, *ours[1:]), control, 1e-6, 0.1)
        ours = [ours[0] * (1 - 3e-4) + change, *states]
        torch.testing.assert_close(ours[0], weight.detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["optimi-adamw", "torch-adamw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_libraries_adamw_takes_the_librarys_step(name: str, dtype: torch.dtype) -> None:
    """Beside float64 truth: no further off than the library itself, and its states are the same numbers."""
    overrides = {"weight_decay": 0.1} | ({"foreach": False, "triton": False} if name.startswith("optimi") else {})
    torch.manual_seed(5)
    start = [torch.randn(6, 5), torch.randn(4)]
    sides = []
    for exact in (True, False, False):
        weights = [torch.nn.Parameter(w.to(torch.float64 if exact else dtype, copy=True)) for w in start]
        sides.append((weights, build(name, weights, 1e-3, overrides)))
    for step in range(20):
        for weights, optimizer in sides:
            generator = torch.Generator().manual_seed(step)
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=generator).to(dtype).to(weight.dtype)
            assert not hasattr(optimizer, "guarded_step"), "on a CPU the library's own step is taken"
            if optimizer is sides[2][1]:
                bad = [w.detach().clone() for w in weights]
                optimizer._guarded_step(torch.tensor(1e-3), ONE, NO)  # type: ignore[attr-defined]
                assert all(torch.equal(a, b) for a, b in zip(weights, bad, strict=True))
                optimizer._guarded_step(torch.tensor(1e-3), ONE, YES)  # type: ignore[attr-defined]
            else:
                optimizer.step()
    truth, library, ours = (torch.cat([w.detach().double().flatten() for w in weights]) for weights, _ in sides)
    assert (ours - truth).norm() <= 1.1 * (library - truth).norm() + 1e-6
    packed = [pack(optimizer) for _, optimizer in sides[1:]]
    assert packed[0][0].keys() == packed[1][0].keys() and packed[0][1]["groups"] == packed[1][1]["groups"]
    for key, tensor in packed[0][0].items():
        torch.testing.assert_close(packed[1][0][key], tensor, rtol=0.03 if dtype is torch.bfloat16 else 1e-4, atol=0.01)


class Told:
    """A hook that keeps what it hears, and acts at some steps."""

    def __init__(self, acts: tuple[int, ...] = ()) -> None:
        self.acts, self.results = acts, list[StepResult]()
        self.stopped: list[tuple[int, bool]] = []

    def on_start(self, step: int) -> None: ...

    def acts_at(self, step: int) -> bool:
        return step in self.acts

    def on_step_end(self, result: StepResult) -> None:
        self.results.append(result)

    def on_stop(self, step: int, finished: bool) -> None:
        self.stopped.append((step, finished))


def guarded_toy(**changes: Any) -> Trainee:
    made = toy.trainee()
    made.optimizer = AdamWBF16(made.parameters, lr=1e-2, weight_decay=0.0)
    return replace(made, **changes)


RECIPE: dict[str, Any] = {"schedule": Schedule("constant", 1e-2, 0.0, 0, 99)}


def spoilt(number: int) -> Batch:
    good = toy.batch(number)
    return replace(good, latents=good.latents * float("nan"), sample_ids=(f"bad-{number}.png",))


@pytest.mark.parametrize("by_value", [False, True])
def test_the_loop_gives_the_same_weights_and_figures_either_way(by_value: bool) -> None:
    """The same optimizer, once guarding itself and once with the host in charge."""
    runs = []
    for guards in (True, False):
        made, told = guarded_toy(), Told()
        if not guards:
            made.optimizer = torch.optim.AdamW(made.parameters, lr=1e-2, eps=1e-6, weight_decay=0.0)
        assert made.guards_itself is guards
        recipe = toy.recipe(clip_norm=0.1, clip_by_value=by_value, accumulation=2, **RECIPE)
        train(made, recipe, iter([toy.batch(n, n + 1) for n in range(12)]), 0, 6, [told], lambda: False)
        runs.append((toy.flat(made.transformer), told.results))
    torch.testing.assert_close(runs[0][0], runs[1][0], rtol=1e-5, atol=1e-6)
    for a, b in zip(runs[0][1], runs[1][1], strict=True):
        assert (a.step, a.learning_rate, a.samples, a.skipped) == (b.step, b.learning_rate, b.samples, b.skipped)
        assert a.loss == pytest.approx(b.loss, rel=1e-5) and a.grad_norm == pytest.approx(b.grad_norm, rel=1e-5)


def test_a_bad_picture_is_named_and_costs_one_step() -> None:
    made, told = guarded_toy(), Told()
    made.ema = Ema(made.parameters, 0.5)
    batches = [toy.batch(0), spoilt(1), toy.batch(2)]
    weights: list[torch.Tensor] = []
    guard = Guard()
    stream = iter(batches)
    for step in range(3):
        one_step(made, toy.recipe(**RECIPE), stream, step, guard)
        weights.append(torch.cat([toy.flat(made.transformer), *(s.flatten() for s in made.ema.shadow)]))
    assert torch.equal(weights[0], weights[1]), "neither weights nor their average moved"
    assert not torch.equal(weights[1], weights[2]) and torch.isfinite(weights[2]).all()
    again = guarded_toy()
    again.ema = Ema(again.parameters, 0.5)
    train(again, toy.recipe(**RECIPE), iter(batches), 0, 3, [told], lambda: False)
    assert again.ema.updates == 2, "a step that was left is no update"
    assert [bool(result.skipped) for result in told.results] == [False, True, False]
    assert "bad-1.png" in (told.results[1].skipped or "")


def test_ten_bad_steps_in_a_row_end_the_run_and_what_was_learned_is_saved() -> None:
    made, told = guarded_toy(), Told()
    batches = [toy.batch(0), *(spoilt(n) for n in range(20))]
    with pytest.raises(NonFiniteError, match=f"bad-{PATIENCE - 1}.png"):
        train(made, toy.recipe(**RECIPE), iter(batches), 0, 21, [told], lambda: False)
    assert len(told.results) == PATIENCE and told.stopped == [(PATIENCE + 1, False)]


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are on their way, as on a GPU."""

    class Event:
        def synchronize(self) -> None: ...

    real = loop.Figures.__init__

    def on_their_way(self: loop.Figures, *arguments: Any) -> None:
        real(self, *arguments)
        self.ready = Event()  # type: ignore[assignment]

    monkeypatch.setattr(loop.Figures, "__init__", on_their_way)


def test_figures_are_read_late_but_at_once_where_a_hook_acts(late: None) -> None:
    order: list[str] = []

    class Orders(Told):
        def on_step_end(self, result: StepResult) -> None:
            order.append(f"told {result.step}")

    def batches() -> Any:
        for number in range(7):
            order.append(f"begun {number + 1}")
            yield toy.batch(number)

    train(guarded_toy(), toy.recipe(**RECIPE), batches(), 0, 7, [Orders((4,))], lambda: False)
    assert order == [
        "begun 1", "begun 2", "begun 3", "told 1", "begun 4", "told 2", "told 3", "told 4",
        "begun 5", "begun 6", "begun 7", "told 5", "told 6", "told 7",
    ]  # fmt: skip


@pytest.mark.parametrize(("bad", "ends"), [(9, False), (10, False), (12, True)])
def test_a_run_that_has_recovered_when_it_is_read_goes_on(late: None, bad: int, ends: bool) -> None:
    """Ten bad steps, and good ones behind them that are trained already."""
    told, batches = Told(), [toy.batch(0), *(spoilt(n) for n in range(bad)), *(toy.batch(n) for n in range(8))]
    if ends:
        with pytest.raises(NonFiniteError):
            train(guarded_toy(), toy.recipe(**RECIPE), iter(batches), 0, len(batches), [told], lambda: False)
        assert told.stopped == [(13, False)] and told.results[-1].step == 13
        return
    train(guarded_toy(), toy.recipe(**RECIPE), iter(batches), 0, len(batches), [told], lambda: False)
    assert told.stopped == [(len(batches), True)] and told.results[-1].step == len(batches)


def test_what_waits_is_told_when_the_data_fails(late: None) -> None:
    def batches() -> Any:
        yield from (toy.batch(0), toy.batch(1))
        raise CacheError("gone")

    told = Told()
    with pytest.raises(CacheError):
        train(guarded_toy(), toy.recipe(**RECIPE), batches(), 0, 5, [told], lambda: False)
    assert [result.step for result in told.results] == [1, 2]


def test_text_is_padded_to_a_multiple_and_means_the_same() -> None:
    texts = [torch.ones(5, 4), torch.ones(3, 4)]
    text, mask = pad(texts, 64)
    assert text.shape == (2, 64, 4) and mask.sum(1).tolist() == [5, 3] and not text[0, 5:].any()
    assert pad(texts)[0].shape == (2, 5, 4) and pad([torch.ones(64, 4)], 64)[0].shape == (1, 64, 4)


@pytest.mark.parametrize(
    ("wanted", "here", "forward", "said"),
    [
        ("auto", None, "fast", "compiled"),
        ("auto", "no GPU", "diffusers", ""),
        ("fast", None, "fast", "compiled"),
        ("fast", "no GPU", "plain", "no GPU"),
        ("plain", None, "plain", ""),
        ("diffusers", None, "diffusers", ""),
    ],
)
def test_which_forward_is_in_force(wanted: Any, here: str | None, forward: str, said: str, pocket: Path) -> None:
    from diffusers import SanaTransformer2DModel

    model = SanaTransformer2DModel.from_pretrained(pocket / "model", subfolder="transformer")
    ways = fast_path.put_on(Sana(), model, wanted, True, here)
    assert ways.forward == forward and said in ways.said and bool(said) == bool(ways.said)
    ours = ["forward" in vars(block) for block in model.transformer_blocks]
    assert all(ours) if forward != "diffusers" else not any(ours)
    guarded = guarded_toy()
    assert fast_path.can_replay(ways, guarded, 1) is (forward == "fast")
    assert not fast_path.can_replay(ways, guarded, 2) and not fast_path.can_replay(ways, guarded, 1, captured=False)
    assert not fast_path.can_replay(ways, toy.trainee(), 1), "SGD cannot guard itself"
    for draws in (False, True):
        adapted = toy.trainee()
        adapted.adapter = SimpleNamespace(draws=draws)  # type: ignore[assignment]
        assert fast_path.can_replay(ways, adapted, 1) is (forward == "fast" and not draws), "its gradients are few"
        adapted.release = SimpleNamespace(guards_itself=False)  # type: ignore[assignment]
        assert not fast_path.can_replay(ways, adapted, 1)


def test_the_cpu_is_no_place_for_the_fast_way() -> None:
    assert "NVIDIA" in (fast_path.obstacle(torch.device("cpu"), choose("bf16", True)) or "")


def test_text_is_rounded_up_only_where_lengths_cost_and_less_in_large_batches() -> None:
    here, there = torch.device("cpu"), torch.device("cuda")
    assert fast_path.text_multiple("fast", here, 8) == fast_path.text_multiple("diffusers", there, 8) == 1
    assert [fast_path.text_multiple("auto", there, batch) for batch in (1, 3, 4, 16)] == [64, 64, 32, 32]


def test_a_machine_that_cannot_compile_takes_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Any) -> Any:
        raise RuntimeError("fatal error: Python.h: No such file or directory\ncompilation terminated.")

    monkeypatch.setattr(torch, "compile", fails)
    assert fast_path.cannot_compile(torch.device("cpu")) == (
        "a first kernel cannot be compiled here (fatal error: Python.h: No such file or directory)"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux alone")
def test_the_kernel_in_the_interpreter() -> None:
    script = Path(__file__).parents[1] / "adam_in_interpreter.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_float32_sums_reach_a_guarded_step() -> None:
    """The sums are delivered before the norm is taken: the same update as without them, in float32."""
    results = []
    for sums in (False, True):
        made, told = guarded_toy(), Told()
        made.sums = Float32Sums(made.parameters) if sums else None
        batches = iter([toy.batch(n) for n in range(12)])
        train(made, toy.recipe(accumulation=4, clip_norm=0.1, **RECIPE), batches, 0, 3, [told], lambda: False)
        results.append((toy.flat(made.transformer), [result.grad_norm for result in told.results]))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-7)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-5)


@pytest.mark.parametrize(("interval", "warmup"), [(1, 0), (2, 0), (1, 3)])
def test_an_average_beside_steps_that_were_left_is_that_of_the_steps_that_were_taken(
    interval: int, warmup: int
) -> None:
    """Left steps move nothing; where the average is due by step, the steps that were left count as steps."""
    made, told = guarded_toy(), Told()
    made.ema = Ema(made.parameters, 0.9, interval, warmup_steps=warmup)
    by_hand = [p.detach().clone() for p in made.parameters]
    updates, guard = 0, Guard()
    for step, batch in enumerate(
        [toy.batch(0), spoilt(1), toy.batch(2), spoilt(3), toy.batch(4), toy.batch(5)], start=1
    ):
        before = [p.detach().clone() for p in made.parameters]
        outcome = one_step(made, toy.recipe(**RECIPE), iter([batch]), step - 1, guard)
        figures = loop.Figures(step, outcome, 1e-2, 0.0)
        unread = loop.Unread(made, [told])
        unread.add(figures)
        unread.read(0)
        taken = any(not torch.equal(a, b) for a, b in zip(before, made.parameters, strict=True))
        assert taken is not bool(told.results[-1].skipped)
        if step <= warmup:
            by_hand = [p.detach().clone() for p in made.parameters]
        elif step % interval == 0 and taken:
            decay = effective_decay(0.9, updates)
            by_hand = [s + (p.detach() - s) * (1 - decay) for s, p in zip(by_hand, made.parameters, strict=True)]
            updates += 1
    assert made.ema.updates == updates
    for a, b in zip(made.ema.shadow, by_hand, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_a_resumed_run_counts_only_the_steps_that_were_taken() -> None:
    """Its bias correction goes on where it was: the same weights as those of the run that was not stopped."""
    batches = [toy.batch(0), spoilt(1), toy.batch(2), toy.batch(3), spoilt(4), toy.batch(5)]
    whole = guarded_toy()
    train(whole, toy.recipe(**RECIPE), iter(batches), 0, 6, [], lambda: False)
    first, second = guarded_toy(), guarded_toy()
    train(first, toy.recipe(**RECIPE), iter(batches[:3]), 0, 3, [], lambda: False)
    tensors, structure = pack(first.optimizer)
    second.transformer.load_state_dict(first.transformer.state_dict())
    unpack(second.optimizer, tensors, structure)
    train(second, toy.recipe(**RECIPE), iter(batches[3:]), 3, 6, [], lambda: False)
    assert torch.equal(toy.flat(whole.transformer), toy.flat(second.transformer))
    assert pack(second.optimizer)[1]["state"] == pack(whole.optimizer)[1]["state"], "four steps in either"
