"""Whether what is measured is kept apart from what is trained on: of a picture that is learned, loss shows how well it is known.

In: pictures by dataset. Out: sentences. Reads no file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from simpletuner.data.encode import PlacedSample
from simpletuner.wording import counted

Pictures = Mapping[str, Sequence[PlacedSample]]


def notes(trained: Pictures, measured: Pictures) -> list[str]:
    """A warning for each dataset of which a picture that is measured is trained on as well, whatever its file is called.

    Args:
        trained: Pictures that are learned, by the id of their dataset.
        measured: Pictures whose held-out loss is measured, by the id of theirs.
    """
    learned = {name: {one.digest for one in pictures} for name, pictures in trained.items()}
    lines = []
    for name, pictures in measured.items():
        again = {one.digest for one in pictures} & set().union(*learned.values())
        if again:
            number = sum(one.digest in again for one in pictures)
            where = ", ".join(f"[{other}]" for other, known in learned.items() if known & again)
            lines.append(
                f"WARNING: [{name}] {number} of {counted(len(pictures), 'held-out picture')} {'is' if number == 1 else 'are'} "
                f"trained on as well, in {where}: their held-out loss measures memory, and falls also where the model learns "
                "by heart. What to do: take them out of the one or the other."
            )
    return lines
