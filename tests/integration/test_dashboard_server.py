"""The dashboard's server: who is let in, what it gives out, and what it leaves for the run."""

import http.client
import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dashboard_server import Dashboard, serving
from PIL import Image
from written_run import write_run

from simpletuner.errors import TunerError
from simpletuner.reporting.dashboard.serve import bind


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("served") / "run", running=True)
    (run.parent / "secret.png").write_bytes(b"secret")
    (run / "validation_images" / "link.png").symlink_to(run.parent / "secret.png")
    (run / "dataset.html").write_text("<h1>sheet</h1><script>window.hacked=1</script>")
    Image.effect_noise((900, 900), 80).save(run / "validation_images" / "step_20_big_0_900x900.png")
    return run


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Dashboard]:
    with serving(folder, write_run(folder.parent / "other" / "run")) as running:
        yield running


def test_only_the_token_opens(server: Dashboard) -> None:
    for path in ("/", "/?token=wrong", "/?token=", "/api/runs", "/assets/main.js", "/files/0/report.html", "/none"):
        status, headers, body = server.ask(path, cookie=False)
        assert status == 401, path
        assert b"simpletuner dashboard" in body
        assert "set-cookie" not in headers
    status, headers, body = server.ask(f"/?token={server.token}", cookie=False)
    assert status == 200
    assert "HttpOnly" in headers["set-cookie"]
    assert "SameSite=Strict" in headers["set-cookie"]
    assert server.ask("/api/runs", Cookie=f"simpletuner_{server.port}=wrong", cookie=False)[0] == 401
    assert server.ask("/api/runs", Cookie=f"simpletuner_{server.port}=\xff", cookie=False)[0] == 401


def test_a_strangers_name_for_this_machine_is_refused(server: Dashboard) -> None:
    for host in ("evil.example", f"evil.example:{server.port}", "127.0.0.1", f"127.0.0.1.evil.example:{server.port}"):
        assert server.ask("/api/runs", Host=host)[0] == 400, host
    assert server.ask("/api/runs", Host=f"localhost:{server.port}")[0] == 200


def test_every_answer_is_locked_down(server: Dashboard) -> None:
    for path, kind in (("/", "text/html"), ("/assets/main.js", "text/javascript"), ("/api/runs", "application/json")):
        status, headers, _ = server.ask(path)
        assert status == 200, path
        assert headers["content-type"].startswith(kind)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers
    _, headers, body = server.ask("/api/runs/0/sheet")
    assert b"sheet" in body
    assert "sandbox" in headers["content-security-policy"]
    assert "script-src" not in headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    [
        *("/files/0/../secret.png", "/files/0/%2e%2e/secret.png", "/files/0/..%2fsecret.png", "/files/0//etc/hostname"),
        *("/files/0/validation_images/link.png", "/files/0/config.resolved.json", "/files/0/metrics.jsonl"),
        *("/files/7/validation_images/x.png", "/files/0/validation_images/%00.png", "/files/0/dataset.html"),
        *("/assets/../app.py", "/assets/%2e%2e/door.py", "/assets/vendor", "/api/runs/9/series", "/api/runs/-1/series"),
    ],
)
def test_nothing_else_is_given_out(server: Dashboard, path: str) -> None:
    status, _, body = server.ask(path)
    assert status == 404
    assert b"secret" not in body


def test_pictures_whole_and_reduced(server: Dashboard) -> None:
    status, headers, body = server.ask("/files/0/validation_images/step_20_fox_0_64x64.png?v=1")
    assert (status, headers["content-type"]) == (200, "image/png")
    assert body.startswith(b"\x89PNG")
    status, headers, small = server.ask("/files/0/validation_images/step_20_big_0_900x900.png?v=1&w=384")
    assert (status, headers["content-type"]) == (200, "image/webp")
    assert len(small) < 100_000


def test_figures_come_whole_and_then_by_increments(server: Dashboard, folder: Path) -> None:
    told = json.loads(server.ask("/api/runs/0/series")[2])
    assert told["count"] == len(told["columns"]["loss"]) == 30
    assert told["rare"] == {"evals": 5, "scores": 2, "system": 0}
    more = json.loads(server.ask(f"/api/runs/0/series?since=28&generation={told['generation']}&evals=5&scores=2")[2])
    assert more["columns"]["step"] == [29, 30]
    assert more["evals"] == more["scores"] == []
    runs = json.loads(server.ask("/api/runs")[2])
    assert [run["name"] for run in runs] == [f"{folder.parent.name}/run", "other/run"]
    assert [run["state"]["status"] for run in runs] == ["running", "finished"]
    config = json.loads(server.ask("/api/runs/0/config")[2])
    assert "hf_abcdefghijkl" not in json.dumps(config)
    rows = {key: differs for group in config["groups"] for key, _, differs in group["rows"]}
    assert rows["learning_rate"] is True
    assert rows["model_type"] is False


def test_requests_are_left_for_the_run(server: Dashboard, folder: Path) -> None:
    path = "/api/runs/0/control/save"
    assert server.ask(path, "POST")[0] == 403
    assert server.ask(path, "POST", Origin="http://evil.example", X_SimpleTuner="1")[0] == 403
    assert server.ask(path, "POST", Origin=f"http://127.0.0.1:{server.port}")[0] == 403
    assert server.ask(path, "POST", cookie=False, **server.acting)[0] == 401
    assert server.ask(path)[0] == 405
    assert not (folder / "control").exists()
    assert server.ask(path, "POST", **server.acting)[0] == 202
    assert server.ask("/api/runs/0/control/rm", "POST", **server.acting)[0] == 404
    assert [file.name for file in (folder / "control").iterdir()] == ["save"]
    status, _, body = server.ask("/api/runs/1/control/stop", "POST", **server.acting)
    assert (status, body) == (409, b"The run is not training.\n")
    assert not (folder.parent / "other" / "run" / "control").exists()


def test_it_ends_at_once_with_a_stream_open(tmp_path: Path) -> None:
    with serving(write_run(tmp_path / "run")) as running:
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
        connection.request("GET", "/api/stream", headers={"Cookie": f"simpletuner_{running.port}={running.token}"})
        answer = connection.getresponse()
        assert answer.getheader("content-type", "").startswith("text/event-stream")
        lines = [answer.readline() for _ in range(3)]
        assert any(line.startswith(b'data: {"run": 0') for line in lines)
        began = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        assert b"event: end" in answer.read()
        answer.close()
        connection.close()
        running.process.wait(10)
        assert time.monotonic() - began < 5


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(TunerError, match=f"port {port} cannot be used"):
            bind(port)
