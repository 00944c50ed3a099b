"""ao-adamw8bit: the step of torchao's AdamW8bit that a device guards itself, beside torchao's own."""

import json
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from simpletuner.models import imports
from simpletuner.training import eight_bits, guarded_adam
from simpletuner.training.guarded_adam import control_of, plain_mix
from simpletuner.training.optimizers import arguments_of, build, describe, pack, unpack

quant_utils = imports.quietly("torchao.optim.quant_utils")
subclass = imports.quietly("torchao.optim.subclass_8bit")
adamw8bit = imports.quietly("simpletuner.training.adamw8bit")
YES, NO, ONE, RATE = torch.tensor(True), torch.tensor(False), torch.tensor(1.0), torch.tensor(1e-3)
CPU = torch.device("cpu")
NAME = "ao-adamw8bit"


@pytest.fixture(autouse=True)
def uncompiled() -> Iterator[None]:
    """torchao compiles its step, which takes longer than all tests here."""
    with torch.compiler.set_stance("force_eager"):
        yield


def sizes(case: str) -> torch.Tensor:
    """[blocks, 1]: how large the gradients of each block are."""
    usual = torch.ones(20, 1)
    return {
        "usual": usual,
        "huge": usual * 1e15,
        "tiny": usual * 1e-16,
        "zero": usual * (torch.arange(20)[:, None] % 3 > 0),
        "mixed": 10.0 ** torch.arange(-12, 8)[:, None],
    }[case]


