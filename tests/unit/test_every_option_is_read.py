"""Nothing is accepted and ignored: every field of the option and dataset models is read by the program.

The scan looks for attributes of that name in the modules that see the options at all: those that import
simpletuner.config or are handed them in a Session (design, rule 5), leaving out the config room itself, which only checks.
"""

import ast
from pathlib import Path

import pytest

import simpletuner
from simpletuner.config.datasets import (
    CaptionShuffle,
    CaptionTableOptions,
    ImageDataset,
    MaskDataset,
    TextEmbedsDataset,
)
from simpletuner.config.options import section_of
from simpletuner.config.section import Section
from simpletuner.shared_keys import FILLED_FROM_OPTIONS

PACKAGE = Path(simpletuner.__file__).parent

# These become datasets, prompts and folders while the configuration is read, and are spent with that.
SPENT_IN_READING = {
    "config/read.py": {"webhook_config", "data_backend_config", "model_flavour"},
    "config/prompts.py": {
        *("validation_prompt", "user_prompt_library", "validation_prompt_library", "validation_disable_unconditional"),
    },
    "config/dataloader.py": {
        *("cache_dir", "cache_dir_vae", "cache_dir_text", "default"),
        *("text_cache_ondemand", "text_cache_disable"),  # test_texts_on_demand.py
    },
    # density_of(), which training/translate_noise.py calls
    "config/noise_rules.py": {"flow_density", "flow_use_uniform_schedule", "flow_use_beta_schedule"},
    "config/reporting_options.py": {"report_to"},  # trackers(), which training/translate_reporting.py calls
    # optimizer_arguments(), peak_rate() and releases_gradients(), which run.py and translate.py call
    "config/options.py": {
        *("optimizer_config", "optimizer_beta1", "optimizer_beta2", "learning_rate"),
        *("optimizer_release_gradients", "fuse_optimizer"),
    },
}
# A printed line says that they have no effect.
TOLD = {
    "width_column": "config/dataset_rules.py",
    "height_column": "config/dataset_rules.py",
    "aspect_ratio_column": "config/dataset_rules.py",
}
# Their type admits a single value.
ONE_VALUE = {"type"}
# Become source_url and instance_data_dir while the dataloader file is read (test_s3.py, test_csv_dataset.py).
JOINED = {"aws_bucket_name", "aws_data_prefix", "csv_cache_dir"}

MODELS = (ImageDataset, MaskDataset, TextEmbedsDataset, CaptionShuffle, CaptionTableOptions)
FIELDS = sorted({(model.__name__, field) for model in MODELS for field in model.model_fields})


def reads(source: str) -> set[str]:
    """Names of all attributes that some Python source reads."""
    nodes = ast.walk(ast.parse(source))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


def imports_config(source: str) -> bool:
    modules = [n.module or "" for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ImportFrom)]
    return any(
        module.startswith("simpletuner.config") or module == "simpletuner.training.session" for module in modules
    )


SOURCES = {str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
ACTING = {name for name, source in SOURCES.items() if imports_config(source) and not name.startswith("config/")}
READ: set[str] = set().union(*(reads(SOURCES[name]) for name in ACTING))


def is_read(field: str) -> bool:
    spent = any(field in names and field in reads(SOURCES[module]) for module, names in SPENT_IN_READING.items())
    told = field in TOLD and field in reads(SOURCES[TOLD[field]])
    return field in READ or spent or told


def test_the_scan_sees_who_acts() -> None:
    assert {"training/run.py", "training/translate.py"} <= ACTING
    assert "training/loop.py" not in ACTING and {"optimizer_arguments", "peak_rate", "releases_gradients"} <= READ


@pytest.mark.parametrize("option", sorted(section_of()))
def test_every_option_is_read(option: str) -> None:
    assert option in ONE_VALUE or is_read(option)


@pytest.mark.parametrize(("model", "field"), FIELDS)
def test_every_field_of_a_dataset_is_read(model: str, field: str) -> None:
    assert field in ONE_VALUE | JOINED or is_read(field)


def test_what_fills_in_datasets_is_a_field_of_them() -> None:
    assert set(FILLED_FROM_OPTIONS) <= set(ImageDataset.model_fields) & set(section_of())


def test_a_lost_option_would_be_noticed() -> None:
    class Lost(Section):
        never_looked_at: int = 0

    assert not any(is_read(field) for field in Lost.model_fields)
