"""Accurate distances between the points of a cloud: products where they resolve, differences where not."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from lightning_topo.geometry._precision import full_precision, product_slack, real_dtype, wide_dtype

ACCURACY = 1e-9
"""Relative error of squared distances in float64; on devices without it, that of float32."""

_TILE_ROWS = 256
_BLOCK_ELEMENTS = 1 << 21
_DIRECT_ELEMENTS = 1 << 20
_MAX_RECENTRINGS = 4


def check_cloud(points: Tensor, name: str = "points") -> None:
    """Raise an error unless `points` is a finite floating-point cloud of shape (n, d).

    Args:
        points: The tensor to check.
        name: What the error message calls it.

    Raises:
        TypeError: The dtype is not a real floating-point one.
        ValueError: The tensor is not two-dimensional, or holds NaN or infinities; the message lists such rows.

    >>> check_cloud(torch.zeros(3))
    Traceback (most recent call last):
        ...
    ValueError: expected points of shape (n, d), got (3,)
    """
    if points.ndim != 2:
        raise ValueError(f"expected {name} of shape (n, d), got {tuple(points.shape)}")
    if not points.is_floating_point():
        raise TypeError(
            f"expected {name} of a real floating-point dtype, got {points.dtype}: "
            "convert integers with .float(), complex numbers with torch.view_as_real(...).flatten(1)"
        )
    if torch.isfinite(points.detach().sum()):  # a finite sum has finite terms; an infinite one may overflow
        return
    bad = (~torch.isfinite(points)).any(dim=1)
    if bad.any():
        rows = bad.nonzero().flatten().tolist()
        shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
        raise ValueError(f"expected finite {name}, got NaN or infinity in {len(rows)} of {len(points)} rows: {shown}")


@dataclass(frozen=True, slots=True)
class Rows:
    """Points seen from an origin: `local` = scale * (points - origin) in the widest dtype, and its squares.

    The points themselves stay as they are, for differences that no rounding of `local` may touch.
    """

    points: Float[Tensor, "n d"]
    scale: float
    local: Float[Tensor, "n d"]
    squares: Float[Tensor, " n"]

    @staticmethod
    def around(points: Float[Tensor, "n d"], origin: Float[Tensor, " d"], scale: float = 1.0) -> "Rows":
        """The points relative to an origin of the widest dtype."""
        local = points.to(origin.dtype).sub(origin).mul_(scale)
        return Rows(points, scale, local, row_squares(local))

    @staticmethod
    def around_mean(points: Float[Tensor, "n d"]) -> "Rows":
        """The points relative to their mean, scaled so that no square vanishes or overflows."""
        points = points.detach()
        return Rows.around(points, mean_point(points), binary_scale(points))

    def __getitem__(self, index: slice) -> "Rows":
        return Rows(self.points[index], self.scale, self.local[index], self.squares[index])

    def __len__(self) -> int:
        return len(self.points)


def pairwise_distances(points: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """Compute all Euclidean distances |x_i - x_j| between the rows of a cloud.

    Returns a symmetric matrix with zero diagonal, in the cloud's dtype but at least float32. The relative error of each
    distance is a rounding error in float32, and about 1e-9 in float64, also for near rows and for clouds far from the
    origin. Equal rows have distance exactly 0.

    Raises:
        TypeError: The dtype is not a real floating-point one.
        ValueError: The cloud is not of shape (n, d), or holds NaN or infinities.

    >>> pairwise_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    tensor([[0., 5.],
            [5., 0.]])
    """
    check_cloud(points)
    with full_precision(points.device):
        rows = Rows.around_mean(points)
        return squared_distance_matrix(rows, real_dtype(points)).sqrt_().div_(rows.scale)


def diameter(points: Float[Tensor, "n d"]) -> float:
    """Compute the largest distance between two points of a cloud; 0 for fewer than two points.

    Distances are computed tile by tile: no n by n matrix is held.

    Raises:
        TypeError: The dtype is not a real floating-point one.
        ValueError: The cloud is not of shape (n, d), or holds NaN or infinities.

    >>> diameter(torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0]]))
    5.0
    """
    check_cloud(points)
    if len(points) < 2:
        return 0.0
    with full_precision(points.device):
        rows = Rows.around_mean(points)
        tiles = upper_tiles(len(rows), tile_rows(rows.local))
        largest = max(
            float(squared_distances(rows[above], rows[left], same=above == left).amax()) for above, left in tiles
        )
        return math.sqrt(largest) / rows.scale


def binary_scale(*clouds: Float[Tensor, "n d"]) -> float:
    """The power of two that brings the largest coordinate of all near 1, as far as the clouds' dtype holds it."""
    largest = max(
        (abs(float(x)) for points in clouds if points.numel() for x in points.detach().aminmax()), default=0.0
    )
    most = 1022 if clouds[0].dtype == torch.float64 else 126
    return 2.0 ** -max(-most, min(most, math.frexp(largest)[1])) if largest > 0 else 1.0


