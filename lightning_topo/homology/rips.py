"""Vietoris-Rips persistence of a cloud: H0 on its device, H1 and up by an engine."""

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_topo.geometry import check_cloud, diameter, farthest_point_landmarks, pairwise_distances
from lightning_topo.geometry.precision import real_dtype
from lightning_topo.homology.diagram import Bars, PersistenceDiagram
from lightning_topo.homology.engines import choose_engine, rips_intervals
from lightning_topo.homology.h0 import MATRIX_BYTES, h0_deaths, spanning_weights


@torch.no_grad()
def persistence(
    points: Float[Tensor, "n d"],
    max_dim: int = 1,
    max_landmarks: int | None = None,
    engine: str | None = None,
) -> PersistenceDiagram:
    """The persistence diagram of the Vietoris-Rips filtration of a cloud, over the field Z/2.

    A cloud of more than `max_landmarks` points is represented by landmarks (`farthest_point_landmarks`);
    the diagram then carries their covering radius rho, and its bottleneck distance to that of the whole
    cloud is at most 2 rho. `engine` names one of `available_engines()`; None takes the first.

    Raises:
        TypeError, ValueError: as `check_cloud`; `max_dim` < 0, an unknown engine, or too many points for it.
        ModuleNotFoundError: `max_dim` >= 1 and the engine is not installed.
        RuntimeError: the engine failed.

    >>> square = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    >>> diagram = persistence(square)
    >>> diagram[0].deaths
    tensor([1., 1., 1., inf])
    >>> diagram[1].births, diagram[1].deaths
    (tensor([1.]), tensor([1.4142]))
    """
    check_cloud(points)
    if max_dim < 0:
        raise ValueError(f"expected max_dim >= 0, got {max_dim}")
    name = choose_engine(engine) if max_dim > 0 or engine is not None else "mst"
    covering_radius, n = 0.0, len(points)
    if max_landmarks is not None:
        landmarks = farthest_point_landmarks(points, max_landmarks)
        points, covering_radius = points[landmarks.indices], landmarks.covering_radius

    fits = len(points) ** 2 * real_dtype(points).itemsize <= MATRIX_BYTES
    if max_dim > 0 and not fits:
        raise ValueError(
            f"homology in dimension 1 and up needs all distances of {len(points)} points at once, "
            f"over {MATRIX_BYTES >> 20} MiB: pass max_landmarks"
        )
    if fits:
        distances = pairwise_distances(points)
        finite, largest = spanning_weights(distances), distances.amax() if len(points) else 0.0
    else:
        distances, finite, largest = None, h0_deaths(points, MATRIX_BYTES), diameter(points)
    deaths = torch.cat([finite, finite.new_full((min(len(points), 1),), torch.inf)])
    bars = [Bars(torch.zeros_like(deaths), deaths)]
    if distances is not None and max_dim > 0:
        for intervals in rips_intervals(distances.cpu().numpy(), max_dim, name):
            births, deaths = torch.from_numpy(intervals).to(finite).unbind(1)
            bars.append(Bars(births, deaths))
    return PersistenceDiagram(
        bars=tuple(bars),
        n_points=n,
        diameter=float(largest),
        covering_radius=covering_radius,
        engine=name if max_dim > 0 else "mst",
        exact=len(points) == n,
    )
