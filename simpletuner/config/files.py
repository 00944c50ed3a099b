"""Where a configuration lies, and what is written in it: the first half of ``read``. Checks nothing but the form."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simpletuner.config.examples import example_folder
from simpletuner.config.json_hints import hint
from simpletuner.errors import ConfigError, Problem

_SHOWN = 80  # characters of a line with an error


def one_problem(file: str, key: str, value: object, reason: str, remedy: str = "") -> ConfigError:
    """The error of a single problem."""
    return ConfigError([Problem(file, key, value, reason, remedy)])


def find_config(config: str | None, env: str | None, example: str | None, environ: Mapping[str, str]) -> Path | None:
    """The configuration file to use, or None if there is none and none was asked for.

    Raises:
        ConfigError: A file that was asked for does not exist, or is a config.env; or two were asked for.
    """
    chosen = {"--config": config, "--env": env, "--example": example}
    given = [f"{name} {value}" for name, value in chosen.items() if value]
    if len(given) > 1:
        raise one_problem(
            "command line", " and ".join(given), "", "each names another configuration", "keep one of them"
        )
    if example:
        return example_folder(example) / "config.json"
    asked = config or (None if env else environ.get("CONFIG_PATH"))
    if asked:
        path = Path(asked).expanduser()
        if path.suffix == ".env" and path.is_file():
            raise _env_file(path)
        found = _in_folder(path) if path.is_dir() else path if path.is_file() else None
        if found is None:
            raise one_problem(str(path), "--config", asked, "there is no such configuration", "check the path")
        return found
    variables = ("SIMPLETUNER_ENVIRONMENT", "SIMPLETUNER_ENV", "ENV")
    asked_by, name = ("--env", env) if env else next(((k, environ[k]) for k in variables if environ.get(k)), ("", ""))
    if name and name != "default":
        found = _in_folder(Path("config") / name)
        if found is None:
            if asked_by != "ENV":
                reason, remedy = "it has no config.json", f"make config/{name}/config.json"
                raise one_problem(
                    f"config/{name}", asked_by, name, reason, remedy if env else f"{remedy}, or unset {asked_by}"
                )
            return _in_folder(Path()) or _in_folder(Path("config"))
        return found
    return _in_folder(Path()) or _in_folder(Path("config"))


def copied(file: Path) -> str:
    """The command that makes a file which is not there of its example, which lies beside it or in config/; "" without one."""
    for example in (file.with_name(f"{file.name}.example"), Path("config") / f"{file.name}.example"):
        if example.is_file():
            return f"`cp {shlex.quote(str(example))} {shlex.quote(str(file))}`"
    return ""


def _in_folder(folder: Path) -> Path | None:
    """config.json or config.toml in a folder; a lone config.env is refused."""
    for name in ("config.json", "config.toml"):
        if (folder / name).is_file():
            return folder / name
    if (folder / "config.env").is_file():
        raise _env_file(folder / "config.env")
    return None


def _env_file(path: Path) -> ConfigError:
    return one_problem(
        str(path),
        path.name,
        "",
        "refused: shell-style configuration is not read",
        "write the same keys into config.json beside it; `simpletuner examples copy sana` shows the form",
    )


def read_file(path: Path) -> Any:
    """Parse JSON or TOML.

    Raises:
        ConfigError: It cannot be read or parsed; names line and column. Or a key is there twice.
    """
    content, twice = parse(path)
    if twice:
        raise ConfigError(twice)
    return content


def parse(path: Path) -> tuple[Any, list[Problem]]:
    """As ``read_file``; but keys that are there twice, with different values, are returned as problems."""
    found: list[str] = []

    def noted(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        last = dict(pairs)  # of two the last stays; they are compared as written, as 1 == True
        of = f"[{last['id']}]." if isinstance(last.get("id"), str) else ""
        found.extend(dict.fromkeys(of + key for key, value in pairs if json.dumps(value) != json.dumps(last[key])))
        return last

    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".toml":
            return tomllib.loads(text), []
        content = json.loads(text, object_pairs_hook=noted)
        return content, [_twice(path, key, text) for key in found]
    except OSError as error:
        raise one_problem(str(path), "", "", f"it cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise one_problem(str(path), "", "", "it is not UTF-8 text", "save it as UTF-8") from error
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}:{error.colno}"
        raise one_problem(where, "JSON", _around(text, error), error.msg, hint(text, error)) from error
    except tomllib.TOMLDecodeError as error:
        raise one_problem(str(path), "TOML", "", str(error)) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets by the thousand
        raise one_problem(
            str(path), "", "", f"it is no configuration: {error}", "write it anew, or copy an example"
        ) from error


def _around(text: str, error: json.JSONDecodeError) -> str:
    """The line with the error, or of a long one what stands around it: all may be in one line, secrets too."""
    start = text.rfind("\n", 0, error.pos) + 1
    line = text[start:].partition("\n")[0]
    if len(line) <= _SHOWN:
        return line.strip()
    at = error.pos - start
    part = line[max(0, at - _SHOWN // 2) : at + _SHOWN // 2]
    return f"{'…' if at > _SHOWN // 2 else ''}{part.strip()}{'…' if at + _SHOWN // 2 < len(line) else ''}"


def _twice(path: Path, key: str, text: str) -> Problem:
    """A key that JSON would take the last value of. Values are not shown: they may be secret."""
    name = re.escape(json.dumps(key.rpartition("].")[2], ensure_ascii=False))
    lines = [text.count("\n", 0, match.start()) + 1 for match in re.finditer(rf"{name}\s*:", text)]
    where = f", in lines {lines[0]} and {lines[1]}" if len(lines) == 2 else ""
    return Problem(str(path), key, "", f"it is given twice with different values{where}", "keep one of them")
