"""How the distance ratios of a step are distributed over all pairs of neurons."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_topo.geometry.distances import binary_scale, upper_tiles
from lightning_topo.geometry.distortion import check_step
from lightning_topo.geometry.pair_search import step_tile_rows, tile_ratios
from lightning_topo.geometry.precision import full_precision

QUANTILE_RESOLUTION = 2.0**-12
"""Relative error of the quantiles of |Δ_i - Δ_j| / d_ij and of d'_ij / d_ij - 1."""

_DROPPED_BITS = 11
_BINS = 1 << (31 - _DROPPED_BITS)


@dataclass(frozen=True, slots=True)
class DistortionQuantiles:
    """Quantiles over all pairs of |Δ_i - Δ_j| / d_ij (`step_ratio`) and d'_ij / d_ij (`distance_ratio`)."""

    levels: tuple[float, ...]
    step_ratio: tuple[float, ...]
    distance_ratio: tuple[float, ...]


def distortion_quantiles(
    before: Float[Tensor, "n d"], after: Float[Tensor, "n d"], levels: Sequence[float] = (0.01, 0.5, 0.99)
) -> DistortionQuantiles:
    """Quantiles of a step's ratios over all pairs, each the least value v with P(ratio <= v) >= level.

    The pairs stream through a histogram whose bins are floating-point numbers with fewer digits, so memory
    does not grow with their number; `QUANTILE_RESOLUTION` is the relative error of q and of d'/d - 1.

    Raises:
        TypeError, ValueError: as `step_distortion`; fewer than two points, or a level outside [0, 1].

    >>> before = torch.tensor([[0.0], [1.0], [3.0]])
    >>> distortion_quantiles(before, 2 * before, levels=[0.5]).distance_ratio
    (2.0,)
    """
    check_step(before, after)
    if len(before) < 2:
        raise ValueError(f"expected at least 2 points, got {len(before)}: quantiles are over pairs")
    if any(not 0 <= level <= 1 for level in levels):
        raise ValueError(f"expected levels between 0 and 1, got {list(levels)}")
    before, after = before.detach(), after.detach()
    critical = torch.zeros(2 * _BINS, dtype=torch.long, device=before.device)
    stretch = torch.zeros_like(critical)
    with full_precision(before.device):
        scale = min(binary_scale(before), binary_scale(after))
        for rows, columns in upper_tiles(len(before), step_tile_rows(before)):
            q, ratio = tile_ratios(before, after, rows, columns, scale)
            if rows == columns:
                above = torch.ones_like(q, dtype=torch.bool).triu_(1)
                q, ratio = q[above], ratio[above]
            for histogram, values in ((critical, q), (stretch, ratio - 1)):
                bins = _bin(values.float().flatten())
                histogram.scatter_add_(0, bins, torch.ones_like(bins))
    return DistortionQuantiles(
        levels=tuple(levels),
        step_ratio=_quantiles(critical, levels),
        distance_ratio=tuple(1 + value for value in _quantiles(stretch, levels)),
    )


def _bin(values: Float[Tensor, " p"]) -> Int[Tensor, " p"]:
    """The bin of each float32: its leading bits, in the order of the numbers."""
    magnitude = values.abs().view(torch.int32).long() >> _DROPPED_BITS
    return torch.where(values < 0, _BINS - 1 - magnitude, _BINS + magnitude)


def _quantiles(histogram: Int[Tensor, " b"], levels: Sequence[float]) -> tuple[float, ...]:
    """The lower end in magnitude of the bin in which each level is reached."""
    cumulative = histogram.cumsum(0)
    total = int(cumulative[-1])
    targets = torch.tensor([max(1, -int(-level * total // 1)) for level in levels], device=histogram.device)
    bins = torch.searchsorted(cumulative, targets)
    negative = bins < _BINS
    magnitude = torch.where(negative, _BINS - 1 - bins, bins - _BINS) << _DROPPED_BITS
    values = magnitude.int().view(torch.float32)
    return tuple(torch.where(negative, -values, values).tolist())
