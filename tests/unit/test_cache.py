import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from simpletuner.data.cache import OPEN_FILES, TensorStore, content_key
from simpletuner.data.encode import DECODE_THREADS, decoding_threads
from simpletuner.data.shards import is_finite
from simpletuner.errors import CacheError


def fill(folder: Path, count: int = 3) -> dict[str, torch.Tensor]:
    tensors = {content_key("sample", i): torch.randn(2, i + 1) for i in range(count)}
    store = TensorStore(folder)
    with store.writer() as writer:
        for key, tensor in tensors.items():
            writer.add(key, tensor, key)
    return tensors


def test_tensors_come_back_in_a_new_process(tmp_path: Path) -> None:
    tensors = fill(tmp_path)
    store = TensorStore(tmp_path)
    assert len(store) == 3
    for key, tensor in tensors.items():
        assert torch.equal(store.get(key), tensor) and store.shape(key) == tuple(tensor.shape)


def test_any_safetensors_reader_opens_a_shard(tmp_path: Path) -> None:
    tensors = fill(tmp_path)
    (shard,) = tmp_path.glob("shard-*.safetensors")
    assert set(load_file(shard)) == set(tensors)


def test_bfloat16_is_kept_bit_for_bit(tmp_path: Path) -> None:
    store, tensor = TensorStore(tmp_path), torch.randn(5).bfloat16()
    with store.writer() as writer:
        writer.add("a" * 64, tensor, "x")
    assert torch.equal(TensorStore(tmp_path).get("a" * 64), tensor)


def test_a_flipped_bit_is_found_on_reading(tmp_path: Path) -> None:
    tensors = fill(tmp_path)
    (shard,) = tmp_path.glob("shard-*.safetensors")
    data = bytearray(shard.read_bytes())
    data[-2] ^= 16
    shard.write_bytes(data)
    store = TensorStore(tmp_path)
    failures = 0
    for key in tensors:
        try:
            store.get(key)
        except CacheError as error:
            failures += 1
            assert str(shard) in str(error) and "delete" in str(error)
    assert failures == 1


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_a_truncated_shard_is_dropped_and_encoded_anew(tmp_path: Path, keep: int) -> None:
    tensors = fill(tmp_path)
    (shard,) = tmp_path.glob("shard-*.safetensors")
    shard.write_bytes(shard.read_bytes()[:keep])
    store = TensorStore(tmp_path)
    assert len(store) == 0 and store.dropped == [shard] and not shard.exists()
    assert not any(key in store for key in tensors)


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    old, young = (tmp_path / f"shard-{name}.safetensors.host-1.tmp" for name in ("old", "young"))
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    assert len(TensorStore(tmp_path)) == 0
    assert list(tmp_path.iterdir()) == [young]  # another process may be writing it now


def test_nan_never_reaches_the_disk(tmp_path: Path) -> None:
    store = TensorStore(tmp_path)
    with pytest.raises(CacheError, match=r"cat\.png"), store.writer() as writer:
        writer.add("k", torch.tensor([1.0, float("nan")]), "cat.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_number_that_is_not_finite_is_seen_wherever_it_is(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    assert is_finite(torch.empty(0, 3, dtype=dtype)) and is_finite(torch.tensor([-largest, largest, largest]).to(dtype))
    for number in ("nan", "inf", "-inf"):
        for place in range(40):
            tensor = torch.randn(5, 8).to(dtype)
            tensor.view(-1)[place] = float(number)
            assert not is_finite(tensor)


def test_keys_do_not_run_together() -> None:
    assert content_key("ab", "c") != content_key("a", "bc") != content_key("abc")


def test_many_shards_need_few_open_files(tmp_path: Path) -> None:
    store = TensorStore(tmp_path)
    for number in range(OPEN_FILES + 10):
        with store.writer() as writer:
            writer.add(f"{number:064x}", torch.full((2,), float(number)), "x")
    for number in [*range(OPEN_FILES + 10), 3, 0]:
        assert store.get(f"{number:064x}")[0] == number
    assert len(store._files) == OPEN_FILES


def test_a_store_that_is_gone_keeps_no_file_open(tmp_path: Path) -> None:
    with TensorStore(tmp_path).writer() as writer:
        writer.add("k", torch.ones(2), "x")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        TensorStore(tmp_path).get("k")
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_decoding_threads_share_the_cores_and_leave_the_caller_his() -> None:
    usual = torch.get_num_threads()
    with decoding_threads() as pool:
        inside = [pool.submit(torch.get_num_threads) for _ in range(4 * DECODE_THREADS)]
        assert {future.result() for future in inside} == {1} and torch.get_num_threads() == usual
    with decoding_threads() as pool:  # again, after threads were told of other numbers
        assert pool.submit(torch.get_num_threads).result() == 1 and torch.get_num_threads() == usual
