"""Landmarks: a few points that represent a cloud, and how far any point is from one of them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_topo.geometry._distances import binary_scale, check_cloud, direct_squares, mean_point
from lightning_topo.geometry._precision import full_precision, real_dtype


@dataclass(frozen=True, slots=True)
class Landmarks:
    """Landmarks of a cloud: a few of its rows that represent all points.

    The Vietoris-Rips diagrams of the landmarks and of the whole cloud have a bottleneck distance of at most twice the
    covering radius. Births and deaths are edge lengths.

    Attributes:
        indices: Row numbers of the landmarks.
        covering_radius: The largest distance of a point to its nearest landmark; 0 if all points are landmarks.
    """

    indices: Int[Tensor, " k"]
    covering_radius: float


def farthest_point_landmarks(points: Float[Tensor, "n d"], max_landmarks: int) -> Landmarks:
    """Choose landmarks of a cloud by farthest-point sampling.

    The first landmark is the point farthest from the mean; each next one is the point farthest from all landmarks
    before it. So the choice does not depend on the order of the rows, but for ties. The covering radius is at most
    twice the smallest one possible. In a cloud of at most `max_landmarks` points, all points are landmarks.

    Raises:
        TypeError: The dtype is not a real floating-point one.
        ValueError: The cloud is not of shape (n, d) or not finite, or `max_landmarks` is below 1.

    Source: Gonzalez, Clustering to minimize the maximum intercluster distance (1985).

    >>> farthest_point_landmarks(torch.tensor([[0.0], [1.0], [9.0]]), 2)
    Landmarks(indices=tensor([2, 0]), covering_radius=1.0)
    """
    check_cloud(points)
    if max_landmarks < 1:
        raise ValueError(f"expected max_landmarks >= 1, got {max_landmarks}")
    n = len(points)
    everyone = torch.arange(n, device=points.device)
    if n <= max_landmarks:
        return Landmarks(everyone, 0.0)

    with full_precision(points.device):
        points, scale = points.detach(), binary_scale(points)
        cloud = ((points - mean_point(points)) * scale).to(real_dtype(points))
        squares = cloud.square().sum(dim=1)
        chosen = torch.empty(max_landmarks, dtype=torch.long, device=points.device)
        served_by = torch.zeros_like(everyone)
        nearest = torch.full_like(squares, torch.inf)
        for k in range(max_landmarks):
            new = squares.argmax() if k == 0 else nearest.argmax()
            chosen[k] = new
            to_new = squares + squares[new] - 2 * (cloud @ cloud[new])
            served_by = torch.where(to_new < nearest, new, served_by)
            nearest = torch.minimum(nearest, to_new)
            nearest[new], served_by[new] = -torch.inf, new
        # Products only led the choice: the radius that is reported comes from differences.
        radius = direct_squares(points, everyone, points, served_by, scale).max().sqrt() / scale
    return Landmarks(chosen, float(radius))
