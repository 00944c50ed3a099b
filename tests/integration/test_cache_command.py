"""The real `simpletuner cache`."""

from collections.abc import Callable
from pathlib import Path

from conftest import Command
from PIL import Image
from safetensors.torch import load_file


def shards(folder: Path) -> list[Path]:
    return sorted(folder.rglob("shard-*.safetensors"))


def test_build_verify_stats_and_gc(simpletuner: Command, pocket_run: Callable[..., Path], tmp_path: Path) -> None:
    config, caches = pocket_run(), tmp_path / "cache"
    assert "Nothing is cached yet" in simpletuner("cache", "stats", "--config", config).stdout
    built_said = simpletuner("cache", "build", "--config", config).stdout
    assert "complete" in built_said and "Encoding on the CPU" in built_said and "Training on" not in built_said
    built = {shard: shard.stat().st_mtime_ns for shard in shards(caches)}
    assert len(built) == 2 and not list((tmp_path / "out").glob("checkpoint-*"))
    said = simpletuner("cache", "stats", "--config", config).stdout
    assert "4 of 4 that the configuration needs" in said and "5 of 5 that the configuration needs" in said
    assert "Training on" not in said and "optimizer" not in said
    # A batch size that no bucket can fill is no hindrance to looking after caches.
    said = simpletuner("cache", "verify", "--config", config, "--train_batch_size=64").stdout
    assert "9 cached tensors are whole, in 2 shards." in said and "not cached" not in said
    assert "all 4 latents are in the cache" in simpletuner("train", "--config", config, "--max_train_steps=1").stdout
    assert {shard: shard.stat().st_mtime_ns for shard in shards(caches)} == built, "training encoded nothing anew"

    # An edited picture: only its own latents are encoded anew.
    edited = tmp_path / "pictures" / "picture_1.png"
    with Image.open(edited) as picture:
        turned = picture.rotate(90)
    turned.save(edited)
    simpletuner("cache", "build", "--config", config)
    (new,) = set(shards(caches)) - set(built)
    assert len(load_file(new)) == 1
    said = simpletuner("cache", "gc", "--config", config).stdout
    assert "0.0 MiB could be removed" in said, "the old shard still holds three pictures that are used"
    assert "1 unused tensor stays, since it shares its shard" in said

    # Another size leaves the old latents unused.
    simpletuner("cache", "build", "--config", config, "--vae_batch_size=2")
    entries = tmp_path / "config" / "multidatabackend.json"
    entries.write_text(entries.read_text().replace('"resolution": 64', '"resolution": 48'))
    simpletuner("cache", "build", "--config", config)
    before = shards(caches / "vae")
    assert "unused" in simpletuner("cache", "gc", "--config", config).stdout and shards(caches / "vae") == before
    simpletuner("cache", "gc", "--config", config, "--delete")
    assert len(shards(caches / "vae")) == 1
    assert "4 of 4" in simpletuner("cache", "stats", "--config", config).stdout


def test_gc_knows_the_caches_of_another_dtype_and_length_and_of_none(
    simpletuner: Command, pocket_run: Callable[..., Path], tmp_path: Path
) -> None:
    """Their keys are the same, since pictures and captions are; what made them is not."""
    config = pocket_run()
    simpletuner("cache", "build", "--config", config)
    kept = {*shards(tmp_path / "cache")}
    assert "0.0 MiB could be removed" in (said := simpletuner("cache", "gc", "--config", config).stdout), said
    simpletuner("cache", "build", "--config", config, "--mixed_precision=bf16")
    simpletuner("cache", "build", "--config", config, "--tokenizer_max_length=20")
    assert len(shards(tmp_path / "cache")) == 5
    several = " ".join(simpletuner("cache", "stats", "--config", config).stdout.split())
    assert "[set] 2 folders, one for each model" in several and "[captions] 3 folders" in several
    said = simpletuner("cache", "gc", "--config", config, "--delete").stdout
    assert said.count("made by another model, or with other settings") == 3, said
    assert {*shards(tmp_path / "cache")} == kept
    assert "folders" not in simpletuner("cache", "stats", "--config", config).stdout
    # What is never kept has no cache that is used.
    entries = tmp_path / "config" / "multidatabackend.json"
    entries.write_text(entries.read_text().replace('"default": true', '"default": true, "text_cache_disable": true'))
    said = simpletuner("cache", "gc", "--config", config, "--delete").stdout
    assert "[captions] removed" in said and len(shards(tmp_path / "cache")) == 1
    assert "[captions]" not in simpletuner("cache", "verify", "--config", config).stdout


def test_verify_removes_a_damaged_shard_and_build_mends_it(
    simpletuner: Command, pocket_run: Callable[..., Path], tmp_path: Path
) -> None:
    config = pocket_run()
    simpletuner("cache", "build", "--config", config)
    (shard,) = shards(tmp_path / "cache" / "vae")
    good = shard.read_bytes()
    shard.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    done = simpletuner("cache", "verify", "--config", config, check=False)
    assert done.returncode == 1 and "checksum" in done.stdout and not shard.exists()
    assert "1 damaged shard was removed." in done.stdout and "5 cached tensors are whole, in 1 shard." in done.stdout
    assert "[set] 4 of 4 that the configuration needs are not cached" in done.stdout
    shard.write_bytes(good[: len(good) // 2])
    said = simpletuner("cache", "stats", "--config", config).stdout
    assert "0 of 4 that the configuration needs" in said and "[set] 1 shard is damaged" in said
    simpletuner("cache", "build", "--config", config)
    assert shard.read_bytes() == good
