"""Distances to nearest neighbours, from below: rounding can only make them smaller."""

import torch
from jaxtyping import Float
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


def nearest_by_directions(cloud: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Lower bounds without n² work: nearest neighbours in the subspace of a few directions of largest spread.

    |x_i - x_j| >= |P (x_i - x_j)|,    P an orthogonal projection
    """
    wide = wide_dtype(cloud.device)
    n, d = cloud.shape
    if not bool(torch.isfinite(cloud).all()):
        return torch.full((n,), torch.nan, dtype=wide, device=cloud.device)
    mean, blocks = mean_point(cloud), cloud.split(max(1, _BLOCK_ELEMENTS // max(1, d)))
    basis = torch.randn(d, min(d, _DIRECTIONS), generator=torch.Generator().manual_seed(0), dtype=wide)
    basis = basis.to(cloud.device)
    for _ in range(3):  # subspace iteration
        product = sum(((x := block.to(wide) - mean).mT @ (x @ basis) for block in blocks), torch.zeros_like(basis))
        basis = torch.linalg.qr(product + torch.finfo(wide).tiny).Q
    shadow = torch.cat([(block.to(wide) - mean) @ basis for block in blocks]).cpu().numpy()
    found = KDTree(shadow, balanced_tree=False, compact_nodes=False).query(shadow, k=2)[0][:, 1]
    nearest = torch.from_numpy(found).to(cloud.device, wide)
    # The basis is orthonormal, and products are right, to this much of the cloud's own size.
    error = 64 * worst_case_slack(wide, d)
    reach = wide_norms(cloud).amax()
    return (nearest * (1 - error) - error * (reach + mean.norm())).clamp(min=0)
