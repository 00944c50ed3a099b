"""Every block of docs/datasets.md is read by the program's own reader, without a problem and without a notice."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest

from simpletuner.config.datasets import ImageDataset
from simpletuner.config.read import load
from simpletuner.training.translate_data import dataset_source

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
SECTIONS = re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S)
BLOCKS: dict[str, list[dict[str, Any]]] = {
    f"{title} {number}": json.loads(block)
    for title, text in SECTIONS
    for number, block in enumerate(re.findall(r"```json\n(.*?)```", text, re.S))
}
REACHES: Mapping[str, str] = {  # a section of another source → the field of DatasetSource that it fills
    "S3 and what speaks like it": "remote",
    "Any other URL": "remote",
    "A CSV file of addresses": "listed",
    "A Hugging Face dataset": "hub",
    "Tar files (webdataset)": "tars",
    "Captions in a table": "table",
    "Masks": "mask",
    "Caches behind a URL": "latent_remote",
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_a_dataloader_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    entries = BLOCKS[name]
    for entry in entries:
        place = entry.get("instance_data_dir", "")
        if place and "://" not in place:
            Path(place).mkdir(parents=True, exist_ok=True)
        for file in (entry.get("csv_file"), entry.get("parquet", {}).get("path")):
            if file:
                Path(file).parent.mkdir(parents=True, exist_ok=True)
                Path(file).write_text("filename,caption\n")
    options = {"model_type": "lora", "max_train_steps": 1, "pretrained_model_name_or_path": "owner/sana"}
    (tmp_path / "config" / "config.json").write_text(json.dumps(options))
    (tmp_path / "config" / "multidatabackend.json").write_text(json.dumps(entries))
    config = load(environ={"S3_KEY": "key", "S3_SECRET": "secret"})
    assert not config.notices
    images = (*config.datasets.train, *config.datasets.eval)
    assert len(images) + len(config.datasets.masks) + (config.datasets.text_embeds is not None) == len(entries)
    source = dataset_source(config, images[0], 32)
    section = name.rpartition(" ")[0]
    assert section not in REACHES or getattr(source, REACHES[section])
    assert section != "Regularisation data" or [e.is_regularisation_data for e in images] == [False, True]


def test_every_type_and_strategy_has_its_words() -> None:
    shown = {entry["type"] for entries in BLOCKS.values() for entry in entries}
    assert shown == set(get_args(ImageDataset.model_fields["type"].annotation))
    for strategy in get_args(ImageDataset.model_fields["caption_strategy"].annotation):
        assert f"`{strategy}`" in TEXT or f'"caption_strategy": "{strategy}"' in TEXT
    assert set(REACHES) <= {title for title, _ in SECTIONS}
