"""Between rooms 5 and 6: batches come to the GPU on a stream of their own, while the step before is still computed.

In: batches in pinned memory. Out: the same batches on the device. The host asks for a batch up to two steps before the
device needs it, so the copy is done by then; the device waits for its end, the host never.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from simpletuner.data.types import Batch


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches with their tensors on ``device``; on a CPU they stay what they are.

    Args:
        batches: In order; pinned, or the host waits for each copy.
        device: Where steps run.
    """
    if device.type != "cuda":
        yield from batches
        return
    beside = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(beside):
            weights = None if batch.loss_weights is None else batch.loss_weights.to(device, non_blocking=True)
            latents, text, mask = (t.to(device, non_blocking=True) for t in (batch.latents, batch.text, batch.mask))
        steps = torch.cuda.current_stream(device)
        steps.wait_stream(beside)
        for tensor in (latents, text, mask, weights):
            if tensor is not None:
                tensor.record_stream(
                    steps
                )  # its memory is the copying stream's: not to be used again before the step's end
        yield replace(batch, latents=latents, text=text, mask=mask, loss_weights=weights)
