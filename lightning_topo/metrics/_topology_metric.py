"""The base class of this package's metrics."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torchmetrics import Metric


class TopologyMetric(Metric):
    """Base class of metrics of weights that every rank holds alike: synchronising ranks changes no value.

    States are reduced by maximum or minimum, or as sum and count together, so replicas are not counted twice.
    """

    is_differentiable: bool | None = False
    higher_is_better: bool | None = None  # a network has no best topology, and r = 0 is one that does not learn
    full_state_update: bool | None = False

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Plot the current value, or the values `val` over time; return the figure and axes of matplotlib."""
        return self._plot(val, ax)
