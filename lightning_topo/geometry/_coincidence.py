"""Neurons that are the same, exactly or up to the rounding of their dtype."""

import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from lightning_topo.geometry._distances import (
    check_cloud,
    direct_squares,
    mean_point,
    row_blocks,
    tile_rows,
    upper_tiles,
    wide_norms,
)
from lightning_topo.geometry._precision import full_precision, product_slack, wide_dtype, worst_case_slack

TOLERANCE = 8.0
"""Two points coincide when they are within this many units of rounding of the longer of the two."""

_DIRECTIONS = 8


def distinct_neurons(points: Tensor) -> int:
    """Count the neurons of a cloud that differ by more than rounding.

    The graph that joins neurons i and j of one cloud if

        |x_i - x_j| <= 8 eps max(|x_i|, |x_j|),    eps the machine epsilon of the cloud's dtype,

    has as many connected components as there are distinct neurons. The count is exact. Sorting along a few random
    directions separates most neurons, so that few pairs are compared.

    Args:
        points: A cloud (n, d), or b clouds (b, n, d), whose counts are added up.

    Raises:
        TypeError: The dtype is not a real floating-point one.
        ValueError: The shape is another one, or there are NaN or infinities.

    >>> distinct_neurons(torch.tensor([[1.0], [1.0 + 1e-7], [2.0]]))
    2
    """
    clouds = points[None] if points.ndim == 2 else points
    if clouds.ndim != 3:
        raise ValueError(f"expected points of shape (n, d) or (b, n, d), got {tuple(points.shape)}")
    rows = clouds.detach().flatten(0, 1)
    check_cloud(rows)
    b, n, _ = clouds.shape
    if n < 2:
        return b * n
    with full_precision(rows.device):
        reach = _reach(rows)
        blocks = torch.arange(b, device=rows.device).repeat_interleave(n)
        alone, together = _segments(rows, reach, blocks)
        return alone + sum(_n_components(rows[some], reach[some]) for some in together)


def merged_sizes(points: Float[Tensor, "n d"]) -> tuple[int, ...]:
    """Return the sizes of the classes of two or more coinciding neurons, the largest first.

    Neurons coincide as in `distinct_neurons`.

    >>> merged_sizes(torch.tensor([[1.0], [1.0 + 1e-7], [2.0]]))
    (2,)
    """
    if len(points) < 2:
        return ()
    with full_precision(points.device):
        rows = points.detach()
        reach = _reach(rows)
        _, together = _segments(rows, reach, torch.zeros(len(rows), dtype=torch.long, device=rows.device))
        sizes = [size for some in together for size in _labels(rows[some], reach[some]).unique(return_counts=True)[1]]
    return tuple(sorted((int(size) for size in sizes if size > 1), reverse=True))


