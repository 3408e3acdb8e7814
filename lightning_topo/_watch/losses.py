"""Keep the loss of every step without waiting for the device."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor


class Losses:
    """Keeps the losses of the steps until they are reported; on a device as tensors, read when they are taken."""

    def __init__(self) -> None:
        self._kept: dict[int, Tensor | float] = {}

    def note(self, step: int, loss: Tensor | float | None, *, is_maximized: bool = False) -> None:
        """Keep the loss of one step; times -1 if it `is_maximized`, as it is what is to fall."""
        if loss is None:
            return
        if isinstance(loss, Tensor):
            if loss.numel() != 1 or loss.is_complex():
                return
            loss = loss.detach()
            loss = float(loss) if loss.device.type == "cpu" else loss.clone()
        self._kept[step] = -loss if is_maximized else loss

    def __len__(self) -> int:
        return len(self._kept)

    def is_broken(self) -> bool:
        """Whether a loss known here is not finite."""
        return any(not isinstance(loss, Tensor) and not math.isfinite(loss) for loss in self._kept.values())

    def take(self) -> dict[int, float]:
        """The losses by step since they were last taken."""
        kept, self._kept = self._kept, {}
        return {step: float(loss) for step, loss in kept.items()}


def mean_losses(every: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """The mean over the processes that have a loss, by step.

    >>> mean_losses([{1: 0.5, 2: 1.0}, {1: 1.5}])
    {1: 1.0, 2: 1.0}
    """
    steps = sorted({step for losses in every for step in losses})
    known = {step: [losses[step] for losses in every if step in losses] for step in steps}
    return {step: math.fsum(found) / len(found) for step, found in known.items()}
