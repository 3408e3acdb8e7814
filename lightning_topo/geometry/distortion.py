"""Step distortion: how far one optimizer step bends a cloud of neurons, exactly and over all pairs."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_topo.geometry.distances import check_cloud, widen

Pair = tuple[int, int]

_TILE_ROWS = 256


@dataclass(frozen=True, slots=True)
class StepDistortion:
    """The extreme distance ratios of a step X -> X' = X + Δ of n neurons, and the pairs that attain them.

    With d_ij = |x_i - x_j| and d'_ij = |x'_i - x'_j|:

        critical_ratio  r = max |Δ_i - Δ_j| / d_ij
        contraction     a = min d'_ij / d_ij
        expansion       b = max d'_ij / d_ij

    and 1 - r <= a <= b <= 1 + r. If r < 1, no two distinct neurons merged in this step, and the step map is
    bi-Lipschitz with constants 1 - r and 1 + r. A pair with d_ij = 0 counts with ratio 1 and q = 0 where it
    stays together, and with r = b = inf where it splits. Without any pair, r = 0 and a = b = 1.

    `n_coincident`, `n_split` and `n_merged` count pairs: those with d_ij = 0, those of them with d'_ij > 0,
    and those with d_ij > 0 and d'_ij = 0. `exact` is False where not every pair was looked at.

    Source: arXiv:2510.02670.
    """

    critical_ratio: float
    contraction: float
    expansion: float
    critical_pair: Pair | None
    contraction_pair: Pair | None
    expansion_pair: Pair | None
    n_points: int
    n_coincident: int = 0
    n_split: int = 0
    n_merged: int = 0
    exact: bool = True

    @property
    def log_distortion(self) -> float:
        """log(b / a): 0 for a similarity, infinite where neurons split or merged."""
        if self.contraction == 0 or self.expansion == math.inf:
            return math.inf
        return math.log(self.expansion / self.contraction)

    @property
    def certified(self) -> bool:
        """Whether this step provably kept distinct neurons distinct and equal ones equal."""
        return self.exact and self.critical_ratio < 1 and self.n_split == 0


@torch.no_grad()
def step_distortion(before: Float[Tensor, "n d"], after: Float[Tensor, "n d"]) -> StepDistortion:
    """Measure a step of a cloud of n neurons over all of its pairs: see `StepDistortion` for the formulas.

    Raises:
        TypeError: a cloud is not of a real floating-point dtype.
        ValueError: the clouds differ in shape, or hold NaN or infinities.

    >>> before = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    >>> step = step_distortion(before, 2.0 * before)
    >>> step.critical_ratio, step.contraction, step.expansion, step.critical_pair
    (1.0, 2.0, 2.0, (0, 1))
    """
    if before.shape != after.shape:
        raise ValueError(
            f"expected two clouds of the same shape, got {tuple(before.shape)} and {tuple(after.shape)}"
        )
    check_cloud(before, "points before the step")
    check_cloud(after, "points after the step")
    n = len(before)
    if n < 2:
        return StepDistortion(0.0, 1.0, 1.0, None, None, None, n_points=n)

    wide_before, wide_after = widen(before), widen(after)
    step = wide_after - wide_before
    critical, contraction, expansion = (-1.0, (0, 1)), (math.inf, (0, 1)), (-1.0, (0, 1))
    n_coincident = n_split = n_merged = 0
    for start in range(0, n - 1, _TILE_ROWS):
        rows = slice(start, min(start + _TILE_ROWS, n))
        d = _distances(wide_before, rows)
        d_after = _distances(wide_after, rows)
        d_step = _distances(step, rows)
        upper = torch.ones_like(d, dtype=torch.bool).triu_(1)
        together = (d == 0) & upper
        split = together & (d_after > 0)
        n_coincident += int(together.sum())
        n_split += int(split.sum())
        n_merged += int(((d > 0) & (d_after == 0) & upper).sum())

        q = torch.where(d == 0, torch.where(d_after > 0, math.inf, 0.0), d_step / d)
        ratio = torch.where(d == 0, torch.where(d_after > 0, math.inf, 1.0), d_after / d)
        critical = max(critical, _largest(q.masked_fill(~upper, -1.0), start))
        expansion = max(expansion, _largest(ratio.masked_fill(~upper, -1.0), start))
        least, pair = _largest(-ratio.masked_fill(~upper, math.inf), start)
        contraction = min(contraction, (-least, pair))
    return StepDistortion(
        critical_ratio=critical[0],
        contraction=contraction[0],
        expansion=expansion[0],
        critical_pair=critical[1],
        contraction_pair=contraction[1],
        expansion_pair=expansion[1],
        n_points=n,
        n_coincident=n_coincident,
        n_split=n_split,
        n_merged=n_merged,
    )


def _distances(points: Float[Tensor, "n d"], rows: slice) -> Float[Tensor, "m k"]:
    """Distances from the rows to themselves and all later ones."""
    return torch.cdist(points[rows], points[rows.start :], compute_mode="donot_use_mm_for_euclid_dist")


def _largest(values: Float[Tensor, "m k"], offset: int) -> tuple[float, Pair]:
    """The largest entry of a tile whose corner is (offset, offset), and its pair of points."""
    flat = int(values.argmax())
    i, j = divmod(flat, values.shape[1])
    return float(values[i, j]), (offset + i, offset + j)
