"""Room 1, Find (one tar file): its pictures are written into a folder, its captions are returned.

In: a tar file in the layout of the webdataset library, also compressed. Out: picture files, bytes as they came, and a
record of what was taken and what was not. Members are read as streams, in one pass. Nothing that a tar says about names
is trusted: files are named here, inside the folder, and links and devices are never made.

Source of the layout: the webdataset library's documentation, "The WebDataset Format": files whose paths agree up to the
first dot of the base name belong together.
"""

from __future__ import annotations

import json
import lzma
import shutil
import tarfile
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from simpletuner.data.cache import content_key
from simpletuner.data.captions import MAX_CAPTION_BYTES
from simpletuner.data.discover import PICTURES, SIDECARS
from simpletuner.data.tables import texts_of
from simpletuner.errors import CacheError
from simpletuner.wording import where_to_write

LARGEST = 1 << 30  # bytes of one picture
LARGEST_HEADER = 1 << 20  # bytes of names and attributes of one member
LONGEST_NAME = 150  # bytes of a file name here, before what is added to it
ALONE = "the tar has no picture that belongs to it"
TEXTS = ("txt", "caption", "json")
_EXTRA_HEADERS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
_DAMAGE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError)


@dataclass(slots=True)
class TarRecord:
    """What became of one tar.

    Attributes:
        samples: For each picture: ``file`` (inside the folder), ``name`` (in the tar), ``key``, ``size`` in bytes, and
            ``texts``, its captions by where they stand (``txt``, ``caption``, ``json``).
        skipped: (name in the tar, reason) of what was left.
    """

    samples: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)


