"""Pictures in tar files: real tars, well made and hostile ones."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import tracemalloc
from collections import Counter
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from simpletuner.data.discover import SIDECARS
from simpletuner.data.mirror import Mirrored
from simpletuner.data.tables import read_table
from simpletuner.data.tar_dataset import TarSource, expand, unpack_all
from simpletuner.data.tar_reader import ALONE, unpack
from simpletuner.errors import DataError


def picture(colour: tuple[int, int, int] = (200, 30, 60), size: tuple[int, int] = (64, 64)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "png")
    return file.getvalue()


def make_tar(path: Path, members: list[tuple[str, bytes]], mode: str = "w", **odd: Any) -> Path:
    """A tar of these members in this order; ``odd`` gives others another header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, change in odd.items():
            info = tarfile.TarInfo(name)
            for key, value in change.items():
                setattr(info, key, value)
            tar.addfile(info)
    return path


def captions(source: TarSource, folder: Path) -> dict[str, tuple[str, ...]]:
    table = source.table(folder)
    assert table
    return dict(read_table(table, folder).rows)


def by_stem(found: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    return {Path(name).stem: texts for name, texts in found.items()}


def reasons(done: Mirrored) -> dict[str, str]:
    return {s.path.name: s.reason for s in done.skipped}


def test_members_belong_together_by_their_key(tmp_path: Path) -> None:
    first, second, mask = picture(), picture((1, 2, 3)), picture((0, 0, 0))
    make_tar(
        tmp_path / "set" / "a.tar",
        [
            ("0001.txt", "\ufeffA caption,\r\nof two lines\n".encode()),
            ("0001.mask.png", mask),  # before the picture, and not the picture
            ("0001.PNG", first),
            ("0001.cls", b"7"),
            ("0001.npz", b"beside a picture"),
            ("readme.md", b"beside none"),
            ("sub/0001.png", second),
            ("sub/0001.json", json.dumps({"caption": ["one", "two"], "prompt": "asked for"}).encode()),
            ("0002.png", second),
            ("0002.caption", b"a third"),
            ("0002.json", json.dumps({"caption": "not this one"}).encode()),
            ("late.json", json.dumps({"caption": "before its picture"}).encode()),
            ("late.webp", second),
        ],
    )
    source, folder = TarSource(str(tmp_path / "set")), tmp_path / "kept"
    done = unpack_all(source, folder)
    found = captions(source, folder)
    assert (done.fetched, done.kept) == (4, 0)
    by_texts = {texts: (folder / name).read_bytes() for name, texts in found.items()}
    assert by_texts[("A caption, of two lines",)] == first
    assert by_texts[("one", "two")] == second and by_texts[("a third",)] == second
    assert ("before its picture",) in by_texts
    assert reasons(done) == {
        "0001.mask.png": "0001.PNG is the picture of this sample",
        "0001.cls": ".cls is not a picture format",
        "readme.md": "the tar has no picture that belongs to it",
    }
    assert {s.path.name for s in done.skipped if s.picture} == {"0001.mask.png"}
    named = TarSource(str(tmp_path / "set"), caption_column="prompt")
    unpack_all(named, folder)
    assert ("asked for",) in captions(named, folder).values()
    names = TarSource(str(tmp_path / "set"), captions="names")
    unpack_all(names, folder)
    assert sorted(captions(names, folder).values()) == [("0001",), ("0001",), ("0002",), ("late",)]
    assert TarSource("x", captions=None).table(folder) is None


def test_an_empty_caption_is_a_caption(tmp_path: Path) -> None:
    texts = [("a.txt", b""), ("b.json", b'{"caption": ""}'), ("c.txt", b" "), ("c.json", b'{"caption": "more"}')]
    texts += [("d.json", b'{"other": "x"}')]
    tar = make_tar(tmp_path / "a.tar", [*texts, *((f"{key}.png", picture()) for key in "abcd")])
    source = TarSource(str(tar))
    assert not unpack_all(source, tmp_path / "kept").skipped
    assert by_stem(captions(source, tmp_path / "kept")) == {"a": ("",), "b": ("",), "c": ("more",), "d": ()}


@pytest.mark.parametrize(
    ("names", "taken", "left"),
    [
        (("a.txt", "a.TXT"), "a.txt", "a.TXT"),
        (("a.TXT", "a.txt"), "a.txt", "a.TXT"),
        (("a.Txt", "a.TXT"), "a.Txt", "a.TXT"),
        (("a.JSON", "a.json"), "a.json", "a.JSON"),
    ],
)
def test_of_two_captions_of_one_kind_one_is_taken_and_the_other_is_told(
    tmp_path: Path, names: tuple[str, str], taken: str, left: str
) -> None:
    texts = [
        (name, json.dumps({"caption": name}).encode() if "son" in name.lower() else name.encode()) for name in names
    ]
    source = TarSource(str(make_tar(tmp_path / "a.tar", [*texts, ("a.png", picture())])))
    done = unpack_all(source, tmp_path / "kept")
    assert by_stem(captions(source, tmp_path / "kept")) == {"a": (taken,)}
    assert reasons(done) == {left: f"{taken} is the caption of this sample"}


def test_captions_without_a_picture_are_told_by_their_own_names(tmp_path: Path) -> None:
    members = [("lonely.TXT", b"a"), ("lonely.caption", b"b"), ("a.png", picture())]
    done = unpack_all(TarSource(str(make_tar(tmp_path / "a.tar", members))), tmp_path / "kept")
    assert reasons(done) == dict.fromkeys(("lonely.TXT", "lonely.caption"), ALONE)


def test_nothing_a_tar_says_about_names_is_trusted(tmp_path: Path) -> None:
    good = picture()
    outside = tmp_path / "outside.png"
    outside.write_bytes(b"mine")
    odd: dict[str, Any] = {
        "link.png": {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        "hard.png": {"type": tarfile.LNKTYPE, "linkname": "good.png"},
        "pipe.png": {"type": tarfile.FIFOTYPE},
        "device.png": {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5},
        "folder.png": {"type": tarfile.DIRTYPE},
    }
    long, twin = "\u00e9" * 600, "cafe\u0301"
    members = [
        ("good.png", good),
        ("../outside.png", good),
        ("/abs.png", good),
        ("a/../../outside.png", good),
        ("c:\\windows.png", good),
        (".hidden.png", good),
        ("__MACOSX/._good.png", good),
        ("good.png", picture((9, 9, 9))),
        ("GOOD.png", picture((1, 1, 1))),
        ("noending", good),
        ("film.mp4", b"x"),
        ("empty.png", b""),
        (f"{long}.png", good),
        ("new\nline <token> \u05e2\u05d1.png", good),
        ("caf\u00e9.png", picture((5, 5, 5))),
        ("caf\u00e9.txt", b"composed"),
        (f"{twin}.png", picture((6, 6, 6))),
        (f"{twin}.txt", b"apart"),
        ("broken.json", b"{"),
        ("deep.json", b"[" * 100_000),
        ("binary.txt", b"\xff\xfe\0"),
        ("huge.txt", b"a" * 1_000_001),
        ("lonely.txt", b"no picture"),
        ("d" * 300 + "/x.png", good),
        ("x.png/y.png", good),
        ("x.png", good),
    ]
    folder = tmp_path / "kept" / "inner"
    source = TarSource(str(make_tar(tmp_path / "a.tar", members, **odd)))
    done = unpack_all(source, folder)
    found = captions(source, folder)
    told = reasons(done)
    assert "link" in told["link.png"] and "link" in told["hard.png"]
    assert "no ordinary file" in told["pipe.png"] and "no ordinary file" in told["device.png"]
    assert [s.reason for s in done.skipped].count("its name leads out of the tar") == 4
    assert [s.reason for s in done.skipped].count("it is hidden") == 2
    assert told["good.png"] == "a second file of this name"
    assert "JSON" in told["broken.json"] and "JSON" in told["deep.json"] and "UTF-8" in told["binary.txt"]
    assert "really a caption" in told["huge.txt"] and "no picture" in told["lonely.txt"]
    assert "not a picture" in told["noending"] and "not a picture" in told["film.mp4"]
    pictures = [p for p in folder.rglob("*.png") if p.is_file()]
    assert len(pictures) == len(found) == done.fetched == 10
    assert len(done.skipped) + done.fetched == len(members) - 2 + len(odd) - 1, "all but two captions and a folder"
    assert outside.read_bytes() == b"mine" and not any(p.is_symlink() for p in tmp_path.rglob("*"))
    assert {p.name for p in tmp_path.iterdir()} == {"a.tar", "kept", "outside.png"}
    assert {p.name for p in (tmp_path / "kept").iterdir()} == {"inner"}
    twins = {texts: (folder / name).read_bytes() for name, texts in found.items() if texts}
    assert twins == {("composed",): picture((5, 5, 5)), ("apart",): picture((6, 6, 6))}


def test_a_sparse_member_is_not_blown_up(tmp_path: Path) -> None:
    tar = tmp_path / "a.tar"
    with tarfile.open(tar, "w") as opened:
        info = tarfile.TarInfo("hole.png")
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(10**15)}
        block = b"1\n0\n0\n".ljust(512, b"\0")
        info.size = len(block)
        opened.addfile(info, io.BytesIO(block))
    record = unpack(tar, tmp_path / "kept", "caption")
    assert not record.samples and "no ordinary file" in record.skipped[0][1]


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_made_to_fill_the_memory_is_not_read(tmp_path: Path, kind: bytes) -> None:
    tar = make_tar(tmp_path / "plain.tar", [("fine.png", b"1234")])
    info = tarfile.TarInfo("bomb")
    info.type, info.size = kind, 1 << 30
    bomb = tmp_path / "bomb.tar.gz"
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        file.write(tar.read_bytes()[:1024] + info.tobuf() + bytes(2 << 20))
    tracemalloc.start()
    record = unpack(bomb, tmp_path / "kept", "caption")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [s["name"] for s in record.samples] == ["fine.png"] and "damaged" in record.skipped[0][1]
    assert peak < 4 << 20


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_that_is_cut_short_gives_what_can_be_read(tmp_path: Path, mode: str) -> None:
    import random

    noise = [random.Random(i).randbytes(30_000) for i in range(6)]
    tar = make_tar(tmp_path / "a.tar", [(f"{i}.png", data) for i, data in enumerate(noise)], mode)
    whole = unpack(tar, tmp_path / "whole", "caption")
    assert len(whole.samples) == 6 and not whole.skipped
    data = tar.read_bytes()
    for cut, name in ((len(data) * 2 // 3, "part"), (512 * 60 + 100, "header"), (0, "nothing")):
        tar.write_bytes(data[:cut])
        record = unpack(tar, tmp_path / name, "caption")
        for sample in record.samples:
            file = tmp_path / name / sample["file"]
            assert file.read_bytes() == noise[int(sample["key"])]
        left = {p.name for p in (tmp_path / name).glob("*")}
        assert left == {s["file"] for s in record.samples}, "no half picture stays"
        assert any("cut short" in reason for _, reason in record.skipped)
        assert len(record.samples) < 6


def test_a_tar_cut_between_members_or_damaged_inside(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "a.tar", [(f"{i}.png", bytes([i]) * 400) for i in range(4)])
    data = tar.read_bytes()
    tar.write_bytes(data[: 2 * 1024])  # a header and a block for each
    record = unpack(tar, tmp_path / "between", "caption")
    assert len(record.samples) == 2 and "no end mark" in record.skipped[0][1]
    tar.write_bytes(data[:2048] + b"\x7f" * 512 + data[2560:])
    record = unpack(tar, tmp_path / "damaged", "caption")
    assert len(record.samples) == 2 and "cut short" in record.skipped[0][1]
    tar.write_bytes(b"<html>no tar</html>" * 100)
    record = unpack(tar, tmp_path / "none", "caption")
    assert not record.samples and "damaged" in record.skipped[0][1]


def test_only_what_changed_is_unpacked_again(tmp_path: Path) -> None:
    for number in range(3):
        make_tar(tmp_path / "set" / f"s-{number:03}.tar", [("p.png", picture((number, 0, 0))), ("p.txt", b"c")])
    source, folder = TarSource(f"{tmp_path}/set/s-*.tar"), tmp_path / "kept"
    done = unpack_all(source, folder)
    assert (done.fetched, done.kept, done.removed) == (3, 0, 0) and not done.skipped
    times = {p: p.stat().st_mtime_ns for p in folder.rglob("*.png")}
    make_tar(tmp_path / "set" / "s-001.tar", [("p.png", picture((77, 0, 0))), ("q.png", picture())])
    (tmp_path / "set" / "s-002.tar").unlink()
    lost = next(p for p in folder.rglob("*.png") if "s-000" in str(p))
    lost.write_bytes(b"")  # as a crash may leave it
    done = unpack_all(source, folder)
    assert (done.fetched, done.kept, done.removed) == (3, 0, 1)
    assert lost.read_bytes() == picture((0, 0, 0))
    again = unpack_all(source, folder)
    assert (again.fetched, again.kept, again.removed) == (0, 3, 0) and times
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png")) == sorted(captions(source, folder))


def test_a_tar_that_is_named_must_exist(tmp_path: Path) -> None:
    for number in (0, 2):
        make_tar(tmp_path / "set" / f"s-{number:03}.tar", [("p.png", picture()), ("p.txt", b"c")])
    folder = tmp_path / "kept"
    assert unpack_all(TarSource(f"{tmp_path}/set/s-{{000,002}}.tar"), folder).fetched == 2
    with pytest.raises(
        DataError, match=r"names 2 tar files that cannot be had \(there is no such file\): .*s-001\.tar, "
    ):
        unpack_all(TarSource(f"{tmp_path}/set/s-{{000..003}}.tar"), folder)
    assert len(list(folder.rglob("*.png"))) == 2, "what is here stays"
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/named/one.tar", (tmp_path / "set" / "s-000.tar").read_bytes())
    with pytest.raises(DataError, match=r"names 1 tar file that .* memory://named/two\.tar"):
        unpack_all(TarSource("memory://named/{one,two}.tar"), folder)
    memory.rm("/named", recursive=True)


def test_urls_of_fsspec_and_an_outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar = make_tar(tmp_path / "a.tar.gz", [("p.png", picture()), ("p.txt", b"from memory")], "w:gz")
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/tars/one.tar.gz", tar.read_bytes())
    memory.pipe_file("/tars/readme.md", b"no tar")
    for place in ("memory://tars", "memory://tars/*.gz", "memory://tars/{one,one}.tar.gz"):
        source, folder = TarSource(place), tmp_path / place.translate(str.maketrans(":/*{},.", "_______"))
        done = unpack_all(source, folder)
        assert done.fetched == 1 and list(captions(source, folder).values()) == [("from memory",)]
        assert unpack_all(source, folder).kept == 1

    def down(*_: Any, **__: Any) -> Any:
        raise ConnectionError("the network is down")

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "find", down)
        source, folder = TarSource("memory://tars"), tmp_path / "memory___tars"
        done = unpack_all(source, folder)
        assert done.kept == 1 and "the network is down" in done.note
        with pytest.raises(DataError, match="the network is down"):
            unpack_all(source, tmp_path / "fresh")
    memory.rm("/tars", recursive=True)


def test_no_tar_at_all_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no tar files \(\.tar, "):
        unpack_all(TarSource(str(tmp_path / "empty")), tmp_path / "kept")
    with pytest.raises(DataError, match="no such file"):
        unpack_all(TarSource(str(tmp_path / "none.tar")), tmp_path / "kept")


def test_brace_patterns() -> None:
    assert expand("a-{008..011}.tar") == ["a-008.tar", "a-009.tar", "a-010.tar", "a-011.tar"]
    assert expand("{x,y}/{1..2}.tar") == ["x/1.tar", "x/2.tar", "y/1.tar", "y/2.tar"]
    assert expand("{2..0}") == ["2", "1", "0"] and expand("{only}.tar") == ["{only}.tar"] and expand("p") == ["p"]
    for bomb in ("{0..999999999}.tar", "{0..999}{0..999}.tar"):
        with pytest.raises(DataError, match="more than"):
            expand(bomb)


NAMES = st.text(st.characters(blacklist_characters="\0"), min_size=1, max_size=40)


@given(st.lists(st.tuples(NAMES, st.sampled_from([".png", ".txt", ".jpg.png", ""])), max_size=8))
def test_whatever_the_names_every_member_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory, names: list[tuple[str, str]]
) -> None:
    root = tmp_path_factory.mktemp("tar")
    tar = root / "a.tar"
    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as opened:
        for number, (stem, ending) in enumerate(names):
            info = tarfile.TarInfo(stem + ending)
            data = bytes([number]) * 10
            info.size = len(data)
            with suppress(UnicodeEncodeError):
                opened.addfile(info, io.BytesIO(data))
    record = unpack(tar, root / "kept", "caption")
    files = {p.relative_to(root / "kept").as_posix() for p in (root / "kept").rglob("*")}
    assert files == {s["file"] for s in record.samples} and all("/" not in name for name in files)
    assert {p.name for p in root.iterdir()} <= {"a.tar", "kept"}
    with tarfile.open(tar, errors="surrogateescape") as opened:
        members = [PurePosixPath(member.name) for member in opened if not member.isdir()]
    names = [*(s["name"] for s in record.samples), *(name for name, _ in record.skipped)]
    told = Counter(map(PurePosixPath, names))
    keys = {s["key"] for s in record.samples}
    for path in members:
        if told[path]:
            told[path] -= 1
        else:  # it lies beside a picture: its caption, or what is none
            assert path.suffix in SIDECARS and str(path.with_name(path.name.partition(".")[0])) in keys, path
    assert not told.total(), told
