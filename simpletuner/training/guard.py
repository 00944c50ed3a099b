"""Room 8, Step: keep NaN and infinity out of the weights, and say which pictures brought them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from simpletuner.errors import NonFiniteError

PATIENCE = 10
# GradScaler starts at 2^16 and halves at each overflow: 17 halvings reach 1, where only the model can be to blame.
SETTLING_PATIENCE = 20


@dataclass(slots=True)
class Guard:
    """Counts steps in a row that were skipped.

    Attributes:
        in_a_row: Skipped steps since the last good one.
        settling: Steps since the last good one in which the fp16 gradient scale overflowed.
        seen: There was a good step.
    """

    in_a_row: int = 0
    settling: int = 0
    seen: bool = False

    def good(self) -> None:
        """A finite step: start counting anew."""
        self.in_a_row = self.settling = 0
        self.seen = True

    def scale_overflowed(self, step: int) -> str:
        """A step whose scaled fp16 gradients overflowed while its loss was finite: the scaler lowers its scale.

        Returns:
            The sentence for the log.

        Raises:
            NonFiniteError: ``SETTLING_PATIENCE`` such steps in a row: it is not the scale.
        """
        self.settling += 1
        if self.settling >= SETTLING_PATIENCE:
            raise NonFiniteError(
                f"{SETTLING_PATIENCE} steps in a row gave gradients that are NaN or infinite in fp16, however small "
                "their scale; weights and EMA are those of the last good step. What to do: use mixed_precision=bf16 "
                "or no, or lower learning_rate."
            )
        return f"step {step} skipped while the fp16 gradient scale settles"

    def verdict(self, step: int, losses: Sequence[float], names: Sequence[str], grad_norm: float) -> str | None:
        """Judge a step by its figures: None for a good one, else the sentence for the log.

        Args:
            step: Optimizer step, from 1.
            losses: Of each sample.
            names: Path of each picture.
            grad_norm: Global norm of the gradients.

        Raises:
            NonFiniteError: ``PATIENCE`` skipped steps in a row.
        """
        culprits = [name for name, loss in zip(names, losses, strict=True) if not math.isfinite(loss)]
        if not culprits and math.isfinite(grad_norm):
            self.good()
            return None
        return self.skipped(step, "loss" if culprits else "gradient", culprits or names)

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

    def held_back(self, step: int, held: int, count: int, pictures: Sequence[str]) -> str:
        """A step with gradient release in which some parameters were not stepped.

        Args:
            step: Optimizer step, from 1.
            held: Parameters whose gradient was not finite.
            count: All trained parameters.
            pictures: Paths of the step's pictures.

        Returns:
            The sentence for the log.

        Raises:
            NonFiniteError: ``PATIENCE`` such steps in a row.
        """
        if self.in_a_row + 1 >= PATIENCE:
            self.skipped(step, "gradient", pictures)
        self.in_a_row += 1
        named = ", ".join(dict.fromkeys(pictures))
        return (
            f"step {step}: {held} of {count} parameters kept their values, as their gradients are NaN or infinite. "
            f"Pictures: {named}"
        )
