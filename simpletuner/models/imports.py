"""Import diffusers and transformers without the optional packages that this run does not use.

Both import bitsandbytes and torchao whenever they are installed, for quantisers that are never called here: a second at
every start, and six lines of their complaints about the machine.
"""

from __future__ import annotations

import sys
from collections.abc import Collection

OPTIONAL = ("bitsandbytes", "torchao")


def libraries(needed: Collection[str] = ()) -> None:
    """Import what every run needs of diffusers and transformers; call it before anything else imports them.

    Meanwhile ``sys.modules`` holds None for each optional package that is not needed, which Python documents as "this
    import fails"; the libraries then take it for not installed, and keep to that. Afterwards the packages can be
    imported as ever, by our own optimizers for example.

    Args:
        needed: Those of ``OPTIONAL`` that the libraries are to see, because quantised layers are handed to them.
    """
    hidden = [name for name in OPTIONAL if name not in needed and name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        from diffusers import AutoencoderDC, SanaPipeline, SanaTransformer2DModel  # noqa: F401
        from transformers import AutoTokenizer, Gemma2Model  # noqa: F401
        from transformers.utils.import_utils import is_bitsandbytes_available, is_torchao_available

        is_bitsandbytes_available(), is_torchao_available()  # they remember their first answer
    finally:
        for name in hidden:
            del sys.modules[name]
