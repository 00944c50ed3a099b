"""Variables of the environment: options, those of the original program that mean nothing here, and files it would have read.

In: the environment. Out: values by key; and a sentence for whatever is set and changes nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from simpletuner.config.catalogue import ALIASES, CATALOGUE
from simpletuner.config.checking import Findings
from simpletuner.config.options import section_of
from simpletuner.config.process_options import ProcessOptions, from_launcher
from simpletuner.errors import Problem

PREFIX = "SIMPLETUNER_"
# Which configuration is used, and what events say and how they are sent; then variables of the original program that are no options.
_OURS = {f"SIMPLETUNER_{name}" for name in ("ENVIRONMENT", "ENV", "JOB_ID", "SSL_NO_VERIFY")}
_THEIRS = {f"SIMPLETUNER_{name}" for name in ("CONFIG_BACKEND", "ALLOW_MODIFYING_BSZ", "LOG_LEVEL")}
_BACKEND = "config.json is read, else config.toml; --config names another file"
# Of the original program, without its prefix: what to do instead, and values that ask for nothing.
_UNPREFIXED = {
    "TRAINER_EXTRA_ARGS": ("its options are keys of config.json here", ()),
    "ACCELERATE_EXTRA_ARGS": ("set num_processes, or start with accelerate launch", ()),
    "TRAINING_DYNAMO_BACKEND": ("no backend is chosen by it; transformer_forward acts", ("no",)),
    "CONFIG_BACKEND": (_BACKEND, ("json", "auto")),
    "CONFIG_TYPE": (_BACKEND, ("json", "auto")),
}


def from_environment(environ: Mapping[str, str], findings: Findings) -> dict[str, Any]:
    """Values by key; a variable that is no option is a problem, as the same mistake on the command line is."""
    names = [*section_of(), *CATALOGUE, *ALIASES]
    values: dict[str, Any] = dict(from_launcher(environ))
    for name, value in environ.items():
        if not name.startswith(PREFIX) or name in _OURS:
            continue
        key = name.removeprefix(PREFIX).lower()
        if name in _THEIRS:
            findings.notices.append(f"{name}: a variable of the original program, which has no meaning here")
        elif key in names:
            values[key] = value
        else:
            close = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
            remedy = f"did you mean {PREFIX}{close[0].upper()}?" if close else f"unset {name}"
            findings.problems.append(Problem("environment", name, value, "there is no such option", remedy))
    return values


def unused(
    environ: Mapping[str, str], config: Path, precision: str, by_name: bool, given: Collection[str]
) -> list[str]:
    """Sentences about variables, a config.env and accelerate's file, which the original program would have read.

    Args:
        environ: The environment.
        config: The configuration that is read.
        precision: ``mixed_precision`` in force.
        by_name: Whether nothing but the environment chose the configuration.
        given: Keys that are given, wherever.
    """
    lines = [
        f"{name} of the environment: a variable of the original program, which has no effect here: {instead}"
        for name, (instead, off) in _UNPREFIXED.items()
        if environ.get(name) and environ[name].lower() not in off
    ]
    if environ.get("MIXED_PRECISION", precision) not in ("", precision):
        lines.append(f"MIXED_PRECISION of the environment: it has no effect; mixed_precision is {precision}")
    name = environ.get("ENV", "")
    prefixed = any(environ.get(key) for key in ("SIMPLETUNER_ENVIRONMENT", "SIMPLETUNER_ENV"))
    # A path in it is meant for a shell, which reads that file when it starts.
    if by_name and not prefixed and name not in ("", "default") and name[0] not in "/~$":
        folder = Path("config") / name
        if config.parent != folder:
            lines.append(f"ENV of the environment is {name!r}: {folder} holds no configuration, so {config} is read")
    beside = config.with_name("config.env")
    if beside.is_file():
        lines.append(
            f"{beside}: it is not read, as {config.name} is: write its options there, and export what it sets for other programs"
        )
    launcher = _of_launcher(environ)
    if launcher and not ProcessOptions.model_fields.keys() & given:
        lines.append(
            f"{launcher}: it is not read; num_processes, num_machines and mixed_precision say here what it says there"
        )
    return lines


def _of_launcher(environ: Mapping[str, str]) -> Path | None:
    """What `accelerate config` has written, if it is there."""
    home = environ.get("HOME") or environ.get("USERPROFILE")
    folder = environ.get("HF_HOME") or (home and str(Path(home) / ".cache" / "huggingface"))
    found = Path(folder).expanduser() / "accelerate" / "default_config.yaml" if folder else None
    return found if found and found.is_file() else None
