"""tools/offline_wheels.py without a network: who needs what on which machine, and bitsandbytes packed anew."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("offline_wheels", ROOT / "tools" / "offline_wheels.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wheel(folder: Path, name: str, files: dict[str, bytes], requires: tuple[str, ...] = ()) -> Path:
    """A right wheel, version 1."""
    info = f"{name}-1.dist-info"
    about = "".join(
        [f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n", *(f"Requires-Dist: {r}\n" for r in requires)]
    )
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files = {**files, f"{info}/METADATA": about.encode(), f"{info}/WHEEL": tags.encode()}
    record = "".join(f"{path},{digest(content)},{len(content)}\n" for path, content in files.items())
    file = folder / f"{name}-1-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for path, content in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n".encode()}.items():
            archive.writestr(path, content)
    return file


def digest(content: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def test_it_fetches_what_is_needed_there_layer_by_layer(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that only a present package needs, each extra's own needs, markers of that machine, no wheel twice."""
    index, out = tmp_path / "index", tmp_path / "out"
    index.mkdir(), out.mkdir()
    wheel(index, "adapters", {}, ("torch>=2", "einops", "winloop; sys_platform == 'win32'", "Tools.Of[fast]>=1"))
    wheel(index, "einops", {}, ("adapters",))
    wheel(index, "tools_of", {}, ("quick; extra == 'fast'", "slow; extra == 'slow'", "old; python_version < '3.12'"))
    wheel(index, "quick", {}, ("einops",))
    layers: list[set[str]] = []

    def download(wanted: list[Requirement], folder: Path, python: str, glibc: str) -> None:
        assert (python, glibc) == ("3.12", "2.28")
        layers.append({one.name for one in wanted})
        for one in wanted:
            name = one.name.lower().replace(".", "_")
            (folder / f"{name}-1-py3-none-any.whl").write_bytes((index / f"{name}-1-py3-none-any.whl").read_bytes())

    monkeypatch.setattr(tool, "download", download)
    found = tool.collect(out, ["adapters>=1", "numpy"], {"torch", "numpy"}, "3.12", "2.28")
    assert [tool.name_of(file) for file in found] == ["adapters", "einops", "quick", "tools-of"]
    assert layers == [{"adapters"}, {"einops", "Tools.Of"}, {"quick"}]


def test_the_projects_requirements_and_platforms(tool: ModuleType) -> None:
    core, more = tool.of_project([]), tool.of_project(["bnb", "torchao"])
    assert any(text.startswith("diffusers") for text in core) and not any("bitsandbytes" in text for text in core)
    assert {Requirement(text).name for text in more} - {Requirement(text).name for text in core} == {
        "bitsandbytes",
        "torchao",
    }
    with pytest.raises(SystemExit, match="there is no warp; choose among bnb"):
        tool.of_project(["warp"])
    assert tool.platforms("2.17")[:2] == ["manylinux_2_17_x86_64", "manylinux2014_x86_64"]
    assert "manylinux_2_28_x86_64" not in tool.platforms("2.17") and "manylinux1_x86_64" in tool.platforms("2.28")


def test_bitsandbytes_keeps_one_library_and_its_record_is_right(tool: ModuleType, tmp_path: Path) -> None:
    libraries = {
        f"bitsandbytes/libbitsandbytes_{n}.so": n.encode() * 99 for n in ("cpu", "cuda126", "cuda130", "rocm72")
    }
    file = wheel(tmp_path, "bitsandbytes", {"bitsandbytes/__init__.py": b"HERE = 1\n", **libraries})
    before = file.read_bytes()
    with pytest.raises(SystemExit, match="no cuda99; choose among cpu, cuda126, cuda130, rocm72"):
        tool.keep_one_library(file, "cuda99")
    assert file.read_bytes() == before
    dropped = tool.keep_one_library(file, "cuda130")
    assert dropped == ["bitsandbytes/libbitsandbytes_cuda126.so", "bitsandbytes/libbitsandbytes_rocm72.so"]
    with zipfile.ZipFile(file) as archive:
        lines = archive.read("bitsandbytes-1.dist-info/RECORD").decode().splitlines()
        assert {line.split(",")[0] for line in lines} == set(archive.namelist())
        assert not set(archive.namelist()) & set(dropped) and len(archive.namelist()) == 6
        for path, hashed, size in (line.split(",") for line in lines[:-1]):
            assert hashed == digest(archive.read(path)) and int(size) == len(archive.read(path))
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--target"]
    subprocess.run([*command, str(tmp_path / "there"), str(file)], check=True, capture_output=True)
    assert sorted(p.name for p in (tmp_path / "there" / "bitsandbytes").iterdir()) == [
        *("__init__.py", "libbitsandbytes_cpu.so", "libbitsandbytes_cuda130.so")
    ]


def test_a_folder_with_something_in_it_is_refused(tool: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    command = [sys.executable, str(ROOT / "tools" / "offline_wheels.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode and "is not empty" in done.stderr and (tmp_path / "mine.txt").exists()
