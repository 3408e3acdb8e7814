"""The pairs of neurons that a step brings nearest, parts farthest, and moves most against each other.

Branch and bound over tiles of pairs. Matrix products in the cloud's own precision bound every pair's ratios
with their rounding error; a pair whose bound does not exceed the best value so far is done with. The few
others are evaluated by subtraction in float64, and a tile with many of them by float64 products.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_topo.geometry._distances import Rows, binary_scale, squared_distances, upper_tiles
from lightning_topo.geometry._precision import wide_dtype
from lightning_topo.geometry._tile_bounds import Extreme, Extremes, Products, Step, TileBounds, centred

_TILE_ROWS = 512
_TILE_ELEMENTS = 1 << 23
_FEW_PAIRS = 16
_PAIRS_PER_CANDIDATE = 128


@dataclass(frozen=True, slots=True)
class _Reference:
    """An earlier cloud, from which only contraction and expansion to the present one are wanted."""

    step: Step
    before: Float[Tensor, "n d"]
    positions: Products

    @staticmethod
    def of(step: Step, before: Float[Tensor, "n d"]) -> "_Reference":
        work = step.positions.rows.dtype
        return _Reference(step, before, Products.of(centred(before, step.scale, work)))


@dataclass(frozen=True, slots=True)
class Found:
    """The extremes of a step; those since a reference, if any; and how far each neuron is from others at least.

    `nearest` bounds distances after the step, and is good to a percent from `resolved` on.
    """

    step: Extremes
    total: Extremes | None
    nearest: Float[Tensor, " n"]
    resolved: float


def search_extreme_pairs(
    before: Float[Tensor, "n d"], after: Float[Tensor, "n d"], reference: Float[Tensor, "n d"] | None = None
) -> Found:
    """The extreme ratios over all pairs of n >= 2 points; see `StepDistortion` for the formulas.

    The products of the cloud after the step serve for the step and, if there is one, for the map from the reference.
    """
    clouds = [before, after] if reference is None else [before, after, reference]
    step = Step.of(before, after, binary_scale(*clouds))
    origin = None if reference is None else _Reference.of(step, reference)
    extremes, total = Extremes(), None if origin is None else Extremes(critical=Extreme(math.inf))
    squares = before.new_full((len(before),), math.inf, dtype=step.positions.rows.dtype)
    for rows, columns in upper_tiles(len(before), step_tile_rows(before)):
        bounds = TileBounds.of(step, rows, columns)
        extremes = _search_tile(step, extremes, bounds, rows, columns)
        there = bounds.growth.div(step.magnification).add_(bounds.position)
        if origin is not None and total is not None:
            total = _search_total(origin, total, bounds, there, rows, columns)
        if rows == columns:
            there.fill_diagonal_(math.inf)
        squares[rows] = torch.minimum(squares[rows], there.amin(dim=1))
        squares[columns] = torch.minimum(squares[columns], there.amin(dim=0))
    return Found(extremes, total, *_least_distances(step, squares))


def _least_distances(step: Step, squares: Float[Tensor, " n"]) -> tuple[Float[Tensor, " n"], float]:
    """Lower bounds of the distance to the nearest neighbour after the step, from products with certain error."""
    t, wide = step.magnification, squares.to(wide_dtype(squares.device))
    slack = step.slack + step.unlikely
    largest = (
        4 * step.positions.squares.amax() + 2 * (step.magnified.squares.amax() + 4 * step.steps.squares.amax()) / t
    )
    error = 2 * slack * largest.to(wide.dtype)
    floor = 16 * step.before.shape[1] * torch.finfo(squares.dtype).tiny
    return (wide - error - floor).clamp(min=0).sqrt() / step.scale, float((64 * error).sqrt()) / step.scale


def step_tile_rows(points: Float[Tensor, "n d"]) -> int:
    """Rows of a tile of pairs: bounded by the memory of its rows in float64, too."""
    rows = _TILE_ROWS if points.device.type == "cpu" else 4 * _TILE_ROWS
    return min(rows, max(32, _TILE_ELEMENTS // max(1, points.shape[1])))


def _search_tile(step: Step, extremes: Extremes, bounds: TileBounds, rows: slice, columns: slice) -> Extremes:
    """The extremes after one more tile of pairs."""
    extremes = _beyond(bounds, (step.before, step.after, step.scale), extremes, rows, columns)
    if extremes.critical.value < 1:  # a certificate, as far as rounding is what it is likely to be
        pairs = bounds.possible_breaks(step, bounds.position.numel() // _PAIRS_PER_CANDIDATE)
        if pairs is None:
            pairs = _leaders_in_float64(step.before, step.after, step.scale, rows, columns)
        extremes = _with_pairs(step.before, step.after, step.scale, extremes, *pairs)
    return extremes


def _search_total(
    origin: _Reference, extremes: Extremes, bounds: TileBounds, there: Float[Tensor, "m k"], rows: slice, columns: slice
) -> Extremes:
    """The extremes of the map from the reference after one more tile, whose squared distances are `there` now."""
    position = origin.positions.tile(rows, columns, 1 - origin.step.slack)
    gap = 2 * origin.step.slack * origin.positions.squares
    total = replace(
        bounds,
        position=position,
        growth=there - position,
        row_margin=bounds.row_margin / bounds.magnification + bounds.row_gap + gap[rows],
        column_margin=bounds.column_margin / bounds.magnification + bounds.column_gap + gap[columns],
        row_gap=gap[rows],
        column_gap=gap[columns],
        magnification=1.0,
    )
    return _beyond(total, (origin.before, origin.step.after, origin.step.scale), extremes, rows, columns)


def _beyond(
    bounds: TileBounds, clouds: tuple[Tensor, Tensor, float], extremes: Extremes, rows: slice, columns: slice
) -> Extremes:
    """The extremes after evaluating those pairs of a tile that may exceed them."""
    if extremes.contraction.value == math.inf:  # nothing is known yet
        extremes = _with_pairs(*clouds, extremes, *bounds.leaders())
    pairs = bounds.candidates(extremes, _FEW_PAIRS)
    if pairs is None:
        extremes = _with_pairs(*clouds, extremes, *bounds.leaders())
        pairs = bounds.candidates(extremes, max(_FEW_PAIRS, bounds.position.numel() // _PAIRS_PER_CANDIDATE))
    if pairs is None:
        pairs = _leaders_in_float64(*clouds, rows, columns)
    return _with_pairs(*clouds, extremes, *pairs)


def _leaders_in_float64(
    before: Float[Tensor, "n d"], after: Float[Tensor, "n d"], scale: float, rows: slice, columns: slice
) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
    """The extreme pairs of a tile by accurate products: for tiles with many near or nearly tied pairs."""
    critical, ratio = tile_ratios(before, after, rows, columns, scale)
    low = ratio
    if rows == columns:
        below = torch.ones_like(ratio, dtype=torch.bool).tril_()
        critical, ratio = critical.masked_fill(below, -1), ratio.masked_fill(below, -1)
        low = low.masked_fill(below, math.inf)
    index = torch.stack([critical.argmax(), ratio.argmax(), low.argmin()])
    return rows.start + index // ratio.shape[1], columns.start + index % ratio.shape[1]


def tile_ratios(
    before: Float[Tensor, "n d"], after: Float[Tensor, "n d"], rows: slice, columns: slice, scale: float
) -> tuple[Float[Tensor, "m k"], Float[Tensor, "m k"]]:
    """|Δ_i - Δ_j| / d_ij and d'_ij / d_ij over a tile of pairs, to the accuracy of `squared_distances`."""
    wide = wide_dtype(before.device)
    tiles = [(points[rows], points[columns]) for points in (before, after)]
    tiles.append(tuple(there.to(wide) - here.to(wide) for here, there in zip(*tiles, strict=True)))
    squares = []
    for a, b in tiles:
        origin = a[0].to(wide)
        parts = Rows.around(a, origin, scale), Rows.around(b, origin, scale)
        squares.append(squared_distances(*parts, same=rows == columns))
    return _ratios(*squares)


