"""The average that a schedule-free optimizer keeps, from a checkpoint and to the bit that of its own ``eval``."""

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from simpletuner.errors import ModelError
from simpletuner.models import adapters
from simpletuner.models.adapters import LoraSettings, LycorisSettings
from simpletuner.models.freezing import bias_and_norms_only
from simpletuner.models.linears import pointwise_as_linear
from simpletuner.reporting.progress import Reporter
from simpletuner.training import adapting, checkpoint, optimizers, schedule_free, subject
from simpletuner.training.gradient_release import by_block
from simpletuner.training.merging import convert, on_model
from simpletuner.training.weights import AdapterWeights, AllWeights

SIDES = {"target_module": ["Attention", "GLUMBConv"]}
ADAPTERS: dict[str, Any] = {
    "lora": LoraSettings(4, 4.0, targets=("all",)),
    "dora": LoraSettings(2, 2.0, dora=True),
    "pissa": LoraSettings(2, 2.0, init="pissa"),
    "olora": LoraSettings(2, 2.0, init="olora"),
    "lokr": LycorisSettings(
        {"algo": "lokr", "multiplier": 1.0, "linear_dim": 4, "linear_alpha": 1.0, "apply_preset": SIDES}
    ),
}


@pytest.fixture
def model(pocket: Path) -> Callable[[], Any]:
    from diffusers import SanaTransformer2DModel

    return lambda: SanaTransformer2DModel.from_pretrained(pocket / "model", subfolder="transformer")


def trained(transformer: Any, kind: str, folder: Path) -> dict[str, torch.Tensor]:
    """Take three steps along drawn gradients, save a checkpoint, and return the average by name."""
    if kind == "lokr":
        pointwise_as_linear(transformer)  # as over a quantised base: shapes differ from those of the model drawn with
    adapter = adapters.put_on(transformer, ADAPTERS[kind], seed=1) if kind in ADAPTERS else None
    if kind == "bitfit":
        bias_and_norms_only(transformer)
    if adapter:
        named = list(zip(adapter.names, adapter.parameters, strict=True))
    else:
        named = [(name, p) for name, p in transformer.named_parameters() if p.requires_grad]
    parts = by_block(named) if kind == "released" else None
    optimizer = optimizers.build("adamw_schedulefree", [p for _, p in named], 1e-2, {}, parts=parts)
    draw = torch.Generator().manual_seed(3)
    for _ in range(3):
        for _, parameter in named[:-1]:  # the last never has a gradient: its average is itself
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        optimizer.step()
    weights: Any = AdapterWeights(adapter) if adapter else AllWeights(transformer)
    state = checkpoint.TrainingState(3)
    tensors, structure = optimizers.pack(optimizer)
    structure |= {"names": weights.names}
    checkpoint.save(folder, state, lambda at: weights.save(at, None), (tensors, structure), None)
    before = [p.detach().clone() for _, p in named]
    with optimizers.evaluation_weights(optimizer):
        assert kind != "lora" or not torch.equal(before[0], named[0][1])
        if not adapter:
            return {name: p.detach().clone() for name, p in transformer.named_parameters()}
        adapter.save(folder / "average")
    return {}


@pytest.mark.parametrize("kind", ["full", "bitfit", "released"])
def test_of_a_whole_model(model: Callable[[], Any], kind: str, tmp_path: Path) -> None:
    expected = trained(model(), kind, tmp_path)
    folder = schedule_free.keeper(tmp_path / "checkpoint-3")
    assert folder == tmp_path / "checkpoint-3"
    from diffusers import SanaTransformer2DModel

    for dtype in (torch.float32, torch.bfloat16):
        put = SanaTransformer2DModel.from_pretrained(folder, subfolder="transformer", torch_dtype=dtype)
        stored = {name: p.detach().clone() for name, p in put.named_parameters()}
        schedule_free.put(folder, put, None)
        assert all(torch.equal(p, expected[name].to(dtype)) for name, p in put.named_parameters())
        assert any(not torch.equal(p, stored[name]) for name, p in put.named_parameters())


