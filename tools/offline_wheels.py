"""Wheels for a machine without a network: what this program needs and that machine lacks, in one folder.

    python tools/offline_wheels.py OUT --python 3.12 --present torch,triton,transformers,numpy --extras bnb,torchao
    pip install --no-index --no-deps OUT/*.whl          # there

Nothing is downloaded of what is present there, nor of what only that needs: packages are fetched one layer after the
other without their dependencies, in the versions of constraints.txt, and each wheel says what it needs. torch is always
taken as present. bitsandbytes carries a library for every CUDA version, some 130 MB unpacked; it is packed anew with one of them.
"""

from __future__ import annotations

import argparse
import email
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).resolve().parent.parent
ALWAYS_PRESENT = {"torch"}
LIBRARY = "bitsandbytes/libbitsandbytes_"
MIB = 2**20


def environment(python: str) -> dict[str, str]:
    """What markers see on 64-bit Linux with this Python, e.g. ``3.12``."""
    here = {key: str(value) for key, value in default_environment().items()}
    linux = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"}
    cpython = {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
    return {**here, **linux, **cpython, "python_version": python, "python_full_version": f"{python}.0"}


def applying(requirements: Iterable[str], extras: Iterable[str], target: dict[str, str]) -> list[Requirement]:
    """The requirements that hold on the target, for a package taken with these extras."""
    parsed = [Requirement(text) for text in requirements]
    chosen = ["", *extras]
    return [
        one
        for one in parsed
        if one.marker is None or any(one.marker.evaluate({**target, "extra": extra}) for extra in chosen)
    ]


def of_project(extras: Sequence[str]) -> list[str]:
    """This program's own requirements, with those of some extras.

    Raises:
        SystemExit: There is no such extra.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    known = project["optional-dependencies"]
    if unknown := sorted(set(extras) - set(known)):
        raise SystemExit(f"--extras: there is no {', '.join(unknown)}; choose among {', '.join(sorted(known))}")
    return [*project["dependencies"], *(text for extra in extras for text in known[extra])]


def name_of(wheel: Path) -> str:
    """The package in a wheel, in its canonical spelling."""
    return str(parse_wheel_filename(wheel.name)[0])


def needs(wheel: Path) -> list[str]:
    """What a wheel says it requires, markers included."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name)).get_all("Requires-Dist") or []


def platforms(glibc: str) -> list[str]:
    """Tags of the wheels that run on this glibc and older ones' ABI."""
    major, minor = map(int, glibc.split("."))
    old = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
    tags = []
    for below in range(minor, 4, -1):
        tags.append(f"manylinux_{major}_{below}_x86_64")
        tags += [f"{old[below]}_x86_64"] if below in old else []
    return tags


def download(wanted: Sequence[Requirement], out: Path, python: str, glibc: str) -> None:
    """One layer, without dependencies.

    Raises:
        SystemExit: pip found no wheel; it has said which.
    """
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"),
        *("--dest", str(out), "--constraint", str(ROOT / "constraints.txt")),
        *("--python-version", python, "--implementation", "cp"),
        *(word for tag in platforms(glibc) for word in ("--platform", tag)),
        *(f"{one.name}{one.specifier}" for one in wanted),
    ]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit("pip could not get every wheel; see above")


def collect(out: Path, roots: Sequence[str], present: set[str], python: str, glibc: str) -> list[Path]:
    """Fetch the roots and what they need, layer by layer.

    Args:
        out: An empty folder.
        roots: Requirements.
        present: Canonical names of what the machine has.
        python: Its Python, e.g. ``3.12``.
        glibc: Its C library, e.g. ``2.28``.

    Returns:
        The wheels.
    """
    target, done = environment(python), set(present)
    layer = applying(roots, [], target)
    while layer := [one for one in layer if canonicalize_name(one.name) not in done]:
        extras = {canonicalize_name(one.name): one.extras for one in layer}
        before = set(out.glob("*.whl"))
        download(layer, out, python, glibc)
        done |= set(extras)
        fetched = set(out.glob("*.whl")) - before
        layer = [one for wheel in fetched for one in applying(needs(wheel), extras.get(name_of(wheel), ()), target)]
    return sorted(out.glob("*.whl"))


def keep_one_library(wheel: Path, kept: str) -> list[str]:
    """Pack bitsandbytes anew with the CPU's library and one more, in place; RECORD names what is left.

    Args:
        wheel: The published one.
        kept: e.g. ``cuda130``.

    Returns:
        The files left out.

    Raises:
        SystemExit: The wheel has no such library.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        libraries = {n: n.removeprefix(LIBRARY).partition(".")[0] for n in names if n.startswith(LIBRARY)}
        if kept not in libraries.values():
            raise SystemExit(f"--cuda: {wheel.name} has no {kept}; choose among {', '.join(libraries.values())}")
        dropped = [name for name, which in libraries.items() if which not in (kept, "cpu")]
        smaller = wheel.with_suffix(".tmp")
        with zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED) as target:
            for item in archive.infolist():
                if item.filename in dropped:
                    continue
                content = archive.read(item)
                if item.filename.endswith(".dist-info/RECORD"):
                    lines = content.decode().splitlines(keepends=True)
                    content = "".join(line for line in lines if line.split(",")[0] not in dropped).encode()
                target.writestr(item, content, zipfile.ZIP_DEFLATED)
    smaller.replace(wheel)
    return dropped


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="Folder for the wheels; new or empty.")
    parser.add_argument("--python", default="3.12", help="The machine's Python.")
    parser.add_argument("--glibc", default="2.28", help="The machine's C library (ldd --version); Linux x86_64 alone.")
    parser.add_argument("--present", default="", help="Packages it has, with commas.")
    parser.add_argument("--extras", default="", help="Extras of this program, with commas: bnb, torchao, …")
    parser.add_argument("--cuda", default="cuda130", help="The one library of bitsandbytes to keep.")
    parser.add_argument("--limit", type=float, default=60, help="MiB in all; more is refused.")
    return parser.parse_args()


def main() -> int:
    """Command line."""
    chosen = arguments()
    present, extras = (
        [word.strip() for word in text.split(",") if word.strip()] for text in (chosen.present, chosen.extras)
    )
    chosen.out.mkdir(parents=True, exist_ok=True)
    if any(chosen.out.iterdir()):
        raise SystemExit(f"{chosen.out} is not empty. What to do: name a new folder")
    lacking = ALWAYS_PRESENT | {str(canonicalize_name(name)) for name in present}
    wheels = collect(chosen.out, of_project(extras), lacking, chosen.python, chosen.glibc)
    for wheel in wheels:
        if name_of(wheel) == "bitsandbytes":
            before = wheel.stat().st_size
            keep_one_library(wheel, chosen.cuda)
            print(f"{wheel.name}: {chosen.cuda} alone, {before / MIB:.1f} → {wheel.stat().st_size / MIB:.1f} MiB")
    sizes = sorted(((wheel.stat().st_size / MIB, wheel.name) for wheel in wheels), reverse=True)
    for size, name in sizes:
        print(f"{size:7.2f} MiB  {name}")
    total = sum(size for size, _ in sizes)
    print(f"{total:7.2f} MiB in {len(sizes)} wheels")
    if total > chosen.limit:
        print(f"That is above --limit {chosen.limit:g}. What to do: name more in --present, or raise the limit.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
