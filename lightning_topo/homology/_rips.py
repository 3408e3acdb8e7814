"""Vietoris-Rips persistence of a cloud: H0 of all its points on its device, H1 and up by an engine."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_topo.geometry import check_cloud, diameter, farthest_point_landmarks, pairwise_distances
from lightning_topo.geometry._precision import real_dtype
from lightning_topo.homology._diagram import Bars, PersistenceDiagram
from lightning_topo.homology._engines import choose_engine, rips_intervals
from lightning_topo.homology._h0 import MATRIX_BYTES, h0_deaths, spanning_weights

H0_BYTES = 1 << 26
"""Beside landmarks the distances of all points are held in full up to this many bytes: up to 4096 points."""


@torch.no_grad()
def persistence(
    points: Float[Tensor, "n d"],
    max_dim: int = 1,
    max_landmarks: int | None = None,
    engine: str | None = None,
) -> PersistenceDiagram:
    """Compute the persistence diagram of the Vietoris-Rips filtration of a cloud, over the field Z/2.

    Args:
        points: The cloud, one row per point.
        max_dim: The highest homology dimension. Dimension 0 is computed from all points, however many.
        max_landmarks: In dimensions 1 and up, represent a larger cloud by this many `farthest_point_landmarks`. The
            bottleneck distance to the diagram of the whole cloud is then at most twice the result's
            `covering_radius`. None uses all points.
        engine: The library for dimensions 1 and up, one of `available_engines()`; None takes the first.

    Raises:
        TypeError: The dtype is not a real floating-point one.
        ValueError: The cloud is not of shape (n, d) or not finite, `max_dim` < 0, `max_landmarks` < 1, the engine is
            unknown, or the distances for dimensions 1 and up take more than 1 GiB.
        ModuleNotFoundError: The engine is not installed or, with `engine=None`, no engine is installed.
        RuntimeError: The engine failed.

    >>> square = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    >>> diagram = persistence(square)
    >>> diagram[0].deaths
    tensor([1., 1., 1., inf])
    >>> diagram[1].births, diagram[1].deaths
    (tensor([1.]), tensor([1.4142]))
    """
    task = rips_task(points, max_dim, max_landmarks, engine)
    intervals = [] if task.distances is None else rips_intervals(task.distances, task.max_dim, task.engine)
    return task.diagram(intervals)


@dataclass(frozen=True, slots=True, eq=False)
class RipsTask:
    """A persistence diagram of which dimensions 1 and up are still to be computed from a distance matrix.

    `rips_task` builds it on the cloud's device. Give `distances` to a `Worker`, and the worker's result to `diagram`.

    Attributes:
        distances: Distances between the points, or between their landmarks, on the CPU; None if no dimension above 0
            is wanted, or after `handed_over`.
        deaths: The finite deaths of dimension 0; None if they are to be computed from `distances` too.
        max_dim: The highest homology dimension.
        engine: Name of the library that is to compute dimensions 1 and up; "mst" if none are wanted.
        n_landmarks: Number of landmarks; n_points if all points are used.
        n_points: Number of points of the cloud.
        diameter: Largest distance between two points.
        covering_radius: Largest distance of a point to its nearest landmark; 0 if all points are used.
        like: An empty tensor of the diagram's dtype and device.
    """

    distances: Float[np.ndarray, "m m"] | None
    deaths: Float[Tensor, " _"] | None
    max_dim: int
    engine: str
    n_landmarks: int
    n_points: int
    diameter: float
    covering_radius: float
    like: Float[Tensor, "0"]

    def handed_over(self) -> "RipsTask":
        """Return the task without its distances, to free their memory once a worker has them."""
        return replace(self, distances=None)

    def diagram(self, intervals: Sequence[np.ndarray]) -> PersistenceDiagram:
        """Build the persistence diagram from the bars that were computed from `distances`.

        Args:
            intervals: One array of (birth, death) rows per dimension 1, ..., max_dim. The finite deaths of dimension 0,
                shape (n_points - 1,), may come first. They are needed if `deaths` is None, and ignored otherwise.
        """
        finite, rest = self.deaths, list(intervals)
        tree = rest.pop(0) if len(rest) > self.max_dim else None
        if finite is None:
            assert tree is not None
            finite = torch.from_numpy(tree).to(self.like)
        deaths = torch.cat([finite, finite.new_full((min(self.n_points, 1),), torch.inf)])
        bars = [Bars(torch.zeros_like(deaths), deaths)]
        bars += [Bars(*torch.from_numpy(pairs).to(self.like).unbind(1)) for pairs in rest]
        return PersistenceDiagram(
            bars=tuple(bars),
            n_points=self.n_points,
            diameter=self.diameter,
            covering_radius=self.covering_radius,
            engine=self.engine,
            exact=self.n_landmarks == self.n_points,
        )


@torch.no_grad()
def rips_task(
    points: Float[Tensor, "n d"],
    max_dim: int = 1,
    max_landmarks: int | None = None,
    engine: str | None = None,
    *,
    leave_h0: bool = False,
) -> RipsTask:
    """Begin a persistence diagram: compute distances and dimension 0 on the cloud's device.

    Returns a task for dimensions 1 and up, to be computed here or in another process: see `RipsTask`.

    Args:
        points: The cloud, one row per point.
        max_dim: The highest homology dimension.
        max_landmarks: In dimensions 1 and up, represent a larger cloud by this many landmarks; None uses all points.
        engine: The library for dimensions 1 and up, one of `available_engines()`; None takes the first.
        leave_h0: Leave dimension 0 to the task as well. It has no effect unless the cloud is on the CPU,
            `max_dim` >= 1, and all points are used rather than landmarks.

    Raises:
        TypeError, ValueError, ModuleNotFoundError: For the reasons listed in `persistence`.
    """
    check_cloud(points)
    if max_dim < 0:
        raise ValueError(f"expected max_dim >= 0, got {max_dim}")
    name = choose_engine(engine) if max_dim > 0 or engine is not None else "mst"
    n = len(points)
    landmarks = None if max_landmarks is None or max_dim == 0 else farthest_point_landmarks(points, max_landmarks)
    chosen = None if landmarks is None or len(landmarks.indices) == n else landmarks.indices
    room = MATRIX_BYTES if chosen is None else H0_BYTES
    fits = n**2 * real_dtype(points).itemsize <= room
    if max_dim > 0 and chosen is None and not fits:
        raise ValueError(
            f"homology in dimension 1 and up needs all distances of {n} points at once, "
            f"over {MATRIX_BYTES >> 20} MiB: pass max_landmarks"
        )
    if fits:
        distances = pairwise_distances(points)
        left = leave_h0 and max_dim > 0 and chosen is None and distances.device.type == "cpu"
        finite, largest = None if left else spanning_weights(distances), distances.amax() if n else 0.0
    else:
        distances, finite, largest = None, h0_deaths(points, room), diameter(points)
    if chosen is not None:
        distances = pairwise_distances(points[chosen]) if distances is None else distances[chosen][:, chosen]
    return RipsTask(
        distances=None if distances is None or max_dim == 0 else distances.cpu().numpy(),
        deaths=finite,
        max_dim=max_dim,
        engine=name if max_dim > 0 else "mst",
        n_landmarks=n if chosen is None else len(chosen),
        n_points=n,
        diameter=float(largest),
        covering_radius=0.0 if chosen is None or landmarks is None else landmarks.covering_radius,
        like=torch.empty(0, dtype=real_dtype(points), device=points.device),
    )
