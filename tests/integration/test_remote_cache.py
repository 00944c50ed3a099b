"""Caches behind a URL: other machines find what one has encoded; a store that fails costs no training."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from conftest import Command
from rich.console import Console
from s3 import moto_server

from simpletuner.config.read import load
from simpletuner.data.cache import TensorStore
from simpletuner.data.mirror import RemoteSource
from simpletuner.data.remote_cache import RemoteCaches
from simpletuner.errors import ConfigError
from simpletuner.reporting.progress import Reporter
from simpletuner.training.caching import Home, collect

KEYS = {"aws_access_key_id": "someone", "aws_secret_access_key": "very-secret-key"}


def fill(store: TensorStore, *keys: str) -> None:
    for key in keys:
        with store.writer() as writer:
            writer.add(key, torch.full((3,), float(len(key))), key)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.rglob("shard-*.safetensors"))


def test_whole_shards_go_up_and_come_down(tmp_path: Path) -> None:
    said: list[str] = []
    remote = RemoteSource(f"file://{tmp_path}/there")
    first = RemoteCaches(said.append)
    fill(first.open(tmp_path / "here" / "print", remote), "a" * 64, "b" * 63)
    first.close()
    there = shards(tmp_path / "there" / "print")
    assert [p.read_bytes() for p in there] == [p.read_bytes() for p in shards(tmp_path / "here")] and len(there) == 2

    second = RemoteCaches(said.append)
    store = second.open(tmp_path / "second" / "print", remote)
    assert torch.equal(store.get("b" * 63), torch.full((3,), 63.0)) and "2 cache files fetched" in said[-1]
    fill(store, "c" * 62)
    second.close()
    shards(tmp_path / "second")[0].write_bytes(b"cut short here")  # not what is there: fetched anew
    store = second.open(tmp_path / "second" / "print", remote)
    assert len(store) == 3
    second.close()
    assert len(shards(tmp_path / "there")) == 3

    # One is damaged there: told, passed over, and mended by whoever has it or encodes it anew.
    damaged = there[0]
    good = damaged.read_bytes()
    (tmp_path / "there" / "print" / "shard-0123456789abcdef.safetensors").write_bytes(b"nonsense")
    (tmp_path / "there" / "print" / "shard-..evil.safetensors").write_bytes(good)
    damaged.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    third = RemoteCaches(said.append)
    store = third.open(tmp_path / "third" / "print", remote)
    assert len(store) == 2 and sum("damaged" in line for line in said) == 2
    assert not list((tmp_path / "third").rglob("*.tmp")) and not list((tmp_path / "third").rglob("*evil*"))
    (lost,) = {"a" * 64, "b" * 63, "c" * 62} - {k for k in ("a" * 64, "b" * 63, "c" * 62) if k in store}
    fill(store, lost)
    third.close()
    assert damaged.read_bytes() == good
    assert third.remove(shards(tmp_path / "third")[0], remote) and len(shards(tmp_path / "there")) == 4
    assert not third.remove(shards(tmp_path / "third")[0], remote)


def test_a_store_that_refuses_is_told_once_and_caught_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    remote = RemoteSource("memory://kept")
    memory = fsspec.filesystem("memory")

    def full(*_: Any, **__: Any) -> None:
        raise OSError("the quota is used up")

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "put_file", full)
        patch.setattr("simpletuner.data.network.time.sleep", lambda seconds: None)
        caches = RemoteCaches(said.append)
        fill(caches.open(tmp_path / "print", remote), *(f"{i:064x}" for i in range(6)))
        caches.close()
    (line,) = [line for line in said if "could not be sent" in line]
    assert line.startswith("6 cache files") and "quota" in line and not memory.exists("/kept")
    again = RemoteCaches(said.append)
    again.open(tmp_path / "print", remote)
    again.close()
    assert len(memory.find("/kept")) == 6
    memory.rm("/kept", recursive=True)


def test_gc_removes_the_twin_of_what_it_removes_here_and_nothing_else(tmp_path: Path) -> None:
    remote, folder = RemoteSource(f"file://{tmp_path}/there"), tmp_path / "here" / "print"
    caches = RemoteCaches(print)
    fill(caches.open(folder, remote), "a" * 64, "b" * 63)
    caches.close()
    (tmp_path / "there" / "print" / "shard-0123456789abcdef.safetensors").write_bytes(b"of another machine")
    screen = StringIO()
    home = Home(folder, "set", frozenset(["a" * 64]), remote)
    collect([home], Reporter(Console(file=screen)), delete=False)
    assert len(shards(tmp_path / "there")) == 3
    collect([home], Reporter(Console(file=screen)), delete=True)
    (kept,) = shards(folder)
    assert {p.name for p in shards(tmp_path / "there")} == {kept.name, "shard-0123456789abcdef.safetensors"}
    assert "removed as well" in screen.getvalue() and TensorStore.keys_of(kept) == {"a" * 64}


def test_a_server_that_dies_in_the_middle(tmp_path: Path) -> None:
    said: list[str] = []
    import boto3

    with moto_server() as (url, process):
        boto3.client("s3", endpoint_url=url, region_name="us-east-1", **KEYS).create_bucket(Bucket="kept")
        options = {"key": "someone", "secret": "x", "client_kwargs": {"endpoint_url": url, "region_name": "us-east-1"}}
        remote = RemoteSource("s3://kept/latents", options)
        caches = RemoteCaches(said.append)
        store = caches.open(tmp_path / "one" / "print", remote)
        fill(store, "a" * 64)
        other = RemoteCaches(said.append)
        for job in caches._jobs:
            job.result()
        assert "a" * 64 in other.open(tmp_path / "two" / "print", remote)
        process.kill()
        process.wait()
        fill(store, "b" * 63)
        caches.close()
        assert "1 cache file could not be sent" in said[-1] and "b" * 63 in TensorStore(tmp_path / "one" / "print")
        assert len(RemoteCaches(said.append).open(tmp_path / "one" / "print", remote)) == 2
        assert "cannot be reached" in said[-1] and "x" not in said[-1].split("print")[0][:5]


def test_a_second_machine_trains_without_encoding(
    simpletuner: Command, pocket_run: Callable[..., Path], tmp_path: Path
) -> None:
    import boto3

    with moto_server() as (url, _):
        client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", **KEYS)
        client.create_bucket(Bucket="kept")

        def machine(name: str, texts: str) -> Path:
            config = pocket_run(output_dir=str(tmp_path / name), max_train_steps=1)
            path = tmp_path / "config" / "multidatabackend.json"
            entries = json.loads(path.read_text())
            access = {"aws_endpoint_url": url, "aws_region_name": "us-east-1", **KEYS}
            entries[0] |= {"cache_dir_vae": "s3://kept/latents", **access}
            entries[1] |= {"type": "aws", "aws_bucket_name": texts, "cache_dir": "texts", **access}
            path.write_text(json.dumps(entries))
            return config

        simpletuner("cache", "build", "--config", machine("one", "kept"))
        names = [entry["Key"] for entry in client.list_objects_v2(Bucket="kept")["Contents"]]
        assert sorted(name.partition("/")[0] for name in names) == ["latents", "texts"]
        said = simpletuner("train", "--config", machine("two", "not-there")).stdout
        assert "1 cache file fetched from s3://kept/latents/" in said and "all 4 latents are in the cache" in said
        assert "Encoding captions" in said and "Done: 1 step." in said
        assert "1 cache file could not be sent to s3://not-there/" in said and "very-secret-key" not in said
        assert len(shards(tmp_path / "one")) == len(shards(tmp_path / "two")) == 2
        there = client.list_objects_v2(Bucket="kept")["Contents"]
        assert [entry["Key"] for entry in there] == names, "nothing was encoded or sent twice"


def test_urls_where_a_folder_is_needed(pocket_run: Callable[..., Path]) -> None:
    config = str(pocket_run(cache_dir_vae="s3://kept/latents", output_dir="memory://out"))
    with pytest.raises(ConfigError, match=r"(?s)it must be a folder of this machine.*must be a folder"):
        load(config)
