"""``webhook_config``: entries of receivers, checked together with every other problem; secrets are never shown."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr

from simpletuner.config.checking import Findings, build, sort_keys
from simpletuner.config.section import Section
from simpletuner.errors import Problem, masked

EXAMPLE = '{"webhook_type": "raw", "callback_url": "http://127.0.0.1:8000/"}'
# Which key holds the address of which type.
_ADDRESS = {"discord": "webhook_url", "raw": "callback_url"}


class WebhookEntry(Section):
    """One receiver."""

    webhook_type: Literal["discord", "raw"] = Field(description="raw = JSON for a program; discord = a channel.")
    webhook_url: SecretStr | None = Field(None, description="Address of a Discord webhook.")
    callback_url: SecretStr | None = Field(None, description="Address of a raw receiver.")
    message_prefix: str | None = Field(None, description="Before every Discord message; project and run by default.")
    log_level: Literal["critical", "error", "warning", "info", "debug"] = Field(
        "info", description="What is less grave is not sent."
    )
    ssl_no_verify: bool = Field(False, description="Take any certificate.")
    auth_token: SecretStr | None = Field(None, description="Sent as X-API-Key.")
    allow_redirects: bool = Field(False, description="Follow a receiver that sends messages elsewhere.")
    allow_private_addresses: bool = Field(True, description="Whether this machine and its own network may receive.")

    @property
    def address(self) -> str:
        """Where messages go."""
        url = self.webhook_url if self.webhook_type == "discord" else self.callback_url
        return url.get_secret_value() if url else ""


def webhooks(content: Any, file: str, findings: Findings) -> tuple[WebhookEntry, ...]:
    """The entries of a webhook configuration; what is wrong is added to ``findings``.

    Args:
        content: One object, or a list of them.
        file: For messages.
        findings: Added to.
    """
    entries = content if isinstance(content, list) else [content]
    made = []
    for number, entry in enumerate(entries):
        prefix = f"webhook_config[{number}]." if isinstance(content, list) else "webhook_config."
        if not isinstance(entry, Mapping):
            reason = "it must be an object, or a list of objects"
            findings.problems.append(Problem(file, prefix[:-1], masked("webhook_config", entry), reason, EXAMPLE))
            continue
        where = dict.fromkeys(("", *entry), file)
        kept = sort_keys(entry, where, WebhookEntry.model_fields, {}, findings, prefix)
        section = build(WebhookEntry, kept, where, findings, prefix)
        if isinstance(section, WebhookEntry):
            before = len(findings.problems)
            _check(section, file, prefix, findings)
            made += [section] if len(findings.problems) == before else []
    return tuple(made)


def _check(entry: WebhookEntry, file: str, prefix: str, findings: Findings) -> None:
    """The address of its type, and what it does not use."""
    key = _ADDRESS[entry.webhook_type]
    if not entry.address:
        reason = f"it is missing: webhook_type {entry.webhook_type} needs it"
        findings.problems.append(Problem(file, f"{prefix}{key}", "", reason, f"add {key}"))
        return
    other = next(name for name in _ADDRESS.values() if name != key)
    for name, text in ((other, f"{entry.webhook_type} uses {key}"), ("message_prefix", "raw messages have no text")):
        unused = name == other or entry.webhook_type == "raw"
        if unused and getattr(entry, name) is not None:
            findings.notices.append(f"{prefix}{name} has no effect: {text}")
    if reason := unusable(entry.address):
        findings.problems.append(
            Problem(
                file,
                f"{prefix}{key}",
                entry.address,
                reason,
                "give the receiver's address, http://host/… or https://host/…",
            )
        )


def unusable(address: str) -> str:
    """Why an address is none to send to, or nothing; names are looked up when they are used."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "it is not an address"
    if parts.scheme not in ("http", "https") or not host or any(c.isspace() or not c.isprintable() for c in address):
        return "it is not the address of a web server"
    if port == 0:
        return "there is no port 0"
    try:
        number = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return ""
    return "nothing is sent to link-local addresses, where clouds keep credentials" if number.is_link_local else ""
