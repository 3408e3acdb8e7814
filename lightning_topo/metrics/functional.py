"""Topological quantities of neuron clouds as tensors: the functions under the metric classes."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_topo.geometry import step_distortion
from lightning_topo.geometry._precision import real_dtype
from lightning_topo.homology import (
    PersistenceDiagram,
    betti_number,
    bottleneck,
    log_bottleneck,
    persistence,
    wasserstein,
)
from lightning_topo.homology import persistence_entropy as diagram_entropy
from lightning_topo.homology import total_persistence as diagram_total

__all__ = [
    "DISTANCES",
    "betti_numbers",
    "check_distance",
    "critical_ratio",
    "diagram_distance",
    "lipschitz_distortion",
    "persistence_entropy",
    "total_persistence",
]

DISTANCES: dict[str, Callable[[PersistenceDiagram, PersistenceDiagram, int], float]] = {
    "bottleneck": bottleneck,
    "log_bottleneck": log_bottleneck,
    "wasserstein": wasserstein,
}
"""The distances between persistence diagrams that `diagram_distance` offers, by name."""


def critical_ratio(before: Float[Tensor, "n d"], after: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Compute the critical ratio r = max |Δ_i - Δ_j| / |x_i - x_j| of a step, over all pairs of neurons.

    The step moves neuron i from x_i, a row of `before`, by Δ_i. r < 1 certifies that no two distinct neurons merged.
    Returns a scalar on the cloud's device. Raises the errors that `lightning_topo.step_distortion` lists.

    >>> before = torch.tensor([[0.0], [1.0]])
    >>> critical_ratio(before, 1.5 * before)
    tensor(0.5000)
    """
    return _scalar(before, step_distortion(before, after).critical_ratio)


def lipschitz_distortion(before: Float[Tensor, "n d"], after: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Compute log(b / a) of a step, with b the largest and a the smallest distance ratio over all pairs of neurons.

    The distance ratio of two neurons is their distance after the step, divided by their distance before it. The result
    is a scalar: 0 if all distances changed by one factor, inf if neurons merged or split. Raises the errors that
    `lightning_topo.step_distortion` lists.

    >>> before = torch.tensor([[0.0], [1.0], [3.0]])
    >>> lipschitz_distortion(before, 2 * before)
    tensor(0.)
    """
    return _scalar(before, step_distortion(before, after).log_distortion)


def betti_numbers(
    points: Float[Tensor, "n d"],
    max_dim: int = 1,
    scale: float = 0.25,
    max_landmarks: int | None = None,
    engine: str | None = None,
) -> Float[Tensor, " k"]:
    """Compute the Betti numbers of a cloud, for each homology dimension 0, ..., max_dim.

    The complex is the Vietoris-Rips complex with edges of up to `scale` times the cloud's diameter. `max_landmarks`,
    `engine` and the errors are explained in `lightning_topo.persistence`.

    >>> betti_numbers(torch.tensor([[0.0], [1.0], [9.0]]), max_dim=0)
    tensor([2.])
    """
    diagram = persistence(points, max_dim, max_landmarks, engine)
    at = scale * diagram.diameter
    return torch.stack([_scalar(points, betti_number(diagram, k, at)) for k in range(max_dim + 1)])


def total_persistence(
    points: Float[Tensor, "n d"],
    max_dim: int = 1,
    power: float = 1.0,
    max_landmarks: int | None = None,
    engine: str | None = None,
) -> Float[Tensor, " k"]:
    """Sum (death - birth)^power over the finite bars of a cloud, for each homology dimension 0, ..., max_dim.

    The bars are the bars of the Vietoris-Rips persistence diagram. `max_landmarks`, `engine` and the errors are
    explained in `lightning_topo.persistence`.

    >>> total_persistence(torch.tensor([[0.0], [1.0], [9.0]]), max_dim=0)
    tensor([9.])
    """
    diagram = persistence(points, max_dim, max_landmarks, engine)
    return torch.stack([_scalar(points, diagram_total(diagram, k, power)) for k in range(max_dim + 1)])


def persistence_entropy(
    points: Float[Tensor, "n d"],
    max_dim: int = 1,
    max_landmarks: int | None = None,
    engine: str | None = None,
) -> Float[Tensor, " k"]:
    """Compute the Shannon entropy of a cloud's finite bars, in nats, for each homology dimension 0, ..., max_dim.

    It is -Σ p_i log p_i with p_i the lifetime of bar i, death - birth, divided by the sum of all lifetimes. The bars
    are the bars of the Vietoris-Rips persistence diagram. `max_landmarks`, `engine` and the errors are explained in
    `lightning_topo.persistence`.

    >>> persistence_entropy(torch.tensor([[0.0], [1.0], [2.0]]), max_dim=0)
    tensor([0.6931])
    """
    diagram = persistence(points, max_dim, max_landmarks, engine)
    return torch.stack([_scalar(points, diagram_entropy(diagram, k)) for k in range(max_dim + 1)])


def diagram_distance(
    before: Float[Tensor, "n d"],
    after: Float[Tensor, "m d"],
    max_dim: int = 1,
    distance: str = "bottleneck",
    max_landmarks: int | None = None,
    engine: str | None = None,
) -> Float[Tensor, " k"]:
    """Compute the distance between the persistence diagrams of two clouds, for each homology dimension 0, ..., max_dim.

    `max_landmarks`, `engine` and the errors are explained in `lightning_topo.persistence`.

    Args:
        before: The first cloud, one row per point.
        after: The second cloud; it may have another number of points.
        max_dim: The highest homology dimension.
        distance: "bottleneck", "log_bottleneck", or "wasserstein", which is of order 1.

    >>> cloud = torch.tensor([[0.0], [1.0], [9.0]])
    >>> diagram_distance(cloud, 1.5 * cloud, max_dim=0)
    tensor([4.])
    """
    check_distance(distance)
    a, b = (persistence(points, max_dim, max_landmarks, engine) for points in (before, after))
    return torch.stack([_scalar(before, DISTANCES[distance](a, b, k)) for k in range(max_dim + 1)])


def check_distance(name: str) -> None:
    """Raise `ValueError` unless `name` is a key of `DISTANCES`."""
    if name not in DISTANCES:
        raise ValueError(f"expected a distance of {', '.join(DISTANCES)}, got {name!r}")


def _scalar(like: Tensor, value: float | int) -> Float[Tensor, ""]:
    """A number as a tensor on a cloud's device, of its dtype but at least float32."""
    return torch.tensor(value, dtype=real_dtype(like), device=like.device)
