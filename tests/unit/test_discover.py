import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from PIL import Image

from simpletuner.data.captions import CaptionRules
from simpletuner.data.discover import Discovery, discover, find_pictures
from simpletuner.data.placement import PlacementRules
from simpletuner.data.types import Size
from simpletuner.errors import DataError

RULES = PlacementRules(64, "pixel", minimum_image_size=32)


def picture(path: Path, size: tuple[int, int] = (64, 48)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path)
    return path


def names(found: Discovery, folder: Path) -> list[str]:
    return [s.path.relative_to(folder).as_posix() for s in found.samples]


def test_everything_found_is_used_or_skipped_with_its_reason(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "deep/er/c.webp", "tiny.png", "lonely.png"):
        picture(tmp_path / name, (16, 16) if name == "tiny.png" else (64, 48))
    for name in ("b", "a", "deep/er/c", "tiny", "cut", "empty", "wrong"):
        (tmp_path / f"{name}.txt").write_text("a caption")
    whole = picture(tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "whole.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "cut.jpg").write_bytes(whole[:12])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "wrong.png").write_text("<svg/>")
    (tmp_path / "movie.mp4").write_bytes(b"1")
    (tmp_path / "phone.HEIC").write_bytes(b"1")
    for name in ("notes.json", "deep/er/c.mask.json", "phone.txt", "removed.txt", "deep/a.txt", "table.csv"):
        (tmp_path / name).write_text("{}")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    looked_at: list[Path] = []

    def progress(files: Sequence[Path]) -> Iterator[Path]:
        for file in files:
            looked_at.append(file)
            yield file

    found = discover(tmp_path, CaptionRules("textfile"), RULES, progress, [tmp_path / "table.csv"])
    assert names(found, tmp_path) == ["a.JPG", "b.png", "deep/er/c.webp"]
    reasons = {s.path.name: s.reason for s in found.skipped}
    assert "minimum_image_size" in reasons["tiny.png"] and "16x16" in reasons["tiny.png"]
    assert "lonely.txt does not exist" in reasons["lonely.png"]
    assert "UTF-8" in reasons["whole.jpg"]
    assert "cut short" in reasons["cut.jpg"] and "not a picture" in reasons["wrong.png"]
    assert "empty" in reasons["empty.png"]
    assert ".mp4" in reasons["movie.mp4"]
    assert "convert it to JPEG" in reasons["phone.HEIC"]
    alone = {str(s.path.relative_to(tmp_path)) for s in found.skipped if s.reason.startswith("no picture beside it")}
    assert alone == {"notes.json", "removed.txt", "deep/a.txt"}
    assert {s.path.name for s in found.skipped if not s.picture} == {*map(os.path.basename, alone), "movie.mp4"}
    assert len(found.samples) + len(found.skipped) == 3 + 8 + 3
    assert len(looked_at) == 9  # each file that has a picture's ending
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}


def test_samples_have_upright_sizes_and_captions(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (80, 40)).save(tmp_path / "a_phone.jpg", exif=exif)
    (sample,) = discover(tmp_path, CaptionRules("filename"), RULES).samples
    assert (sample.size, sample.captions) == (Size(40, 80), ("a phone",))


def test_hidden_files_and_folders_are_left_alone(tmp_path: Path) -> None:
    for name in ("a.png", ".b.png", "._a.png", ".thumbs/c.png"):
        picture(tmp_path / name)
    assert find_pictures(tmp_path) == ([tmp_path / "a.png"], [])


def test_a_hidden_folder_may_be_named_on_purpose(tmp_path: Path) -> None:
    assert find_pictures(picture(tmp_path / ".mine" / "a.png").parent)[0] == [tmp_path / ".mine" / "a.png"]


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    picture(tmp_path / "sub" / "a.png")
    (tmp_path / "sub" / "again").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "alias").symlink_to(tmp_path / "sub", target_is_directory=True)
    pictures, skipped = find_pictures(tmp_path)
    assert [p.name for p in pictures] == ["a.png"] and not skipped


def test_what_only_looks_like_a_picture_file_is_skipped(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    found = discover(tmp_path, CaptionRules("filename"), RULES)
    assert names(found, tmp_path) == ["a.png"]
    assert {s.path.name: s.reason for s in found.skipped} == {
        "gone.png": "it is a link to something that does not exist",
        "pipe.png": "it is not a file but a pipe, socket or device",
    }


def test_the_order_is_by_name_whatever_the_disk_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b/2.png", "a/9.png", "a.png", "a/10.png", "Z.png"):
        picture(tmp_path / name)
    first = find_pictures(tmp_path)
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda *a, **k: ((r, d, f[::-1]) for r, d, f in walk(*a, **k)))
    assert find_pictures(tmp_path) == first
    assert [p.relative_to(tmp_path).as_posix() for p in first[0]] == [
        "Z.png",
        "a/10.png",
        "a/9.png",
        "a.png",
        "b/2.png",
    ]


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "locked").mkdir()
    scan = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    pictures, skipped = find_pictures(tmp_path)
    assert len(pictures) == 1
    assert [(s.path.name, s.reason) for s in skipped] == [("locked", "the folder cannot be read (Permission denied)")]


@pytest.mark.parametrize("what", ["missing", "file", "empty", "text only"])
def test_nothing_to_use_says_what_to_do(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "set"
    if what == "file":
        folder.write_text("")
    elif what != "missing":
        folder.mkdir()
    if what == "text only":
        (folder / "a.txt").write_text("x")
    with pytest.raises(DataError, match="instance_data_dir") as error:
        discover(folder, CaptionRules("filename"), RULES)
    assert str(folder) in str(error.value)
    assert what in ("missing", "file") or "no images detected in dataset" in str(error.value)
