"""Uploads beside training: the newest checkpoint wins, folders may go, and no hub holds a run up for longer than it may."""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub import Client, hub

from simpletuner.reporting.hub import Upload
from simpletuner.reporting.stages import Stages
from simpletuner.training import publishing
from simpletuner.training.publishing import Publisher

BY_HAND = "the command by hand"


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(publishing, "PAUSES_S", ())
    with hub() as client:
        for name, value in client.environment(tmp_path / "home").items():
            monkeypatch.setitem(os.environ, name, value)
        yield client


def checkpoint(tmp_path: Path, step: int) -> Path:
    folder = tmp_path / "out" / f"checkpoint-{step}"
    (folder / "transformer").mkdir(parents=True)
    (folder / "transformer" / "weights").write_bytes(b"%d" % step * 30_000)
    return folder


def test_the_newest_of_those_that_wait_is_uploaded_also_when_its_folder_went(running: Client, tmp_path: Path) -> None:
    running.tell(faults=[{"match": "POST .*/commit/", "seconds": 1.5, "times": 1}])
    said: list[str] = []
    publisher = Publisher("run", True, tmp_path / "out", Stages(), said.append)
    publisher.wait("", BY_HAND, 30)
    publisher.checkpoint(checkpoint(tmp_path, 1))
    while not any("preupload" in request["path"] for request in running.requests):
        time.sleep(0.01)
    for step in (2, 3):
        publisher.checkpoint(checkpoint(tmp_path, step))
        shutil.rmtree(tmp_path / "out" / f"checkpoint-{step}")
    publisher.wait("", BY_HAND, 30)
    publisher.close()
    assert [c["summary"] for c in running.tell()["tester/run"]["commits"]] == [
        "checkpoint-1 of a run",
        "checkpoint-3 of a run",
    ]
    assert not any("WARNING" in line for line in said) and not (tmp_path / "out" / publishing.HELD).exists()


@pytest.mark.parametrize(
    ("program", "reason"), [("true", "ended without a word"), ("none-of-this-name", "No such file or directory")]
)
def test_a_process_that_does_nothing_is_told_at_the_start_and_at_an_upload(
    program: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which(program) or str(tmp_path / program))
    said: list[str] = []
    publisher = Publisher("run", True, tmp_path, Stages(), said.append)
    publisher.model(Upload("run", True, "m", texts={"a.txt": "a"}), BY_HAND)
    publisher.close()
    assert [reason in line for line in said] == [True, True]
    assert "It is tried again later" in said[0] and said[1].startswith("WARNING: the model") and BY_HAND in said[1]


def test_a_refusal_and_a_slow_hub_are_told_and_bounded(running: Client, tmp_path: Path) -> None:
    running.tell(faults=[{"match": "/commit/", "status": 403}, {"match": "/commit/", "seconds": 60}])
    said: list[str] = []
    publisher = Publisher("run", True, tmp_path, Stages(), said.append)
    upload = Upload("run", True, "m", texts={"a.txt": "a"})
    publisher.model(upload, BY_HAND)
    assert "does not allow it with your login" in said[-1] and BY_HAND in said[-1]
    began = time.monotonic()
    publisher.model(upload, BY_HAND, seconds=3)
    publisher.close()
    assert time.monotonic() - began < 20
    assert "longer than" in said[-1] and running.tell()["tester/run"]["commits"] == []
