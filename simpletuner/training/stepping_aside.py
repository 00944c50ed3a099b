"""Where memory is short, the transformer leaves the GPU while a picture is decoded: its weights are the most there is.

In: the parts of a pipeline. Out: the same VAE, whose ``decode`` has the GPU nearly for itself. Costs a second or two a picture.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from simpletuner.models.base import Components


@contextmanager
def away(module: torch.nn.Module) -> Iterator[None]:
    """Inside, no number of the module takes memory on its device; after, all are there again, bit for bit.

    Tensors stay the same objects, and those that share memory go on sharing it; it may lie elsewhere afterwards, so CUDA
    graphs that read it must be gone. Memory that belongs to a file (weights on the CPU as they were loaded) stays.
    """
    tensors = (*module.parameters(), *module.buffers())
    storages = {storage.data_ptr(): storage for storage in (tensor.untyped_storage() for tensor in tensors)}
    ours = [storage for storage in storages.values() if storage.resizable() and storage.nbytes()]
    kept = [torch.UntypedStorage(storage.nbytes()).copy_(storage) for storage in ours]
    for storage in ours:
        storage.resize_(0)
    try:
        yield
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # what they made lies where the weights are to come back to
        raise
    finally:
        for storage, numbers in zip(ours, kept, strict=True):
            storage.resize_(numbers.nbytes())
            storage.copy_(numbers)


def make_decoding_lonely(parts: Components) -> None:
    """Wrap ``parts.vae.decode``. CUDA graphs of training steps are to be gone by then: see ``StepGraphs.make_room``."""
    decode, transformer = parts.vae.decode, parts.transformer

    def alone(*arguments: Any, **named: Any) -> Any:
        with away(transformer):
            if next(transformer.parameters()).is_cuda:
                torch.cuda.empty_cache()
            return decode(*arguments, **named)

    vars(parts.vae)["decode"] = alone
