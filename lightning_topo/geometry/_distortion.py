"""Step distortion: how far one optimizer step bends a cloud of neurons, exactly and over all pairs."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_topo.geometry._block_search import MAX_ROWS as BLOCK_ROWS
from lightning_topo.geometry._block_search import search_blocks
from lightning_topo.geometry._coincidence import coincident_pairs
from lightning_topo.geometry._distances import check_cloud
from lightning_topo.geometry._lower_bounds import nearest_by_products
from lightning_topo.geometry._pair_search import search_extreme_pairs
from lightning_topo.geometry._precision import full_precision
from lightning_topo.geometry._tile_bounds import Extreme, Extremes, Pair

_TOGETHER, _TOGETHER_ON_A_GPU = 1 << 19, 1 << 22
"""Small clouds are searched together up to this many entries; the search makes about ten copies in float64.

More on a GPU, where each call takes the time of many entries.
"""


@dataclass(frozen=True, slots=True)
class StepDistortion:
    """The extreme changes of the distances between n neurons in one step, and the pairs of neurons that attain them.

    The step moves neuron i from x_i to x'_i = x_i + Δ_i. With d_ij = |x_i - x_j| and d'_ij = |x'_i - x'_j|, over all
    pairs of neurons:

        critical_ratio  r = max |Δ_i - Δ_j| / d_ij
        contraction     a = min d'_ij / d_ij
        expansion       b = max d'_ij / d_ij

    and 1 - r <= a <= b <= 1 + r. If r < 1, no two distinct neurons merged in this step. A pair with d_ij = 0 counts as
    |Δ_i - Δ_j| / d_ij = 0 and d'_ij / d_ij = 1 if it stays together; if it splits, r = b = inf. With fewer than two
    neurons r = 0 and a = b = 1.

    Attributes:
        critical_ratio: r, from 0 to inf; NaN in `Distortions.total`, where it is not computed.
        contraction: a; 0 if two distinct neurons merged.
        expansion: b; inf if two equal neurons split.
        critical_pair: Row numbers (i, j), i < j, of the pair that attains r; None with fewer than two neurons.
        contraction_pair: Row numbers of the pair that attains a, likewise.
        expansion_pair: Row numbers of the pair that attains b, likewise.
        n_points: n.
        n_coincident: Number of pairs with d_ij = 0.
        n_split: Number of pairs with d_ij = 0 and d'_ij > 0.
        n_merged: Number of pairs with d_ij > 0 and d'_ij = 0.

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

    @property
    def log_distortion(self) -> float:
        """log(expansion / contraction): 0 if all distances changed by one factor, inf if neurons merged or split."""
        if self.contraction == 0 or self.expansion == math.inf:
            return math.inf
        return math.log(self.expansion / self.contraction)

    @property
    def certified(self) -> bool:
        """Whether the step kept distinct neurons distinct and equal neurons equal: r < 1, and no pair split."""
        return self.critical_ratio < 1 and self.n_split == 0


def step_distortion(before: Float[Tensor, "n d"], after: Float[Tensor, "n d"]) -> StepDistortion:
    """Measure how one step changed the distances between n neurons, over all pairs.

    Two states of the same neurons make a step: before and after one optimizer step, an epoch, or a whole training.
    `StepDistortion` gives the formulas. The values of the extreme pairs are computed from differences in float64
    (float32 on Apple's GPUs). Large clouds are searched tile by tile: no n by n matrix is held.

    Args:
        before: The neurons before the step, one row each.
        after: The same neurons after the step, in the same order.

    Raises:
        TypeError: A cloud is not of a real floating-point dtype.
        ValueError: The clouds differ in shape, are not of shape (n, d), or hold NaN or infinities.

    >>> before = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    >>> step = step_distortion(before, 2.0 * before)
    >>> step.critical_ratio, step.contraction, step.expansion, step.critical_pair
    (1.0, 2.0, 2.0, (0, 1))
    """
    check_step(before, after)
    before, after = before.detach(), after.detach()
    with full_precision(before.device):
        if 2 <= len(before) <= BLOCK_ROWS and not torch.equal(before, after):
            return _of_blocks(before[None], after[None])[0][0]
        return _of_cloud(before, after)


