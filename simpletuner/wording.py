"""Numbers with their nouns, as a person says them."""

from __future__ import annotations


def counted(number: int, one: str, many: str | None = None) -> str:
    """``1 picture is used``, ``2 pictures are used``.

    Args:
        number: How many.
        one: The words after 1.
        many: The words after any other number; ``one`` with an s by default.
    """
    return f"{number} {one if number == 1 else many or f'{one}s'}"
