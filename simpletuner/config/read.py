"""From files, environment and command line to one checked RunConfig.

Precedence: command line > environment (SIMPLETUNER_<KEY>) > file > default. All problems are raised together.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from simpletuner.config import lycoris
from simpletuner.config.catalogue import ALIASES, CATALOGUE, DEFAULT_FLAVOUR, FLAVOURS, OTHER_VALUES
from simpletuner.config.checking import Findings, build, nearest, other_values, sort_keys
from simpletuner.config.dataloader import load_datasets
from simpletuner.config.datasets import Datasets
from simpletuner.config.environment import from_environment, unused
from simpletuner.config.examples import EXAMPLES, example_folder, instead_of
from simpletuner.config.files import copied, find_config, one_problem, parse, read_file
from simpletuner.config.options import Options, section_of, sections
from simpletuner.config.prompts import gather
from simpletuner.config.rules import check, without_effect
from simpletuner.config.section import Section
from simpletuner.config.validation_rules import check_evaluation
from simpletuner.config.webhooks import EXAMPLE, WebhookEntry, webhooks
from simpletuner.errors import ConfigError, Problem, TunerError, masked

_NO_RESUME = ("false", "none", "no", "off", "0")
_VARIABLE = re.compile(r"\{(env|example):([^{}]+)\}")


@dataclass(frozen=True, slots=True)
class RunConfig:
    """A checked configuration.

    Attributes:
        options: All options.
        datasets: All datasets.
        prompts: (nickname, prompt) of the validation pictures; the main prompt first, as ``validation``.
        notices: Sentences to print: satisfied keys, derived values.
        config_file: Where most of it came from.
        webhooks: Who is sent events; their secrets are nowhere else in here.
        raw: The effective options, flat and JSON-able, for the record.
        where: The file, "environment" or "command line" that each given key came from.
        strengths: The adapter's strength for nicknames that have one of their own.
    """

    options: Options
    datasets: Datasets
    prompts: tuple[tuple[str, str], ...]
    notices: tuple[str, ...]
    config_file: str
    raw: dict[str, Any] = field(default_factory=dict)
    webhooks: tuple[WebhookEntry, ...] = ()
    where: Mapping[str, str] = field(default_factory=dict)
    strengths: Mapping[str, float] = field(default_factory=dict)

    def place(self, key: str) -> str:
        """Where a key came from; for one that nobody gave, the file it would stand in."""
        return self.where.get(key, self.config_file)


def substitute(value: Any, environ: Mapping[str, str], file: str, findings: Findings, key: str = "") -> Any:
    """Replace ``{env:NAME}`` and ``{example:NAME}`` in every string of a tree."""
    if isinstance(value, Mapping):
        return {k: substitute(v, environ, file, findings, str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [substitute(v, environ, file, findings, key) for v in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        kind, name = match.groups()
        if kind == "example" and name in EXAMPLES:
            return str(example_folder(name))
        if kind == "example":
            findings.problems.append(Problem(file, key, value, f"there is no example {name!r}", instead_of(name)))
            return ""
        if name not in environ:
            findings.problems.append(
                Problem(file, key, value, f"the environment has no {name}", f"export {name}=… or write the value")
            )
        return environ.get(name, "")

    return _VARIABLE.sub(replace, value)


def normalise(values: Mapping[str, Any], file: str, findings: Findings) -> dict[str, Any]:
    """Keys without leading dashes and with underscores, aliases resolved; null and "" mean not given.

    A null resume_from_checkpoint means a fresh run, so it is kept. Two spellings of one key must agree.
    """
    result: dict[str, Any] = {}
    for raw, value in values.items():
        key = _plain(raw)
        if key == "resume_from_checkpoint" and (value in (None, "", False) or str(value).lower() in _NO_RESUME):
            value = ""
        elif value is None or value == "":
            continue
        if key in result and result[key] != value:
            reason = f"it is given twice, also as {masked(key, result[key])!r}"
            findings.problems.append(Problem(file, raw, value, reason, "keep one of them"))
        result[key] = value
    return result


def _legacy(values: dict[str, Any], findings: Findings) -> None:
    """Old spellings whose value changes too."""
    if values.get("lr_scheduler") == "cosine_with_warmup":
        values["lr_scheduler"] = "cosine"
        findings.notices.append("lr_scheduler: cosine_with_warmup is cosine (which warms up here)")
    if values.get("lr_scheduler") == "constant" and str(values.get("lr_warmup_steps", 0)) not in ("0", "0.0"):
        values["lr_scheduler"] = "constant_with_warmup"
        findings.notices.append("lr_scheduler: constant with lr_warmup_steps is constant_with_warmup")


def _options(values: dict[str, Any], where: dict[str, str], findings: Findings) -> Options:
    """Sections from flat values; where a value is wrong its default stands in, so that the rest is checked too."""
    owner = section_of()
    kept = sort_keys(values, where, owner, CATALOGUE, findings)
    other_values(kept, where, OTHER_VALUES, findings)
    made: dict[str, Section] = {}
    for name, cls in sections().items():
        own = {k: v for k, v in kept.items() if owner[k] == name}
        section = build(cls, own, where, findings)
        if section is None:
            bad = {problem.key for problem in findings.problems}
            section = build(cls, {k: v for k, v in own.items() if k not in bad}, where, findings)
        if isinstance(section, Section):
            made[name] = section
    return Options(**made)


def _rules(options: Options, where: Mapping[str, str], file: str, findings: Findings) -> None:
    """Add the rules between options that do not only follow from a value already found wrong."""
    bad = {problem.key for problem in findings.problems}
    for problem in check(options, where, file):
        if not any(re.search(rf"\b{re.escape(key)}\b", f"{problem.key} {problem.reason}") for key in bad if key):
            findings.problems.append(problem)
    findings.notices += without_effect(options, where)


def _complete(options: Options, where: Mapping[str, str], file: str, findings: Findings) -> Options:
    """Fill in what depends on other options: the model's path, a random seed."""
    model, training = options.model, options.training
    if model.model_flavour is not None and model.model_flavour not in FLAVOURS:
        reason = f"known flavours: {', '.join(FLAVOURS)}"
        findings.problems.append(
            Problem(where.get("model_flavour", file), "model_flavour", model.model_flavour, reason,
                    nearest(model.model_flavour, FLAVOURS))
        )  # fmt: skip
    elif not model.pretrained_model_name_or_path:
        flavour = model.model_flavour or DEFAULT_FLAVOUR
        findings.notices.append(f"pretrained_model_name_or_path: {FLAVOURS[flavour]} (flavour {flavour})")
        model = model.model_copy(update={"pretrained_model_name_or_path": FLAVOURS[flavour]})
    if training.seed == -1:
        training = training.model_copy(update={"seed": random.SystemRandom().randrange(2**31)})
        findings.notices.append(f"seed: {training.seed} (drawn)")
    return options.model_copy(update={"model": model, "training": training})


