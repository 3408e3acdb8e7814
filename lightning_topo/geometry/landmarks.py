"""Landmarks: a few points that stand for a cloud, with the distance at which they do."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_topo.geometry.distances import check_cloud, real_dtype


@dataclass(frozen=True, slots=True)
class Landmarks:
    """Rows of a cloud chosen as landmarks, and their covering radius rho.

    Every point lies within rho of a landmark, so the bottleneck distance between the Rips diagrams of the
    landmarks and of the whole cloud is at most 2 rho (in terms of edge lengths).
    """

    indices: Int[Tensor, " k"]
    covering_radius: float


@torch.no_grad()
def farthest_point_landmarks(points: Float[Tensor, "n d"], max_landmarks: int) -> Landmarks:
    """Choose landmarks by farthest-point sampling: each is the point farthest from those before it.

    The first is the point farthest from the mean, so the choice does not depend on the order of the points
    (but for ties). The covering radius is at most twice the best possible one.

    Raises:
        TypeError, ValueError: as `check_cloud`, or `max_landmarks` < 1.

    Source: Gonzalez, Clustering to minimize the maximum intercluster distance (1985).

    >>> farthest_point_landmarks(torch.tensor([[0.0], [1.0], [9.0]]), 2)
    Landmarks(indices=tensor([2, 0]), covering_radius=1.0)
    """
    check_cloud(points)
    if max_landmarks < 1:
        raise ValueError(f"expected max_landmarks >= 1, got {max_landmarks}")
    n = len(points)
    if n <= max_landmarks:
        return Landmarks(torch.arange(n, device=points.device), 0.0)

    cloud = points.detach().to(real_dtype(points))
    cloud = cloud - cloud.mean(dim=0)
    chosen = torch.empty(max_landmarks, dtype=torch.long, device=cloud.device)
    chosen[0] = cloud.norm(dim=1).argmax()
    distance = torch.full((n,), torch.inf, dtype=cloud.dtype, device=cloud.device)
    for k in range(max_landmarks):
        if k > 0:
            chosen[k] = distance.argmax()
        to_landmark = (cloud - cloud[chosen[k]]).norm(dim=1)
        distance = torch.minimum(distance, to_landmark)
        distance[chosen[k]] = 0
    return Landmarks(chosen, float(distance.max()))
