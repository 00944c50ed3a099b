"""Webhooks against a real server process: what arrives, and that a dead, slow or hostile receiver costs nothing."""

import base64
import datetime
import ipaddress
import json
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from receiver import Receiver as Running
from receiver import receiving

from simpletuner.reporting import addresses, delivery, webhook
from simpletuner.reporting.delivery import Body, Courier, DeliveryError, Receiver
from simpletuner.reporting.events import (
    CheckpointSaved,
    Done,
    Event,
    Figures,
    Notification,
    Preview,
    PromptValidated,
    Stage,
    Status,
)
from simpletuner.reporting.listeners import Listeners
from simpletuner.reporting.webhook import Webhook

SECRET = "tok-en-4711"
NOW = threading.Event()


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with receiving() as running:
        yield running


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The same bounds, ten times as tight; and nothing left from another test."""
    monkeypatch.setattr(delivery, "TIMEOUT_S", 0.5)
    monkeypatch.setattr(delivery, "DEADLINE_S", 1.0)
    monkeypatch.setattr(delivery, "PAUSE_S", 0.02)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    if "server" in request.fixturenames:
        request.getfixturevalue("server").requests.clear()


def send(url: str, **settings: object) -> None:
    Courier(Receiver(url, **settings)).send(Body.of_json({"a": 1}), NOW)  # type: ignore[arg-type]


def step(number: int) -> Status:
    progress = Done("Training", number, 100, 3.0, {"loss": 0.5, "learning_rate": 1e-4, "epoch": 0.25})
    return Status(status="running", state={"global_step": number}, progress=progress)


def told(events: list[Event], kind: str, url: str, **settings: object) -> list[str]:
    """Emit to one webhook; what was said, and lost at the end."""
    listeners, said = Listeners(), []
    receiver = Receiver(url, auth_token=SECRET)
    listeners.start([webhook.listener(Webhook(kind, receiver, **settings))], said.append)  # type: ignore[arg-type]
    for event in events:
        listeners.emit(event)
    return said + listeners.close(8)


def picture(path: Path, colour: str = "red") -> Path:
    Image.new("RGB", (8, 8), colour).save(path)
    return path


def test_raw_events_arrive_as_json_with_token_and_pictures(server: Running, tmp_path: Path) -> None:
    file = picture(tmp_path / "a.png")
    gone = Preview(
        step=1,
        sampler_step=1,
        of=1,
        timestep=1.0,
        nickname="a",
        prompt="p",
        width=8,
        height=8,
        path=tmp_path / "no.png",
    )
    events: list[Event] = [
        Stage(key="init_vae_cache", label="Latents", status="running"),
        PromptValidated(step=3, nickname="a", prompt="p", pictures=(file,)),
        gone,
        Status(status="failed", state={"loss": float("nan")}),
    ]
    assert told(events, "raw", f"{server.url}/ok/hook") == []
    server.wait(4)
    assert [body["type"] for body in server.json()] == [event.type for event in events]
    assert server.requests[0]["headers"]["X-API-Key"] == SECRET
    assert server.json()[1]["images"] == [base64.b64encode(file.read_bytes()).decode()]
    assert "images" not in server.json()[2] and server.json()[3]["data"]["loss"] is None


def test_every_preview_arrives_as_it_was_when_it_was_told(server: Running, tmp_path: Path) -> None:
    file, sent = tmp_path / "a.png", []
    listeners = Listeners()
    listeners.start([webhook.listener(Webhook("raw", Receiver(server.url)))], sent.append)
    for number, colour in enumerate(("red", "green", "blue", "white"), 1):  # as a quick card draws
        sent.append(picture(file, colour).read_bytes())
        place = {"sampler_step": 5 * number, "of": 20, "timestep": 1.0, "width": 8, "height": 8}
        listeners.emit(Preview(step=1, nickname="a", prompt="p", path=file, **place))
    file.unlink()
    assert listeners.close(8) == []
    server.wait(4)
    assert [body["data"]["sampler_step"] for body in server.json()] == [5, 10, 15, 20]
    assert [base64.b64decode(body["images"][0]) for body in server.json()] == sent


def test_figures_quiet_events_and_most_steps_are_not_sent(server: Running) -> None:
    events: list[Event] = [
        Figures(kind="step", values={}),
        Notification(message="a line of the log", severity="debug"),
        *map(step, range(1, 11)),
        Notification(message="mind this", severity="warning"),
    ]
    told(events, "raw", server.url, every=5)
    told(events, "raw", server.url)
    told(events, "raw", server.url, log_level="warning")
    server.wait(6)
    steps = [b.get("data", {}).get("global_step", b.get("message")) for b in server.json()]
    assert steps == [5, 10, "mind this", 1, "mind this", "mind this"]


def test_discord_gets_words_pictures_and_calls_nobody(server: Running, tmp_path: Path) -> None:
    files = tuple(picture(tmp_path / f"{n}.png") for n in range(12))
    events: list[Event] = [
        step(7),
        CheckpointSaved(message="Checkpoint", path=tmp_path / "checkpoint-7", step=7),
        PromptValidated(
            message="Validation: a", step=7, nickname="a", prompt="@everyone " + "word " * 500, pictures=files
        ),
        Stage(key="x", label="x", status="running"),
        Notification(title="Error", message="no room", severity="error"),
    ]
    assert told(events, "discord", f"{server.url}/api/webhooks/1/{SECRET}", prefix="(`run`) ") == []
    server.wait(5)
    bodies = [request["body"] for request in server.requests]
    assert "Step+7+of+100" in bodies[0] and "0.5000" in bodies[0] and "%60run%60" in bodies[0]
    assert len(bodies) == 5 and [body.count("image/png") for body in bodies] == [0, 0, 10, 2, 0]
    assert "content=" in bodies[1] and 'name="content"' in bodies[2] and 'name="content"' not in bodies[3]
    assert "%40everyone" not in bodies[1] and "everyone" in bodies[1], "a caption pings nobody"
    assert "no+room" in bodies[4] and SECRET not in "".join(bodies)


@given(st.text(max_size=300), st.integers(5, 50))
@settings(max_examples=50)
def test_a_long_text_is_split_and_nothing_but_spaces_is_lost(text: str, length: int) -> None:
    pieces = list(webhook.split(text, length))
    assert all(len(piece) <= length for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())


def test_parcels_are_bounded_by_size_too() -> None:
    three = [(str(n), b"x" * (5 * 2**20)) for n in range(3)]
    assert [len(group) for group in webhook.parcels(iter(three))] == [1, 1, 1]


FAULTS = {
    "fails": "status 500",
    "refuses": "status 404",
    "slow": "not answer in time",
    "close": "broke off",
    "drip": "broke off",
    "loop": "allow_redirects does not allow",
    "redirect/http://127.0.0.1/": "allow_redirects does not allow",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_receiver_is_an_error_with_a_reason_in_bounded_time(server: Running, fault: str) -> None:
    began = time.monotonic()
    with pytest.raises(DeliveryError, match=FAULTS[fault]) as caught:
        send(f"{server.url}/{fault}?key={SECRET}")
    assert time.monotonic() - began < 5 and SECRET not in str(caught.value)
    tried = {"fails": 3, "slow": 3, "close": 3, "drip": 3}.get(fault, 1)
    assert len(server.wait(tried)) == tried


def test_an_endless_answer_is_read_a_little_and_taken(server: Running) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    send(f"{server.url}/endless")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000, "kB"


def test_a_busy_receiver_is_asked_again(server: Running) -> None:
    send(f"{server.url}/twice")
    assert len(server.wait(2)) == 2


def test_nobody_there() -> None:
    with pytest.raises(DeliveryError, match="cannot be reached"):
        send("http://127.0.0.1:9/")
    with pytest.raises(DeliveryError, match="no host"):
        send("http://no-such-host.invalid/")


def test_redirects_are_followed_if_allowed_and_the_token_stays_at_home(server: Running) -> None:
    with receiving() as other:
        settings = {"allow_redirects": True, "auth_token": SECRET}
        send(f"{server.url}/redirect/{other.url}/ok", **settings)
        (arrived,) = other.wait(1)
        assert json.loads(arrived["body"]) == {"a": 1} and "X-API-Key" not in arrived["headers"]
        send(f"{server.url}/redirect/{server.url}/ok", **settings)
        assert server.wait(3)[2]["headers"]["X-API-Key"] == SECRET
    with pytest.raises(DeliveryError, match="on and on"):
        send(f"{server.url}/loop", allow_redirects=True)
    for target in ("http://169.254.169.254/latest/meta-data", "http://[::ffff:169.254.169.254]/", "http://0.0.0.0/"):
        with pytest.raises(DeliveryError, match="nothing is sent to"):
            send(f"{server.url}/redirect/{target}", allow_redirects=True)
    with pytest.raises(DeliveryError, match="no web address"):
        send(f"{server.url}/redirect/file:///etc/passwd", allow_redirects=True)


def test_private_addresses_only_where_they_are_allowed(server: Running) -> None:
    for url in (server.url, server.url.replace("127.0.0.1", "localhost")):
        send(url)
        with pytest.raises(DeliveryError, match="allow_private_addresses is false"):
            send(url, allow_private=False)
    assert server.requests[1]["headers"]["Host"].startswith("localhost:"), "it is asked by its name"


def test_a_name_is_looked_up_once_and_its_address_judged(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that answers otherwise the second time (DNS rebinding) gains nothing."""
    answers = ["127.0.0.1", "169.254.169.254"]
    asked, real = list[str](), socket.getaddrinfo

    def look_up(host: Any, *rest: Any, **more: Any) -> Any:
        if host != "receiver.test":
            return real(host, *rest, **more)
        asked.append(host)
        return real(answers[len(asked) - 1], *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    url = server.url.replace("127.0.0.1", "receiver.test")
    send(url)
    assert asked == ["receiver.test"] and server.wait(1)[0]["headers"]["Host"].startswith("receiver.test:")
    with pytest.raises(DeliveryError, match="clouds keep credentials"):
        send(url)


def test_the_proxy_of_the_environment_is_used(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    send("http://receiver.invalid/hook")
    assert server.wait(1)[0]["path"] == "http://receiver.invalid/hook"
    with pytest.raises(DeliveryError, match="nothing is sent to"):
        send("http://169.254.169.254/")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    send(f"{server.url}/direct")
    assert server.wait(2)[1]["path"] == "/direct"


REFUSED = ["169.254.169.254", "169.254.1.1", "fe80::1", "fd00:ec2::254", "100.100.100.200", "0.0.0.0", "::", "224.0.0.1",
           "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::", "255.255.255.255"]  # fmt: skip
PRIVATE = ["127.0.0.1", "::1", "10.0.0.1", "192.168.1.1", "172.16.0.1", "100.64.0.1", "fd12::1", "::ffff:10.0.0.1"]


@pytest.mark.parametrize("address", REFUSED)
def test_addresses_that_are_always_refused(address: str) -> None:
    assert addresses.refusal(ipaddress.ip_address(address), True)


@pytest.mark.parametrize("address", [*PRIVATE, "8.8.8.8", "2606:4700::1111"])
def test_addresses_of_this_network_and_of_the_world(address: str) -> None:
    assert not addresses.refusal(ipaddress.ip_address(address), True)
    assert bool(addresses.refusal(ipaddress.ip_address(address), False)) is (address in PRIVATE)


def test_a_certificate_nobody_vouches_for(tmp_path: Path) -> None:
    with receiving(self_signed(tmp_path / "pair.pem")) as tls:
        with pytest.raises(DeliveryError, match="certificate"):
            send(tls.url)
        assert tls.requests == []
        send(tls.url, verify=False)
        assert len(tls.wait(1)) == 1


def self_signed(path: Path) -> Path:
    """A key and a certificate for 127.0.0.1 that no authority signed."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    alternatives = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(alternatives, False)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    path.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain) + certificate.public_bytes(pem))
    return path


@pytest.mark.parametrize("fault", ["slow", "drip", "fails", "redirect/http://169.254.169.254/"])
def test_a_run_with_a_bad_receiver_loses_no_time(server: Running, fault: str) -> None:
    """emit() p99 ≤ 100 µs while the receiver misbehaves; the best of three rounds, the machine has other work too."""
    listeners, said = Listeners(), []
    hook = Webhook("raw", Receiver(f"{server.url}/{fault}", auth_token=SECRET), every=1)
    listeners.start([webhook.listener(hook)], said.append)
    worst = []
    for _ in range(3):
        taken = []
        for number in range(1000):
            began = time.perf_counter()
            listeners.emit(step(number))
            taken.append(time.perf_counter() - began)
        worst.append(sorted(taken)[990])
    listeners.emit(Status(status="completed"))
    began = time.monotonic()
    (lost,) = listeners.close(4)
    assert time.monotonic() - began < 5
    assert min(worst) <= 100e-6, worst
    assert "dropped" in lost and len(said) == 1 and SECRET not in lost + said[0]


def test_a_failing_receiver_is_left_alone_but_told_what_is_said_once(server: Running) -> None:
    listeners = Listeners()
    listeners.start([webhook.listener(Webhook("raw", Receiver(f"{server.url}/refuses"), every=1))], lambda _: None)
    for number in range(1, 40):
        listeners.emit(step(number))
    server.wait(webhook.FAILURES)
    listeners.emit(Notification(title="Fatal Error", message="x", severity="critical"))
    server.wait(webhook.FAILURES + 1)
    (lost,) = listeners.close(5)
    kinds = [body["type"] for body in server.json()]
    assert kinds == ["training.status"] * webhook.FAILURES + ["notification"] and "40 events were not taken" in lost
