import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from simpletuner.data.digests import NAME, digests


def test_a_file_replaced_at_the_same_size_and_time_is_read_again(tmp_path: Path) -> None:
    picture, memory = tmp_path / "a.bmp", tmp_path / "cache"
    picture.write_bytes(b"one")
    stat = picture.stat()
    first = digests([picture], memory)
    other = tmp_path / "b.bmp"
    other.write_bytes(b"two")
    os.replace(other, picture)
    os.utime(picture, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert digests([picture], memory)[picture] != first[picture]


def test_each_file_is_read_once(tmp_path: Path) -> None:
    picture, memory = tmp_path / "a.bmp", tmp_path / "cache"
    picture.write_bytes(b"one")
    read: list[Path] = []

    def progress(files: Sequence[Path]) -> Iterator[Path]:
        read.extend(files)
        return iter(files)

    first = digests([picture, tmp_path / "missing"], memory, progress)
    assert digests([picture], memory, progress) == first and read == [picture]
    (memory / NAME).write_text("damaged [")
    assert digests([picture], memory, progress) == first and read == [picture, picture]


def test_equal_bytes_are_equal_whatever_the_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"same")
    assert len(set(digests([tmp_path / "a", tmp_path / "b"], tmp_path / "cache").values())) == 1
