"""Persistent homology in dimension 0: the minimum spanning tree, on the cloud's own device."""

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_topo.geometry.distances import pairwise_distances


@torch.no_grad()
def h0_deaths(points: Float[Tensor, "n d"]) -> Float[Tensor, " m"]:
    """The n - 1 finite deaths of H0 in ascending order: the edge lengths of the minimum spanning tree.

    Coincident points give deaths of length 0.

    Raises:
        TypeError, ValueError: as `check_cloud`.

    >>> h0_deaths(torch.tensor([[0.0], [1.0], [1.0], [4.0]]))
    tensor([0., 1., 3.])
    """
    distances = pairwise_distances(points)
    n = len(distances)
    deaths = distances.new_empty(max(n - 1, 0))
    if n < 2:
        return deaths
    nearest = distances[0].clone()
    in_tree = torch.zeros(n, dtype=distances.dtype, device=distances.device)
    in_tree[0] = torch.inf
    for k in range(n - 1):
        death, new = (nearest + in_tree).min(dim=0)
        deaths[k] = death
        in_tree[new] = torch.inf
        torch.minimum(nearest, distances[new], out=nearest)
    return deaths.sort().values
