"""The bounds of a step on their way from the device to the host."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Launched:
    """The bounds of a step, being copied from the device, so that reading them later does not wait.

    `before` and `after` are the parameters, `moved` how far neurons have moved between them. `is_path` where the bounds
    stand on the length of the path since the snapshot. `has_doubt` where the last value says whether the parameters
    stood between the step before and this one.
    """

    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    moved: Tensor
    is_path: bool
    has_doubt: bool
    _values: Tensor
    _arrival: torch.cuda.Event | None

    @staticmethod
    def of(
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        moved: Tensor,
        values: Tensor,
        *,
        is_path: bool,
        has_doubt: bool,
    ) -> "Launched":
        """Send the values to the host."""
        if values.device.type != "cuda":
            return Launched(before, after, moved, is_path, has_doubt, values, None)
        here = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        here.copy_(values, non_blocking=True)
        arrival = torch.cuda.Event()
        arrival.record(torch.cuda.current_stream(values.device))
        return Launched(before, after, moved, is_path, has_doubt, here, arrival)

    def values(self) -> list[float]:
        """What has arrived; waits until it has."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._values.tolist()
