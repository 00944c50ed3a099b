"""`simpletuner doctor`: each side of the machine by itself, in conditions that are really so."""

from __future__ import annotations

import ast
import os
import socket
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from simpletuner import wording
from simpletuner.cli.configuring import ways
from simpletuner.cli.configuring.proposal import Machine
from simpletuner.config import optimizer_names
from simpletuner.config.reporting_options import TRACKERS
from simpletuner.models.quantize import EXTRAS
from simpletuner.training.doctor import cards, packages, places, verdict
from simpletuner.training.doctor.line import Line
from simpletuner.training.doctor.packages import Declared
from simpletuner.wording import install


def test_every_extra_has_a_purpose_and_none_is_made_up() -> None:
    extras = set(packages.declared().extras) - {"dev"}
    assert extras == set(packages.PURPOSES)


def test_every_extra_that_a_message_names_is_one_that_pip_finds() -> None:
    """``install`` puts any name into its line, and pip only warns of one that is nowhere declared."""
    named = {extra for _, extra in (*optimizer_names.PACKAGES.values(), *TRACKERS.values()) if extra}
    named |= {*EXTRAS.values(), "s3"}  # the last is written beside its condition, in data/mirror.py
    written = set()
    for module in Path(packages.__file__).parents[2].rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "install":
                written |= {arg.value for arg in node.args if isinstance(arg, ast.Constant) and arg.value}
    assert {"cuda", "hf", "parquet"} <= written, "else nothing was looked at"
    assert named | written <= packages.declared().extras.keys()


