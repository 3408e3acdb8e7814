"""Neurons that are the same up to the rounding of their dtype."""

import torch
from jaxtyping import Float
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from lightning_topo.geometry.distances import check_cloud, widen

TOLERANCE = 8.0
"""Two points coincide when they are within this many units of rounding of the longer of the two."""

_TILE_ROWS = 256


@torch.no_grad()
def distinct_neurons(points: Float[Tensor, "n d"]) -> int:
    """Number of neurons that differ by more than rounding.

    It is the number of connected components of the graph that joins i and j when

        |x_i - x_j| <= 8 eps max(|x_i|, |x_j|),    eps of the cloud's own dtype.

    Raises:
        TypeError, ValueError: as `check_cloud`.

    >>> distinct_neurons(torch.tensor([[1.0], [1.0 + 1e-7], [2.0]]))
    2
    """
    check_cloud(points)
    n = len(points)
    if n == 0:
        return 0
    wide = widen(points)
    reach = TOLERANCE * torch.finfo(points.dtype).eps * wide.norm(dim=1)
    edges = [torch.empty((0, 2), dtype=torch.long)]
    for start in range(0, n, _TILE_ROWS):
        rows = slice(start, start + _TILE_ROWS)
        d = torch.cdist(wide[rows], wide[start:], compute_mode="donot_use_mm_for_euclid_dist")
        close = d <= torch.maximum(reach[rows, None], reach[None, start:])
        edges.append(close.triu_(1).nonzero().cpu() + start)
    i, j = torch.cat(edges).numpy().T
    graph = coo_array((torch.ones(len(i)).numpy(), (i, j)), shape=(n, n))
    return int(connected_components(graph, directed=False, return_labels=False))
