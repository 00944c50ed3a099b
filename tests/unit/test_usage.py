"""What the lines say in each case, and that docs/adapters.md has the very same; that they act is an integration test."""

import ast
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simpletuner.config.read import RunConfig, load
from simpletuner.models.base import TextSettings
from simpletuner.training.precision import choose, choose_for_adapter
from simpletuner.training.translate_usage import usage

DOCS = Path(__file__).resolve().parents[2] / "docs" / "adapters.md"
INSTRUCTION = ("the pipeline's own",)
LORA = {"model_type": "lora", "mixed_precision": "no", "validation_prompt": "a photo of a cat"}
SETTINGS = {
    "algo": "lokr",
    "multiplier": 1.0,
    "linear_dim": 4,
    "linear_alpha": 1.0,
    "apply_preset": {"target_module": ["Attention"]},
}
LYCORIS = {**LORA, "lora_type": "lycoris", "lycoris_config": SETTINGS}


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunConfig]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    (tmp_path / "pictures").mkdir()
    entries = [
        {"id": "a", "instance_data_dir": "pictures", "resolution": 1024},
        {"id": "t", "dataset_type": "text_embeds", "default": True},
    ]
    (tmp_path / "config" / "multidatabackend.json").write_text(json.dumps(entries))

    def make(**options: Any) -> RunConfig:
        model = {"pretrained_model_name_or_path": "terminusresearch/sana-1.6b-1024px", "max_train_steps": 5}
        (tmp_path / "config" / "config.json").write_text(json.dumps({**model, **options}))
        return load(environ={})

    return make


def lines(
    config: RunConfig, instruction: tuple[str, ...] = INSTRUCTION, device: str = "cpu", folder: str = "output/models"
) -> list[str]:
    options = config.options
    lora, mixed = options.model.model_type == "lora", options.precision.mixed_precision
    precision = choose_for_adapter(mixed) if lora else choose(mixed, low_precision_safe=True)
    file = "pytorch_lora_weights.safetensors" if lora else "pipeline"
    text = TextSettings(instruction, options.model.tokenizer_max_length)
    return usage(config, text, INSTRUCTION, precision, device, Path(folder) / file)


def statements(program: str) -> list[str]:
    """What a program says, however its lines are broken."""
    return [ast.unparse(statement) for statement in ast.parse(program).body]


@pytest.mark.parametrize("options", [LORA, LYCORIS])
def test_the_documentation_shows_the_lines_that_the_program_prints(
    read: Callable[..., RunConfig], options: dict[str, Any]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S)
    printed = statements("\n".join(lines(read(**options))))
    shown = [statements(block) for block in blocks]
    (same,) = [lines for lines in shown if printed[: len(lines)] == lines]
    assert len(same) >= 5, "not the imports alone"


def test_the_dtypes_are_those_of_validation(read: Callable[..., RunConfig]) -> None:
    whole = "\n".join(lines(read(mixed_precision="bf16")))
    each = '{"default": torch.float32, "transformer": torch.bfloat16, "text_encoder": torch.bfloat16}'
    assert f'from_pretrained("output/models/pipeline", dtype={each})' in whole
    lycoris = "\n".join(lines(read(**{**LYCORIS, "mixed_precision": "bf16"})))
    assert '{"default": torch.float32, "text_encoder": torch.bfloat16}' in lycoris


def test_what_else_was_named_is_in_the_lines(read: Callable[..., RunConfig]) -> None:
    config = read(
        **{**LYCORIS, "lycoris_config": {**SETTINGS, "multiplier": 0.5}},
        **{"revision": "main", "variant": "fp16", "pretrained_transformer_model_name_or_path": "mine"},
        **{"validation_lycoris_strength": 0.5, "tokenizer_max_length": 77, "text_encoder_1_precision": "int8-torchao"},
    )
    said = lines(config, ("mine",), "cuda")
    assert "create_lycoris_from_weights(0.25, " in said[7] and said[9:11] == ['pipe.to("cuda")', 'network.to("cuda")']
    assert said[4].startswith("# validation had the text encoder in int8-torchao")
    assert said[5].startswith('transformer = diffusers.SanaTransformer2DModel.from_pretrained("mine", subfolder=')
    assert 'revision="main", variant="fp16", transformer=transformer' in said[6]
    assert '    complex_human_instruction=["mine"],' in said and "    max_sequence_length=77," in said
    assert all("complex_human_instruction" not in line for line in lines(config))


def test_what_is_here_is_named_so_that_the_lines_run_in_any_folder(read: Callable[..., RunConfig]) -> None:
    for name in ("base/model", "other/weights", "output/models"):
        Path(name).mkdir(parents=True)
    Path("output/models/pytorch_lora_weights.safetensors").touch()
    here = {"pretrained_model_name_or_path": "base/model", "pretrained_transformer_model_name_or_path": "other/weights"}
    said, home = "\n".join(lines(read(**{**LORA, **here}))), str(Path.cwd())
    for name in ("base/model", "other/weights"):
        assert f'from_pretrained("{home}/{name}"' in said
    for name in ("pytorch_lora_weights.safetensors", "image.png"):
        assert f'"{home}/output/models/{name}"' in said
    assert '"terminusresearch/sana-1.6b-1024px"' in "\n".join(lines(read(**LORA))), "an id of the hub is no folder"


def test_the_command_for_a_shell_is_quoted_for_it(read: Callable[..., RunConfig]) -> None:
    said = lines(read(**LORA, lora_format="comfyui"), folder="my output/models")
    (command,) = [line.partition("shell: ")[2] for line in said if line.startswith("# first, in a shell: ")]
    trained = "my output/models/pytorch_lora_weights.safetensors"
    assert shlex.split(command) == ["simpletuner", "convert-adapter", trained, "diffusers.safetensors"]