@dataclass(frozen=True, slots=True)
class Distortions:
    """The distortions of b clouds in one step and since an earlier reference: the result of `distortions`.

    - `step` holds for each cloud the distortion from before to after the step.
    - `total` holds for each cloud the distortion from the reference to after the step, with a `critical_ratio` of NaN,
      as it is not computed. `total` is empty if there was no reference.
    - `nearest` holds for each neuron a lower bound of the distance to its nearest neighbour after the step.
    - `resolved` holds for each cloud a distance; entries of `nearest` above it are within one percent of the true
      distance. `snapshot_of_nearest` takes `nearest` and `resolved`.
    """

    step: tuple[StepDistortion, ...]
    total: tuple[StepDistortion, ...]
    nearest: Float[Tensor, "b n"]
    resolved: Float[Tensor, "b 1"]

    def blocks(self, some: slice) -> "Distortions":
        """Return the distortions of the clouds that the slice `some` selects."""
        return Distortions(self.step[some], self.total[some], self.nearest[some], self.resolved[some])


def distortions(
    before: Float[Tensor, "b n d"], after: Float[Tensor, "b n d"], reference: Float[Tensor, "b n d"] | None
) -> Distortions:
    """Measure how one step distorts each of b clouds, and how they are distorted since an earlier reference.

    Returns `step` and `total`, each with one `StepDistortion` per cloud; `total` is empty without a reference.
    Clouds of at most 128 neurons are measured together. A larger cloud takes the work of two n by n by d matrix
    products, and the memory of four copies of the cloud.

    Args:
        before: The neurons before the step, of shape (b, n, d): one row per neuron.
        after: The same neurons after the step.
        reference: The same neurons at an earlier time, such as the start of training; None measures the step alone.

    Raises:
        TypeError: A cloud is not of a real floating-point dtype.
        ValueError: The clouds differ in shape or hold NaN or infinities, or there are fewer than two neurons in each.

    >>> start = torch.tensor([[[0.0], [1.0], [3.0]]])
    >>> found = distortions(2 * start, 3 * start, start)
    >>> found.step[0].critical_ratio, found.total[0].expansion
    (0.5, 3.0)
    """
    n = after.shape[1]
    if n < 2:
        raise ValueError(f"expected at least 2 neurons, got {n}: distortion is of pairs")
    for cloud in (before, reference):
        if cloud is not None:
            check_step(cloud.flatten(0, 1), after.flatten(0, 1))
    before, after = before.detach(), after.detach()
    reference = None if reference is None else reference.detach()
    with full_precision(after.device):
        if n <= BLOCK_ROWS:
            step, found, nearest, clear = _of_blocks_twice(before, after, reference)
            total = tuple(replace(one, critical_ratio=math.nan) for one in found)
            return Distortions(tuple(step), total, nearest, clear)
        origins = [None] * len(after) if reference is None else reference
        blocks = [_of_large(*clouds) for clouds in zip(before, after, origins, strict=True)]
        step, total, nearest, resolved = zip(*blocks, strict=True)
        known = () if reference is None else total
        return Distortions(step, known, torch.stack(nearest), torch.stack(resolved))


def block_distortions(before: Float[Tensor, "b n d"], after: Float[Tensor, "b n d"]) -> tuple[StepDistortion, ...]:
    """Measure how one step changed the distances between neurons in each of b clouds.

    Returns the result of `step_distortion` for each cloud. Clouds of at most 128 neurons are measured together, which
    is faster than one by one.

    Raises:
        TypeError: A cloud is not of a real floating-point dtype.
        ValueError: The clouds differ in shape before and after the step, or hold NaN or infinities.

    >>> start = torch.tensor([[[0.0], [1.0]], [[0.0], [2.0]]])
    >>> [found.expansion for found in block_distortions(start, 3 * start)]
    [3.0, 3.0]
    """
    check_step(before.flatten(0, 1), after.flatten(0, 1))
    before, after = before.detach(), after.detach()
    with full_precision(after.device):
        if 2 <= after.shape[1] <= BLOCK_ROWS:
            return tuple(_of_blocks(before, after)[0])
        return tuple(_of_cloud(x, y) for x, y in zip(before, after, strict=True))


def _of_large(
    before: Float[Tensor, "n d"], after: Float[Tensor, "n d"], reference: Float[Tensor, "n d"] | None
) -> tuple[StepDistortion, StepDistortion, Float[Tensor, " n"], Float[Tensor, " 1"]]:
    """`distortions` of one block; a cloud that has not moved takes no search. Without a reference it is `before`."""
    reference = before if reference is None else reference
    if torch.equal(before, after):
        total = _of_cloud(reference, after)
        nearest, resolved = (x[0] for x in nearest_by_products(after[None]))
        return _of_cloud(before, after), replace(total, critical_ratio=math.nan), nearest, resolved
    started = not torch.equal(reference, before)
    found = search_extreme_pairs(before, after, reference if started else None)
    total = _named(reference, after, found.total or found.step)
    resolved = found.nearest.new_full((1,), found.resolved)
    return _named(before, after, found.step), replace(total, critical_ratio=math.nan), found.nearest, resolved


