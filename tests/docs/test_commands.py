"""Every command of the documentation is one that there is: in blocks of bash, and in the middle of a sentence."""

from __future__ import annotations

import re
import shlex
import tomllib
from importlib import import_module

import click
import pytest
from pages import PAGES, ROOT, Block, blocks

from simpletuner.cli.app import app
from simpletuner.cli.configuring.answers import answers
from simpletuner.cli.train import parse_overrides
from simpletuner.config.catalogue import ALIASES
from simpletuner.config.options import section_of

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
# Commands of the system and of other programs, which are not ours to check.
OTHERS = {"mkdir", "source", "cd", "cp", "touch", "ssh", "apt", "export", "$EDITOR", "git", "wandb", "tensorboard", "rm", "ls",
          "trackio", "swanlab", "nvidia-smi", "tail", "df", "pushd", "popd", "docker", "mkdocs", "echo", "pytest", "scp"}  # fmt: skip
SENTENCES = [
    (page.relative_to(ROOT).as_posix(), match[1])
    for page in PAGES
    for match in re.finditer(
        r"(?<!`)`(simpletuner [^`\n]+)`(?!`)", re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    )
]
SHELL = list(blocks("bash", "sh", "console"))
assert len(SHELL) > 20 and len(SENTENCES) > 20, "a parametrised test of nothing would only be skipped"


def typed(block: Block) -> list[list[str]]:
    """A block's commands, as words; comments and lines of mere variables are left out."""
    lines = block.text.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [part for line in words for part in _parts(line) if part]


def _parts(words: list[str]) -> list[list[str]]:
    """``A=1 one && two | three`` → one, two, three."""
    parts: list[list[str]] = [[]]
    for word in words:
        if word in ("&&", "||", "|", ";"):
            parts.append([])
        elif parts[-1] or not re.fullmatch(r"[A-Z_]+=.*", word):
            parts[-1].append(word)
    return parts


def check_ours(words: list[str]) -> None:
    """A call of `simpletuner`: its command, options and keys exist.

    Raises:
        click.ClickException: They do not.
        AssertionError: A key is none.
    """
    found, made = down(app, "simpletuner", words)
    if found == "configure" and made is not None:
        given = [word for word in made.params["arguments"] if "=" in word]
        answers(dict(word.split("=", 1) for word in given), "a page")
    elif made is not None:
        for key in parse_overrides(list(made.params.get("arguments") or ())):
            assert ALIASES.get(key, key) in section_of() or key in ("config", "env", "example"), f"{found}: no {key}"


def down(group: click.Command, name: str, words: list[str]) -> tuple[str, click.Context | None]:
    """Follow words through groups to a command, and parse the rest as it would.

    Raises:
        click.ClickException: There is no such command, or it takes no such option.
    """
    context, rest = click.Context(group, info_name=name), list(words)
    while isinstance(group, click.Group) and rest and not rest[0].startswith("-"):
        found, command, rest = group.resolve_command(context, rest)
        assert command is not None and found, words
        group, name = command, found
        context = click.Context(group, info_name=name, parent=context)
    if isinstance(group, click.Group) or any(word in ("-h", "--help", "--version") for word in rest):
        assert not rest or rest[0].startswith("-"), words
        return name, None
    return name, group.make_context(name, rest, parent=context.parent)


def check(words: list[str]) -> None:
    """One command.

    Raises:
        AssertionError: It is none that is known, or names a file or extra that there is not.
        click.ClickException: `simpletuner` does not know it.
    """
    name, rest = words[0], words[1:]
    if name == "simpletuner":
        check_ours(rest)
    elif name in ("pip", "uv"):
        check_install(rest)
    elif name in ("python", "python3"):
        if rest and not rest[0].startswith("-"):
            text = (ROOT / rest[0]).read_text(encoding="utf-8")
            for option in (word.partition("=")[0] for word in rest[1:] if word.startswith("--")):
                assert f'"{option}"' in text, f"{rest[0]} has no {option}"
    elif "/" in name:
        assert (ROOT / name).is_file() or name.startswith(".venv/"), name
    elif name == "hf":
        down(import_module("huggingface_hub.cli.hf").app, "hf", rest)
    elif name in ("torchrun", "accelerate"):
        assert "simpletuner" in " ".join(rest), words
    else:
        assert name in OTHERS, f"{name}: not a command that this test knows"


def check_install(words: list[str]) -> None:
    """pip: this folder or a wheel of ours, and extras that there are; never the bare name."""
    if words[0] == "wheel":
        assert words[1] == "."
        return
    assert words[0] in ("install", "show", "list"), words
    for word in words[1:]:
        assert not word.lower().startswith("simpletuner") or word.endswith(".whl"), "the bare name is another program's"
        named = re.fullmatch(r"\./?\[([\w,]+)\]", word)
        assert not named or set(named[1].split(",")) <= set(EXTRAS), f"{word} names an extra that there is not"


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_a_block_can_be_typed(block: Block) -> None:
    commands = typed(block)
    assert commands, block
    for words in commands:
        check(words)


@pytest.mark.parametrize(("page", "command"), SENTENCES, ids=lambda value: value[:60])
def test_a_command_in_a_sentence_exists(page: str, command: str) -> None:
    words = shlex.split(command.replace("…", ""))
    if words[1:]:
        group = app.get_command(click.Context(app), words[1])
        assert group is not None, f"{page}: there is no {command!r}"
        needed = [p for p in group.params if isinstance(p, click.Argument) and p.required]
        if len(words) == 2 and (needed or isinstance(group, click.Group)):
            return  # the command's mere name
        check(words)


def test_commands_that_are_wrong_are_found() -> None:
    for wrong in ("simpletuner trian", "simpletuner check --pages x", "simpletuner train --train_batchsize 2",
                  "pip install 'simpletuner[cuda]'", "pip install './[cudda]'", "python bench/no_such.py", "frobnicate",
                  "python bench/step.py --poket"):  # fmt: skip
        with pytest.raises((AssertionError, click.ClickException, OSError)):
            check(shlex.split(wrong))
    check(shlex.split("simpletuner train --train_batch_size 2 mixed_precision=no"))


def test_it_is_never_installed_by_its_bare_name() -> None:
    """Another program has the name `simpletuner` in the registry."""
    bare = re.compile(
        r"\b(?:pip3?|uv|pipx|poetry)(?:\s+\w+)*?\s+(?:install|add)\s+(?:-\S+\s+)*['\"]?simpletuner\b(?!\S*\.whl)", re.I
    )
    assert bare.search("pip install 'simpletuner[cuda]'") and bare.search("python -m pip install -U simpletuner")
    assert not bare.search("pip install ./simpletuner-0.1.0-py3-none-any.whl")
    files = [*PAGES, *(ROOT / "simpletuner").rglob("*.py"), *(ROOT / "tools").rglob("*.py"), *(ROOT / "bench").rglob("*"),
             *ROOT.glob("*.sh"), *ROOT.glob("*.md")]  # fmt: skip
    texts = {file: file.read_text(encoding="utf-8", errors="ignore") for file in files if file.is_file()}
    assert not [str(file) for file, text in texts.items() if bare.search(text)]
