"""A folder of hostile pictures, and what is to become of each: known pixels, or a reason in plain words.

The pixels come from the arrays that were written, never from a decoder; colour profiles are computed here.
"""

from __future__ import annotations

import os
import socket
import struct
import unicodedata
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from corpus_files import (
    ADOBE_RGB,
    DISPLAY_P3,
    LOSS,
    SRGB,
    adam7,
    blocks,
    noise,
    one_colour,
    over_white,
    png,
    profile,
    rows,
    saved,
    three,
    tiff,
    to_srgb,
    turned,
)
from exif import TURNED, Pixels
from PIL import Image, ImageCms

FILE, PICTURE, UTF8 = "damaged or cut short", "not a picture", "UTF-8"


@dataclass(frozen=True)
class Expected:
    """What is to become of one file.

    Attributes:
        words: All of them are in the reason why it is skipped; none if it is used.
        pixels: [H, W, 3] if it is used.
        tolerance: Largest difference of one channel of one pixel.
        captions: Those of a used picture.
    """

    words: tuple[str, ...] = ()
    pixels: Pixels | None = None
    tolerance: int = 0
    captions: tuple[str, ...] = ()


class Corpus:
    """The folder, and what is expected of each file in it by its name relative to the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.expected: dict[str, Expected] = {}
        folder.mkdir(parents=True)

    def caption(self, name: str, text: bytes | None = None) -> str:
        """Write the caption of a picture; by default one that no other picture has."""
        own = f"the caption of file number {len(self.expected)}"
        (self.folder / name).with_suffix(".txt").write_bytes(own.encode() if text is None else text)
        return own

    def used(self, name: str, content: bytes, pixels: Pixels, tolerance: int = 0) -> None:
        """A picture that is decoded to these pixels."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert name not in self.expected and not path.with_suffix(".txt").exists(), name
        path.write_bytes(content)
        self.expected[name] = Expected((), np.ascontiguousarray(pixels), tolerance, (self.caption(name),))

    def skipped(self, name: str, content: bytes, *words: str) -> None:
        """A file that is left out, with these words in its reason."""
        assert name not in self.expected, name
        (self.folder / name).write_bytes(content)
        self.caption(name)
        self.expected[name] = Expected(words)


# ---- the groups


def build(folder: Path) -> Corpus:
    """Make the whole corpus below ``folder``."""
    corpus = Corpus(folder)
    for group in (_orientations, _modes, _inks, _jpegs, _first_frames, _profiles, _broken, _liars, _bombs, _names):
        group(corpus)
    _captions(corpus)
    _no_files(corpus)
    return corpus


def _orientations(corpus: Corpus) -> None:
    for kind in ("jpg", "png", "tiff", "webp", "avif"):
        for orientation, turn in TURNED.items():
            content = saved(blocks(), kind, exif=turned(orientation))
            corpus.used(f"exif/{orientation}-{kind}.{kind}", content, turn(blocks()), LOSS.get(kind, 0))
    inks = np.dstack([255 - blocks(), np.zeros((32, 48), dtype=np.uint8)])
    for orientation, turn in TURNED.items():  # modes that Pillow maps into memory
        grey, cmyk = Image.fromarray(blocks()[..., 0]), Image.frombytes("CMYK", (48, 32), inks.tobytes())
        for mode, picture, meant in (("grey", grey, three(blocks()[..., 0])), ("cmyk", cmyk, blocks())):
            corpus.used(f"exif/{orientation}-{mode}.tif", saved(picture, "tiff", exif=turned(orientation)), turn(meant))
    for name, exif in (("0", turned(0)), ("9", turned(9)), ("cut", turned(6)[:15]), ("nonsense", b"Exif\0\0nonsense")):
        corpus.used(f"exif/odd-{name}.jpg", saved(blocks(), "jpg", exif=exif), blocks(), LOSS["jpg"])
    image, late = saved(blocks(), "png"), turned(6)[6:]
    chunk = struct.pack(">I", len(late)) + b"eXIf" + late + struct.pack(">I", zlib.crc32(b"eXIf" + late))
    corpus.used("exif/behind-the-pixels.png", image[:-12] + chunk + image[-12:], TURNED[6](blocks()))


