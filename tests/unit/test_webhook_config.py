"""``webhook_config``: inline or in a file, one or several, all problems at once, and its secrets shown nowhere."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simpletuner.config.read import RunConfig, load
from simpletuner.errors import ConfigError, masked
from simpletuner.training import translate_reporting

SECRET = "s3cr3t"
RAW = {"webhook_type": "raw", "callback_url": f"http://127.0.0.1:8000/{SECRET}", "auth_token": SECRET}
DISCORD = {"webhook_type": "discord", "webhook_url": f"https://discord.com/api/webhooks/1/{SECRET}"}

Load = Callable[..., RunConfig]


@pytest.fixture
def loaded(tmp_path: Path) -> Load:
    (tmp_path / "set").mkdir()

    def write(
        overrides: dict[str, Any] | None = None, environ: dict[str, str] | None = None, **options: Any
    ) -> RunConfig:
        config = {"pretrained_model_name_or_path": "m", "max_train_steps": 1, **options}
        dataset = {"id": "a", "instance_data_dir": str(tmp_path / "set"), "cache_dir_vae": str(tmp_path / "vae")}
        texts = {"id": "t", "dataset_type": "text_embeds", "default": True, "cache_dir": str(tmp_path / "text")}
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "multidatabackend.json").write_text(json.dumps([dataset, texts]))
        return load(str(tmp_path / "config.json"), overrides=overrides, environ=environ or {})

    return write


def test_one_several_inline_as_text_and_in_a_file(loaded: Load, tmp_path: Path) -> None:
    file = tmp_path / "hooks.json"
    file.write_text(json.dumps([RAW, DISCORD]))
    found = [
        loaded(webhook_config=RAW),
        loaded(webhook_config=[RAW, DISCORD]),
        loaded({"webhook_config": json.dumps(RAW)}),
        loaded(webhook_config=str(file)),
        loaded(environ={"HOOK": SECRET}, webhook_config={**DISCORD, "webhook_url": "https://discord.com/{env:HOOK}"}),
    ]
    assert [len(config.webhooks) for config in found] == [1, 2, 1, 2, 1]
    raw, discord = translate_reporting.webhooks(found[1])
    assert raw.receiver.url == RAW["callback_url"] and raw.receiver.auth_token == SECRET and raw.kind == "raw"
    assert discord.kind == "discord" and discord.receiver.verify and discord.prefix
    assert found[4].webhooks[0].address == f"https://discord.com/{SECRET}"
    assert loaded(webhook_config="none").webhooks == ()


def test_secrets_are_in_no_record_and_no_repr(loaded: Load) -> None:
    config = loaded(webhook_config=[RAW, DISCORD], webhook_reporting_interval=5)
    assert SECRET not in json.dumps(config.raw, default=str) + repr(config.webhooks) + "".join(config.notices)
    assert config.raw["webhook_config"][0]["callback_url"] == "http://127.0.0.1:8000/…"
    assert SECRET not in repr(translate_reporting.webhooks(config))
    assert all(hook.every == 5 for hook in translate_reporting.webhooks(config))


def test_certificates_may_be_passed_over_for_all(loaded: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    config = loaded(webhook_config=[DISCORD, {**RAW, "ssl_no_verify": "true"}])
    assert [hook.receiver.verify for hook in translate_reporting.webhooks(config)] == [True, False]
    monkeypatch.setenv("SIMPLETUNER_SSL_NO_VERIFY", "1")
    assert not any(hook.receiver.verify for hook in translate_reporting.webhooks(config))


def test_all_problems_at_once_beside_the_others_and_no_secret_in_them(loaded: Load, tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text(f'[{{"auth_token": {SECRET}}}]')
    entries = [
        {"webhook_type": "raw", "auth_tokn": SECRET},
        {"webhook_type": "slack", "webhook_url": SECRET},
        {"webhook_type": "discord", "callback_url": SECRET},
        {"webhook_type": "raw", "callback_url": f"ftp://{SECRET}@host/"},
        {"webhook_type": "raw", "callback_url": f"http://169.254.169.254/{SECRET}", "log_level": "loud"},
        {"webhook_type": "raw", "callback_url": f"http://169.254.169.254/{SECRET}"},
        SECRET,
    ]
    with pytest.raises(ConfigError) as caught:
        loaded(webhook_config=entries, max_train_steps=0)
    text = str(caught.value)
    for expected in ("auth_tokn", "'auth_token'", "did you mean", "[1].webhook_type", "[2].webhook_url: it is missing",
                     "not the address of a web server", "link-local", "[4].log_level", "list of objects",
                     "nothing to train"):  # fmt: skip
        assert expected in text, text
    assert SECRET not in text
    for config in (str(broken), f'{{"auth_token": {SECRET}', str(tmp_path / "none.json")):
        with pytest.raises(ConfigError) as caught:
            loaded({"webhook_config": config})
        assert "webhook_config" in str(caught.value) or str(broken) in str(caught.value)
        assert SECRET not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        loaded(webhook_config=RAW, **{"--webhook-config": DISCORD})
    assert "given twice" in str(caught.value) and SECRET not in str(caught.value)


def test_what_has_no_effect_is_told(loaded: Load) -> None:
    notices = loaded(webhook_config={**RAW, "webhook_url": "https://a.b/", "message_prefix": "x"}).notices
    assert any("webhook_url has no effect" in n for n in notices) and any("message_prefix has no" in n for n in notices)
    assert any("webhook_reporting_interval has no effect" in n for n in loaded(webhook_reporting_interval=3).notices)


def test_what_may_be_shown() -> None:
    assert masked("learning_rate", "http://a/b") == "http://a/b"
    assert masked("webhook_config", "config/hooks.json") == "config/hooks.json"
    assert masked("webhook_config", DISCORD) == {"webhook_type": "discord", "webhook_url": "https://discord.com/…"}
    assert masked("SIMPLETUNER_WEBHOOK_CONFIG", '{"auth_token": "x"}') == "…"
    assert masked("webhook_config.callback_url", "http://me:pw@host:81/x?k=y") == "http://host:81/…"
