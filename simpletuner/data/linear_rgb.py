"""The best linear map from a latent cell to its colour, from what is encoded anyway.

In: latents and the pixels they were made from, batch after batch. Out: C weights and a bias for each of R, G, B.
Keeps sums only (normal equations in float64), so that any number of pictures takes a few kilobytes. Draws nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from simpletuner.data.cache import write_atomic

ENOUGH = 64  # pictures: some ten thousand cells for 33 unknowns
FILE = "preview-colours.safetensors"  # beside the shards of one fingerprint
_CUTOFF = 1e-9  # of the largest eigenvalue; directions below it were never seen and get no weight


class Gathered:
    """Moments of what is encoded now, to be added to those of earlier runs."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._moments: Moments | None = None

    def __call__(self, latents: torch.Tensor, pixels: torch.Tensor) -> None:
        """Count a batch, as ``Moments.add``."""
        self._moments = self._moments or Moments(latents.shape[1])
        self._moments.add(latents, pixels)

    def keep(self, folder: Path) -> None:
        """Add it to the folder's file. Raises CacheError."""
        if self._moments:
            earlier = Moments.load(folder, len(self._moments.squares) - 1)
            if earlier:
                self._moments.merge(earlier)
            self._moments.save(folder)


class Moments:
    """Sums over cells: of (latents, 1) with itself, and with the colour."""

    def __init__(self, channels: int) -> None:
        """Nothing seen yet.

        Args:
            channels: Of a latent cell, C.
        """
        self.squares = torch.zeros(channels + 1, channels + 1, dtype=torch.float64)
        self.products = torch.zeros(channels + 1, 3, dtype=torch.float64)

    @property
    def cells(self) -> int:
        """Latent cells seen."""
        return int(self.squares[-1, -1])

    def add(self, latents: torch.Tensor, pixels: torch.Tensor) -> None:
        """Count a batch.

        Args:
            latents: [B, C, h, w]; as the transformer sees them.
            pixels: [B, 3, h * stride, w * stride] in [-1, 1], what they were encoded from; both finite.
        """
        colours = torch.nn.functional.adaptive_avg_pool2d(pixels.float(), (latents.shape[-2], latents.shape[-1]))
        cells = latents.detach().double().movedim(1, -1).reshape(-1, latents.shape[1]).cpu()
        cells = torch.cat([cells, torch.ones(len(cells), 1, dtype=torch.float64)], dim=1)
        self.squares += cells.T @ cells
        self.products += cells.T @ colours.double().movedim(1, -1).reshape(-1, 3).cpu()

    def merge(self, other: Moments) -> None:
        """Count what another has seen."""
        self.squares += other.squares
        self.products += other.products

    def solve(self) -> torch.Tensor:
        """The map [C + 1, 3], float32; the last row is the bias.

        Least squares; of several best ones the shortest, so that what was never seen alone has no weight. Source: normal
        equations with a truncated eigendecomposition (Golub and Van Loan, Matrix Computations, section 5.5).

        Raises:
            ValueError: Nothing was seen, or something that is not finite.
        """
        if not self.cells:
            raise ValueError("no latents were seen")
        if not (self.squares.isfinite().all() and self.products.isfinite().all()):
            raise ValueError("the sums are not finite")
        values, vectors = torch.linalg.eigh(self.squares)
        used = values > values[-1] * _CUTOFF
        vectors = vectors[:, used]
        return (vectors @ ((vectors.T @ self.products) / values[used, None])).float()

    def save(self, folder: Path) -> None:
        """Write ``FILE`` into a cache's folder, atomically. Raises CacheError."""
        from safetensors.torch import save

        write_atomic(folder / FILE, save({"squares": self.squares, "products": self.products}))

    @classmethod
    def load(cls, folder: Path, channels: int) -> Moments | None:
        """What an earlier run saw; None if there is no whole file of it: it is derived, and made anew."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        file = folder / FILE
        if not os.path.isfile(file):
            return None
        found = cls(channels)
        try:
            tensors = load_file(file)
            squares, products = tensors["squares"], tensors["products"]
        except (OSError, SafetensorError, KeyError):
            return None
        same = squares.shape == found.squares.shape and products.shape == found.products.shape
        if not same or not squares.isfinite().all() or not products.isfinite().all():
            return None
        found.squares, found.products = squares.double(), products.double()
        return found
