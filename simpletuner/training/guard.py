"""Room 8, Step: keep NaN and infinity out of the weights, and say which pictures brought them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simpletuner.errors import NonFiniteError

PATIENCE = 10


@dataclass(slots=True)
class Guard:
    """Counts steps in a row that were skipped.

    Attributes:
        in_a_row: Skipped steps since the last good one.
    """

    in_a_row: int = 0

    def good(self) -> None:
        """A finite step: start counting anew."""
        self.in_a_row = 0

    def skipped(self, step: int, what: str, pictures: Sequence[str]) -> str:
        """A skipped step.

        Args:
            step: Optimizer step, from 1.
            what: "loss" or "gradient".
            pictures: Paths of the pictures concerned.

        Returns:
            The sentence for the log.

        Raises:
            NonFiniteError: ``PATIENCE`` skipped steps in a row.
        """
        self.in_a_row += 1
        named = ", ".join(dict.fromkeys(pictures))
        if self.in_a_row >= PATIENCE:
            raise NonFiniteError(
                f"{PATIENCE} steps in a row gave a {what} that is NaN or infinite; weights and EMA are those of the "
                f"last good step. Last pictures: {named}. What to do: lower learning_rate, use mixed_precision=bf16 "
                "or no, and look at those pictures."
            )
        return f"step {step} skipped: its {what} is NaN or infinite (weights and EMA untouched). Pictures: {named}"
