"""Where standard LoRA's two matrices start: PiSSA and OLoRA, along the base weight. Pure functions."""

from __future__ import annotations

import torch


def pissa(weight: torch.Tensor, rank: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest singular directions of a weight.

    Args:
        weight: [out, in].
        rank: At most min(out, in).
        scale: Of the adapter; the product of the two matrices times it is the best rank-``rank`` part of ``weight``.

    Returns:
        A [rank, in] and B [out, rank], float32.

    Source: Meng et al. 2024, PiSSA (arXiv 2404.02948), eq. 2-3.
    """
    left, values, right = torch.linalg.svd(weight.float(), full_matrices=False)
    root = (values[:rank] / scale).sqrt()
    return root[:, None] * right[:rank], left[:, :rank] * root


def olora(weight: torch.Tensor, rank: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """An orthonormal basis of a weight's first columns.

    Args:
        weight: [out, in].
        rank: At most min(out, in).
        scale: Of the adapter; unused, the basis is orthonormal whatever it is.

    Returns:
        A [rank, in] and B [out, rank], float32.

    Source: Büyükakyüz 2024, OLoRA (arXiv 2406.01775), algorithm 1.
    """
    basis, triangle = torch.linalg.qr(weight.float())
    return triangle[:rank], basis[:, :rank]


STARTS = {"pissa": pissa, "olora": olora}