def coincident_pairs(points: Float[Tensor, "n d"]) -> int:
    """Number of pairs of exactly equal rows."""
    return sum(len(rows) * (len(rows) - 1) // 2 for rows in equal_rows(points))


def equal_rows(points: Float[Tensor, "n d"]) -> list[Int[Tensor, " k"]]:
    """Find every set of two or more exactly equal rows.

    Returns the row numbers of each set, ascending; an empty list if all rows differ.

    >>> equal_rows(torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]]))
    [tensor([0, 2])]
    """
    n, d = points.shape
    rows = torch.arange(n, device=points.device)
    if d == 0:
        return [rows] if n > 1 else []
    # Only rows that agree in a coordinate can be equal: sorting whole rows is far slower.
    for column in {0, d // 2, d - 1}:
        _, inverse, counts = points[rows, column].unique(return_inverse=True, return_counts=True)
        rows = rows[counts[inverse] > 1]
        if len(rows) == 0:
            return []
    _, labels, counts = points[rows].unique(dim=0, return_inverse=True, return_counts=True)
    return [rows[labels == label] for label in (counts > 1).nonzero().flatten()]


def _reach(points: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """How near others must come to a point to coincide with it, unless they are longer."""
    return TOLERANCE * torch.finfo(points.dtype).eps * wide_norms(points)


def _segments(
    points: Float[Tensor, "n d"], reach: Float[Tensor, " n"], segments: Int[Tensor, " n"]
) -> tuple[int, list[Int[Tensor, " _"]]]:
    """Split segments of points where a direction leaves a gap wider than any reach: how many are alone, and the rest.

    Direction by direction, and again by the first, since the reach within a segment shrinks with it.
    """
    shadows = _shadows(points)
    eps = torch.finfo(points.dtype).eps
    error = 2 * worst_case_slack(shadows.dtype, points.shape[1]) / (TOLERANCE * eps)
    rows = torch.arange(len(points), device=points.device)
    alone = 0
    for k in (*range(shadows.shape[1]), 0, 1):
        if len(rows) == 0:
            break
        order = shadows[rows, k].argsort()
        order = order[segments[order].argsort(stable=True)]
        rows, segments = rows[order], segments[order]
        widest = reach.new_zeros(int(segments[-1]) + 1).scatter_reduce_(0, segments, reach[rows], "amax")
        gaps = shadows[rows, k].diff() > (1 + error) * widest[segments[1:]]
        cuts = gaps | (segments.diff() > 0)
        segments = torch.cat([cuts.new_zeros(1), cuts]).cumsum(0)
        counts = segments.bincount()
        several = counts[segments] > 1
        alone += int((counts == 1).sum())
        rows, segments = rows[several], segments[several]
        segments = segments.unique(return_inverse=True)[1]
    return alone, list(rows.split(segments.bincount().tolist())) if len(rows) else []


def _shadows(points: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
    """The points along a few random unit vectors, always the same."""
    wide, d = wide_dtype(points.device), points.shape[1]
    count = min(_DIRECTIONS, len(points).bit_length())  # few points are soon compared
    directions = torch.randn(d, count, generator=torch.Generator().manual_seed(0), dtype=wide)
    directions = (directions / directions.norm(dim=0).clamp(min=torch.finfo(wide).tiny)).to(points.device)
    return torch.cat([points[rows].to(wide) @ directions for rows in row_blocks(points)])


def _n_components(points: Float[Tensor, "n d"], reach: Float[Tensor, " n"]) -> int:
    """Components among a few points near each other."""
    return int(_labels(points, reach).amax()) + 1


def _labels(points: Float[Tensor, "n d"], reach: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """The component of each of a few points near each other; where the first reaches all of them, there is one."""
    labels = torch.arange(len(points), device=points.device)
    labels = _joined(points, reach, labels, torch.zeros_like(labels[1:]), labels[1:])
    return labels if int(labels.amax()) == 0 else _labels_by_products(points, reach, labels)


def _labels_by_products(
    points: Float[Tensor, "n d"], reach: Float[Tensor, " n"], labels: Int[Tensor, " n"]
) -> Int[Tensor, " n"]:
    """Components of the graph of near-equal rows, grown tile by tile from the pairs that products do not resolve."""
    local = points.to(wide_dtype(points.device)) - mean_point(points)
    squares = local.square().sum(dim=1)
    slack = 1 - product_slack(local.dtype, local.shape[1])
    for rows, columns in upper_tiles(len(points), tile_rows(local)):
        lower = torch.addmm(
            slack * squares[columns].expand(len(local[rows]), -1), local[rows], local[columns].T, alpha=-2
        ).add_(slack * squares[rows, None])
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
    n = int(labels.amax()) + 1
    edges = torch.stack([labels[i], labels[j]]).cpu().numpy()
    graph = coo_array((torch.ones(len(i)).numpy(), tuple(edges)), shape=(n, n))
    merged = torch.from_numpy(connected_components(graph, directed=False)[1]).to(labels)
    return merged[labels]
