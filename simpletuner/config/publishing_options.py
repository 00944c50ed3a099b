"""Options of publishing on a model hub, and the rules between them; a part of ``options`` and of ``rules``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from simpletuner.config.section import Section
from simpletuner.errors import Row

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"


def parse_repository(value: Any) -> Any:
    """``owner/name``, ``name`` or the address of its page → the first two without the address.

    Raises:
        ValueError: None of these.
    """
    if value is None:
        return None
    text = re.sub(r"^https?://[^/]+/(.*?)/?$", r"\1", str(value).strip())
    if not re.fullmatch(rf"(?:{_PART}/)?{_PART}", text) or ".." in text or "--" in text:
        raise ValueError("it must be owner/name: letters, digits, dot, dash and underscore, 96 of each at most")
    return text


class PublishingOptions(Section):
    """Publishing on the hub."""

    push_to_hub: bool = Field(False, description="Upload the trained model at the end, with a model card.")
    push_checkpoints_to_hub: bool = Field(
        False, description="Upload checkpoints too, whole, in the background: training can go on from them elsewhere."
    )
    hub_model_id: Annotated[str | None, BeforeValidator(parse_repository)] = Field(
        None, description="Repository, owner/name; by default the name of the run, with your login."
    )
    model_card_private: bool = Field(True, description="A repository that is made is private; false makes it public.")
    model_card_safe_for_work: bool = Field(
        False, description="Without it the model card says that pictures may not be for all audiences."
    )
    model_card_note: str | None = Field(None, description="A paragraph of yours for the model card.")

    def publishes(self) -> bool:
        """Whether anything is uploaded."""
        return self.push_to_hub or self.push_checkpoints_to_hub


def publishing_problems(options: PublishingOptions) -> Iterator[Row]:
    """What would make every upload fail, told before hours of training: nobody is logged in, or nothing may be asked."""
    if not options.publishes():
        return
    from huggingface_hub import constants, get_token

    key = "push_to_hub" if options.push_to_hub else "push_checkpoints_to_hub"
    if constants.is_offline_mode():
        yield (key, True, "HF_HUB_OFFLINE is set, so nothing can be uploaded", f"unset it, or set {key} to false")
    elif not get_token():
        remedy = f"`hf auth login`, or set HF_TOKEN; or set {key} to false: `simpletuner publish` uploads later"
        yield (key, True, "nobody is logged in to the hub", remedy)


def publishing_without_effect(options: PublishingOptions, where: Mapping[str, str]) -> Iterator[str]:
    """Sentences about options that are given but change nothing beside the others."""
    for key in ("hub_model_id", "model_card_private"):
        if key in where and not options.publishes():
            yield f"{key} has no effect: neither push_to_hub nor push_checkpoints_to_hub is set"
    for key in ("model_card_safe_for_work", "model_card_note"):
        if key in where and not options.push_to_hub:
            yield f"{key} has no effect: the model card is written with push_to_hub"
