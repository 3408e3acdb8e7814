"""Distances to nearest neighbours, from below: rounding can only make them smaller."""

import torch
from jaxtyping import Float, Int
from scipy.spatial import KDTree
from torch import Tensor

from lightning_topo.geometry._distances import mean_point, wide_norms
from lightning_topo.geometry._precision import wide_dtype, worst_case_slack, worst_case_work

_TILE_ELEMENTS = 1 << 22
_BLOCK_ELEMENTS = 1 << 21
UNRESOLVED = 64.0
_DIRECTIONS = 6


def nearest_by_products(clouds: Float[Tensor, "b n d"]) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b 1"]]:
    """Lower bounds of the distance to the nearest neighbour, and the distance from which they are good to a percent.

    |x_i - x_j|² >= (1 - κ) (|x_i|² + |x_j|²) - 2 x_i·x_j,    κ the worst case of rounding
    """
    b, n, d = clouds.shape
    wide = wide_dtype(clouds.device)
    slack, work, scale = working_points(clouds)
    rows_at_once = max(1, _BLOCK_ELEMENTS // (b * max(1, d)))
    parts = work.split(rows_at_once, dim=1)
    squares = torch.cat([part.square().sum(dim=2) for part in parts], dim=1).mul_(1 - slack)
    nearest = torch.empty((b, n), dtype=wide, device=clouds.device)
    size = max(1, _TILE_ELEMENTS // (n * b))
    for start in range(0, n, size):
        rows = slice(start, start + size)
        tile = torch.baddbmm(squares[:, None, :], work[:, rows], work.mT, alpha=-2)
        tile.diagonal(offset=start, dim1=1, dim2=2).fill_(torch.inf)
        nearest[:, rows] = tile.amin(dim=2).to(wide) + squares[:, rows]
    largest = squares.amax(dim=1, keepdim=True).to(wide)
    return (
        lower_roots(nearest, work.dtype, d) / scale[:, :, 0],
        (2 * UNRESOLVED * slack * largest).sqrt() / scale[:, :, 0],
    )


def working_points(
    clouds: Float[Tensor, "b n d"],
) -> tuple[float, Float[Tensor, "b n d"], Float[Tensor, "b 1 1"]]:
    """The relative error of products of the points in their working precision, these points, and their scale.

    They are centred, near enough, and multiplied by the power of two that brings the largest coordinate near 1.
    """
    work = worst_case_work(clouds.dtype, clouds.device, clouds.shape[2])
    # Any centre serves that is the same for all: rounding it costs nothing.
    centred = clouds.to(work) - clouds.mean(dim=1, keepdim=True, dtype=work)
    lowest, highest = centred.amin(dim=(1, 2), keepdim=True), centred.amax(dim=(1, 2), keepdim=True)
    largest = torch.maximum(-lowest, highest).to(wide_dtype(clouds.device))
    exponent = torch.frexp(largest).exponent.clamp(-120, 120)
    scale = torch.ldexp(torch.ones_like(exponent, dtype=wide_dtype(clouds.device)), -exponent)
    return worst_case_slack(work, clouds.shape[2]), centred.mul_(scale.to(work)), scale


def lower_roots(squares: Float[Tensor, "..."], work: torch.dtype, d: int) -> Float[Tensor, "..."]:
    """Square roots of sums of d squares that may have vanished below the range of their dtype; 0 for less."""
    return (squares - 4 * d * torch.finfo(work).tiny).clamp(min=0).sqrt()


def near_by_directions(
    cloud: Float[Tensor, "n d"], rows: Int[Tensor, " m"], k: int
) -> tuple[Float[Tensor, "m l"], Int[Tensor, "m l"]]:
    """Lower bounds, without m² work, of the distances between these finite rows: to k of them, and to all others.

    The k are the nearest in the subspace of a few directions of largest spread, and their distances are computed in all
    directions. The last column bounds the distances to those that are farther away in the subspace:

    |x_i - x_j| >= |P (x_i - x_j)|,    P an orthogonal projection

    Rows must differ from each other: a tree of many equal points takes n² work. Returns the distances and the numbers
    of the rows, in the last column of no particular one.
    """
    wide = wide_dtype(cloud.device)
    m, d = len(rows), cloud.shape[1]
    if m < 2:
        return torch.full((m, 1), torch.inf, dtype=wide, device=cloud.device), rows[:, None]
    mean, blocks = mean_point(cloud), cloud.split(max(1, _BLOCK_ELEMENTS // max(1, d)))
    basis = torch.randn(d, min(d, _DIRECTIONS), generator=torch.Generator().manual_seed(0), dtype=wide)
    basis = basis.to(cloud.device)
    for _ in range(3):  # subspace iteration
        product = sum(((x := block.to(wide) - mean).mT @ (x @ basis) for block in blocks), torch.zeros_like(basis))
        basis = torch.linalg.qr(product + torch.finfo(wide).tiny).Q
    shadow = torch.cat([(block.to(wide) - mean) @ basis for block in blocks])[rows].cpu()
    if bool((first_equal(shadow) != torch.arange(m)).any()):  # distinct neurons that the directions do not tell apart
        return torch.zeros((m, 1), dtype=wide, device=cloud.device), rows[:, None]
    n_near = min(k, m - 1)
    tree = KDTree(shadow.numpy(), balanced_tree=False, compact_nodes=False)
    found, columns = tree.query(shadow.numpy(), k=min(n_near + 2, m))
    near = torch.from_numpy(columns).to(cloud.device)
    # The basis is orthonormal, and products are right, to this much of the cloud's own size.
    error = 64 * worst_case_slack(wide, d)
    reach = wide_norms(cloud).amax()
    lower = torch.from_numpy(found).to(cloud.device, wide)
    lower = (lower * (1 - error) - error * (reach + mean.norm())).clamp(min=0)
    far = lower[:, -1:] if near.shape[1] > n_near + 1 else torch.full_like(lower[:, -1:], torch.inf)
    near = near[:, : n_near + 1]
    at_once = max(1, _BLOCK_ELEMENTS // (d * near.shape[1]))
    pieces = zip(rows.split(at_once), near.split(at_once), strict=True)
    true = torch.cat([_lengths_between(cloud[some][:, None], cloud[rows[others]]) for some, others in pieces])
    own = near == torch.arange(m, device=cloud.device)[:, None]
    distances = torch.cat([true.masked_fill(own, torch.inf), far], dim=1)
    return distances, rows[torch.cat([near, near[:, -1:]], dim=1)]


def first_equal(cloud: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
    """For each row the first one that equals it, itself or one before, without n² work and without sorting rows.

    Rows are compared with the first one of the same hash: of two that share it by chance only one is found equal to
    others, and that is no mistake in a bound.
    """
    n, d = cloud.shape
    weights = torch.randint(-(2**62), 2**62, (d,), generator=torch.Generator().manual_seed(0)) * 2 + 1
    weights = weights.to(cloud.device)
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[cloud.element_size()]
    parts = cloud.split(max(1, _BLOCK_ELEMENTS // max(1, d)))
    # Adding zero turns its negative into itself: the two are equal, and their bits are not.
    bits = ((part + 0.0).contiguous().view(whole).long() for part in parts)
    # The last bits of round numbers are all zero, and those of their products then, too.
    hashes = torch.cat([((part ^ (part >> 32) ^ (part >> 16)) * weights).sum(dim=1) for part in bits])
    _, place = hashes.unique(return_inverse=True)
    numbers = torch.arange(n, device=cloud.device)
    first = torch.full_like(numbers, n).scatter_reduce_(0, place, numbers, "amin")[place]
    members = (first != numbers).nonzero().flatten()
    same = [(cloud[some] == cloud[first[some]]).all(dim=1) for some in members.split(max(1, _BLOCK_ELEMENTS // d))]
    if len(members):
        others = members[~torch.cat(same)]
        first[others] = others
    return first


def _lengths_between(here: Float[Tensor, "m 1 d"], there: Float[Tensor, "m l d"]) -> Float[Tensor, "m l"]:
    """Lower bounds of the distances, which neither overflow nor vanish where the differences do not."""
    wide = wide_dtype(here.device)
    apart = there.to(wide) - here.to(wide)
    largest = apart.abs().amax(dim=2, keepdim=True)
    lengths = torch.linalg.vector_norm(apart / torch.where(largest > 0, largest, 1.0), dim=2) * largest[..., 0]
    return lengths * (1 - 4 * worst_case_slack(wide, here.shape[2]))