def test_the_line_for_pip_names_the_folder_that_declares_the_extras(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Declared("", (), {"wandb": (Requirement("no-such-package"),)})
    line = str(list(packages.lines(asked))[-1])
    folder = line.partition("pip install -e '")[2].partition("[wandb]'")[0]
    declared = tomllib.loads((Path(folder) / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "wandb" in declared["optional-dependencies"]
    monkeypatch.chdir(folder)
    assert install("wandb") == "pip install -e './[wandb]'" and packages.again() == "pip install -e './'"
    monkeypatch.setattr(wording, "_PROGRAM", tmp_path)  # as where only the package was installed
    assert install("wandb").startswith("in the folder of this program: pip install './[wandb]'")


def test_the_record_of_the_installed_package_is_read_the_same_way(tmp_path: Path) -> None:
    recorded = packages.declared(tmp_path / "none.toml")  # may be of an older commit
    assert recorded.python and {"torch", "pydantic"} <= {r.name for r in recorded.needed}
    assert not {"triton", "pytest"} & {r.name for r in recorded.needed}, "these belong to extras"
    assert "triton" in {r.name for r in recorded.extras["cuda"]}


def test_what_is_missing_or_outside_of_its_range_is_named() -> None:
    asked = Declared(
        ">=3.30",
        (Requirement("click>=8"), Requirement("click<8"), Requirement("no-such-package>=1"), Requirement("torch<1")),
        {
            "bnb": (Requirement("no-such-package"),),
            "cuda": (Requirement("no-such-package"),),
            "hf": (Requirement("no-such-package"),),
            "s3": (Requirement("x; platform_system == 'Nowhere'"),),
            "wandb": (Requirement("click<8"),),
        },
    )
    found = list(packages.lines(asked))
    assert [line.state for line in found] == ["problem", "problem", "problem", "problem", "OK", "note", "note"]
    python, old, missing, torch, nothing, outside, extra = map(str, found)
    assert "bnb: nf4 base" in extra and "hf: datasets of the hub" in extra and "[wandb]'" in outside
    without = str(list(packages.lines(asked, card=False))[-1])
    assert "cuda:" in extra and "cuda:" not in without and "bnb:" in without, "nf4 works on a CPU too"
    assert "needs >=3.30" in python and "outside of <8" in old and "no-such-package is not installed" in missing
    assert "[bnb]'" in extra and "torch 2" in torch and "nothing to add" in nothing


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((9, 0), ["sm_80", "sm_90"], True),
        ((8, 9), ["sm_80", "sm_90"], True),  # the same generation, and no newer
        ((8, 0), ["sm_86", "sm_90"], False),
        ((12, 0), ["sm_80", "sm_90a"], False),
        ((12, 0), ["sm_90", "compute_90"], True),  # PTX is translated for newer cards
        ((12, 1), ["sm_120"], True),
        ((6, 1), ["sm_75", "compute_75"], False),
        ((9, 0), [], False),
    ],
)
def test_which_builds_run_on_which_cards(capability: tuple[int, int], built: list[str], runs: bool) -> None:
    assert cards.has_kernels(capability, built) is runs


def test_a_build_that_does_not_fit_the_machine_is_a_problem() -> None:
    assert cards.build("2.13+cpu", None, False, False, "").state == "OK"
    assert cards.build("2.13", "13.0", True, True, "").state == "OK"
    assert cards.build("2.13", "13.0", False, False, "").state == "OK"
    without = cards.build("2.13+cpu", None, False, True, "")
    old = cards.build("2.13", "13.0", False, True, "The NVIDIA driver is too old")
    assert without.state == old.state == "problem" and "too old" in old.found and "driver" in old.remedy


def test_folders_that_cannot_be_written_to(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("1")
    before = sorted(tmp_path.iterdir())
    assert places.place("Output", tmp_path / "new" / "folder", 0).state == "OK"
    assert sorted(tmp_path.iterdir()) == before
    below = places.place("Output", file / "folder")
    assert below.state == "problem" and "is a file" in below.found and "choose another" in below.remedy
    if Path("/proc/self").is_dir():  # closed for root as well
        assert "cannot be written to" in places.place("Output", Path("/proc/self/output")).found
    if os.name == "posix" and os.geteuid():
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o500)
        assert "cannot be written to" in places.place("Output", closed / "run").found


def test_little_room_is_told(tmp_path: Path) -> None:
    assert "of Sana 1.6B takes about 931322574 GiB" in places.place("Output", tmp_path, 10**18).found
    (tmp_path / "model").mkdir()
    small = next(places.lines({"Output": tmp_path}, tmp_path / "model"))
    assert small.state != "note", "of a small model no amount is named that it does not need"


def test_the_last_line_says_what_can_be_trained() -> None:
    fine, no_card = Line("OK", "Python", "3.12"), Line("note", "GPU", "none")
    assert "Sana 1.6B, and the pocket" in verdict([fine])
    assert "the pocket model, which comes with the program" in verdict([fine, no_card])
    assert "in a folder here" in verdict([fine, Line("note", "Hub", "does not answer")])
    assert verdict([no_card, Line("problem", "torch", "broken")]).startswith("1 to mend")


def test_the_last_line_names_what_the_card_has_room_for() -> None:
    fine = Line("OK", "Python", "3.12")
    assert verdict([fine], "Sana 1.6B with a LoRA").startswith("This machine can train Sana 1.6B with a LoRA, and the")
    assert "too little" in verdict([fine], "")
    offline = verdict([fine, Line("note", "Hub", "HF_HUB_OFFLINE is set")])
    assert offline.endswith("in the hub's cache are at hand: HF_HUB_OFFLINE is set.") and "answer" not in offline


def test_a_card_decides_how_the_large_model_is_trained() -> None:
    assert ways.largest(Machine(80.0, "card")).startswith("in full rank")
    assert "over nf4" in ways.largest(Machine(5.0, "card")), "what takes more is tried before"


def test_a_card_is_there_by_any_of_its_files_or_where_torch_uses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = [tmp_path / "none"]
    assert cards.card_is_there([*none, tmp_path])
    for usable in (True, False):  # as on WSL, where no such file is
        monkeypatch.setattr(cards, "use", lambda usable=usable: (usable, ""))
        assert cards.card_is_there(none) is usable


def test_the_hub_is_called_and_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        assert places.hub().state == "OK"
    refused = places.hub()
    assert refused.state == "note" and "HF_ENDPOINT" in refused.remedy
    assert constants.HF_HUB_OFFLINE is False, "looking changes nothing"
