"""Step distortion of clouds too large to compare all pairs at every step, with the error stated.

What is reported is always the ratio of a real pair, evaluated exactly: r and b from below, a from above. How
far the true extremes can be is stated as a probability bound. Never a certificate.
"""

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from scipy.stats import chi2
from torch import Tensor

from lightning_topo.geometry.coincidence import coincident_pairs
from lightning_topo.geometry.distances import binary_scale
from lightning_topo.geometry.distortion import StepDistortion, check_step, step_distortion
from lightning_topo.geometry.pair_search import Pair, pair_ratios, search_extreme_pairs
from lightning_topo.geometry.precision import full_precision, wide_dtype

_BLOCK_ELEMENTS = 1 << 22


def sampled_step_distortion(
    before: Float[Tensor, "n d"],
    after: Float[Tensor, "n d"],
    n_rows: int = 64,
    generator: torch.Generator | None = None,
    failure_probability: float = 0.05,
) -> StepDistortion:
    """Step distortion over the pairs among randomly drawn neurons; reads nothing but their rows.

    `n_rows` rows are drawn with replacement. They hold n_rows // 2 independent pairs; so, but with
    probability `failure_probability` δ, each of r, a and b is exceeded by at most a fraction

        unseen_pairs = (1 - (δ/3)^(1 / (n_rows // 2))) n / (n - 1)

    of all pairs. Without a generator the same rows are drawn every time. The counts of coincident, split and
    merged pairs are those of the sample, and only the rows drawn are checked for NaN and infinities. A cloud
    of at most `n_rows` neurons is measured exactly.

    Raises:
        TypeError, ValueError: as `step_distortion`; `n_rows` < 2, or a probability outside (0, 1).

    >>> before = torch.arange(100.0)[:, None]
    >>> step = sampled_step_distortion(before, 3 * before, generator=torch.Generator().manual_seed(0))
    >>> step.expansion, step.exact, round(step.unseen_pairs, 3)
    (3.0, False, 0.121)
    """
    if n_rows < 2:
        raise ValueError(f"expected n_rows >= 2, got {n_rows}")
    _check_probability(failure_probability)
    n = len(before)
    if before.shape != after.shape or n <= n_rows:
        return step_distortion(before, after)
    generator = generator or torch.Generator().manual_seed(0)
    drawn = torch.randint(n, (n_rows,), generator=generator, device=generator.device).unique()
    rows = drawn.to(before.device)
    step = step_distortion(before[rows], after[rows])
    return replace(
        step,
        critical_pair=_relabelled(step.critical_pair, drawn),
        contraction_pair=_relabelled(step.contraction_pair, drawn),
        expansion_pair=_relabelled(step.expansion_pair, drawn),
        n_points=n,
        exact=False,
        unseen_pairs=min(1.0, (1 - (failure_probability / 3) ** (1 / (n_rows // 2))) * n / (n - 1)),
        failure_probability=failure_probability,
    )


def projected_step_distortion(
    before: Float[Tensor, "n d"],
    after: Float[Tensor, "n d"],
    n_dimensions: int = 512,
    generator: torch.Generator | None = None,
    failure_probability: float = 0.05,
) -> StepDistortion:
    """Step distortion by the extreme pairs of a random Gaussian projection, evaluated in the full space.

    A projection P to m dimensions changes a squared length by a factor that is distributed as χ²_m / m. With
    l and h its quantiles at which all 3 n (n - 1) / 2 vectors x_i - x_j, x'_i - x'_j, Δ_i - Δ_j stay within
    [l, h] but with probability `failure_probability`, the true extremes satisfy

        r <= f critical_ratio,   b <= f expansion,   a >= contraction / f,      error_factor f = h / l.

    It pays where d is much larger than m; a cloud with d <= m is measured exactly. Without a generator the
    projection is always the same.

    Raises:
        TypeError, ValueError: as `step_distortion`; `n_dimensions` < 1, or a probability outside (0, 1).

    >>> before = torch.randn(30, 2000, generator=torch.Generator().manual_seed(0))
    >>> step = projected_step_distortion(before, 3 * before, generator=torch.Generator().manual_seed(0))
    >>> round(step.expansion, 5), step.exact, round(step.error_factor, 2)
    (3.0, False, 1.68)
    """
    if n_dimensions < 1:
        raise ValueError(f"expected n_dimensions >= 1, got {n_dimensions}")
    _check_probability(failure_probability)
    check_step(before, after)
    n, d = before.shape
    if d <= n_dimensions or n < 2:
        return step_distortion(before, after)
    before, after = before.detach(), after.detach()
    generator = generator or torch.Generator().manual_seed(0)
    with full_precision(before.device):
        n_coincident, n_coincident_after = coincident_pairs(before), coincident_pairs(after)
        both = torch.cat([before, after], dim=1) if min(n_coincident, n_coincident_after) else None
        n_kept = 0 if both is None else coincident_pairs(both)
        kept = torch.arange(n, device=before.device) if both is None else _first_of_equals(both)
        here, moved = _projected(before, after, n_dimensions, generator)
        values = [(0.0, (0, 1)), (1.0, (0, 1)), (1.0, (0, 1))]
        if len(kept) > 1:
            found = search_extreme_pairs(here[kept], (here + moved)[kept])
            pairs = torch.tensor([found.critical.pair, found.contraction.pair, found.expansion.pair])
            i, j = kept[pairs.to(kept.device)].T
            q, ratio = pair_ratios(before, after, i, j, min(binary_scale(before), binary_scale(after)))
            extremes = (float(q[0]), float(ratio[1]), float(ratio[2]))
            names = [(int(x), int(y)) for x, y in zip(i, j, strict=True)]
            values = list(zip(extremes, names, strict=True))
    tail = failure_probability / (3 * n * (n - 1))
    factor = float(chi2.isf(tail, n_dimensions) / chi2.ppf(tail, n_dimensions))
    return StepDistortion(
        critical_ratio=values[0][0],
        contraction=min(values[1][0], 1.0) if n_kept else values[1][0],
        expansion=max(values[2][0], 1.0) if n_kept else values[2][0],
        critical_pair=values[0][1],
        contraction_pair=values[1][1],
        expansion_pair=values[2][1],
        n_points=n,
        n_coincident=n_coincident,
        n_split=n_coincident - n_kept,
        n_merged=n_coincident_after - n_kept,
        exact=False,
        error_factor=factor,
        failure_probability=failure_probability,
    )


def _projected(
    before: Float[Tensor, "n d"],
    after: Float[Tensor, "n d"],
    m: int,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n m"]]:
    """The cloud and its step under one Gaussian projection, drawn and applied block by block."""
    wide = wide_dtype(before.device)
    here = torch.zeros((len(before), m), dtype=wide, device=before.device)
    moved = torch.zeros_like(here)
    for columns in torch.arange(before.shape[1]).split(max(1, _BLOCK_ELEMENTS // max(m, len(before)))):
        block = slice(int(columns[0]), int(columns[-1]) + 1)
        basis = torch.randn(len(columns), m, generator=generator, dtype=wide, device=generator.device)
        basis = basis.to(before.device) / math.sqrt(m)
        x = before[:, block].to(wide)
        here += (x - x.mean(dim=0)) @ basis
        moved += (after[:, block].to(wide) - x) @ basis
    return here, moved


def _first_of_equals(rows: Float[Tensor, "n d"]) -> Tensor:
    """The index of the first row of each kind."""
    inverse = rows.unique(dim=0, return_inverse=True)[1]
    n = len(rows)
    first = torch.full((int(inverse.max()) + 1,), n, device=rows.device)
    return first.scatter_reduce_(0, inverse, torch.arange(n, device=rows.device), "amin").sort().values


def _relabelled(pair: Pair | None, rows: Tensor) -> Pair | None:
    """A pair of the sample as a pair of the cloud."""
    return None if pair is None else (int(rows[pair[0]]), int(rows[pair[1]]))


def _check_probability(value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"expected a failure_probability between 0 and 1, got {value}")
