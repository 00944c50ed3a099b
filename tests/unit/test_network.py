"""How often the network is asked, and what a broken answer is."""

from email.message import Message
from types import SimpleNamespace

import pytest

from simpletuner.data.network import PAUSE_S, TRIES, attempts, check_length, is_web, plain


def test_pauses_grow_and_there_is_none_before_the_first_try_nor_after_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("simpletuner.data.network.time.sleep", pauses.append)
    assert list(attempts()) == list(range(TRIES))
    assert pauses == [PAUSE_S * 2**n for n in range(TRIES - 1)]
    pauses.clear()
    for _ in attempts():
        break
    assert pauses == []


def test_a_short_answer_is_an_error_where_the_server_said_its_length() -> None:
    headers = Message()
    check_length(SimpleNamespace(headers=headers), 7)
    headers["Content-Length"] = "10"
    check_length(SimpleNamespace(headers=headers), 10)
    with pytest.raises(OSError, match="after 7 of 10 bytes"):
        check_length(SimpleNamespace(headers=headers), 7)


def test_addresses_and_reasons() -> None:
    assert is_web("http://a/b") and is_web("https://a") and not is_web("s3://a") and not is_web("/http://a")
    assert plain(OSError("\n first\nsecond")) == "first" and plain(ValueError()) == "ValueError"