def mean_point(points: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    """The mean in the widest dtype, summed block by block: no wide copy of the cloud is made."""
    total = torch.zeros(points.shape[1], dtype=wide_dtype(points.device), device=points.device)
    for rows in row_blocks(points):
        total += points[rows].to(total.dtype).sum(dim=0)
    return total / max(1, len(points))


def wide_norms(points: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """The length of each row in the widest dtype: no wide copy of the cloud is made."""
    norms = torch.empty(len(points), dtype=wide_dtype(points.device), device=points.device)
    for rows in row_blocks(points):
        norms[rows] = torch.linalg.vector_norm(points[rows], dim=1, dtype=norms.dtype)
    return norms


def row_squares(points: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """|x_i|² of each row, in its own dtype: no second copy of the cloud is made."""
    found = [points[rows].square().sum(dim=1) for rows in row_blocks(points)]
    return found[0] if len(found) == 1 else torch.cat(found)


def row_blocks(points: Float[Tensor, "n d"]) -> Iterator[slice]:
    """Rows to be widened at once."""
    size = max(1, _BLOCK_ELEMENTS // max(1, points.shape[1]))
    for start in range(0, max(1, len(points)), size):
        yield slice(start, start + size)


def squared_distance_matrix(rows: Rows, dtype: torch.dtype) -> Float[Tensor, "n n"]:
    """All scaled |x_i - x_j|², symmetric, rounded to a dtype."""
    n = len(rows)
    matrix = _empty_matrix(n, dtype, rows.local.device)
    for above, left in upper_tiles(n, tile_rows(rows.local)):
        tile = squared_distances(rows[above], rows[left], same=above == left).to(dtype)
        if above == left:
            matrix[above, left] = torch.minimum(tile, tile.T)
        else:
            # torch transposes fast only between contiguous matrices.
            matrix[above, left], matrix[left, above] = tile, tile.T.contiguous()
    return matrix.fill_diagonal_(0)


def _empty_matrix(n: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "n n"]:
    """Uninitialised memory; on a CPU from NumPy, which asks for huge pages that are faster to touch first."""
    if device.type != "cpu":
        return torch.empty((n, n), dtype=dtype, device=device)
    return torch.from_numpy(np.empty((n, n), dtype=torch.empty(0, dtype=dtype).numpy().dtype))


def tile_rows(points: Float[Tensor, "n d"]) -> int:
    """Rows of a tile: few enough for a CPU's cache, many enough to keep a GPU busy."""
    return _TILE_ROWS if points.device.type == "cpu" else 8 * _TILE_ROWS


def upper_tiles(n: int, size: int) -> Iterator[tuple[slice, slice]]:
    """The tiles of an n by n matrix on and above its diagonal."""
    for top in range(0, n, size):
        for left in range(top, n, size):
            yield slice(top, min(top + size, n)), slice(left, min(left + size, n))


def squared_distances(a: Rows, b: Rows, recentrings: int = 0, *, same: bool = False) -> Float[Tensor, "m k"]:
    """scale² |a_i - b_j|² to a relative error of `ACCURACY`, by |a|² + |b|² - 2 a·b where that resolves it.

    Pairs too near for the product are taken again: groups of near points relative to one of their own, and
    the few pairs that remain by subtraction. Both clouds have one origin and one scale; `same` says that they are one
    cloud, whose diagonal need not be resolved to be 0.
    """
    squares = torch.addmm(b.squares.expand(len(a), -1), a.local, b.local.T, alpha=-2).add_(a.squares[:, None])
    dtype, d = a.local.dtype, a.local.shape[1]
    resolved = product_slack(dtype, d) / max(ACCURACY, torch.finfo(dtype).eps)
    if same:
        squares.fill_diagonal_(torch.inf)
    if squares.numel() == 0 or squares.amin() >= resolved * (a.squares.amax() + b.squares.amax()):
        return squares.fill_diagonal_(0) if same else squares

    near = squares < resolved * (a.squares[:, None] + b.squares)
    if int(near.sum()) <= len(a) + len(b) or recentrings == _MAX_RECENTRINGS:
        i, j = near.nonzero(as_tuple=True)
        squares[i, j] = direct_squares(a.points, i, b.points, j, a.scale)
        return squares.fill_diagonal_(0) if same else squares
    for i, j in _near_groups(near):
        origin = a.points[i[0]].to(dtype)
        parts = (Rows.around(a.points[i], origin, a.scale), Rows.around(b.points[j], origin, a.scale))
        squares[i[:, None], j] = squared_distances(*parts, recentrings=recentrings + 1)
    return squares.fill_diagonal_(0) if same else squares


def direct_squares(
    a: Float[Tensor, "m d"],
    i: Int[Tensor, " p"],
    b: Float[Tensor, "k d"],
    j: Int[Tensor, " p"],
    scale: float = 1.0,
) -> Float[Tensor, " p"]:
    """scale² |a_i - b_j|² of the listed pairs by subtraction, in the widest dtype of the device."""
    squares = torch.empty(len(i), dtype=wide_dtype(a.device), device=a.device)
    step = max(1, _DIRECT_ELEMENTS // max(1, a.shape[1]))
    for start in range(0, len(i), step):
        some = slice(start, start + step)
        difference = a[i[some]].to(squares.dtype) - b[j[some]].to(squares.dtype)
        squares[some] = difference.mul_(scale).square_().sum(dim=1)
    return squares


def _near_groups(near: Bool[Tensor, "m k"]) -> Iterator[tuple[Int[Tensor, " r"], Int[Tensor, " c"]]]:
    """Rows and columns of each connected component of a bipartite graph."""
    m, k = near.shape
    i, j = near.nonzero().cpu().numpy().T
    graph = coo_array((torch.ones(len(i)).numpy(), (i, m + j)), shape=(m + k, m + k))
    labels = torch.from_numpy(connected_components(graph, directed=False)[1]).to(near.device)
    members = labels.bincount()
    for label in (members > 1).nonzero().flatten():
        yield (labels[:m] == label).nonzero().flatten(), (labels[m:] == label).nonzero().flatten()