def _plain(raw: str) -> str:
    """The key of an option, however it is written."""
    key = raw.lstrip("-").replace("-", "_")
    return ALIASES.get(key, key)


def _take_out(overrides: Mapping[str, Any], values: dict[str, Any], where: dict[str, str], findings: Findings) -> None:
    """``--key ""`` on the command line: the key is not given, whatever is written elsewhere.

    A variable that is empty takes nothing out: many shells and containers cannot leave one unset. A key that there is not is
    kept, so that it is told as any other: what it was to take out would count.
    """
    for key in [_plain(raw) for raw, value in overrides.items() if value == ""]:
        if key not in section_of() and key not in CATALOGUE:
            values[key], where[key] = "", "command line"
        elif key in values and where[key] != "command line":
            del values[key]
            source = where.pop(key)
            source = "the environment" if source == "environment" else source
            findings.notices.append(f"{key}: it is empty on the command line, so what {source} says does not count")


def _merged(
    content: Mapping[str, Any],
    file: str,
    overrides: Mapping[str, Any],
    environ: Mapping[str, str],
    findings: Findings,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Values by key, the later layer before the earlier; and where each came from, with the file itself under ""."""
    values: dict[str, Any] = {}
    where: dict[str, str] = {"": file}
    layers = (
        (content, file),
        (from_environment(environ, findings), "environment"),
        (overrides, "command line"),
    )
    for written, source in layers:
        layer = normalise(written, source, findings)
        values.update(layer)
        where.update(dict.fromkeys(layer, source))
    _take_out(overrides, values, where, findings)
    for _, source in layers:  # what does not count needs no variable either
        values.update(substitute({k: v for k, v in values.items() if where[k] == source}, environ, source, findings))
    _legacy(values, findings)
    where.update({key: file for key in values if key not in where})
    return values, where


def load(
    config: str | None = None,
    env: str | None = None,
    example: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> RunConfig:
    """Find, read and check everything.

    Args:
        config: A file or folder, or None to look in the usual places.
        env: A configuration environment: ``config/<env>/config.json``.
        example: A packaged example.
        overrides: Command-line values by key.
        environ: The environment; that of the process by default.

    Raises:
        ConfigError: With every problem, file, key, value and remedy.
        TunerError: There is no configuration, or no example of the name.
    """
    environ = os.environ if environ is None else environ
    path = find_config(config, env, example, environ)
    if path is None:
        raise TunerError(
            "there is no configuration here: neither config.json nor config/config.json. What to do: run `simpletuner "
            "configure` or `simpletuner examples copy sana`, or add --example pocket."
        )
    findings = Findings()
    content, twice = parse(path)
    findings.problems += twice
    if not isinstance(content, Mapping):
        raise one_problem(str(path), "", type(content).__name__, 'it must be one object: {"key": value, …}')
    values, where = _merged(content, str(path), overrides or {}, environ, findings)
    options = _options(values, where, findings)
    by_name = not (config or env or example or environ.get("CONFIG_PATH"))
    findings.notices += unused(environ, path, options.precision.mixed_precision, by_name, where)
    options = _complete(options, where, str(path), findings)
    options = _lycoris(options, path, where, environ, findings)
    receivers = _webhooks(options, where, environ, findings)
    _rules(options, where, str(path), findings)
    prompts = gather(options, where, read_file, findings)
    datasets = _datasets(options, path, where, environ, findings)
    if datasets is not None:
        check_evaluation(options, datasets, where, findings)
    if findings.problems or datasets is None:
        raise ConfigError(findings.problems)
    flat = {k: v for section in options.model_dump(mode="json").values() for k, v in section.items()}
    raw = {key: masked(key, value) for key, value in flat.items()}
    drawn, notices = tuple(prompts.texts.items()), tuple(findings.notices)
    return RunConfig(options, datasets, drawn, notices, str(path), raw, receivers, where, prompts.strengths)


def _webhooks(
    options: Options, where: Mapping[str, str], environ: Mapping[str, str], findings: Findings
) -> tuple[WebhookEntry, ...]:
    """Who is sent events: ``webhook_config``, inline or in its file."""
    content: Any = options.reporting.webhook_config
    if content is None:
        return ()
    file = where["webhook_config"]
    if isinstance(content, Path):
        named = content.expanduser()
        if not named.is_file():
            remedy = f"write into that file, or as the value itself: {EXAMPLE}"
            findings.problems.append(Problem(file, "webhook_config", str(content), "there is no such file", remedy))
            return ()
        try:
            content, file = substitute(read_file(named), environ, str(named), findings), str(named)
        except ConfigError as error:  # the line that JSON broke off in may hold a token
            findings.problems += [replace(problem, value="") for problem in error.problems]
            return ()
    return webhooks(content, file, findings)


def _lycoris(
    options: Options, path: Path, where: Mapping[str, str], environ: Mapping[str, str], findings: Findings
) -> Options:
    """``lycoris_config`` read and checked, if it acts; the default file may also lie beside the configuration."""
    adapter = options.adapter
    if options.model.model_type != "lora" or adapter.lora_type != "lycoris":
        return options
    content: Any = adapter.lycoris_config
    file = where.get("lycoris_config", str(path))
    if isinstance(content, Path):
        named = [content.expanduser()] + ([path.with_name(content.name)] if "lycoris_config" not in where else [])
        found = next((candidate for candidate in named if candidate.is_file()), None)
        if found is None and adapter.init_lora and "lycoris_config" not in where:
            return options.model_copy(update={"adapter": adapter.model_copy(update={"lycoris_config": {}})})
        if found is None:
            start = f"{copied(content.expanduser())}; or " if copied(content.expanduser()) else ""
            remedy = f"{start}write into that file, or as the value itself: {lycoris.EXAMPLE}"
            findings.problems.append(Problem(file, "lycoris_config", str(content), "there is no such file", remedy))
            return options
        try:
            content, file = read_file(found), str(found)
        except ConfigError as error:
            findings.problems.extend(error.problems)
            return options
    if not isinstance(content, Mapping):
        findings.problems.append(Problem(file, "lycoris_config", content, "it must be one object: {…}"))
        return options
    content = substitute(content, environ, file, findings)
    findings.problems += [
        Problem(file, f"lycoris_config.{key}", value, reason, remedy)
        for key, value, reason, remedy in lycoris.problems(content)
    ]
    findings.notices += lycoris.notices(content)
    return options.model_copy(update={"adapter": adapter.model_copy(update={"lycoris_config": dict(content)})})


def _datasets(
    options: Options, path: Path, where: Mapping[str, str], environ: Mapping[str, str], findings: Findings
) -> Datasets | None:
    """The dataloader file, which lies beside the configuration unless named."""
    file = options.data.data_backend_config or path.with_name("multidatabackend.json")
    if not file.expanduser().is_file():
        start = copied(file.expanduser()) or "`simpletuner examples copy sana FOLDER`"
        findings.problems.append(
            Problem(where.get("data_backend_config", str(path)), "data_backend_config", str(file),
                    "there is no such dataloader file", f"{start} writes one to start from: name your folders in it")
        )  # fmt: skip
        return None
    try:
        entries, twice = parse(file.expanduser())
        findings.problems += twice
    except ConfigError as error:
        findings.problems.extend(error.problems)
        return None
    text = json.dumps(entries).replace("{model_family}", options.model.model_family)
    wished = [key for key, source in where.items() if source in ("command line", "environment")]
    return load_datasets(
        substitute(json.loads(text), environ, str(file), findings), str(file), options, findings, wished
    )