def _of_blocks(
    before: Float[Tensor, "b n d"], after: Float[Tensor, "b n d"]
) -> tuple[list[StepDistortion], Float[Tensor, "b n"], Float[Tensor, "b 1"]]:
    """Search small clouds together, and unresolved ones one by one; also lower bounds of the distances after."""
    found: list[StepDistortion] = []
    bounds: list[tuple[Tensor, Tensor]] = []
    for some in _chunks(before):
        searched = search_blocks(before[some], after[some])
        bounds.append((searched.nearest, searched.clear))
        found += [
            _record(extremes, len(x)) if resolved else _of_cloud(x, y)
            for extremes, resolved, x, y in zip(
                searched.extremes, searched.resolved, before[some], after[some], strict=True
            )
        ]
    nearest, clear = (torch.cat(parts) for parts in zip(*bounds, strict=True))
    return found, nearest, clear


def _of_blocks_twice(
    before: Float[Tensor, "b n d"], after: Float[Tensor, "b n d"], reference: Float[Tensor, "b n d"] | None
) -> tuple[list[StepDistortion], list[StepDistortion], Float[Tensor, "b n"], Float[Tensor, "b 1"]]:
    """The distortions of small clouds since before the step, and since the reference if there is one."""
    b, n, d = after.shape
    if reference is not None and not torch.equal(reference, before) and 2 * b * n * max(n, d) <= _together(after):
        both, nearest, clear = _of_blocks(torch.cat([before, reference]), torch.cat([after, after]))
        return both[:b], both[b:], nearest[:b], clear[:b]
    step, nearest, clear = _of_blocks(before, after)
    if reference is None:
        return step, [], nearest, clear
    total = step if torch.equal(reference, before) else _of_blocks(reference, after)[0]
    return step, total, nearest, clear


def _together(clouds: Tensor) -> int:
    return _TOGETHER if clouds.device.type == "cpu" else _TOGETHER_ON_A_GPU


def _chunks(clouds: Float[Tensor, "b n d"]) -> Iterator[slice]:
    """Blocks to search together: as many as a limited memory holds."""
    b, n, d = clouds.shape
    size = max(1, _together(clouds) // (n * max(n, d)))
    for start in range(0, b, size):
        yield slice(start, start + size)


def _of_cloud(before: Float[Tensor, "n d"], after: Float[Tensor, "n d"]) -> StepDistortion:
    if len(before) < 2:
        return StepDistortion(0.0, 1.0, 1.0, None, None, None, n_points=len(before))
    if torch.equal(before, after):
        return _named(before, after, Extremes(Extreme(0.0), Extreme(1.0), Extreme(1.0)))
    return _named(before, after, search_extreme_pairs(before, after).step)


def _named(before: Float[Tensor, "n d"], after: Float[Tensor, "n d"], extremes: Extremes) -> StepDistortion:
    """The extremes with the counts of coincident pairs."""
    n_coincident, n_coincident_after = coincident_pairs(before), coincident_pairs(after)
    kept = n_coincident > 0 and n_coincident_after > 0
    n_kept = coincident_pairs(torch.cat([before, after], dim=1)) if kept else 0
    return _record(extremes, len(before), n_coincident, n_coincident - n_kept, n_coincident_after - n_kept)


def _record(extremes: Extremes, n: int, n_coincident: int = 0, n_split: int = 0, n_merged: int = 0) -> StepDistortion:
    return StepDistortion(
        critical_ratio=extremes.critical.value,
        contraction=extremes.contraction.value,
        expansion=extremes.expansion.value,
        critical_pair=extremes.critical.pair,
        contraction_pair=extremes.contraction.pair,
        expansion_pair=extremes.expansion.pair,
        n_points=n,
        n_coincident=n_coincident,
        n_split=n_split,
        n_merged=n_merged,
    )


def check_step(before: Tensor, after: Tensor) -> None:
    """Raise unless both clouds are sound and have the same shape."""
    if before.shape != after.shape:
        raise ValueError(f"expected two clouds of the same shape, got {tuple(before.shape)} and {tuple(after.shape)}")
    check_cloud(before, "points before the step")
    check_cloud(after, "points after the step")
