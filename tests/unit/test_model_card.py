"""The model card says what it should, and nothing of the machine the model was trained on."""

import json
from pathlib import Path

import pytest
import yaml

from simpletuner.config.options import defaults
from simpletuner.config.publishing_options import PublishingOptions, parse_repository, publishing_without_effect
from simpletuner.errors import TunerError
from simpletuner.reporting.model_card import Words, card, samples, usage
from simpletuner.reporting.run_folder import RunFolder, Shot
from simpletuner.reporting.settings import with_defaults
from simpletuner.training import published_run


def written(tmp_path: Path, **config: object) -> RunFolder:
    (tmp_path / "config.resolved.json").write_text(json.dumps({"learning_rate": 0.5, **config}))
    folder = RunFolder(tmp_path)
    folder.refresh()
    return folder


def test_a_sana_base_brings_its_licence_and_its_relation(tmp_path: Path) -> None:
    base = "Efficient-Large-Model/Sana_600M_512px_diffusers"
    for kind, relation in (("full", "finetune"), ("lora", "adapter")):
        folder = written(tmp_path, pretrained_model_name_or_path=base, model_type=kind)
        text = card(folder, with_defaults(defaults()), "me/it", Words(safe=True))
        head = yaml.safe_load(text.split("---")[1])
        assert (head["base_model"], head["base_model_relation"]) == (base, relation)
        assert head["license_name"] == "nscl-v2-custom" and base in head["license_link"]
        assert "NSCL v2-custom" in text and ("Gemma" in text) is (kind == "full")
        assert "not-for-all-audiences" not in head["tags"] and "| `learning_rate` | 0.5 |" in text


def test_what_is_private_stays_here(tmp_path: Path) -> None:
    folder = written(
        tmp_path,
        pretrained_model_name_or_path="/home/me/sana",
        init_lora="/home/me/secret.safetensors",
        cache_dir="mine",
        webhook_config={"auth_token": "hf_abcdefgh1234"},
        hub_model_id="me/it",
        user_prompt_library="C:\\Users\\me",
    )
    text = card(folder, with_defaults(defaults()), "me/it", Words("my note"))
    for word in ("/home", "secret", "mine", "hf_abc", "C:", "hub_model_id"):
        assert word not in text
    assert "my note" in text and "base_model" not in text.split("---")[1]


LYCORIS = """import diffusers
import lycoris
import torch

pipe = diffusers.SanaPipeline.from_pretrained("/base/model", dtype=torch.float32)
network, _ = lycoris.create_lycoris_from_weights(0.5, "/out/pytorch_lora_weights.safetensors", pipe.transformer)
image.save("/out/image.png")
"""
COMFYUI = """# first, in a shell: simpletuner convert-adapter /my out/pytorch_lora_weights.safetensors diffusers.safetensors
pipe = diffusers.SanaPipeline.from_pretrained("Efficient-Large-Model/x", dtype=torch.float32)
pipe.load_lora_weights("diffusers.safetensors")
"""


def test_usage_lines_fetch_what_is_published() -> None:
    text = usage(LYCORIS, "me/it", base_is_local=True)
    assert 'hf_hub_download("me/it", "pytorch_lora_weights.safetensors"), pipe' in text
    assert (
        "from huggingface_hub import hf_hub_download\n" in text and 'from_pretrained("path/to/the/base/model"' in text
    )
    text = usage(COMFYUI, "me/it", base_is_local=False)
    assert "hf download me/it pytorch_lora_weights.safetensors" in text and "/my out" not in text
    assert '"Efficient-Large-Model/x"' in text
    beside = LYCORIS.replace("pipe =", 'pipe = from_pretrained("a/hub-id") and').replace("SanaP", "P")
    text = usage(beside, "me/it", base_is_local=False)
    assert '"/base/model"' not in text and '"a/hub-id"' in text, "a folder of this machine, whatever the base is"
    for place in ("//server/base", "\\\\server\\base", "D:\\base", '/my "own" base', "/a/run/pipeline"):
        text = usage(LYCORIS.replace('"/base/model"', json.dumps(place)), "me/it", base_is_local=False)
        assert 'from_pretrained("path/to/the/base/model", dtype' in text, place
    full = 'pipe = diffusers.SanaPipeline.from_pretrained("C:\\\\out\\\\pipeline", dtype=torch.float32)\n'
    assert usage(full, "me/it", base_is_local=True) == full.replace("C:\\\\out\\\\pipeline", "me/it")


def test_samples_are_the_newest_and_those_of_the_published_weights() -> None:
    shots = [
        Shot(step, name, "p", 64, 64, 0, label, f"v/{step}{name}{label}.png")
        for step in (0, 5, 9)
        for name in ("a", "b")
        for label in ("", "ema")
    ]
    assert [shot.path for shot in samples(shots)] == ["v/9aema.png", "v/9bema.png"]
    assert samples([shot for shot in shots if shot.step == 0]) == []


@pytest.mark.parametrize("text", ["me/it", "https://huggingface.co/me/it", "https://hf.co/me/it/", " me/it "])
def test_a_repository_by_name_or_address(text: str) -> None:
    assert parse_repository(text) == "me/it" and parse_repository("it") == "it"


@pytest.mark.parametrize("text", ["a/b/c", "me/", "me/-it", "me/it it", "me/a..b", "../it", "", "x" * 97])
def test_what_is_no_repository(text: str) -> None:
    with pytest.raises(ValueError, match="owner/name"):
        parse_repository(text)


def test_options_without_effect_are_told() -> None:
    where = dict.fromkeys(PublishingOptions.model_fields, "f")
    assert len(list(publishing_without_effect(PublishingOptions(), where))) == 4
    assert len(list(publishing_without_effect(PublishingOptions(push_checkpoints_to_hub=True), where))) == 2
    assert not list(publishing_without_effect(PublishingOptions(push_to_hub=True), where))


def test_a_run_without_an_export_cannot_be_published(tmp_path: Path) -> None:
    with pytest.raises(TunerError, match="no exported model"):
        published_run.of_run(tmp_path, "me/it", True, Words(), [])
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    with pytest.raises(TunerError, match="is damaged"):
        published_run.of_run(tmp_path, "me/it", True, Words(), [])
