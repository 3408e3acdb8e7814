"""Distortion of steps as metrics: extremes over all steps since the last reset."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_topo.geometry import step_distortion
from lightning_topo.metrics._topology_metric import TopologyMetric


class CriticalRatio(TopologyMetric):
    """The largest critical ratio r of the steps seen; 0 before the first. r < 1 certifies a step.

    >>> metric = CriticalRatio()
    >>> before = torch.tensor([[0.0], [1.0]])
    >>> metric.update(before, 1.5 * before)
    >>> metric.update(before, 1.2 * before)
    >>> metric.compute()
    tensor(0.5000)
    """

    plot_lower_bound: float | None = 0.0
    ratio: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("ratio", torch.tensor(0.0), dist_reduce_fx="max")

    def update(self, before: Float[Tensor, "n d"], after: Float[Tensor, "n d"]) -> None:
        """Measure one step of a cloud, both of shape (n, d)."""
        self.ratio = self.ratio.clamp(min=step_distortion(before, after).critical_ratio)

    def compute(self) -> Tensor:
        """The largest ratio so far."""
        return self.ratio

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Plot the value, or a sequence of values over time, and the critical point 1; returns figure and axes."""
        figure, axes = super().plot(val, ax)
        axes.axhline(1.0, color="#b3261e", linewidth=1.0, linestyle="--", label="critical")
        axes.legend(loc="best")
        return figure, axes


class LipschitzDistortion(TopologyMetric):
    """log(b / a) of the largest expansion b and the smallest contraction a of the steps seen; 0 before.

    >>> metric = LipschitzDistortion()
    >>> before = torch.tensor([[0.0], [1.0]])
    >>> metric.update(before, 2 * before)
    >>> metric.update(before, before)
    >>> metric.compute()
    tensor(0.6931)
    """

    plot_lower_bound: float | None = 0.0
    contraction: Tensor
    expansion: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("contraction", torch.tensor(torch.inf), dist_reduce_fx="min")
        self.add_state("expansion", torch.tensor(0.0), dist_reduce_fx="max")

    def update(self, before: Float[Tensor, "n d"], after: Float[Tensor, "n d"]) -> None:
        """Measure one step of a cloud, both of shape (n, d)."""
        step = step_distortion(before, after)
        self.contraction = self.contraction.clamp(max=step.contraction)
        self.expansion = self.expansion.clamp(min=step.expansion)

    def compute(self) -> Tensor:
        """Return log(largest / smallest) of all distance ratios since the last reset."""
        if self.contraction > self.expansion:  # nothing was measured
            return torch.zeros_like(self.expansion)
        return (self.expansion / self.contraction).log()
