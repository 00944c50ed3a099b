import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from simpletuner.errors import ResumeError, TunerError
from simpletuner.training import checkpoint, optimizers
from simpletuner.training.checkpoint import TrainingState


def write_model(folder: Path) -> None:
    from safetensors.torch import save_file

    folder = folder / "transformer"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({"w": torch.ones(3)}, folder / "diffusion_pytorch_model.safetensors")


def save(folder: Path, step: int, keep: int | None = None, say: Callable[[str], None] = print) -> Path:
    return checkpoint.save(
        folder, TrainingState(step), write_model, ({}, {"state": {"map": {}}, "groups": {"list": []}}), keep, say
    )


def test_rotation_keeps_the_newest(tmp_path: Path) -> None:
    for step in (2, 10, 4, 30):
        save(tmp_path, step, keep=2)
    assert [p.name for p in checkpoint.existing(tmp_path)] == ["checkpoint-10", "checkpoint-30"]


def test_an_old_one_that_cannot_be_removed_does_not_end_the_run(tmp_path: Path) -> None:
    save(tmp_path, 1).rename(tmp_path / "elsewhere")
    (tmp_path / "checkpoint-1").symlink_to("elsewhere")  # a folder by a link: rmtree takes none
    said: list[str] = []
    assert save(tmp_path, 2, 1, said.append).is_dir()
    assert len(said) == 1 and "checkpoint-1 could not be removed" in said[0]
    assert (tmp_path / "elsewhere" / checkpoint.STATE).is_file()


def test_latest_passes_over_damage_and_names_it(tmp_path: Path) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    weights = newest / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    folder, notes = checkpoint.find(tmp_path, "latest")
    assert folder is not None and folder.name == "checkpoint-1"
    assert "checkpoint-2" in notes[0] and "hash" in notes[0]
    assert newest.is_dir()  # never deleted


def test_a_checkpoint_asked_for_by_path_is_that_one(tmp_path: Path) -> None:
    other = save(tmp_path / "other", 7)
    (tmp_path / "here").mkdir()
    assert checkpoint.find(tmp_path / "here", str(other))[0] == other
    with pytest.raises(ResumeError, match="no such folder"):
        checkpoint.find(tmp_path / "here", "checkpoint-99")


def test_nothing_to_resume_is_a_fresh_run(tmp_path: Path) -> None:
    assert checkpoint.find(tmp_path, "latest") == (None, [])
    save(tmp_path, 3)
    assert checkpoint.find(tmp_path, "") == (None, [])


def test_only_damaged_checkpoints_stop_the_run(tmp_path: Path) -> None:
    (save(tmp_path, 1) / checkpoint.MANIFEST).unlink()
    with pytest.raises(ResumeError, match="fresh run"):
        checkpoint.find(tmp_path, "latest")


def test_a_failing_save_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    good = save(tmp_path, 1)

    def full(folder: Path) -> None:
        (folder / "transformer").mkdir()
        raise OSError(28, "No space left on device")

    with pytest.raises(TunerError, match="No space left"):
        checkpoint.save(tmp_path, TrainingState(2), full, ({}, {}), None)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1"]
    assert checkpoint.problem_with(good) is None


@pytest.mark.parametrize("name", sorted(optimizers.OPTIMIZERS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_optimizer_resumes_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    def steps(parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer, start: int, stop: int) -> None:
        for k in range(start, stop):
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(k)).to(dtype)
            optimizer.step()

    def make() -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        parameter = torch.nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4).to(dtype))
        return parameter, optimizers.build(name, [parameter], 1e-2, {})

    whole, optimizer = make()
    steps(whole, optimizer, 0, 6)
    half, first = make()
    steps(half, first, 0, 3)
    tensors, structure = optimizers.pack(first)
    resumed, second = make()
    resumed.data.copy_(half.data)
    optimizers.unpack(second, tensors, json.loads(json.dumps(structure)))
    steps(resumed, second, 3, 6)
    assert torch.equal(whole, resumed)


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    final = tmp_path / "pipeline"
    with checkpoint.staged_folder(final) as staging:
        (staging / "a").write_text("old")
    final.rename(tmp_path / ".pipeline.old")  # where a kill leaves it
    with pytest.raises(RuntimeError), checkpoint.staged_folder(final):
        raise RuntimeError
    assert (final / "a").read_text() == "old"


@pytest.mark.parametrize("content", ["[]", "null", "{}", '{"files": 3}'])
def test_a_strange_manifest_is_damage(tmp_path: Path, content: str) -> None:
    (save(tmp_path, 1) / checkpoint.MANIFEST).write_text(content)
    save(tmp_path, 0)
    folder, notes = checkpoint.find(tmp_path, "latest")
    assert folder is not None and folder.name == "checkpoint-0" and "manifest" in notes[0]


@pytest.mark.parametrize("content", ['{"step": 3, "what a later version adds": 1}', "[]", '{"step": 3'])
def test_a_state_of_another_version_is_a_sentence(tmp_path: Path, content: str) -> None:
    (save(tmp_path, 3) / checkpoint.STATE).write_text(content)
    with pytest.raises(ResumeError, match=r"training_state\.json cannot be used.*What to do: "):
        checkpoint.state_of(tmp_path / "checkpoint-3")


def test_checkpoints_beyond_the_one_resumed_are_set_aside(tmp_path: Path) -> None:
    for step in (100, 200, 300):
        save(tmp_path, step)
    assert checkpoint.set_aside(tmp_path, 300) is None
    moved = checkpoint.set_aside(tmp_path, 100)
    assert moved is not None and sorted(p.name for p in moved.iterdir()) == ["checkpoint-200", "checkpoint-300"]
    assert [p.name for p in checkpoint.existing(tmp_path)] == ["checkpoint-100"]


def test_what_killed_saves_left_is_cleared_away_and_nothing_else(tmp_path: Path) -> None:
    whole = save(tmp_path, 3)
    whole.rename(tmp_path / ".checkpoint-3.old")  # killed between the two renames
    for name in (".checkpoint-7.staging", ".checkpoint-5.old", ".merged.staging", ".checkpoint-x.old", "checkpoint-5"):
        (tmp_path / name).mkdir()
    checkpoint.tidy(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {
        *("checkpoint-3", "checkpoint-5", ".merged.staging", ".checkpoint-x.old")
    }
    assert checkpoint.problem_with(whole) is None