def gradient(case: str, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    spread = 10.0 ** (4 * torch.rand(20, 256, generator=generator) - 4)
    return torch.randn(20, 256, generator=generator) * spread * sizes(case)


def weights(dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    """Two that are kept in 8 bits, and one that is not."""
    torch.manual_seed(2)
    return [torch.nn.Parameter(torch.randn(20, n).to(dtype)) for n in (256, 256, 5)]


def give(parameters: list[torch.nn.Parameter], step: int, case: str = "mixed") -> None:
    for index, parameter in enumerate(parameters):
        parameter.grad = gradient(case, 10 * step + index)[:, : parameter.shape[1]].to(parameter.dtype)


@pytest.mark.parametrize("signed", [True, False])
def test_limits_and_maps_are_torchaos(signed: bool) -> None:
    """At every limit torchao takes the upper code, and just below it the lower one."""
    numbers = torch.tensor(subclass.get_qmap_signed() if signed else subclass.get_qmap_unsigned())
    limits, codes = eight_bits.limits_of(numbers), torch.arange(255)
    assert (limits.diff() > 0).all() and (numbers[:-1] < limits).all() and (limits <= numbers[1:]).all()
    assert torch.equal(quant_utils.quantize_8bit_with_qmap(limits, numbers).int(), codes.int() + 1)
    below = torch.nextafter(limits, torch.tensor(-2.0))
    assert torch.equal(quant_utils.quantize_8bit_with_qmap(below, numbers).int(), codes.int())
    assert torch.equal(eight_bits.tables(CPU)[0 if signed else 1], numbers)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("case", ["usual", "huge", "tiny", "zero", "mixed"])
def test_what_is_written_and_read_is_what_torchao_has(case: str, signed: bool) -> None:
    values = gradient(case, 1) if signed else gradient(case, 1).square().clamp(max=3e38)
    kept = subclass.OptimState8bit.zeros((20, 256), signed)
    kept.copy_(values)
    codes, scale = eight_bits.write(values, 20, signed)
    assert torch.equal(kept.codes, codes) and torch.equal(kept.scale, scale)
    assert torch.equal(eight_bits.read(codes, scale, signed), kept.dequantize())


@pytest.mark.parametrize("case", ["usual", "huge", "tiny", "zero", "mixed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_guarded_step_is_torchaos_step(case: str, dtype: torch.dtype) -> None:
    """States and float32 weights are the same numbers; bf16 weights one of the two neighbours of what torchao rounds."""
    library, ours = weights(dtype)[:2], weights(dtype)[:2]
    overrides = {"weight_decay": 0.1, "eps": 1e-8}
    theirs, guarded = (build(NAME, some, 1e-3, overrides, seed=5) for some in (library, ours))
    for step in range(6):
        give(library, step, case), give(ours, step, case)
        theirs.step()
        guarded._guarded_step(RATE, ONE, YES)  # type: ignore[attr-defined]
        for a, b in zip(library, ours, strict=True):
            # Where a square is written as 0 and the next gradient is small, an update is thousands of rates, and so its error.
            near = {"rtol": 2e-5, "atol": 1e-7} if dtype is torch.float32 else {"rtol": 2**-7, "atol": 1e-4}
            torch.testing.assert_close(a, b, **near)
            for key in ("exp_avg", "exp_avg_sq"):
                first, second = theirs.state[a][key], guarded.state[b][key]
                off = (first.codes.int() - second.codes.int()).abs()
                assert off.max() <= 1 and (off > 0).float().mean() < 2e-3, "torch's lerp may round another way"
                torch.testing.assert_close(first.scale, second.scale, rtol=1e-6, atol=0)
                second.codes.copy_(
                    first.codes
                )  # nor is what was rounded one way or the other a matter of the next step
            b.data.copy_(a.detach())


def test_clipping_is_a_factor_on_the_gradients() -> None:
    whole, half = weights(), weights()
    first, second = (build(NAME, some, 1e-3, {}) for some in (whole, half))
    for step in range(3):
        give(whole, step), give(half, step)
        for parameter in half:
            parameter.grad *= 2
        first._guarded_step(RATE, ONE, YES)  # type: ignore[attr-defined]
        second._guarded_step(RATE, 0.5 * ONE, YES)  # type: ignore[attr-defined]
    assert all(torch.equal(a, b) for a, b in zip(whole, half, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_that_is_left_changes_nothing_and_is_not_counted(dtype: torch.dtype) -> None:
    parameters = weights(dtype)
    optimizer: Any = build(NAME, parameters, 1e-3, {})
    for step, good in enumerate((NO, YES, NO, YES)):
        give(parameters, step)
        if not good:
            parameters[0].grad[0] = torch.nan  # type: ignore[index]
        before = {name: tensor.clone() for name, tensor in pack(optimizer)[0].items()}
        old = [p.detach().clone() for p in parameters]
        optimizer._guarded_step(RATE, ONE, good)
        assert [torch.equal(a, b) for a, b in zip(old, parameters, strict=True)] == [not good] * 3
        after = pack(optimizer)[0]
        if step > 1 and not good:
            assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
        assert all(tensor.isfinite().all() for tensor in after.values())
    assert [optimizer.state_dict()["state"][i]["step"] for i in range(3)] == [2, 2, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_seeded_is_drawn_again_and_right_in_the_mean(dtype: torch.dtype) -> None:
    runs = []
    for seed in (1, 1, 2):
        parameters = weights(dtype)
        optimizer: Any = build(NAME, parameters, 1e-3, {}, seed=seed)
        for step in range(3):
            give(parameters, step, "usual")
            optimizer._guarded_step(RATE, ONE, YES)
        runs.append(parameters)
    first, again, other = runs
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    exact = [torch.nn.Parameter(p.detach().float()) for p in weights(dtype)]
    truth: Any = build(NAME, exact, 1e-3, {})
    for step in range(3):
        give(exact, step, "usual")
        for parameter in exact:
            parameter.grad = parameter.grad.to(dtype).float()  # type: ignore[union-attr]
        truth._guarded_step(RATE, ONE, YES)
    if dtype is torch.bfloat16:
        assert not torch.equal(first[0], other[0]) and not torch.equal(first[0] - exact[0], first[1] - exact[1])
        for a, b in zip(first[:2], exact[:2], strict=True):
            errors = (a.float() - b) / b.abs().clamp(min=1e-2)
            assert errors.abs().max() < 0.03 and errors.mean().abs() < 2e-4


def test_the_library_goes_on_where_the_guarded_step_was_and_back() -> None:
    """Both ways of stepping, alternating by way of a checkpoint, end where one of them alone ends."""
    alone, mixed = weights(), weights()
    reference = build(NAME, alone, 1e-3, {})
    for step in range(6):
        give(alone, step)
        reference.step()
    optimizer: Any = build(NAME, mixed, 1e-3, {})
    for step in range(6):
        give(mixed, step)
        if step % 2:
            optimizer.step()
        else:
            optimizer._guarded_step(RATE, ONE, YES)
        tensors, structure = pack(optimizer)
        optimizer = build(NAME, mixed, 1e-3, {})
        assert unpack(optimizer, tensors, json.loads(json.dumps(structure)), arguments_of(NAME, {})) == []
    for a, b in zip(alone, mixed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert pack(optimizer)[1] == pack(reference)[1], "the same structure: classes, maps, groups and counts"
    plain = adamw8bit.AdamW8bit(mixed, 1e-3, bf16_stochastic_round=True)
    tensors, structure = pack(optimizer)
    unpack(plain, tensors, structure)
    plain.step()
    assert plain.state[mixed[0]]["step"] == 7


def test_several_objects_over_some_parameters_each_make_the_step_of_one() -> None:
    """Also with one table of states for all, as gradient release has it."""
    together, apart = weights(), weights()
    one: Any = build(NAME, together, 1e-3, {})
    several: list[Any] = [build(NAME, apart[:1], 1e-3, {}), build(NAME, apart[1:], 1e-3, {})]
    several[1].state = several[0].state
    for step in range(4):
        give(together, step), give(apart, step)
        one._guarded_step(RATE, ONE, YES)
        for part in several:
            part._guarded_step(RATE, ONE, YES)
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))
    for part in several:
        part.count_steps()  # as a checkpoint does
    assert [float(several[0].state[p]["step"]) for p in apart] == [4, 4, 4]


def test_states_saved_in_other_blocks_are_made_anew() -> None:
    parameters = weights()
    small = build(NAME, parameters, 1e-3, {"block_size": 128})
    give(parameters, 0)
    small.step()
    assert not hasattr(small, "guarded_step")
    optimizer: Any = build(NAME, parameters, 1e-3, {})
    unpack(optimizer, *pack(small))
    before = optimizer.state[parameters[0]]["exp_avg"].dequantize()
    optimizer._rows(optimizer.param_groups[0])
    after = optimizer.state[parameters[0]]["exp_avg"]
    assert (before.numel() // len(after.scale), after.block_size) == (256, 256)
    error = (after.dequantize() - before).view(-1, 256).abs().amax(1)
    assert (error <= 0.01 * after.scale).all()
    give(parameters, 1)
    optimizer._guarded_step(RATE, ONE, YES)
    assert [optimizer.state_dict()["state"][i]["step"] for i in range(3)] == [2, 2, 2]


def test_the_librarys_own_step_is_taken_where_the_kernel_cannot_and_the_log_says_so() -> None:
    """A CPU has the kernel's twin, which compiles nothing."""
    assert hasattr(build(NAME, weights(), 1e-3, {}), "guarded_step")
    optimizer = build(NAME, weights(), 1e-3, {"block_size": 128})
    assert not hasattr(optimizer, "guarded_step")
    assert describe(NAME, optimizer).endswith("its first step is compiled, which takes up to a minute)")


@pytest.mark.parametrize(
    ("overrides", "dtype", "guards"),
    [
        ({}, torch.bfloat16, True),
        ({"amsgrad": True}, torch.bfloat16, False),
        ({"block_size": 128}, torch.bfloat16, False),
        ({"bf16_stochastic_round": False}, torch.bfloat16, False),
        ({"bf16_stochastic_round": False}, torch.float32, True),
    ],
)
def test_where_the_kernel_runs(
    overrides: dict[str, Any], dtype: torch.dtype, guards: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's parameters are guarded, but for arguments that the kernel does not know."""
    optimizer = build(NAME, weights(dtype), 1e-3, overrides)
    monkeypatch.setattr(adamw8bit, "available", lambda _: True)
    assert hasattr(optimizer, "guarded_step") is guards
    assert ("compiled" in describe(NAME, optimizer)) is not guards
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))]})
    assert not hasattr(optimizer, "guarded_step")


def test_the_plain_step_is_the_guarded_one_where_the_kernel_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, guarded = weights(), weights()
    first, second = (build(NAME, some, 1e-2, {}) for some in (plain, guarded))
    monkeypatch.setattr(adamw8bit, "available", lambda _: True)  # the update itself sees that there is no GPU
    monkeypatch.setattr(adamw8bit.AdamW8bit, "step", None)
    first.step()  # without a gradient nothing happens
    for step in range(3):
        give(plain, step), give(guarded, step)
        first.step()
        second.guarded_step(torch.tensor(1e-2), ONE, YES)  # type: ignore[attr-defined]
    assert all(torch.equal(a, b) for a, b in zip(plain, guarded, strict=True))
    assert pack(first)[1] == pack(second)[1] and first.state[plain[0]]["step"] == 3


def test_the_twin_takes_blocks_of_any_size() -> None:
    row = weights()[0].detach(), gradient("usual", 1), *(torch.zeros(20, 256, dtype=torch.uint8),) * 2
    taken = torch.tensor(1.0, dtype=torch.float64)
    control = control_of(plain_mix((0.9, 0.999), taken), taken, RATE, ONE, YES)
    for blocks in (5, 20, 40):
        new, mean, _, scale, _ = adamw8bit.updated(
            (*row, torch.zeros(blocks), torch.zeros(blocks)), control, (1e-20, 0.0)
        )
        assert len(scale) == blocks
        torch.testing.assert_close(new, row[0] - 1e-3 * row[1].sign(), rtol=0, atol=1e-5)
        error = (eight_bits.read(mean, scale, True) - 0.1 * row[1]).view(blocks, -1).abs().amax(1)
        assert (error <= 0.01 * scale).all()


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux alone")
def test_tables_that_a_graph_reads_are_filled_after_its_capture_and_go_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each capture has tables of its own; whoever replays holds them, and the optimizer does not."""
    from simpletuner.training import adamw8bit_triton, adamw_triton

    launched: list[tuple[int, weakref.ref[torch.Tensor]]] = []
    for kernel in (adamw8bit_triton, adamw_triton):
        monkeypatch.setattr(
            kernel, "launch", lambda table, *others: launched.append((int(table.abs().sum()), weakref.ref(table)))
        )
    monkeypatch.setattr(guarded_adam, "available", lambda tensor: True)
    parameters = weights()
    optimizer: Any = build(NAME, parameters, 1e-3, {})
    kept = []
    for capturing in (False, True, True):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda capturing=capturing: capturing)
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer._guarded_step(RATE, ONE, YES)
        if capturing:
            kept.append(optimizer.after_capture())
    assert [bool(numbers) for numbers, _ in launched] == [True, True, False, False, False, False], "filled later"
    tables = [table() for _, table in launched[2:]]
    assert [id(table) for table in tables] == [id(table) for some in kept for table in some] and len(set(tables)) == 4
    for eights, others in zip(tables[::2], tables[1::2], strict=True):
        assert eights is not None and others is not None
        assert eights[0].tolist() == [p.data_ptr() for p in parameters[:2]] and eights[-1].tolist() == [20 * 256] * 2
        assert others[0].tolist() == [parameters[2].data_ptr()] and others[-1].tolist() == [100]
    del kept, tables, eights, others
    assert [table() is None for _, table in launched] == [False, False, True, True, True, True]


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux alone")
def test_a_step_that_finds_no_room_for_a_table_has_changed_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from simpletuner.training import adamw8bit_triton, adamw_fused, adamw_triton

    launched: list[str] = []
    for kernel in (adamw8bit_triton, adamw_triton):
        monkeypatch.setattr(kernel, "launch", lambda *table, name=kernel.__name__: launched.append(name))
    monkeypatch.setattr(guarded_adam, "available", lambda tensor: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    parameters = weights()
    optimizer: Any = build(NAME, parameters, 1e-3, {})
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    made, table = [], adamw_fused.Launches.table

    def short(launches: adamw_fused.Launches, rows: Any) -> torch.Tensor:
        made.append(launches)
        if len(made) == 2:
            raise torch.OutOfMemoryError
        return table(launches, rows)

    monkeypatch.setattr(adamw_fused.Launches, "table", short)
    with pytest.raises(torch.OutOfMemoryError):
        optimizer._guarded_step(RATE, ONE, YES)
    assert len(made) == 2 and not launched
    optimizer._guarded_step(RATE, ONE, YES)
    assert len(launched) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux alone")
def test_the_kernel_in_the_interpreter() -> None:
    script = Path(__file__).parents[1] / "adam8bit_in_interpreter.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
