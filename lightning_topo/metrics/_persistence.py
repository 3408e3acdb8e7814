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
        """The mean so far, of shape (max_dim + 1,); torchmetrics squeezes it for max_dim = 0."""
        return self.total / self.count


class BettiNumbers(_MeanOverClouds):
    """Betti numbers at `scale` times the diameter, the mean over the clouds seen.

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
        """Measure one cloud of shape (n, d)."""
        self._add(functional.betti_numbers(points, self.max_dim, self.scale, self.max_landmarks, self.engine))


class TotalPersistence(_MeanOverClouds):
    """Sum of (death - birth)^power over the finite bars, the mean over the clouds seen.

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
        """Measure one cloud of shape (n, d)."""
        self._add(functional.total_persistence(points, self.max_dim, self.power, self.max_landmarks, self.engine))


class PersistenceEntropy(_MeanOverClouds):
    """Entropy of the finite lifetimes in nats, the mean over the clouds seen.

    >>> metric = PersistenceEntropy(max_dim=0)
    >>> metric.update(torch.tensor([[0.0], [1.0], [2.0]]))
    >>> metric.compute()
    tensor(0.6931)
    """

    def update(self, points: Float[Tensor, "n d"]) -> None:
        """Measure one cloud of shape (n, d)."""
        self._add(functional.persistence_entropy(points, self.max_dim, self.max_landmarks, self.engine))


class DiagramDistance(TopologyMetric):
    """Distance between the persistence diagrams of two clouds, the largest seen; 0 before the first pair.

    `distance` is "bottleneck", "log_bottleneck" or "wasserstein" (of order 1).

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
        """Compare the diagrams of two clouds, of shapes (n, d) and (m, d), and keep the largest distance so far."""
        distances = functional.diagram_distance(
            before, after, self.max_dim, self.distance, self.max_landmarks, self.engine
        )
        self.largest = torch.maximum(self.largest, distances.to(self.largest))

    def compute(self) -> Tensor:
        """The largest distances so far, of shape (max_dim + 1,); torchmetrics squeezes it for max_dim = 0."""
        return self.largest
