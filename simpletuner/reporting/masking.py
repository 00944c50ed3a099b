"""Secrets in a configuration are shown as dots."""

from __future__ import annotations

import re
from typing import Any

DOTS = "••••••"
_KEY = re.compile(
    r"(^|_|-)(tokens?|secrets?|passwords?|passwd|auth|authorization|credentials?|(api|access|private)_?key(_id)?"
    r"|webhook_url|callback_url|(post|external)\w*_script)($|_|-)",
    re.IGNORECASE,
)
_NO_SECRETS = {"tokenizer_max_length"}
_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]+@")  # user:password@
_IN_QUERY = re.compile(r"(?i)([?&][^=&\s]*(?:token|key|secret|signature|password)[^=&\s]*=)[^&\s]+")
_KNOWN = re.compile(r"\b(hf_|sk-|ghp_|wandb_v1_|AKIA)[A-Za-z0-9_-]{8,}")


def masked(value: Any, key: str = "") -> Any:
    """The same JSON value without secrets: by the names of keys, and by the looks of values."""
    if key and key not in _NO_SECRETS and _KEY.search(key) and value not in (None, "", False, True):
        return DOTS
    if isinstance(value, dict):
        return {k: masked(v, str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [masked(v) for v in value]
    if isinstance(value, str):
        return masked_text(value)
    return value


def masked_text(text: str) -> str:
    """A sentence without what looks like a key or a password in an address."""
    text = _IN_ADDRESS.sub(f"{DOTS}@", text)
    text = _IN_QUERY.sub(rf"\g<1>{DOTS}", text)
    return _KNOWN.sub(DOTS, text)