def _with_pairs(
    before: Float[Tensor, "n d"],
    after: Float[Tensor, "n d"],
    scale: float,
    extremes: Extremes,
    i: Int[Tensor, " p"],
    j: Int[Tensor, " p"],
) -> Extremes:
    """The extremes after evaluating the listed pairs by subtraction."""
    if len(i) == 0:
        return extremes
    critical, ratio = pair_ratios(before, after, i, j, scale)
    found = torch.stack([critical.argmax(), ratio.argmin(), ratio.argmax()])
    values = torch.stack([critical[found[0]], ratio[found[1]], ratio[found[2]]]).tolist()
    pairs = list(zip(i[found].tolist(), j[found].tolist(), strict=True))
    if values[0] > extremes.critical.value:
        extremes = replace(extremes, critical=Extreme(values[0], pairs[0]))
    if values[1] < extremes.contraction.value:
        extremes = replace(extremes, contraction=Extreme(values[1], pairs[1]))
    if values[2] > extremes.expansion.value:
        extremes = replace(extremes, expansion=Extreme(values[2], pairs[2]))
    return extremes


def pair_ratios(
    before: Float[Tensor, "n d"],
    after: Float[Tensor, "n d"],
    i: Int[Tensor, " p"],
    j: Int[Tensor, " p"],
    scale: float,
) -> tuple[Float[Tensor, " p"], Float[Tensor, " p"]]:
    """|Δ_i - Δ_j| / d_ij and d'_ij / d_ij of the listed pairs, from differences in the widest dtype."""
    wide = wide_dtype(before.device)
    parts = []
    size = max(1, _TILE_ELEMENTS // (4 * max(1, before.shape[1])))
    for some in zip(i.split(size), j.split(size), strict=True):
        here, there = ((points[some[0]].to(wide) - points[some[1]].to(wide)) * scale for points in (before, after))
        own = _own_scale(torch.maximum(here.abs(), there.abs()))
        here, there = here * own, there * own
        parts.append(_ratios(*(x.square().sum(dim=1) for x in (here, there, there - here))))
    critical, ratio = zip(*parts, strict=True)
    return torch.cat(critical), torch.cat(ratio)


def _own_scale(sizes: Float[Tensor, "p d"]) -> Float[Tensor, "p 1"]:
    """For each pair the power of two that brings the largest of its sizes near 1: what is squared is not to vanish."""
    largest = sizes.amax(dim=1, keepdim=True)
    return (largest.frexp().mantissa / largest).clamp(max=2.0**1000).where(largest > 0, 1.0)


def _ratios(
    here: Float[Tensor, "..."], there: Float[Tensor, "..."], step: Float[Tensor, "..."]
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """q and d'/d from d², d'² and |Δ_i - Δ_j|², with the rules for d = 0."""
    coincident = here == 0
    split = torch.where(there > 0, math.inf, 0.0).to(here.dtype)
    critical = torch.where(coincident, split, (step / here).sqrt())
    ratio = torch.where(coincident, split.clamp(min=1.0), (there / here).sqrt())
    return critical, ratio
