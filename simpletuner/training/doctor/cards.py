"""torch, its build and the NVIDIA cards of this machine. Computes next to nothing; changes nothing."""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import torch

from simpletuner.training import fast_path
from simpletuner.training.doctor.line import Line
from simpletuner.wording import install

GIB = 2**30
_DRIVER = Path("/proc/driver/nvidia/version")
_CARD = Path("/dev/nvidia0")


def lines() -> Iterator[Line]:
    """The build, each card, and whether steps can run the fast way."""
    built, driver, there = torch.version.cuda, driver_version(), card_is_there()
    usable, said = use()
    yield build(torch.__version__, built, usable, there, said)
    if not usable:
        yield Line("note", "GPU", "no NVIDIA card is used: training runs on the CPU, which suits the pocket model")
        return
    for index in range(torch.cuda.device_count()):
        yield from _card(index, driver)
    yield _fast()


def build(version: str, built: str | None, usable: bool, there: bool, said: str) -> Line:
    """Whether torch was built for what is here.

    Args:
        version: Of torch.
        built: CUDA version of the build, None for one without CUDA.
        usable: torch can use a card.
        there: The system has an NVIDIA card.
        said: What torch said where it can use none.
    """
    if usable:
        return Line("OK", "torch", f"{version}, for CUDA {built}")
    if there and built is None:
        again = "pip uninstall -y torch && pip install torch (on Linux the usual wheel has CUDA)"
        return Line("problem", "torch", f"{version} has no CUDA, and there is an NVIDIA card", again)
    if there:
        remedy = "update the NVIDIA driver, or install a torch for an older CUDA"
        return Line("problem", "torch", f"{version} is for CUDA {built}, and the card cannot be used ({said})", remedy)
    return Line("OK", "torch", f"{version}, {f'for CUDA {built}' if built else 'for the CPU'}")


@cache
def use() -> tuple[bool, str]:
    """Whether torch can use a card, and what it says where it can use none; asked once, since torch says it once."""
    with warnings.catch_warnings(record=True) as told:  # torch says there what is wrong with a driver
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    return usable, next((str(w.message).split(". ")[0] for w in told), "torch finds no card")


def card_is_there(files: Sequence[Path] = (_CARD, _DRIVER)) -> bool:
    """Whether the system has an NVIDIA card, whatever torch makes of it.

    Args:
        files: Of the system, one of which is there with a card; under WSL none is.
    """
    return any(file.exists() for file in files) or use()[0]


def driver_version() -> str:
    """Of the NVIDIA driver, or ""."""
    try:
        text = _DRIVER.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(r"\b\d{3}\.\d+(?:\.\d+)?\b", text)
    return found[0] if found else ""


def _card(index: int, driver: str) -> Iterator[Line]:
    """One card: its name, memory, and whether torch has kernels for it."""
    card = torch.cuda.get_device_properties(index)
    free = torch.cuda.mem_get_info(index)[0]
    what = f"GPU {index}"
    by = f", driver {driver}" if driver else ""
    told = f"{card.name}, {card.total_memory / GIB:.1f} GiB, {free / GIB:.1f} GiB free{by}"
    used = 1 - free / card.total_memory
    if used > 0.2:
        yield Line("note", what, told, "another program holds a good part of it: `nvidia-smi` names it")
    else:
        yield Line("OK", what, told)
    capability = (card.major, card.minor)
    if not has_kernels(capability, torch.cuda.get_arch_list()):
        reason = f"this torch has no kernels for compute capability {card.major}.{card.minor}"
        yield Line("problem", what, reason, "install another torch: a newer one for a new card")
    if capability >= fast_path.OLDEST:
        yield Line("OK", f"{what} bf16", f"compute capability {card.major}.{card.minor}")
    else:
        reason = f"compute capability {card.major}.{card.minor} has no bf16"
        yield Line("note", f"{what} bf16", reason, "set mixed_precision to no, or fp16 where memory is short")


def has_kernels(capability: tuple[int, int], built: list[str]) -> bool:
    """Whether a build runs on a card: kernels of the same generation and no newer, or PTX of an older one.

    Args:
        capability: Of the card.
        built: What ``torch.cuda.get_arch_list`` gives: ``sm_90``, ``compute_90`` …
    """
    for name in built:
        kind, _, digits = name.partition("_")
        number = re.match(r"\d+", digits)
        if not number:
            continue
        made = divmod(int(number[0]), 10)
        if made <= capability and (kind == "compute" or made[0] == capability[0]):
            return True
    return False


def _fast() -> Line:
    """What the fast way needs beside the card; nothing is compiled."""
    what, compiler = "Fast steps", fast_path.c_compiler()
    if importlib.util.find_spec("triton") is None:
        return Line("note", what, "Triton is not installed, so steps are slower", install("cuda"))
    if compiler is None:
        return Line("note", what, "Triton finds no C compiler, so steps are slower", "install gcc")
    if torch.cuda.get_device_capability(0) < fast_path.OLDEST:
        return Line("note", what, "this GPU is older than Ampere, so steps run diffusers' own way")
    return Line("OK", what, f"Triton and {Path(compiler).name} are there")
