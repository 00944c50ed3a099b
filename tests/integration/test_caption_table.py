"""Captions from a table, through the real command."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from conftest import Command


def test_training_with_a_parquet_table(simpletuner: Command, pocket_run: Callable[..., Path], tmp_path: Path) -> None:
    config = pocket_run(max_train_steps=1)
    rows = [{"filename": f"picture_{n}", "caption": f"thing {n}", "width": 64} for n in range(3)]
    rows.append({"filename": "ghost_99.png", "caption": "a ghost", "width": 64})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "captions.parquet")
    entries = json.loads((tmp_path / "config" / "multidatabackend.json").read_text())
    entries[0] |= {"caption_strategy": "parquet", "metadata_backend": "parquet"}
    entries[0]["parquet"] = {"path": str(tmp_path / "captions.parquet"), "width_column": "width"}
    (tmp_path / "config" / "multidatabackend.json").write_text(json.dumps(entries))
    said = simpletuner("train", "--config", config).stdout
    assert "4 pictures found, 3 used" in said and "picture_3.png: it has no row in captions.parquet" in said
    assert "parquet.width_column: not needed" in said and "Done: 1 step." in said
    ghost = f"captions.parquet names 1 picture that is not in {entries[0]['instance_data_dir']}: ghost_99.png"
    assert said.count(ghost) == 1 and simpletuner("check", "--config", config).stdout.count(ghost) == 1
    entries[0]["parquet"]["caption_colum"] = "x"
    (tmp_path / "config" / "multidatabackend.json").write_text(json.dumps(entries))
    failed = simpletuner("train", "--config", config, check=False)
    assert failed.returncode == 1 and "parquet" in failed.stderr and "caption_colum" in failed.stderr
