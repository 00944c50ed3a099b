"""Pictures in tar files through the real command: from a folder and from a real web server."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Command
from web import Quiet, serving

from simpletuner.config.read import load
from simpletuner.errors import ConfigError

asked: Counter[str] = Counter()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Serves ``tmp_path/tars`` with an ETag; the first GET of each file breaks off half way."""
    asked.clear()

    class Handler(Quiet):
        def answer(self, with_body: bool) -> None:
            asked[f"{self.command} {self.path}"] += 1
            file = tmp_path / "tars" / self.path.partition("?")[0].strip("/")
            if not file.is_file():
                self.send_error(404)
                return
            data = file.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{zlib.crc32(data)}"')
            self.end_headers()
            if with_body:
                first = asked[f"GET {self.path}"] == 1
                self.wfile.write(data[: len(data) // 2] if first else data)

        def do_GET(self) -> None:
            self.answer(True)

        def do_HEAD(self) -> None:
            self.answer(False)

    with serving(Handler) as address:
        yield address


def pack(folder: Path, target: Path, names: list[str], extra: dict[str, bytes] | None = None) -> None:
    target.parent.mkdir(exist_ok=True)
    with tarfile.open(target, "w:gz" if target.suffix == ".gz" else "w") as tar:
        for name in names:
            tar.add(folder / name, name)
        for name, data in (extra or {}).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def point_at(folder: Path, place: str, **fields: object) -> None:
    path = folder / "multidatabackend.json"
    entries = json.loads(path.read_text())
    entries[0] |= {"type": "webdataset", "instance_data_dir": place, "caption_strategy": "webdataset", **fields}
    path.write_text(json.dumps(entries))


def test_training_from_tars_on_a_web_server(
    simpletuner: Command, pocket_run: Callable[..., Path], tmp_path: Path, server: str
) -> None:
    config = pocket_run(max_train_steps=1, output_dir=str(tmp_path / "packed"))
    files = sorted(p.name for p in (tmp_path / "pictures").iterdir())
    pack(tmp_path / "pictures", tmp_path / "tars" / "a-00.tar", files[:4], {"../evil.png": b"x", "loose.png": b"no"})
    pack(tmp_path / "pictures", tmp_path / "tars" / "a-01.tar.gz", files[4:])
    point_at(tmp_path / "config", f"{server}/{{a-00.tar,a-01.tar.gz,a-02.tar}}?token=secret")
    refused = simpletuner("train", "--config", config, check=False)
    assert refused.returncode == 1 and "(the server answers 404 Not Found)" in refused.stderr
    assert f"{server}/a-02.tar. What to do: " in refused.stderr and "secret" not in refused.stdout + refused.stderr
    point_at(tmp_path / "config", f"{server}/{{a-00.tar,a-01.tar.gz}}?token=secret")
    said = simpletuner("train", "--config", config).stdout
    assert "4 files fetched" not in said and "5 files fetched" in said and "6 pictures found, 4 used" in said
    assert "evil.png: its name leads out of the tar" in said
    assert "loose.png" in said and "secret" not in said and "Done: 1 step." in said
    assert asked["GET /a-00.tar?token=secret"] == 2, "a connection that broke off is tried again"
    kept = tmp_path / "packed" / "cache" / "files" / "set"
    assert {p.read_bytes() for p in kept.rglob("picture_*.png")} == {
        p.read_bytes() for p in (tmp_path / "pictures").glob("*.png")
    }
    assert not list((tmp_path / "packed").rglob("evil.png")) and not list(tmp_path.glob("*.png"))
    again = simpletuner("check", "--config", config).stdout
    assert "0 files fetched, 5 were here" in again and asked["GET /a-00.tar?token=secret"] == 2
    assert "a drawing of thing 3" in (tmp_path / "packed" / "dataset.html").read_text()


def test_what_does_not_fit_is_said(pocket_run: Callable[..., Path], tmp_path: Path) -> None:
    config = str(pocket_run())
    point_at(tmp_path / "config", str(tmp_path / "none.tar"), caption_strategy="textfile")
    with pytest.raises(ConfigError, match="use webdataset, filename, null or instanceprompt"):
        load(config)
    point_at(tmp_path / "config", "x.tar", conditioning_data="masks")
    with pytest.raises(ConfigError, match="put pictures and masks into folders"):
        load(config)
    point_at(tmp_path / "config", "x", type="webshart", conditioning_data=None)
    with pytest.raises(ConfigError, match="use type webdataset"):
        load(config)
    point_at(tmp_path / "config", "", type="webdataset")
    with pytest.raises(ConfigError, match="folder of them, or a pattern"):
        load(config)