def _modes(corpus: Corpus) -> None:
    colour, alpha = blocks(1), noise(2, 32, 48)[..., 0]
    grey, deep = colour[..., 0], (np.arange(32 * 48, dtype=np.uint32) * 42 % 65536).astype(np.uint16).reshape(32, 48)
    shallow = three(np.rint(deep / 257))
    bits = grey > 127
    for kind in ("png", "bmp", "tiff", "webp", "ppm", "tga", "jp2", "dib"):
        corpus.used(f"mode/rgb-{kind}.{kind}", saved(colour, kind), colour)
    corpus.used("mode/grey16.png", saved(deep, "png"), shallow, 1)
    corpus.used("mode/grey16-little.tiff", saved(deep, "tiff"), shallow, 1)
    corpus.used(
        "mode/grey16-big.tif",
        saved(Image.frombytes("I;16B", (48, 32), deep.astype(">u2").tobytes()), "tiff"),
        shallow,
        1,
    )
    corpus.used("mode/grey16-white-is-zero.tiff", tiff(65535 - deep[..., None], 0), shallow, 1)
    corpus.used("mode/grey8-white-is-zero.tiff", tiff(255 - grey[..., None], 0), three(grey))
    corpus.used("mode/grey16-pgm.pgm", b"P5 48 32 65535\n" + deep.astype(">u2").tobytes(), shallow, 1)
    corpus.used("mode/rgb16.png", png(48, 32, 16, 2, rows(colour.astype(np.uint16) * 257)), colour, 1)
    corpus.used("mode/rgb16-tiff.tiff", tiff(colour.astype(np.uint16) * 257, 2), colour, 1)
    rgba16 = np.dstack([colour, alpha]).astype(np.uint16) * 257
    corpus.used("mode/rgba16.png", png(48, 32, 16, 6, rows(rgba16)), over_white(colour, alpha), 2)
    corpus.used("mode/grey-float.tiff", tiff(grey[..., None].astype(np.float32) / 255, 1), three(grey), 1)
    corpus.used("mode/interlaced.png", png(48, 32, 8, 2, adam7(colour), interlace=1), colour)
    one_bit = Image.fromarray(grey).point(lambda v: 255 if v > 127 else 0).convert("1", dither=Image.Dither.NONE)
    for kind, options in (("png", {}), ("tiff", {"compression": "group4"}), ("bmp", {})):
        corpus.used(f"mode/one-bit-{kind}.{kind}", saved(one_bit, kind, **options), three(bits * 255))
    four = grey[:, ::2] // 17 * 16 + grey[:, 1::2] // 17
    corpus.used("mode/four-bit.png", png(48, 32, 4, 0, rows(four)), three(grey // 17 * 17))
    corpus.used("mode/grey-alpha.png", saved(np.dstack([grey, alpha]), "png"), over_white(three(grey), alpha), 1)
    for kind in ("png", "webp", "tiff"):
        corpus.used(f"mode/rgba-{kind}.{kind}", saved(np.dstack([colour, alpha]), kind), over_white(colour, alpha), 1)
    stained = np.dstack([(colour * (alpha[..., None] / 255)).astype(np.uint8), alpha])
    corpus.used(
        "mode/rgba-premultiplied.tiff", tiff(stained, 2, t338=1), stained[..., :3] + (255 - alpha[..., None]), 2
    )
    key = tuple(int(v) for v in colour[0, 0])
    keyed = over_white(colour, np.where((colour == key).all(-1), 0, 255))
    corpus.used("mode/rgb-key.png", saved(colour, "png", transparency=key), keyed)
    corpus.used(
        "mode/grey-key.png",
        saved(grey, "png", transparency=key[0]),
        over_white(three(grey), np.where(grey == key[0], 0, 255)),
    )
    index = (np.arange(32 * 48) % 5).astype(np.uint8).reshape(32, 48)
    table = np.random.default_rng(3).integers(0, 256, (5, 3), dtype=np.uint8)
    palette = Image.fromarray(index).copy()
    palette.putpalette(table.tobytes())
    opacity = np.array([255, 0, 51, 128, 255], dtype=np.uint8)
    for kind in ("png", "gif", "tiff", "bmp"):
        corpus.used(f"mode/palette-{kind}.{kind}", saved(palette, kind), table[index])
    for kind in ("png", "gif"):
        corpus.used(
            f"mode/palette-key-{kind}.{kind}",
            saved(palette, kind, transparency=1),
            over_white(table[index], np.where(index == 1, 0, 255)),
        )
    corpus.used(
        "mode/palette-alpha.png",
        saved(palette, "png", transparency=opacity.tobytes()),
        over_white(table[index], opacity[index]),
        1,
    )
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        corpus.used(f"mode/{compression}.tiff", saved(colour, "tiff", compression=compression), colour)
    corpus.used("mode/big.tiff", saved(colour, "tiff", big_tiff=True), colour)
    soft = colour // 2 + 64  # one step of Lab is many of sRGB in pure, dark colours
    lab = ImageCms.profileToProfile(
        Image.fromarray(soft), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    corpus.used("mode/lab.tiff", saved(lab, "tiff"), soft, 4)
    corpus.skipped("mode/rgb-float.tiff", tiff(colour.astype(np.float32), 2), "TIFF of a rare kind", "convert it")


def _inks(corpus: Corpus) -> None:
    inks = np.dstack([blocks(4), blocks(5)[..., 0] // 2])
    meant = np.rint((255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255).astype(np.uint8)
    picture = Image.frombytes("CMYK", (48, 32), inks.tobytes())
    adobe = saved(picture, "jpg")
    assert b"Adobe" in adobe
    corpus.used("ink/cmyk-adobe.jpg", adobe, meant, 6)
    corpus.used("ink/cmyk.tiff", saved(picture, "tiff"), meant, 1)
    corpus.used("ink/cmyk-lzw.tiff", saved(picture, "tiff", compression="tiff_lzw"), meant, 1)
    corpus.used("ink/cmyk-with-rgb-profile.jpg", saved(picture, "jpg", icc_profile=profile(SRGB)), meant, 6)
    corpus.used("ink/cmyk-with-broken-profile.tiff", saved(picture, "tiff", icc_profile=b"broken" * 40), meant, 1)
    at = adobe.index(b"\xff\xee")
    plain = adobe[:at] + adobe[at + 16 :]  # without the Adobe marker inverted as well, as browsers take it
    corpus.used("ink/cmyk-without-marker.jpg", plain, meant, 6)
    # YCCK: Y, Cb and Cr of the inks, and 255 - K (libjpeg, ycck_cmyk_convert; Adobe stores what is left of each).
    # Pillow writes four planes as 255 - value and never YCCK; the marker's last byte says what the planes mean.
    planes = np.dstack([255 - np.asarray(Image.fromarray(inks[..., :3]).convert("YCbCr")), inks[..., 3]])
    content = bytearray(saved(Image.frombytes("CMYK", (48, 32), planes.tobytes()), "jpg"))
    content[content.index(b"\xff\xee") + 15] = 2
    corpus.used("ink/ycck-adobe.jpg", bytes(content), meant, 8)


def _jpegs(corpus: Corpus) -> None:
    colour = blocks(6)
    for name, options in (
        ("progressive", {"progressive": True}),
        ("optimized", {"optimize": True}),
        ("restarts", {"restart_marker_blocks": 2}),
    ):
        corpus.used(f"jpeg/{name}.jpg", saved(colour, "jpg", **options), colour, LOSS["jpg"])
    ramp = np.dstack([np.tile(np.linspace(low, high, 64), (64, 1)) for low, high in ((20, 200), (90, 120), (200, 80))])
    corpus.used(
        "jpeg/subsampled.jpeg",
        saved(np.rint(ramp).astype(np.uint8), "jpg", quality=95, subsampling=2),
        np.rint(ramp).astype(np.uint8),
        6,
    )
    corpus.used("jpeg/grey.jfif", saved(colour[..., 0], "jpg"), three(colour[..., 0]), LOSS["jpg"])
    corpus.used("jpeg/rubbish-behind.jpe", saved(colour, "jpg") + b"\0rubbish" * 9999, colour, LOSS["jpg"])
    corpus.used("jpeg/long-comment.jpg", saved(colour, "jpg", comment=b"x" * 65000), colour, LOSS["jpg"])
    two = [Image.fromarray(colour), Image.fromarray(255 - colour)]
    corpus.used(
        "jpeg/two-in-one.jpg",
        saved(two[0], "mpo", save_all=True, append_images=two[1:], quality=100, subsampling=0),
        colour,
        LOSS["jpg"],
    )


def _first_frames(corpus: Corpus) -> None:
    plain = np.full((32, 48, 3), (200, 40, 10), dtype=np.uint8)
    frames = [Image.fromarray(np.roll(plain, turn, axis=2)) for turn in range(3)]
    more: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "duration": 100}
    for kind in ("gif", "webp", "png", "tiff", "avif"):
        corpus.used(f"frames/animated-{kind}.{kind}", saved(frames[0], kind, **more), plain, LOSS.get(kind, 0))
    corpus.used("frames/animated.apng", saved(frames[0], "png", **more), plain)
    corpus.used("frames/with-a-poster.png", saved(frames[0], "png", **more, default_image=True), plain)
    # LZW in codes of 3 bits: the table is cleared before each pixel, so that it never grows; 5 ends.
    lzw = sum(code << 3 * at for at, code in enumerate((4, 1, 4, 1, 4, 1, 4, 1, 5)))
    # A first frame smaller than the canvas; what it leaves open is transparent.
    content = b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0x80, 0, 0) + bytes([1, 2, 3, 250, 100, 50])
    content += (
        b"!\xf9\x04\x01\0\0\0\0"
        + b","
        + struct.pack("<HHHHB", 1, 1, 2, 2, 0)
        + b"\x02\x04"
        + lzw.to_bytes(4, "little")
        + b"\0;"
    )
    golden = np.full((4, 4, 3), 255, dtype=np.uint8)
    golden[1:3, 1:3] = (250, 100, 50)
    corpus.used("frames/part-of-the-canvas.gif", content, golden)


def _profiles(corpus: Corpus) -> None:
    colour = blocks(7)
    for name, primaries in (("p3", DISPLAY_P3), ("adobe", ADOBE_RGB), ("srgb", SRGB)):
        for kind in ("png", "jpg", "webp", "tiff"):
            content = saved(colour, kind, icc_profile=profile(primaries))
            loss = 12 if kind == "jpg" else 2  # in dark colours one step before is several after
            corpus.used(f"profile/{name}-{kind}.{kind}", content, to_srgb(colour, primaries), loss)
    clear = np.dstack([colour, np.full((32, 48), 255, dtype=np.uint8)])
    corpus.used(
        "profile/p3-alpha.png", saved(clear, "png", icc_profile=profile(DISPLAY_P3)), to_srgb(colour, DISPLAY_P3), 2
    )
    turn = saved(colour, "png", icc_profile=profile(DISPLAY_P3), exif=turned(6))
    corpus.used("profile/p3-turned.png", turn, TURNED[6](to_srgb(colour, DISPLAY_P3)), 2)
    good = profile(DISPLAY_P3)
    for name, broken in (
        ("noise", noise(8).tobytes()[:600]),
        ("text", b"no profile"),
        ("cut", good[:200]),
        ("no-tags", good[:128] + bytes(4)),
        ("many-tags", good[:128] + b"\xff" * 4 + good[132:]),
        ("wild-offsets", good[:132] + b"\xff" * 108 + good[240:]),
        ("for-inks", good[:16] + b"CMYK" + good[20:]),
    ):
        corpus.used(f"profile/broken-{name}.png", saved(colour, "png", icc_profile=broken), colour)
    grey = colour[..., 0]
    corpus.used("profile/rgb-on-grey.png", saved(grey, "png", icc_profile=good), three(grey))


def _broken(corpus: Corpus) -> None:
    for kind in ("jpg", "png", "webp", "gif", "tiff", "bmp", "avif", "jp2"):
        content = saved(noise(), kind)
        for share in (0.02, 0.5, 0.9):
            words = (PICTURE,) if (kind, share) == ("gif", 0.02) else ("it cannot be", FILE)
            corpus.skipped(f"cut-{kind}-{share:.0%}.{kind}", content[: int(len(content) * share)], *words)
    picture = saved(noise(), "png")
    corpus.skipped("cut-within-the-signature.png", picture[:5], PICTURE)
    corpus.skipped("cut-within-the-head.png", picture[:20], FILE)
    corpus.skipped("no-pixels.png", picture[:33] + picture[-12:], FILE)
    bad = bytearray(picture)
    bad[len(bad) // 2] ^= 0xFF
    corpus.skipped("flipped-bits.png", bytes(bad), FILE)
    for ending in ("png", "jpg", "webp", "tiff", "gif"):
        corpus.skipped(f"nothing-{ending}.{ending}", b"", "empty")
    corpus.skipped("zeros.jpg", bytes(5000), PICTURE)
    # Only the end mark is gone: every pixel is there.
    corpus.used("no-end-mark.png", picture[:-12], noise())
    corpus.used(
        "no-end-mark-gif.gif", saved(Image.new("L", (40, 40), 77), "gif")[:-1], np.full((40, 40, 3), 77, dtype=np.uint8)
    )


def _liars(corpus: Corpus) -> None:
    colour = blocks(9)
    for kind, ending in (
        ("png", "jpg"),
        ("jpg", "png"),
        ("webp", "jpeg"),
        ("gif", "webp"),
        ("tiff", "PNG"),
        ("bmp", "Jpg"),
    ):
        picture = Image.fromarray(colour).quantize(16) if kind == "gif" else Image.fromarray(colour)
        corpus.used(f"in-truth-a-{kind}.{ending}", saved(picture, kind), colour, LOSS.get(kind, 0))
    box = struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"heic", 0, b"mif1", b"heic")
    heic = box + struct.pack(">I4s", 200, b"meta") + bytes(192)
    for ending in ("heic", "HEIF", "hif"):
        corpus.skipped(f"phone-{ending}.{ending}", heic, "HEIC", "convert it to JPEG")
    corpus.skipped("phone.jpg", heic, "HEIC", "convert it to JPEG")
    corpus.skipped("phone-general.jpg", heic.replace(b"ftypheic", b"ftypmif1"), "HEIC", "convert it to JPEG")
    corpus.skipped("head-only.avif", heic.replace(b"heic", b"avif"), "AVIF", FILE)
    for name, content, *words in (
        ("text.png", b"just some words\n", PICTURE, "text"),
        ("error-404.jpg", b"<!DOCTYPE html><html>404</html>", PICTURE, "text"),
        ("drawing.webp", b'<svg xmlns="http://www.w3.org/2000/svg"/>', PICTURE, "text"),
        ("pointer.jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", PICTURE, "Git LFS"),
        ("ghostscript.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", PICTURE, "PostScript"),
        ("paper.jpg", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", PICTURE, "PDF"),
        ("layers.png", b"8BPS\0\1" + bytes(40), "Photoshop", "convert it"),
        ("modern.jpg", b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40), "JPEG XL", "convert it"),
        ("modern-bare.jpg", b"\xff\x0a" + bytes(40), "JPEG XL", "convert it"),
        ("film.png", struct.pack(">I4s4sI", 16, b"ftyp", b"isom", 0) + bytes(40), "film"),
        ("film.mp4", b"\0", ".mp4"),
        ("archive.jpg", b"PK\3\4" + bytes(40), PICTURE, "zip"),
    ):
        corpus.skipped(str(name), bytes(content), *map(str, words))
    corpus.skipped("without-ending", saved(colour, "jpg"), "no ending")
    corpus.skipped("ends-in-a-dot.", saved(colour, "jpg"), "no ending")
    corpus.skipped("backup.jpg~", saved(colour, "jpg"), "jpg~")


def _bombs(corpus: Corpus) -> None:
    large = "megapixels"
    for width, height in ((10_001, 10_000), (30_000, 30_000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1)):
        corpus.skipped(f"bomb-{width}x{height}.png", png(width, height, 8, 2, bytes(99)), large)
    corpus.skipped("bomb-one-colour.png", one_colour(30_000, 30_000, 0, 3750), large)
    corpus.skipped("bomb-no-width.png", png(0, 10, 8, 2, bytes(99)), PICTURE)
    small = saved(noise(), "jpg")
    at = small.index(b"\xff\xc0") + 5
    corpus.skipped("bomb.jpg", small[:at] + struct.pack(">HH", 65500, 65500) + small[at + 4 :], large)
    gif = bytearray(saved(Image.new("L", (8, 8)), "gif"))
    gif[6:10] = struct.pack("<HH", 65535, 65535)
    corpus.skipped("bomb.gif", bytes(gif), large)
    corpus.skipped("bomb.ppm", b"P6 99999 99999 255\n", large)
    corpus.skipped("bomb.tiff", tiff(noise(), 2, t256=60_000, t257=60_000), large)
    bmp = bytearray(saved(noise(), "bmp"))
    bmp[18:26] = struct.pack("<ii", 90_000, 90_000)
    corpus.skipped("bomb.bmp", bytes(bmp), large)
    tga = struct.pack("<BBBHHBHHHHBB", 0, 0, 10, 0, 0, 0, 0, 0, 65535, 65535, 24, 0)
    corpus.skipped("bomb.tga", tga + bytes(99), large)
    # An icon whose list says 32x32 and whose picture is something else.
    for name, inner in (("bomb", one_colour(12_000, 12_000, 0, 1500)), ("liar", saved(noise(), "png"))):
        icon = struct.pack("<HHHBBBBHHII", 0, 1, 1, 32, 32, 0, 0, 1, 32, len(inner), 22) + inner
        if name == "liar":
            corpus.used(f"icon-{name}.ico", icon, noise())
        else:
            corpus.skipped(f"icon-{name}.ico", icon, large)
    text = b"note\0\0" + zlib.compress(bytes(50_000_000), 1)
    corpus.skipped("bomb-in-a-note.png", png(4, 4, 8, 2, bytes(4 * 13), (b"zTXt", text)), "it cannot be opened")
    colours = b"icc\0\0" + zlib.compress(bytes(50_000_000), 1)
    corpus.skipped("bomb-in-a-profile.png", png(4, 4, 8, 2, bytes(4 * 13), (b"iCCP", colours)), "it cannot be opened")
    for height, width in ((1, 10_000), (10_000, 1)):
        strip = noise(width, height, width)
        for kind in ("png", "tiff"):
            corpus.used(f"strip-{width}x{height}-{kind}.{kind}", saved(strip, kind), strip)
    corpus.used("one-pixel.png", saved(noise(1, 1, 1), "png"), noise(1, 1, 1))


def _names(corpus: Corpus) -> None:
    names = ["日本語", "שלום", "مرحبا بالعالم", "evil\u202egpj", "🎉👩‍👩‍👧", "<token>", "<script>alert(1)"]
    names += [
        "two\nlines",
        "tab\there",
        "\x1b[31mred",
        "-rf",
        "--help",
        "100%",
        "%s%n%(name)s",
        "{0}{token}",
        "a" * 251,
    ]
    names += ["é" * 125 + "x", unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")]
    names += [
        " leading",
        "trailing ",
        "quote'\"s",
        "back\\slash",
        "$(reboot) `x`",
        "*?[a-z]",
        "a;b|c&d",
        "nul",
        "a.",
        "v1.2.final",
    ]
    names += ["case", "CASE", "Ǆ", "ﬁ", "ſ", "\u200bzero width", "~", "#hash", "C:", "caf\udce9"]
    for index, name in enumerate(names):
        picture = noise(100 + index, 20, 24)
        corpus.used(f"names/{name}.png", saved(picture, "png"), picture)
        assert len(os.fsencode(f"{name}.png")) <= 255
    for folder in ("<b>", "a\nb", "looks-like.png", "100%/-x/日本"):
        corpus.used(f"names/{folder}/inside.png", saved(blocks(11), "png"), blocks(11))


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _captions(corpus: Corpus) -> None:
    content = saved(blocks(12), "png")
    (corpus.folder / "captions").mkdir()
    for name, text, captions in (
        ("bom", "\ufeffa cat".encode(), ("a cat",)),
        ("empty", b"", ("",)),
        ("blank", b" \r\n\t\n", ("",)),
        ("windows", b"a cat\r\n\r\na dog\r\n", ("a cat", "a dog")),
        ("unicode", "größe – 猫\u2028und".encode(), ("größe – 猫\u2028und",)),
        ("long", b"word " * 20_000, ("word " * 19_999 + "word",)),
    ):
        corpus.used(f"captions/{name}.png", content, blocks(12))
        corpus.caption(f"captions/{name}.png", text)
        corpus.expected[f"captions/{name}.png"] = Expected((), blocks(12), 0, captions)
    for name, text, *words in (
        ("utf-16", "größe 猫".encode("utf-16"), UTF8, "save it"),
        ("utf-16-be", "\ufeffa cat".encode("utf-16-be"), UTF8, "save it"),
        ("utf-16-without-mark", "a cat".encode("utf-16-le"), UTF8, "save it"),
        ("utf-32", "a cat".encode("utf-32"), UTF8, "save it"),
        ("latin-1", "größe".encode("latin-1"), UTF8, "save it"),
        ("half-a-letter", "größe".encode()[:3], UTF8, "save it"),
        ("a-picture", content, UTF8, "save it"),
        ("huge", b"word " * 1_000_000, "5.0 MB", "caption"),
    ):
        corpus.skipped(f"captions/{name}.png", content, *map(str, words))
        corpus.caption(f"captions/{name}.png", text)
    for name, make in (
        ("missing", Path.unlink),
        ("dangling", lambda p: (p.unlink(), p.symlink_to("nowhere.txt"))),
        ("pipe", _pipe),
        ("endless", lambda p: (p.unlink(), p.symlink_to("/dev/zero"))),
        ("folder", lambda p: (p.unlink(), p.mkdir())),
        ("in-a-circle", lambda p: (p.unlink(), p.symlink_to(p.name))),
    ):
        corpus.skipped(f"captions/{name}.png", content, "caption", f"{name}.txt")
        make((corpus.folder / f"captions/{name}.png").with_suffix(".txt"))


def _no_files(corpus: Corpus) -> None:
    folder = corpus.folder / "links"
    corpus.used("links/true.png", saved(blocks(13), "png"), blocks(13))
    (folder / "again").symlink_to(corpus.folder, target_is_directory=True)
    (folder / "here").symlink_to(".", target_is_directory=True)
    (folder / "below").mkdir()
    (folder / "below" / "up").symlink_to("..", target_is_directory=True)
    (folder / "other-name.png").symlink_to("true.png")
    (folder / "dangling.png").symlink_to("nowhere.png")
    (folder / "circle.png").symlink_to("circle.png")
    (folder / "first.jpg").symlink_to("second.jpg")
    (folder / "second.jpg").symlink_to("first.jpg")
    (folder / "endless.png").symlink_to("/dev/zero")
    (folder / "lost-folder").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "pipe-without-ending")
    here = os.getcwd()
    with socket.socket(socket.AF_UNIX) as plug:  # a socket's address is short: from within the folder
        os.chdir(folder)
        try:
            plug.bind("plug.jpg")
        finally:
            os.chdir(here)
    corpus.expected["links/other-name.png"] = Expected((), blocks(13), 0, (corpus.caption("links/other-name.png"),))
    for name in ("dangling.png", "circle.png", "first.jpg", "second.jpg"):
        corpus.expected[f"links/{name}"] = Expected(("link", "does not"))
    for name in ("endless.png", "pipe.png", "plug.jpg"):
        corpus.expected[f"links/{name}"] = Expected(("not a file", "pipe, socket or device"))
    for name in ("lost-folder", "pipe-without-ending"):
        corpus.expected[f"links/{name}"] = Expected(("no ending",))
