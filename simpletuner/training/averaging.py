"""Room 8, Step: the mean of the gradients over the processes of a run, the large ones while backward still goes on.

In: gradients as backward makes them. Out: their means in the same places, the same bits in every process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from simpletuner.training.ranks import SMALL, Ranks


class Averaging:
    """Averages gradients; by hooks on the parameters it starts as soon as one is whole.

    Every process must send in the same order, and backward promises none. So gradients are sent in the reversed order of the
    parameters, which is about the order in which they come, each when all before it are there.
    Source: Li et al. 2020, PyTorch Distributed (arXiv 2006.15704), section 3.2.3.
    """

    def __init__(self, ranks: Ranks, parameters: Sequence[torch.nn.Parameter], early: bool, least: int = SMALL) -> None:
        """Hooks are put on the large parameters if there is somebody to send to.

        Args:
            ranks: The processes.
            parameters: What is trained, in the same order everywhere.
            early: Gradients are whole after one backward pass, and nothing is done to them before the mean.
            least: Elements of one that goes by itself.
        """
        self._ranks = ranks
        self._order = [p for p in reversed(parameters) if p.numel() >= least] if early and ranks.several else []
        self._whole: set[int] = set()  # parameters, by id
        self._sent: list[tuple[torch.Tensor, Callable[[], None]]] = []
        for parameter in self._order:
            parameter.register_post_accumulate_grad_hook(self._came)

    @torch.no_grad()
    def _came(self, parameter: torch.Tensor) -> None:
        """Backward has finished this gradient."""
        self._whole.add(id(parameter))
        for following in self._order[len(self._sent) :]:
            if id(following) not in self._whole or following.grad is None:
                break
            following.grad = following.grad.contiguous()
            self._sent.append((following.grad, self._ranks.begin_average(following.grad)))

    def finish(self, gradients: Sequence[torch.Tensor]) -> None:
        """Put the mean into each of these that is not under way yet, and wait for all.

        Raises:
            LostProcessError: Another process has ended.
        """
        under_way = {id(gradient) for gradient, _ in self._sent}
        self._ranks.average([gradient for gradient in gradients if id(gradient) not in under_way])
        for _, end in self._sent:
            end()
        self.forget()

    def forget(self) -> None:
        """Nothing is under way any more: after a step, or one that failed."""
        self._whole.clear()
        self._sent.clear()
