"""A damaged shard: nothing wrong is ever read from it, what is whole in it stays, and what it lost is made anew once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simpletuner.data import cache
from simpletuner.data.cache import TensorStore, content_key
from simpletuner.data.healing import Healing
from simpletuner.errors import CacheError, DamagedError

KEYS = [content_key("tensor", i) for i in range(4)]
WHAT = ("tensor was made anew", "tensors were made anew")


def made(keys: Sequence[str]) -> dict[str, torch.Tensor]:
    return {key: torch.arange(1.0, 7.0).reshape(2, 3) + KEYS.index(key) for key in keys}


def filled(folder: Path, keys: Sequence[str] = KEYS) -> Path:
    with TensorStore(folder).writer() as writer:
        for key, tensor in made(keys).items():
            writer.add(key, tensor, key)
    return next(iter(sorted(folder.glob("shard-*"), key=lambda p: p.stat().st_mtime_ns, reverse=True)))


def flip(shard: Path, at: int, mask: int = 0x40) -> None:
    data = bytearray(shard.read_bytes())
    data[at] ^= mask
    shard.write_bytes(data)


def whole(folder: Path) -> dict[str, torch.Tensor]:
    assert all(TensorStore.problem_with(shard) is None for shard in folder.glob("shard-*"))
    store = TensorStore(folder)
    assert not store.dropped
    return {key: store.get(key) for key in KEYS if key in store}


@settings(max_examples=150)
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255), st.booleans(), st.booleans())
def test_whatever_is_damaged_the_same_tensors_come_back(place: float, mask: int, cut: bool, while_open: bool) -> None:
    fast = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=fast) as name:
        folder, told = Path(name), list[str]()
        shard = filled(folder)
        length = shard.stat().st_size
        store = TensorStore(folder) if while_open else None
        if cut:
            os.truncate(shard, int(place * length))
        else:
            flip(shard, int(place * length), mask)
        for run in (store or TensorStore(folder), TensorStore(folder)):  # what this run did not look at, the next does
            healing = Healing(run, made, WHAT, told.append)
            for key, tensor in made(KEYS).items():
                if key not in run:  # seen on opening: encoded ahead, as what is missing is
                    with run.writer() as writer:
                        writer.add(key, tensor, key)
                assert torch.equal(healing.get(key), tensor)
            healing.close()
        assert len(told) <= 1 and len(whole(folder)) == len(KEYS)


def test_only_what_is_lost_is_made_and_the_file_is_replaced(tmp_path: Path) -> None:
    shard, other = filled(tmp_path, KEYS[:3]), filled(tmp_path, KEYS[3:])
    flip(shard, -1)
    asked: list[str] = []
    told: list[str] = []

    def anew(keys: Sequence[str]) -> dict[str, torch.Tensor]:
        asked.extend(keys)
        return made(keys)

    healing = Healing(TensorStore(tmp_path), anew, WHAT, told.append)
    assert all(torch.equal(healing.get(key), tensor) for key, tensor in made(KEYS).items())
    assert len(asked) == 1 and len(told) == 1
    assert str(shard) in told[0] and "checksum" in told[0] and "1 tensor was made anew" in told[0]
    assert set(tmp_path.iterdir()) == {shard, other} and len(whole(tmp_path)) == 4

    flip(shard, -1)
    with pytest.raises(CacheError, match="damaged again") as second:
        healing.get(asked[0])
    assert "What to do" in str(second.value) and len(asked) == 1


@pytest.mark.parametrize("known", [KEYS[:1], KEYS[1:2], []])
def test_what_nobody_can_make_is_no_longer_kept(tmp_path: Path, known: list[str]) -> None:
    shard = filled(tmp_path, KEYS[:3])
    store = TensorStore(tmp_path)
    os.truncate(shard, 40)  # while it is open: no tensor is left
    healing = Healing(store, lambda keys: made([k for k in keys if k in known]), WHAT, print)
    if not known:
        with pytest.raises(DamagedError, match="delete that file"):
            healing.get(KEYS[0])
        assert shard.exists()
        return
    healing.get(known[0])
    assert list(whole(tmp_path)) == known and len(store) == 1 and not shard.exists()


@pytest.mark.parametrize("moment", ["os.replace", "pathlib.Path.unlink"])
def test_a_kill_at_any_moment_leaves_a_readable_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    shard = filled(tmp_path, KEYS[:3])
    flip(shard, -1)
    store = TensorStore(tmp_path)
    (lost,) = store.lost(shard)

    class Killed(BaseException):
        pass

    def kill(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(moment, kill)
        store.mend(shard, {} if "unlink" in moment else made([lost]))
    assert shard.exists() and len(list(tmp_path.glob("shard-*.safetensors"))) == (2 if "unlink" in moment else 1)
    again = Healing(TensorStore(tmp_path), made, WHAT, print)
    assert all(torch.equal(again.get(key), made([key])[key]) for key in KEYS[:3])
    for leftover in tmp_path.glob("*.tmp"):
        leftover.unlink()
    assert len(whole(tmp_path)) == 3


def test_a_file_that_is_gone_is_written_again(tmp_path: Path) -> None:
    shard = filled(tmp_path)
    healing = Healing(TensorStore(tmp_path), made, WHAT, print)
    shard.unlink()
    assert torch.equal(healing.get(KEYS[2]), made(KEYS)[KEYS[2]]) and shard.exists() and len(whole(tmp_path)) == 4


def test_what_another_process_mended_is_read_from_its_file(tmp_path: Path) -> None:
    shard = filled(tmp_path)
    flip(shard, -1)
    here, there = TensorStore(tmp_path), TensorStore(tmp_path)
    (lost,) = here.lost(shard)
    there.mend(shard, {lost: torch.full((5,), 2.0)})  # of another length: every offset may be another
    assert here.get(lost).shape == (5,) and len(here.lost(shard)) == 0
    flip(shard, -1)
    third = TensorStore(tmp_path)
    third.mend(shard, {})
    assert not shard.exists() and len(third) == 3
    for key in third.lost(shard) or [k for k in KEYS if k in third]:
        assert torch.equal(here.get(key), third.get(key))


def test_nothing_that_is_not_finite_is_kept_or_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(cache, "must_be_finite", lambda *_: None)  # as if another program had written it
        with TensorStore(tmp_path).writer() as writer:
            writer.add(KEYS[0], torch.tensor([1.0, float("inf")]), "x")
    broken = Healing(TensorStore(tmp_path), lambda keys: {k: torch.tensor([float("nan")]) for k in keys}, WHAT, print)
    with pytest.raises(CacheError, match="gave NaN"):
        broken.get(KEYS[0])
    assert torch.equal(Healing(TensorStore(tmp_path), made, WHAT, print).get(KEYS[0]), made(KEYS)[KEYS[0]])
    assert len(whole(tmp_path)) == 1
