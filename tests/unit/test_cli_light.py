"""Help is instant: neither the options nor the program are loaded for it."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        (["--help"], {"torch", "diffusers", "transformers", "pydantic", "simpletuner.training"}),
        (["train", "--help"], {"torch", "diffusers", "transformers", "simpletuner.training"}),
        (["configure", "--help"], {"torch", "diffusers", "pydantic", "questionary", "simpletuner.training"}),
        (["doctor", "--help"], {"torch", "diffusers", "pydantic", "simpletuner.training"}),
        (["examples", "list"], {"torch", "diffusers", "transformers", "pydantic", "simpletuner.training"}),
    ],
)
def test_what_help_does_not_load(words: list[str], absent: set[str]) -> None:
    code = (
        "import sys; from click.testing import CliRunner; from simpletuner.cli.app import app\n"
        f"done = CliRunner().invoke(app, {words!r})\n"
        "assert done.exit_code == 0 and any(word in done.output for word in ('train', 'pocket')), done.output\n"
        f"assert not {absent!r} & set(sys.modules), {absent!r} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