class _Member(tarfile.TarInfo):
    """A member; notes whether the list of them ended as it should, and refuses headers made to fill the memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        if member.type in _EXTRA_HEADERS and member.size > LARGEST_HEADER:  # tarfile reads them whole
            raise tarfile.ReadError(f"a header of {member.size} bytes")
        return member

    @classmethod
    def fromtarfile(cls, tarfile: Any) -> _Member:
        try:
            return super().fromtarfile(tarfile)
        except EOF_MARK:
            tarfile.ended = True
            raise


EOF_MARK = tarfile.EOFHeaderError  # type: ignore[attr-defined]


class _Tar(tarfile.TarFile):
    """A tar that knows whether its end mark was met: one that is cut short ends silently otherwise."""

    tarinfo = _Member
    ended = False


def unpack(tar: Path, folder: Path, caption_column: str) -> TarRecord:
    """Write the pictures of one tar into ``folder``.

    Args:
        tar: The file; uncompressed, gzip, bzip2 or xz.
        folder: Where to; made if needed.
        caption_column: Key of the caption in ``.json`` members.

    Returns:
        What was taken; of a tar that is cut short, what comes before.

    Raises:
        CacheError: The folder cannot be written.
        OSError: The tar cannot be opened.
    """
    reading = _Reading(folder, caption_column)
    count = 0
    with open(tar, "rb") as file:
        try:
            with _Tar.open(fileobj=file, mode="r|*") as opened:
                for member in _members(opened):
                    count += 1
                    reading.take(opened, member)
                if not opened.ended:
                    reading.problem(tar.name, f"it has no end mark after its {count} members: it may be cut short")
        except (*_DAMAGE, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            reading.problem(tar.name, f"it is damaged or cut short after {count} members: the rest cannot be read")
    return reading.finish()


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for member in tar:
        yield member
        tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise


class _Reading:
    """Gathers what belongs together while the members come by."""

    def __init__(self, folder: Path, caption_column: str) -> None:
        self._folder, self._column = folder, caption_column
        self._record = TarRecord()
        self._pictures: dict[str, dict[str, Any]] = {}
        self._texts: dict[str, dict[str, tuple[str, list[str]]]] = {}  # by key and kind: name in the tar, captions
        self._others: list[tuple[str, str]] = []  # key and name of what may lie beside a picture and is not used
        self._taken: set[str] = set()  # names of members
        self._files: set[str] = set()  # file names here, in the form that any file system would confuse

    def problem(self, name: str, reason: str) -> None:
        self._record.skipped.append((name, reason))

    def take(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        """One member, whatever it is."""
        if member.isdir():
            return
        name = member.name
        reason = _refusal(member) or ("a second file of this name" if name in self._taken else "")
        path = PurePosixPath(name)
        stem, _, fields = path.name.partition(".")
        ending = path.suffix.lower()
        if not reason and ending not in (*PICTURES, *SIDECARS):
            reason = f"{ending or 'a file without ending'} is not a picture format"
        if reason:
            self.problem(name, reason)
            return
        self._taken.add(name)
        key = str(path.with_name(stem))
        data: Any = tar.extractfile(member)  # a regular file, so never None
        if ending in PICTURES:
            self._picture(data, member, key, fields)
        elif fields.lower() in TEXTS:
            self._text(data, member, key, fields.lower())
        else:
            self._others.append((key, name))

    def _picture(self, data: IO[bytes], member: tarfile.TarInfo, key: str, fields: str) -> None:
        """The first picture of its key; one whose ending is only a picture's (``a.jpg``) before ``a.mask.png``."""
        plain = "." not in fields
        held = self._pictures.get(key)
        if held and (held["plain"] or not plain):
            self.problem(member.name, f"{held['name']} is the picture of this sample")
            return
        if held:
            self.problem(held["name"], f"{member.name} is the picture of this sample")
            (self._folder / held["file"]).unlink()
        file = self._free_name(key, PurePosixPath(member.name).suffix.lower())
        try:
            self._write(data, file)
        except _DAMAGE as error:
            (self._folder / file).unlink(missing_ok=True)
            self._pictures.pop(key, None)
            self.problem(member.name, "the tar is damaged or cut short inside it")
            raise tarfile.ReadError(str(error)) from error
        self._pictures[key] = {"file": file, "name": member.name, "key": key, "size": member.size, "plain": plain}

    def _write(self, data: IO[bytes], file: str) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            target = open(self._folder / file, "wb")  # noqa: SIM115 - closed just below
        except OSError as error:
            raise self._unwritten(file, error) from error
        with target:
            try:
                shutil.copyfileobj(data, target, 1 << 20)
            except OSError as error:
                if error.errno is None:  # a damaged compressed tar
                    raise tarfile.ReadError(str(error)) from error
                raise self._unwritten(file, error) from error

    def _unwritten(self, file: str, error: OSError) -> CacheError:
        remedy = where_to_write(error)
        return CacheError(f"cannot write {self._folder / file}: {error.strerror}. What to do: {remedy}.")

    def _text(self, data: IO[bytes], member: tarfile.TarInfo, key: str, kind: str) -> None:
        """A caption: all of a text file, or one value of a JSON object.

        The first of its key and kind; ``a.txt`` before ``a.TXT``, as the layout writes endings in small letters.
        """
        if member.size > MAX_CAPTION_BYTES:
            self.problem(member.name, f"it is {member.size / 1e6:.1f} MB large: is that really a caption?")
            return
        try:
            text = data.read().decode("utf-8-sig")
            content = json.loads(text) if kind == "json" else None
        except (UnicodeDecodeError, ValueError, RecursionError):
            self.problem(member.name, "it is not JSON in UTF-8" if kind == "json" else "it is not UTF-8 text")
            return
        found = [" ".join(text.split())]
        if kind == "json":
            found = list(texts_of(content.get(self._column))) if isinstance(content, dict) else []
        if not found:
            return
        texts, small = self._texts.setdefault(key, {}), f".{kind}"
        held, _ = texts.get(kind, ("", []))
        if held and (held.endswith(small) or not member.name.endswith(small)):
            self.problem(member.name, f"{held} is the caption of this sample")
            return
        if held:
            self.problem(held, f"{member.name} is the caption of this sample")
        texts[kind] = member.name, found

    def _free_name(self, key: str, ending: str) -> str:
        """A file name for this key that nothing else has: its base name, marked where that is not unique or too long."""
        base = unicodedata.normalize("NFC", PurePosixPath(key).name.replace("\0", "_"))
        short = base.encode("utf-8", "surrogateescape")[:LONGEST_NAME].decode("utf-8", "ignore") or "picture"
        unique = f"{short}~{content_key(key)[:12]}"
        for name in (base if base == short and "/" not in key else unique, unique):
            folded = name.casefold() + ending
            if folded not in self._files:
                break
        self._files.add(folded)
        return name + ending

    def finish(self) -> TarRecord:
        """Join pictures and captions; captions and other files without a picture are told."""
        for key, picture in self._pictures.items():
            del picture["plain"]
            texts = {kind: found for kind, (_, found) in self._texts.pop(key, {}).items()}
            self._record.samples.append({**picture, "texts": texts})
        for kinds in self._texts.values():
            for name, _ in kinds.values():
                self.problem(name, ALONE)
        for key, name in self._others:
            if key not in self._pictures:
                self.problem(name, ALONE)
        return self._record


def _refusal(member: tarfile.TarInfo) -> str:
    """Why a member is not taken, whatever it holds; "" if it may be."""
    path = PurePosixPath(member.name)
    if member.islnk() or member.issym():
        return "it is a link; only files are taken"
    if not member.isreg() or member.issparse():
        return "it is no ordinary file"
    if path.is_absolute() or ".." in path.parts or "\\" in member.name:
        return "its name leads out of the tar"
    if any(part.startswith(".") for part in path.parts):
        return "it is hidden"
    if not path.name:
        return "it has no name"
    if not 0 <= member.size <= LARGEST:
        return "it is larger than 1 GiB"
    return ""
