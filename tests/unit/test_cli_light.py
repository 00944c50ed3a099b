"""Help is instant: neither the options nor the program are loaded for it."""

import os
import subprocess
import sys

import pytest

HEAVY = {"torch", "diffusers", "transformers", "numpy", "PIL", "simpletuner.training"}


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        (["--help"], {"pydantic"}),
        (["train", "--help"], set()),
        (["configure", "--help"], {"pydantic", "questionary"}),
        (["doctor", "--help"], {"pydantic"}),
        (["examples", "list"], {"pydantic"}),
    ],
    ids=lambda given: " ".join(
        sorted(given) if isinstance(given, set) else given
    ),  # a set has another order in each process
)
def test_what_help_does_not_load(words: list[str], absent: set[str]) -> None:
    code = (
        "import os, sys; from click.testing import CliRunner; from simpletuner.cli.app import app\n"
        f"done = CliRunner().invoke(app, {words!r})\n"
        "assert done.exit_code == 0 and any(word in done.output for word in ('train', 'pocket')), done.output\n"
        f"assert not {HEAVY | absent!r} & set(sys.modules), {HEAVY | absent!r} & set(sys.modules)\n"
        f"assert {words!r} == ['--help'] or os.environ['OMP_WAIT_POLICY'] == 'PASSIVE'  # before a command loads torch"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
