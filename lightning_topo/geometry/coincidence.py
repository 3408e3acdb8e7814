"""Neurons that are the same, exactly or up to the rounding of their dtype."""

import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from lightning_topo.geometry.distances import check_cloud, direct_squares, tile_rows, upper_tiles
from lightning_topo.geometry.precision import full_precision, product_slack, wide_dtype

TOLERANCE = 8.0
"""Two points coincide when they are within this many units of rounding of the longer of the two."""

_PROJECTED_DIMENSIONS = 64


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
    if n < 2:
        return n
    with full_precision(points.device):
        return len(_component_labels(points.detach()).unique())


def coincident_pairs(points: Float[Tensor, "n d"]) -> int:
    """Number of pairs of exactly equal rows."""
    if points.shape[1] == 0:
        return len(points) * (len(points) - 1) // 2
    # Only rows that agree in the first coordinate can be equal: sorting whole rows is far slower.
    _, inverse, counts = points[:, 0].unique(return_inverse=True, return_counts=True)
    points = points[counts[inverse] > 1]
    if len(points) == 0:
        return 0
    _, counts = points.unique(dim=0, return_counts=True)
    return int((counts * (counts - 1) // 2).sum())


def _component_labels(points: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
    """Components of the graph of near-equal rows, grown tile by tile from the pairs a projection leaves."""
    n = len(points)
    lengths = torch.linalg.vector_norm(points, dim=1, dtype=wide_dtype(points.device))
    reach = TOLERANCE * torch.finfo(points.dtype).eps * lengths
    shadow = _projected(points)
    squares = shadow.square().sum(dim=1)
    slack = 1 - product_slack(shadow.dtype, shadow.shape[1])
    labels = torch.arange(n, device=points.device)
    for rows, columns in upper_tiles(n, tile_rows(shadow)):
        lower = torch.addmm(
            slack * squares[columns].expand(len(shadow[rows]), -1), shadow[rows], shadow[columns].T, alpha=-2
        ).add_(slack * squares[rows, None])
        if lower.amin() > torch.maximum(reach[rows].amax(), reach[columns].amax()).square():
            continue
        candidates = lower <= torch.maximum(reach[rows, None], reach[columns]).square()
        if rows == columns:
            candidates.triu_(1)
        # One candidate per column first: where whole groups coincide, these join them and spare the rest.
        occupied = candidates.any(dim=0).nonzero().flatten()
        first = candidates[:, occupied].int().argmax(dim=0)
        labels = _joined(points, reach, labels, rows.start + first, columns.start + occupied)
        i, j = candidates.nonzero(as_tuple=True)
        labels = _joined(points, reach, labels, rows.start + i, columns.start + j)
    return labels


def _joined(
    points: Float[Tensor, "n d"],
    reach: Float[Tensor, " n"],
    labels: Int[Tensor, " n"],
    i: Int[Tensor, " p"],
    j: Int[Tensor, " p"],
) -> Int[Tensor, " n"]:
    """Labels after joining those of the listed pairs that are within reach of each other."""
    apart = labels[i] != labels[j]
    i, j = i[apart], j[apart]
    near = direct_squares(points, i, points, j).sqrt() <= torch.maximum(reach[i], reach[j])
    i, j = i[near], j[near]
    if len(i) == 0:
        return labels
    n = len(labels)
    edges = torch.stack([labels[i], labels[j]]).cpu().numpy()
    graph = coo_array((torch.ones(len(i)).numpy(), tuple(edges)), shape=(n, n))
    merged = torch.from_numpy(connected_components(graph, directed=False)[1]).to(labels)
    return merged[labels]


def _projected(points: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
    """The cloud in a random subspace: distances shrink, so points far apart there are far apart."""
    wide, d = wide_dtype(points.device), points.shape[1]
    m = min(d, max(_PROJECTED_DIMENSIONS, d // _PROJECTED_DIMENSIONS))
    mean = points.mean(dim=0, dtype=wide)
    if m == d:
        return points.to(wide) - mean
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(d, m, generator=generator, dtype=wide))[0].to(points.device)
    return points.to(wide) @ basis - mean @ basis
