import json

import pytest

from simpletuner.config.json_hints import hint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{\n "a": 1,\n}', "remove the comma at the end of line 2"),
        ("[\n 1,\n 2,\n]", "remove the comma at the end of line 3"),
        ('{\n "a": 1\n "b": 2\n}', "a comma is missing at the end of line 2"),
        ('{"a": True}', "write true instead of True"),
        ('{"a": None}', "write null instead of None"),
        ("{'a': 1}", "double quotes"),
        ("{a: 1}", "double quotes"),
        ('{"a": 1, // width\n "b": 2}', "no comments"),
        ('{"a": 1}\n# done', "no comments"),
        ('{"a": "C:\\pictures"}', "backslash"),
        ('{"a": "x\n"}', "must end with a double quote"),
        ('{"a": "x', "must end with a double quote"),
        ('{"a": 1}{"b": 2}', "follows after the end"),
        ("  ", "empty"),
        ('{"a" 1}', "check for a comma"),
    ],
)
def test_the_usual_slips_are_recognised(text: str, expected: str) -> None:
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads(text)
    assert expected in hint(text, caught.value)
