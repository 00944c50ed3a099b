"""Import diffusers and transformers without the optional packages that this run does not use.

Both import bitsandbytes and torchao whenever they are installed, for quantisers that are never called here: a second at
every start, and six lines of their complaints about the machine.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

OPTIONAL = ("bitsandbytes", "torchao")


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


def libraries() -> None:
    """Import what every run needs of diffusers and transformers; call it before anything else imports them."""
    with without_optional():
        from diffusers import AutoencoderDC, SanaPipeline, SanaTransformer2DModel  # noqa: F401
        from transformers import AutoTokenizer, Gemma2Model  # noqa: F401
        from transformers.utils.import_utils import is_bitsandbytes_available, is_torchao_available

        is_bitsandbytes_available(), is_torchao_available()  # they remember their first answer
