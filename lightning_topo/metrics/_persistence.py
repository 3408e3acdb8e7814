"""Persistence of clouds as metrics, one value per homology dimension 0, ..., max_dim."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_topo.metrics import functional
from lightning_topo.metrics._topology_metric import TopologyMetric


class _MeanOverClouds(TopologyMetric):
    """The mean of a vector of max_dim + 1 values over the clouds seen; NaN before the first."""

    plot_lower_bound: float | None = 0.0
    plot_legend_name: str | None = "dimension"
    total: Tensor
    count: Tensor

    def __init__(
        self, max_dim: int = 1, max_landmarks: int | None = None, engine: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if max_dim < 0:
            raise ValueError(f"expected max_dim >= 0, got {max_dim}")
        self.max_dim = max_dim
        self.max_landmarks = max_landmarks
        self.engine = engine
        self.add_state("total", torch.zeros(max_dim + 1), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def _add(self, values: Tensor) -> None:
        self.total = self.total + values.to(self.total)
        self.count = self.count + 1

    def compute(self) -> Tensor:
        """Return the mean per homology dimension, of shape (max_dim + 1,).

        torchmetrics squeezes it to a scalar if max_dim = 0.
        """
        return self.total / self.count


class BettiNumbers(_MeanOverClouds):
    """Mean Betti numbers of the clouds since the last reset; NaN before the first.

    They count the features of a cloud's Vietoris-Rips complex with edges of up to `scale` times the cloud's diameter.

    Args:
        max_dim: The highest homology dimension: there is one value for each of 0, ..., max_dim.
        scale: The edge length of the complex as a share of the diameter.
        max_landmarks: In dimensions 1 and up, represent larger clouds by this many points; None uses all.
        engine: The library for dimensions 1 and up, one of `lightning_topo.homology.available_engines()`; None takes
            the first.
        **kwargs: Passed on to `torchmetrics.Metric`.

    Raises:
        ValueError: `max_dim` is negative.

    >>> metric = BettiNumbers(max_dim=0)
    >>> metric.update(torch.tensor([[0.0], [1.0], [9.0]]))
    >>> metric.compute()
    tensor(2.)
    """

    def __init__(
        self,
        max_dim: int = 1,
        scale: float = 0.25,
        max_landmarks: int | None = None,
        engine: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(max_dim, max_landmarks, engine, **kwargs)
        self.scale = scale

    def update(self, points: Float[Tensor, "n d"]) -> None:
        """Add the Betti numbers of one cloud, with one row per point."""
        self._add(functional.betti_numbers(points, self.max_dim, self.scale, self.max_landmarks, self.engine))


class TotalPersistence(_MeanOverClouds):
    """Mean total persistence of the clouds since the last reset; NaN before the first.

    The total persistence of a cloud is the sum of (death - birth)^power over the finite bars of its Vietoris-Rips
    persistence diagram.

    Args:
        max_dim: The highest homology dimension: there is one value for each of 0, ..., max_dim.
        power: The exponent.
        max_landmarks: In dimensions 1 and up, represent larger clouds by this many points; None uses all.
        engine: The library for dimensions 1 and up, one of `lightning_topo.homology.available_engines()`; None takes
            the first.
        **kwargs: Passed on to `torchmetrics.Metric`.

    Raises:
        ValueError: `max_dim` is negative.

    >>> metric = TotalPersistence(max_dim=0)
    >>> metric.update(torch.tensor([[0.0], [1.0], [9.0]]))
    >>> metric.compute()
    tensor(9.)
    """

    def __init__(
        self,
        max_dim: int = 1,
        power: float = 1.0,
        max_landmarks: int | None = None,
        engine: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(max_dim, max_landmarks, engine, **kwargs)
        self.power = power

    def update(self, points: Float[Tensor, "n d"]) -> None:
        """Add the total persistence of one cloud, with one row per point."""
        self._add(functional.total_persistence(points, self.max_dim, self.power, self.max_landmarks, self.engine))


class PersistenceEntropy(_MeanOverClouds):
    """Mean persistence entropy of the clouds since the last reset, in nats; NaN before the first.

    The persistence entropy of a cloud is the Shannon entropy of the lifetimes of the finite bars of its Vietoris-Rips
    persistence diagram, each divided by their sum.

    Args:
        max_dim: The highest homology dimension: there is one value for each of 0, ..., max_dim.
        max_landmarks: In dimensions 1 and up, represent larger clouds by this many points; None uses all.
        engine: The library for dimensions 1 and up, one of `lightning_topo.homology.available_engines()`; None takes
            the first.
        **kwargs: Passed on to `torchmetrics.Metric`.

    Raises:
        ValueError: `max_dim` is negative.

    >>> metric = PersistenceEntropy(max_dim=0)
    >>> metric.update(torch.tensor([[0.0], [1.0], [2.0]]))
    >>> metric.compute()
    tensor(0.6931)
    """

    def update(self, points: Float[Tensor, "n d"]) -> None:
        """Add the persistence entropy of one cloud, with one row per point."""
        self._add(functional.persistence_entropy(points, self.max_dim, self.max_landmarks, self.engine))


class DiagramDistance(TopologyMetric):
    """The largest distance between the persistence diagrams of two clouds since the last reset; 0 before the first.

    Args:
        max_dim: The highest homology dimension: there is one value for each of 0, ..., max_dim.
        distance: "bottleneck", "log_bottleneck", or "wasserstein", which is of order 1.
        max_landmarks: In dimensions 1 and up, represent larger clouds by this many points; None uses all.
        engine: The library for dimensions 1 and up, one of `lightning_topo.homology.available_engines()`; None takes
            the first.
        **kwargs: Passed on to `torchmetrics.Metric`.

    Raises:
        ValueError: `max_dim` is negative, or no distance has that name.

    >>> metric = DiagramDistance(max_dim=0)
    >>> cloud = torch.tensor([[0.0], [1.0], [9.0]])
    >>> metric.update(cloud, 1.5 * cloud)
    >>> metric.compute()
    tensor(4.)
    """

    plot_lower_bound: float | None = 0.0
    plot_legend_name: str | None = "dimension"
    largest: Tensor

    def __init__(
        self,
        max_dim: int = 1,
        distance: str = "bottleneck",
        max_landmarks: int | None = None,
        engine: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if max_dim < 0:
            raise ValueError(f"expected max_dim >= 0, got {max_dim}")
        functional.check_distance(distance)
        self.max_dim = max_dim
        self.distance = distance
        self.max_landmarks = max_landmarks
        self.engine = engine
        self.add_state("largest", torch.zeros(max_dim + 1), dist_reduce_fx="max")

    def update(self, before: Float[Tensor, "n d"], after: Float[Tensor, "m d"]) -> None:
        """Measure the distance between the diagrams of two clouds, which may differ in their numbers of points."""
        distances = functional.diagram_distance(
            before, after, self.max_dim, self.distance, self.max_landmarks, self.engine
        )
        self.largest = torch.maximum(self.largest, distances.to(self.largest))

    def compute(self) -> Tensor:
        """Return, for each homology dimension, the largest distance of two diagrams in any update since the last reset.

        The shape is (max_dim + 1,), and `distance` says which distance.

        torchmetrics squeezes it to a scalar if max_dim = 0.
        """
        return self.largest
