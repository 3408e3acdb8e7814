"""Step distortion: how far one optimizer step bends a cloud of neurons, exactly and over all pairs."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_topo.geometry.coincidence import coincident_pairs
from lightning_topo.geometry.distances import check_cloud
from lightning_topo.geometry.pair_search import Pair, search_extreme_pairs
from lightning_topo.geometry.precision import full_precision


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
    and those with d_ij > 0 and d'_ij = 0.

    `exact` is False where not every pair was looked at in full. Then, but with probability
    `failure_probability`, at most a fraction `unseen_pairs` of all pairs lies outside the values given, or
    outside them by more than `error_factor`: a lower bound of r, never a certificate.

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
    unseen_pairs: float = 0.0
    error_factor: float = 1.0
    failure_probability: float = 0.0

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


def step_distortion(before: Float[Tensor, "n d"], after: Float[Tensor, "n d"]) -> StepDistortion:
    """Measure a step of a cloud of n neurons over all of its pairs: see `StepDistortion` for the formulas.

    Any two captures of the same neurons make a step: one optimizer step, an epoch, or all of training. The
    values are those of the named pairs, computed from differences in float64; no n by n matrix is held.

    Raises:
        TypeError: a cloud is not of a real floating-point dtype.
        ValueError: the clouds differ in shape, or hold NaN or infinities.

    >>> before = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    >>> step = step_distortion(before, 2.0 * before)
    >>> step.critical_ratio, step.contraction, step.expansion, step.critical_pair
    (1.0, 2.0, 2.0, (0, 1))
    """
    check_step(before, after)
    n = len(before)
    if n < 2:
        return StepDistortion(0.0, 1.0, 1.0, None, None, None, n_points=n)
    with full_precision(before.device):
        before, after = before.detach(), after.detach()
        extremes = search_extreme_pairs(before, after)
        n_coincident, n_coincident_after = coincident_pairs(before), coincident_pairs(after)
        kept = n_coincident > 0 and n_coincident_after > 0
        n_kept = coincident_pairs(torch.cat([before, after], dim=1)) if kept else 0
    return StepDistortion(
        critical_ratio=extremes.critical.value,
        contraction=extremes.contraction.value,
        expansion=extremes.expansion.value,
        critical_pair=extremes.critical.pair,
        contraction_pair=extremes.contraction.pair,
        expansion_pair=extremes.expansion.pair,
        n_points=n,
        n_coincident=n_coincident,
        n_split=n_coincident - n_kept,
        n_merged=n_coincident_after - n_kept,
    )


def check_step(before: Tensor, after: Tensor) -> None:
    """Raise unless both clouds are sound and have the same shape."""
    if before.shape != after.shape:
        raise ValueError(
            f"expected two clouds of the same shape, got {tuple(before.shape)} and {tuple(after.shape)}"
        )
    check_cloud(before, "points before the step")
    check_cloud(after, "points after the step")
