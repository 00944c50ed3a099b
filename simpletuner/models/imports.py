"""Import diffusers and transformers without the optional packages that this run does not use, and those it uses quietly.

Both import bitsandbytes and torchao whenever they are installed, for quantisers that are never called here: a second at
every start, and six lines of their complaints about the machine.
"""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

OPTIONAL = ("bitsandbytes", "torchao")
# What these say while they are imported is about kernels of other machines, which nobody can or need do anything about.
# All else is left alone, such as bitsandbytes' own words when its CUDA library cannot be loaded.
_CHATTY = ("bitsandbytes.backends.cpu.ops", "torchao", "torch.utils._pytree")


@contextmanager
def without_optional() -> Iterator[None]:
    """Inside, the optional packages that nobody has imported yet cannot be; afterwards they can, as ever.

    ``sys.modules`` holds None for each, which Python documents as "this import fails"; libraries that ask inside take
    them for not installed, and keep to that.
    """
    hidden = [name for name in OPTIONAL if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def quietly(name: str) -> Any:
    """Import an optional package's module without what it says about kernels of other machines.

    Raises:
        ImportError: It is not there, or cannot be loaded.
    """
    loggers = [logging.getLogger(chatty) for chatty in _CHATTY]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what packages say about each other
            return importlib.import_module(name)
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def libraries() -> None:
    """Import what every run needs of diffusers and transformers; call it before anything else imports them."""
    with without_optional():
        from diffusers import AutoencoderDC, SanaPipeline, SanaTransformer2DModel  # noqa: F401
        from transformers import AutoTokenizer, Gemma2Model  # noqa: F401
        from transformers.utils.import_utils import is_bitsandbytes_available, is_torchao_available

        is_bitsandbytes_available(), is_torchao_available()  # they remember their first answer
