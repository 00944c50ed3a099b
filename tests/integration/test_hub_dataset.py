"""A dataset in the Hugging Face library's own layout, through the real command (a local folder: no hub is reached)."""

import io
import json
from collections.abc import Callable
from pathlib import Path

from conftest import Command


def write_dataset(folder: Path, pictures: list[Path], captions: list[object]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(exist_ok=True)
    rows = [{"bytes": p.read_bytes() if p.suffix == ".png" else b"no picture", "path": None} for p in pictures]
    features = {"info": {"features": {"image": {"_type": "Image"}, "text": {"dtype": "string", "_type": "Value"}}}}
    table = pa.table({"image": rows, "text": captions}).replace_schema_metadata({"huggingface": json.dumps(features)})
    with open(folder / "train.parquet", "wb") as file:
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        file.write(buffer.getvalue())


def test_training_from_a_hub_dataset(
    simpletuner: Command, pocket_run: Callable[..., Path], pictures: Callable[..., Path], tmp_path: Path
) -> None:
    config = pocket_run(max_train_steps=1)
    files = sorted((tmp_path / "pictures").glob("*.png"))
    write_dataset(tmp_path / "dataset", [*files, tmp_path / "no.txt"], ["one", "", None, "four", "five"])
    entries = json.loads((tmp_path / "config" / "multidatabackend.json").read_text())
    del entries[0]["instance_data_dir"]
    entries[0] |= {"type": "huggingface", "dataset_name": str(tmp_path / "dataset"), "caption_column": "text"}
    entries[0] |= {"caption_strategy": "huggingface", "metadata_backend": "huggingface"}
    path = tmp_path / "config" / "multidatabackend.json"
    path.write_text(json.dumps(entries))
    home = str(tmp_path / "hf home")
    said = simpletuner("train", "--config", config, HF_HOME=home).stdout
    assert "4 files fetched" in said and "5 pictures found, 3 used" in said and "Done: 1 step." in said
    assert "row 4: its image holds no picture" in said and "1 picture has an empty caption: row-00000001.png" in said
    assert "skipped row-00000002.png: row 2 of " in said and "has no text; write one there" in said
    page = simpletuner("check", "--config", config, HF_HOME=home)
    assert "0 files fetched, 5 were here" in page.stdout
    kept = tmp_path / "out" / "cache" / "files" / "set"
    assert (kept / "row-00000001.png").read_bytes() == files[1].read_bytes(), "the bytes are those of the dataset"
    assert "four" in (tmp_path / "out" / "dataset.html").read_text()

    entries[0]["caption_column"] = "caption"
    path.write_text(json.dumps(entries))
    failed = simpletuner("train", "--config", config, check=False, HF_HOME=home)
    assert failed.returncode == 1 and "no column 'caption'; it has image, text" in failed.stderr
    entries[0] |= {"dataset_name": "", "caption_strategy": "filename"}
    path.write_text(json.dumps(entries))
    failed = simpletuner("train", "--config", config, check=False, HF_HOME=home)
    assert "dataset_name" in failed.stderr and "use huggingface or instanceprompt" in failed.stderr
