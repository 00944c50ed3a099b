"""docs/reporting.md says what is so: its example loads, and its tables name what there is."""

import json
import re
from pathlib import Path

from simpletuner.config.checking import Findings
from simpletuner.config.reporting_options import TRACKERS, ReportingOptions
from simpletuner.config.webhooks import WebhookEntry, webhooks
from simpletuner.reporting import delivery, events, listeners, webhook

DOC = (Path(__file__).resolve().parents[2] / "docs" / "reporting.md").read_text(encoding="utf-8")


def test_its_example_is_right() -> None:
    (block,) = re.findall(r"```json\n(.*?)```", DOC, re.DOTALL)
    findings = Findings()
    made = webhooks(
        json.loads(block.replace("{env:HOOK_TOKEN}", "x").replace("{env:DISCORD_HOOK}", "y")), "doc", findings
    )
    assert [entry.webhook_type for entry in made] == ["raw", "discord"] and not findings.problems + findings.notices


def test_it_names_every_key_option_tracker_and_type() -> None:
    types = {cls.type for cls in vars(events).values() if isinstance(cls, type) and issubclass(cls, events.Event)}
    for name in {*WebhookEntry.model_fields, *ReportingOptions.model_fields, *TRACKERS, *types} - {"", "figures"}:
        assert f"`{name}`" in DOC, name


def test_its_bounds_are_those_in_force() -> None:
    assert (delivery.TIMEOUT_S, delivery.DEADLINE_S, delivery.TRIES, delivery.HOPS) == (5, 10, 3, 3)
    assert (delivery.ANSWER_BYTES, delivery.LONGEST_PAUSE_S) == (64 * 1024, 30)
    assert (webhook.FAILURES, webhook.REST_S, webhook.ATTACHMENTS) == (3, 30, 10)
    assert (listeners.CAPACITY, listeners.CLOSING_S) == (1000, 10)
