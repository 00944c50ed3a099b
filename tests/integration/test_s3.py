"""Pictures on a real S3 server process, through the real command."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from s3 import moto_server

SECRET = "very-secret-key"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with moto_server() as (url, _):
        yield url


@pytest.fixture
def bucket(server: str, tmp_path: Path, pictures: Callable[..., Path]) -> Any:
    import boto3

    names = {"aws_access_key_id": "someone", "aws_secret_access_key": SECRET}
    client = boto3.client("s3", endpoint_url=server, region_name="us-east-1", **names)
    client.create_bucket(Bucket="pics")
    yield client
    for entry in client.list_objects_v2(Bucket="pics").get("Contents", []):
        client.delete_object(Bucket="pics", Key=entry["Key"])
    client.delete_bucket(Bucket="pics")


def use_s3(folder: Path, server: str, **fields: object) -> None:
    entries = json.loads((folder / "multidatabackend.json").read_text())
    del entries[0]["instance_data_dir"]
    entries[0] |= {"type": "aws", "aws_bucket_name": "pics", "aws_data_prefix": "sets/mine", "aws_endpoint_url": server}
    entries[0] |= {"aws_region_name": "us-east-1", "aws_access_key_id": "someone", "aws_secret_access_key": SECRET}
    (folder / "multidatabackend.json").write_text(json.dumps([{**entries[0], **fields}, *entries[1:]]))


def upload(client: Any, folder: Path, prefix: str = "sets/mine") -> None:
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        client.upload_file(str(path), "pics", f"{prefix}/{path.relative_to(folder).as_posix()}")


def test_training_from_a_bucket_equals_training_from_a_folder(
    simpletuner: Command, pocket_run: Callable[..., Path], tmp_path: Path, bucket: Any, server: str
) -> None:
    config = pocket_run(max_train_steps=2, output_dir=str(tmp_path / "local"))
    upload(bucket, tmp_path / "pictures")
    bucket.put_object(Bucket="pics", Key="sets/mine/film.mp4", Body=b"1")
    for name in ("mine/readme.md", "mine/picture_0.json", "other/picture.png"):
        bucket.put_object(Bucket="pics", Key=f"sets/{name}", Body=b"not ours")
    simpletuner("train", "--config", config)
    config = pocket_run(max_train_steps=2, output_dir=str(tmp_path / "remote"))
    use_s3(tmp_path / "config", server)
    done = simpletuner("train", "--config", config)
    assert "8 files fetched, 0 were here" in done.stdout and "4 pictures found, 4 used" in done.stdout
    assert "film.mp4: .mp4 is not a picture format" in done.stdout and "; 2 other files" in done.stdout
    assert "readme.md: no picture beside it has its name" in done.stdout and "picture_0.json" not in done.stdout
    assert "all 4 latents are in the cache" in done.stdout, "the same bytes are the same pictures wherever they lie"
    first, second = (
        tmp_path / run / "pipeline/transformer/diffusion_pytorch_model.safetensors" for run in ("local", "remote")
    )
    assert first.read_bytes() == second.read_bytes()
    written = [p.read_bytes() for p in (tmp_path / "remote").rglob("*") if p.is_file()]
    assert SECRET not in done.stdout + done.stderr and not any(SECRET.encode() in data for data in written)


def test_only_what_changed_is_fetched_and_an_outage_is_no_loss(
    simpletuner: Command, pocket_run: Callable[..., Path], tmp_path: Path, bucket: Any, server: str
) -> None:
    config = pocket_run(max_train_steps=1)
    upload(bucket, tmp_path / "pictures")
    use_s3(tmp_path / "config", server)
    simpletuner("cache", "build", "--config", config)
    bucket.put_object(Bucket="pics", Key="sets/mine/picture_1.txt", Body=b"a new caption")
    bucket.delete_object(Bucket="pics", Key="sets/mine/picture_2.png")
    said = simpletuner("check", "--config", config).stdout
    assert (
        "1 file fetched, 6 were here already, 1 was removed here as no longer listed there" in said
        and "3 pictures found, 3 used" in said
        and "; 1 other file" in said
    )
    assert "a new caption" in (tmp_path / "out" / "dataset.html").read_text()
    use_s3_again = json.loads((tmp_path / "config" / "multidatabackend.json").read_text())
    use_s3_again[0]["aws_endpoint_url"] = "http://127.0.0.1:9"
    (tmp_path / "config" / "multidatabackend.json").write_text(json.dumps(use_s3_again))
    said = simpletuner("check", "--config", config).stdout
    assert "cannot be reached" in said and "using what is here" in said and "3 used" in said


def test_what_is_wrong_is_said_plainly(
    simpletuner: Command, pocket_run: Callable[..., Path], tmp_path: Path, bucket: Any, server: str
) -> None:
    config = pocket_run()
    use_s3(tmp_path / "config", server, aws_bucket_name="nothing-there")
    failed = simpletuner("train", "--config", config, check=False)
    assert failed.returncode == 1 and "s3://nothing-there/sets/mine" in failed.stderr
    assert "Traceback" not in failed.stderr and SECRET not in failed.stderr + failed.stdout
    pocket_run()
    use_s3(tmp_path / "config", server, aws_bucket_name="")
    assert "aws_bucket_name" in simpletuner("train", "--config", config, check=False).stderr


def test_any_url_of_fsspec_is_a_folder(simpletuner: Command, pocket_run: Callable[..., Path], tmp_path: Path) -> None:
    config = pocket_run(max_train_steps=1)
    entries = json.loads((tmp_path / "config" / "multidatabackend.json").read_text())
    entries[0]["instance_data_dir"] = f"file://{tmp_path}/pictures"
    (tmp_path / "config" / "multidatabackend.json").write_text(json.dumps(entries))
    said = simpletuner("train", "--config", config).stdout
    assert "8 files fetched" in said and "Done: 1 step." in said
    assert os.listdir(tmp_path / "out" / "cache" / "files" / "set")
