"""Persistent homology in dimension 0: the minimum spanning tree, on the cloud's own device.

Prim's algorithm on a CPU; on an accelerator, where each of its n - 1 steps would wait for the device, that
of Borůvka, which joins every component to its nearest one in each of O(log n) rounds. Where the n by n matrix
does not fit, Borůvka again, on lists of nearest neighbours that are renewed tile by tile.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_topo.geometry._distances import Rows, check_cloud, squared_distance_matrix
from lightning_topo.geometry._precision import full_precision, real_dtype
from lightning_topo.homology._neighbours import NeighbourLists, least_of_each
from lightning_topo.homology._spanning import prim

MATRIX_BYTES = 1 << 30
"""Distances are held in full up to this many bytes."""

Labels = Int[Tensor, " n"]
NearestOutside = Callable[[Labels], tuple[Tensor, Tensor]]


def h0_deaths(points: Float[Tensor, "n d"], matrix_bytes: int = MATRIX_BYTES) -> Float[Tensor, " m"]:
    """Compute the n - 1 finite deaths in homology dimension 0: the edge lengths of the minimum spanning tree.

    Returns them in ascending order, in the cloud's dtype but at least float32; empty for fewer than two points. Each
    is accurate to the rounding of float32, the smallest too. Equal points give deaths of 0.

    Args:
        points: The cloud, one row per point.
        matrix_bytes: If all distances take more memory than this, they are computed tile by tile, which is slower.

    Raises:
        TypeError: The dtype is not a real floating-point one.
        ValueError: The cloud is not of shape (n, d), or holds NaN or infinities.

    >>> h0_deaths(torch.tensor([[0.0], [1.0], [1.0], [4.0]]))
    tensor([0., 1., 3.])
    """
    check_cloud(points)
    dtype = real_dtype(points)
    n = len(points)
    if n < 2:
        return torch.empty(0, dtype=dtype, device=points.device)
    with full_precision(points.device):
        if n * n * dtype.itemsize <= matrix_bytes:
            rows = Rows.around_mean(points)
            squares, scale = spanning_weights(squared_distance_matrix(rows, dtype)), rows.scale
        else:
            lists = NeighbourLists(points.detach())
            squares, scale = _boruvka(lists.labels, lists.nearest_outside).sort().values, lists.scale
        return squares.to(dtype).sqrt_().div_(scale)


def spanning_weights(weights: Float[Tensor, "n n"]) -> Float[Tensor, " m"]:
    """The sorted n - 1 weights of the minimum spanning tree of a symmetric non-negative matrix."""
    if len(weights) < 2:
        return weights.new_empty(0)
    if weights.device.type == "cpu":
        return torch.from_numpy(prim(weights.numpy()))

    def nearest_outside(labels: Labels) -> tuple[Tensor, Tensor]:
        nearest, neighbours = weights.masked_fill(labels[:, None] == labels, torch.inf).min(dim=1)
        return nearest, neighbours

    return _boruvka(torch.arange(len(weights), device=weights.device), nearest_outside).sort().values


def _boruvka(labels: Labels, nearest_outside: NearestOutside) -> Float[Tensor, " m"]:
    """Every component joins its nearest neighbour, until one is left; the labels count points at first.

    `nearest_outside(labels)` gives each point's nearest point of another component, with its weight; only the
    least of each component need be right. Where picks form a cycle, as ties may, exactly one is dropped.
    """
    points = labels.clone()
    joined: list[Tensor] = []
    while (count := int(labels.max()) + 1) > 1:
        weights, neighbours = nearest_outside(labels)
        least = least_of_each(weights, labels, count)
        pickers = torch.where(weights == least[labels], points, len(points))
        picker = torch.full_like(points[:count], len(points)).scatter_reduce_(0, labels, pickers, "amin")
        roots = _cycle_roots(labels[neighbours[picker]])
        joined.append(least[roots != points[:count]])
        labels = roots.unique(return_inverse=True)[1][labels]
    return torch.cat(joined)


def _cycle_roots(successor: Labels) -> Labels:
    """For each node of a functional graph, the least node of the cycle it runs into; by pointer doubling."""
    least = torch.arange(len(successor), device=successor.device)
    for _ in range(len(successor).bit_length()):
        least = torch.minimum(least, least[successor])
        successor = successor[successor]
    return least[successor]
