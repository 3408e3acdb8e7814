"""Distortion of steps as metrics: extremes over all steps since the last reset."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_topo.geometry import step_distortion
from lightning_topo.metrics._topology_metric import TopologyMetric


class CriticalRatio(TopologyMetric):
    """The largest critical ratio r of all steps since the last reset; 0 before the first step.

    r = max |Δ_i - Δ_j| / |x_i - x_j| over all pairs of neurons, for a step that moves neuron i from x_i by Δ_i. r < 1
    certifies that no two distinct neurons merged in the step. r is inf if equal neurons split.

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
        """Measure one step, from the same n neurons before and after it, one row each.

        Raises:
            TypeError: The neurons are not of a real floating-point dtype.
            ValueError: `before` and `after` differ in shape, are not of shape (n, d), or hold NaN or infinities.
        """
        self.ratio = self.ratio.clamp(min=step_distortion(before, after).critical_ratio)

    def compute(self) -> Tensor:
        """Return the largest critical ratio since the last reset, as a scalar."""
        return self.ratio

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None) -> Any:
        """Plot the critical ratio, and a dashed line at 1, above which a step is not certified.

        Args:
            val: One value, or a sequence of values over time; None plots the current value.
            ax: The axes of matplotlib to draw on; None makes new ones.

        Returns the figure and the axes.
        """
        figure, axes = super().plot(val, ax)
        axes.axhline(1.0, color="#b3261e", linewidth=1.0, linestyle="--", label="critical")
        axes.legend(loc="best")
        return figure, axes


class LipschitzDistortion(TopologyMetric):
    """log(b / a), with b the largest and a the smallest distance ratio of all steps since the last reset.

    The distance ratio of two neurons is their distance after a step, divided by their distance before it; all pairs
    count. log(b / a) is 0 before the first step and if all distances changed by one factor, inf if neurons merged or
    split.

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
        """Measure one step, from the same n neurons before and after it, one row each.

        Raises:
            TypeError: The neurons are not of a real floating-point dtype.
            ValueError: `before` and `after` differ in shape, are not of shape (n, d), or hold NaN or infinities.
        """
        step = step_distortion(before, after)
        self.contraction = self.contraction.clamp(max=step.contraction)
        self.expansion = self.expansion.clamp(min=step.expansion)

    def compute(self) -> Tensor:
        """Return log(b / a), a scalar: b is the largest, a the smallest ratio of a distance after to before a step.

        All pairs of neurons and all steps since the last reset count.
        """
        if self.contraction > self.expansion:  # nothing was measured
            return torch.zeros_like(self.expansion)
        return (self.expansion / self.contraction).log()
