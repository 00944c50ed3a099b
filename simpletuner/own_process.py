"""A process of this very program: the same files, whatever lies in the folder where it is started."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]


def command(module: str, *words: str) -> list[str]:
    """The command line that runs one of our modules as ``python -m`` does, and cannot take another copy for it.

    ``-m`` looks into the working folder first: beside a checkout an installed program would start the checkout.

    Args:
        module: Its full name; it runs as ``__main__``.
        words: Its arguments.
    """
    start = (
        f"import runpy, sys; sys.path.insert(0, {str(HERE)!r}); "
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    )
    return [sys.executable, "-P", "-c", start, *words]
