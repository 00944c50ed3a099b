"""Models come from a hub through the real client: downloads, those that break off, what is kept, and every refusal."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import Command
from hub import TOKEN, Client, hub
from PIL import Image

from simpletuner.cli.generate import generate
from simpletuner.errors import ModelError, UnreachableError
from simpletuner.models import load
from simpletuner.models.base import LoadSource

FLAVOUR, ITS_ID = "sana1.0-600m-512", "Efficient-Large-Model/Sana_600M_512px_diffusers"


@pytest.fixture
def served(pocket: Path) -> Iterator[Client]:
    with hub(**{"Efficient-Large-Model__Sana_600M_512px_diffusers": pocket / "model"}) as running:
        yield running


def test_a_flavour_is_fetched_once_trained_and_drawn_with_when_the_hub_is_gone(
    served: Client, pocket_run: Callable[..., Path], simpletuner: Command, pocket: Path, tmp_path: Path
) -> None:
    environment = served.environment(tmp_path / "home")
    served.tell(faults=[{"match": "GET /cdn.*transformer/diff", "cut": True}])
    path = pocket_run(model_flavour=FLAVOUR, max_train_steps=2, model_type="lora", report=False)
    config = json.loads(path.read_text())
    del config["pretrained_model_name_or_path"]
    path.write_text(json.dumps(config))
    done = simpletuner("train", "--config", path, **environment)
    assert f"{ITS_ID} (flavour {FLAVOUR})" in done.stdout and "Done: 2 steps" in done.stdout
    assert TOKEN not in done.stdout + done.stderr
    weights = [r for r in served.requests if r["path"].startswith("/cdn/") and "transformer/diff" in r["path"]]
    assert len(weights) == 2, "a download that breaks off is taken up again"
    assert all(r["authorization"] is None for r in served.requests if r["path"].startswith("/cdn/"))
    served.stop()
    small = ("--prompt", "a", "--steps", 1, "--size", "64", "--guidance", 4, "--seed", 1, "--no-grid", "--strength", 0)
    simpletuner("generate", "out", *small, "--out", "by_hub", **environment)
    by_folder = (pocket / "model", *small[:-2], "--no-instruction", "--tokens", 32, "--out", tmp_path / "by_folder")
    CliRunner().invoke(generate, list(map(str, by_folder)), catch_exceptions=False, standalone_mode=False)
    ours, theirs = (Image.open(tmp_path / name / "a_0_64x64.png") for name in ("by_hub", "by_folder"))
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.fixture
def asking(served: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    """The client of this very process asks the served hub."""
    from huggingface_hub import constants

    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, served.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", served.address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(os.environ, "HF_TOKEN", TOKEN)
    return served


def refused(path: str = ITS_ID, kind: type[ModelError] = ModelError, **named: str) -> str:
    with pytest.raises(kind) as caught:
        load.read_index(LoadSource(path, **named))  # type: ignore[arg-type]
    assert type(caught.value) is kind and TOKEN not in str(caught.value)
    return str(caught.value)


def test_each_refusal_is_one_sentence_with_what_to_do(asking: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no such model, or it is private" in (said := refused("nobody/none")) and "`hf auth login`" in said
    assert "no revision 'x'" in refused(revision="x")
    asking.tell(repos={ITS_ID: {"gated": True}})
    assert "licence accepted first" in (said := refused()) and f"{asking.address}/{ITS_ID}" in said
    asking.tell(repos={ITS_ID: {"gated": False, "private": True}})
    monkeypatch.delitem(os.environ, "HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.utils._auth._get_token_from_file", lambda: None)
    assert "private and you are not logged in" in refused()
    monkeypatch.setitem(os.environ, "HF_TOKEN", "hf_somebodyelsesToken123")
    assert "does not accept your login" in refused()
    monkeypatch.setitem(os.environ, "HF_TOKEN", TOKEN)
    assert load.read_index(LoadSource(ITS_ID))["_class_name"] == "SanaPipeline"


def test_a_hub_with_a_fault_or_gone_is_no_fault_of_the_configuration(
    asking: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # the client's own pauses
    asking.tell(faults=[{"match": "resolve", "status": 503, "times": 50}])
    assert "it answered 503" in refused(kind=UnreachableError)
    asking.tell(faults=[])
    asking.stop()
    said = refused(kind=UnreachableError)
    assert f"{asking.address} cannot be reached" in said and "HF_ENDPOINT names a mirror" in said