@pytest.mark.parametrize("kind", ADAPTERS)
def test_of_an_adapter(model: Callable[[], Any], kind: str, tmp_path: Path) -> None:
    trained(model(), kind, tmp_path)
    file = tmp_path / "checkpoint-3" / adapters.WEIGHTS
    folder = schedule_free.keeper(file)
    assert folder == file.parent
    drawn_with, average = model(), model()
    put = on_model(adapters.read_file(file), drawn_with)
    schedule_free.put(folder, drawn_with, put)
    expected = on_model(adapters.read_file(tmp_path / "average"), average)
    assert put.names == expected.names
    assert all(torch.equal(a, b) for a, b in zip(put.parameters, expected.parameters, strict=True))


def quiet() -> Reporter:
    return Reporter(Console(file=StringIO()))


@pytest.mark.parametrize("kind", ["lora", "dora", "pissa"])
def test_a_checkpoint_is_converted_and_trained_on_as_its_average(
    model: Callable[[], Any], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    trained(model(), kind, tmp_path)
    folder, files = tmp_path / "checkpoint-3", [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    if kind != "dora":  # which ComfyUI's layout does not have
        for adapter, file in zip((folder, tmp_path / "average"), files, strict=True):
            convert(adapter, file, quiet())
        converted, expected = map(load_file, files)
        assert converted.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in converted.items())
    settings = LoraSettings()
    average, *others = (
        adapting.put_on(model(), settings, init, 0, {}, quiet())
        for init in (tmp_path / "average", folder, Path("~/checkpoint-3"), folder / adapters.WEIGHTS)
    )
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(average.parameters, other.parameters, strict=True))


def test_an_older_checkpoint_is_not_converted_as_something_else(model: Callable[[], Any], tmp_path: Path) -> None:
    trained(model(), "lora", tmp_path)
    file = tmp_path / "checkpoint-3" / checkpoint.OPTIMIZER_STRUCTURE
    older = {key: value for key, value in json.loads(file.read_text()).items() if key != "names"}
    file.write_text(json.dumps(older))
    with pytest.raises(ModelError, match=r"the point that its optimizer trains at.*`simpletuner merge`"):
        convert(tmp_path / "checkpoint-3", tmp_path / "there.safetensors", quiet())
    assert not (tmp_path / "there.safetensors").exists()


def test_what_is_drawn_with_is_said(model: Callable[[], Any], tmp_path: Path) -> None:
    trained(model(), "lora", tmp_path)
    folder = tmp_path / "checkpoint-3"
    (tmp_path / subject.RECORD).write_text(json.dumps({"pretrained_model_name_or_path": "a/base"}))
    for named in (folder, folder / adapters.WEIGHTS, tmp_path):  # of a run that was interrupted its newest checkpoint
        found = subject.find(str(named), None, None)
        assert found.average == folder and found.words.startswith("the optimizer's averaged weights of ")
    live = subject.find(str(folder), None, "live")
    assert live.average is None and live.words == f"live weights of {folder}"
    assert schedule_free.keeper(tmp_path / "average" / adapters.WEIGHTS) is None, "an export is as it is meant"
    assert schedule_free.keeper(tmp_path) is None


def test_a_state_of_other_weights_is_a_sentence(model: Callable[[], Any], tmp_path: Path) -> None:
    trained(model(), "lora", tmp_path)
    with pytest.raises(ModelError, match=r"does not fit its weights.*--live"):
        schedule_free.put(tmp_path / "checkpoint-3", model(), None)


@pytest.mark.parametrize("written", ['{"groups": ', "{}", '{"groups": {"list": [3]}}'])
def test_a_damaged_checkpoint_is_not_taken_for_one_without_an_average(
    model: Callable[[], Any], tmp_path: Path, written: str
) -> None:
    trained(model(), "lora", tmp_path)
    (tmp_path / "checkpoint-3" / checkpoint.OPTIMIZER_STRUCTURE).write_text(written)
    with pytest.raises(ModelError, match=r"checkpoint-3 is damaged: optimizer.json cannot be read.*another checkpoint"):
        convert(tmp_path / "checkpoint-3", tmp_path / "there.safetensors", quiet())
