"""The pairs of neurons that a step brings nearest, parts farthest, and moves most against each other.

Branch and bound over tiles of pairs. Matrix products in the cloud's own precision bound every pair's ratios
with their rounding error; a pair whose bound does not exceed the best value so far is done with. The few
others are evaluated by subtraction in float64, and a tile with many of them by float64 products.
"""

import math
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_topo.geometry.distances import Rows, binary_scale, squared_distances, upper_tiles
from lightning_topo.geometry.precision import product_slack, real_dtype, wide_dtype

Pair = tuple[int, int]

_TILE_ROWS = 512
_TILE_ELEMENTS = 1 << 23
_FEW_PAIRS = 16
_PAIRS_PER_CANDIDATE = 128


@dataclass(frozen=True, slots=True)
class Extreme:
    """The largest or smallest value met so far, and the pair that has it."""

    value: float
    pair: Pair = (0, 1)


@dataclass(frozen=True, slots=True)
class Extremes:
    """max |Δ_i - Δ_j| / d_ij, min d'_ij / d_ij and max d'_ij / d_ij over the pairs met so far."""

    critical: Extreme = field(default=Extreme(-1.0))
    contraction: Extreme = field(default=Extreme(math.inf))
    expansion: Extreme = field(default=Extreme(-1.0))


@dataclass(frozen=True, slots=True)
class _Products:
    """Rows whose squared distances come as matrix products, with error at most slack * (s_i + s_j)."""

    rows: Float[Tensor, "n d"]
    squares: Float[Tensor, " n"]

    @staticmethod
    def of(rows: Float[Tensor, "n d"]) -> "_Products":
        return _Products(rows, rows.square().sum(dim=1))

    def tile(self, rows: slice, columns: slice, weight: float = 1.0) -> Float[Tensor, "m k"]:
        """Squared distances, the squares |x_i|² + |x_j|² in them multiplied by a weight."""
        norms = weight * self.squares
        a, b = self.rows[rows], self.rows[columns]
        return torch.addmm(norms[columns].expand(len(a), -1), a, b.T, alpha=-2).add_(norms[rows, None])


@dataclass(frozen=True, slots=True)
class _Step:
    """A step, scaled and centred: X, tΔ, X + tΔ in the working precision, t bringing Δ to the size of X.

    |x + tδ|² - |x|² - |tδ|² = 2t x·δ then has an error in proportion to |x| |δ|, however small the step.
    """

    before: Float[Tensor, "n d"]
    after: Float[Tensor, "n d"]
    scale: float
    magnification: float
    positions: _Products
    steps: _Products
    magnified: _Products
    slack: float

    @staticmethod
    def of(before: Float[Tensor, "n d"], after: Float[Tensor, "n d"]) -> "_Step":
        n, d = before.shape
        wide, work = wide_dtype(before.device), real_dtype(before)
        scale = min(binary_scale(before), binary_scale(after))
        mean_before, mean_after = before.mean(0, dtype=wide), after.mean(0, dtype=wide)
        positions = torch.empty((n, d), dtype=work, device=before.device)
        steps = torch.empty((n, d), dtype=wide, device=before.device)
        size = max(1, _TILE_ELEMENTS // max(1, d))
        for start in range(0, n, size):
            some = slice(start, start + size)
            here = before[some].to(wide) - mean_before
            positions[some] = here * scale
            steps[some] = ((after[some].to(wide) - mean_after) - here) * scale
        lengths = [float(x.square().sum(dtype=wide)) for x in (positions, steps)]
        magnification = 1.0
        if min(lengths) > 0:
            magnification = 2.0 ** round(math.log2(lengths[0] / lengths[1]) / 2)
        steps = (steps * magnification).to(work)
        return _Step(
            before=before,
            after=after,
            scale=scale,
            magnification=magnification,
            positions=_Products.of(positions),
            steps=_Products.of(steps),
            magnified=_Products.of(positions + steps),
            slack=product_slack(work, d),
        )


def search_extreme_pairs(before: Float[Tensor, "n d"], after: Float[Tensor, "n d"]) -> Extremes:
    """The extreme ratios over all pairs of n >= 2 points; see `StepDistortion` for the formulas."""
    step, extremes = _Step.of(before, after), Extremes()
    for tile in upper_tiles(len(before), step_tile_rows(before)):
        extremes = _search_tile(step, extremes, *tile)
    return extremes


def step_tile_rows(points: Float[Tensor, "n d"]) -> int:
    """Rows of a tile of pairs: bounded by the memory of its rows in float64, too."""
    rows = _TILE_ROWS if points.device.type == "cpu" else 8 * _TILE_ROWS
    return min(rows, max(32, _TILE_ELEMENTS // max(1, points.shape[1])))


def _search_tile(step: _Step, extremes: Extremes, rows: slice, columns: slice) -> Extremes:
    """The extremes after one more tile of pairs."""
    bounds = _Bounds.of(step, rows, columns)
    i, j = bounds.candidates(extremes)
    if len(i) > _FEW_PAIRS:
        extremes = _with_pairs(step, extremes, *bounds.leaders())
        i, j = bounds.candidates(extremes)
    if len(i) > max(_FEW_PAIRS, bounds.position.numel() // _PAIRS_PER_CANDIDATE):
        i, j = _leaders_in_float64(step, rows, columns)
    return _with_pairs(step, extremes, i, j)


@dataclass(frozen=True, slots=True)
class _Bounds:
    """Bounds over a tile: d² >= position, t²|Δ_i - Δ_j|² <= step, and t (d'² - d²) = growth within a margin.

    The margin of a pair is the sum of its row's and its column's, and so is what separates `position` from an
    upper bound of d².
    """

    position: Float[Tensor, "m k"]
    step: Float[Tensor, "m k"]
    growth: Float[Tensor, "m k"]
    row_margin: Float[Tensor, " m"]
    column_margin: Float[Tensor, " k"]
    row_gap: Float[Tensor, " m"]
    column_gap: Float[Tensor, " k"]
    magnification: float
    corner: Pair

    @staticmethod
    def of(step: _Step, rows: slice, columns: slice) -> "_Bounds":
        t, slack = step.magnification, step.slack
        position = step.positions.tile(rows, columns, 1 - slack)
        moved = step.steps.tile(rows, columns, 1 + slack)
        growth = step.magnified.tile(rows, columns).sub_(position).sub_(moved, alpha=1 - 1 / t)
        gap = 2 * slack * step.positions.squares
        margin = gap + slack * (step.magnified.squares + 2 * (1 + 1 / t) * step.steps.squares)
        return _Bounds(
            position=position,
            step=moved,
            growth=growth,
            row_margin=margin[rows],
            column_margin=margin[columns],
            row_gap=gap[rows],
            column_gap=gap[columns],
            magnification=t,
            corner=(rows.start, columns.start),
        )

    def candidates(self, extremes: Extremes) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
        """The pairs that may exceed the extremes."""
        hopes = []
        if extremes.critical.value < math.inf:
            ratio = max(extremes.critical.value, 0.0) * self.magnification
            hopes.append(self.step.sub(self.position, alpha=ratio * ratio))
        if extremes.expansion.value < math.inf:
            hopes.append(self._growth_beyond(extremes.expansion.value, sign=1))
        if extremes.contraction.value > 0:
            hopes.append(self._growth_beyond(extremes.contraction.value, sign=-1))
        hopes = [hope for hope in hopes if hope.amax() > 0]
        if not hopes:
            nothing = torch.empty(0, dtype=torch.long, device=self.position.device)
            return nothing, nothing
        possible = hopes[0] > 0
        for hope in hopes[1:]:
            possible |= hope > 0
        return self._pairs(*possible.nonzero(as_tuple=True))

    def leaders(self) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
        """The pairs that look extreme among those whose distance the products resolve."""
        resolved = 32 * (self.row_gap.amax() + self.column_gap.amax())
        coarse = self.position <= resolved
        step = (self.step / self.position).masked_fill_(coarse, -1)
        growth = self.growth / self.position
        flat = torch.stack(
            [
                step.argmax(),
                growth.masked_fill(coarse, -math.inf).argmax(),
                growth.masked_fill(coarse, math.inf).argmin(),
            ]
        )
        i, j = flat // step.shape[1], flat % step.shape[1]
        if self.corner[0] == self.corner[1]:
            i, j = torch.minimum(i, j), torch.maximum(i, j)
        return self._pairs(i, j)

    def _growth_beyond(self, ratio: float, sign: int) -> Float[Tensor, "m k"]:
        """Positive where d'/d may lie above (sign 1) or below (sign -1) a ratio."""
        limit = self.magnification * (ratio - 1) * (ratio + 1)
        if not math.isfinite(limit):
            return torch.ones_like(self.growth)
        # The worst case of -sign * limit * d² takes the upper bound of d² where this is positive.
        extra = max(-sign * limit, 0.0)
        hope = self.growth.sub(self.position, alpha=limit).mul_(sign)
        hope += (self.row_margin + extra * self.row_gap)[:, None]
        hope += self.column_margin + extra * self.column_gap
        return hope

    def _pairs(
        self, i: Int[Tensor, " p"], j: Int[Tensor, " p"]
    ) -> tuple[Int[Tensor, " q"], Int[Tensor, " q"]]:
        """Pairs of the tile as pairs i < j of the cloud."""
        i, j = i + self.corner[0], j + self.corner[1]
        kept = i < j
        return i[kept], j[kept]


def _leaders_in_float64(
    step: _Step, rows: slice, columns: slice
) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
    """The extreme pairs of a tile by accurate products: for tiles with many near or nearly tied pairs."""
    critical, ratio = tile_ratios(step.before, step.after, rows, columns, step.scale)
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
        squares.append(squared_distances(Rows.around(a, origin, scale), Rows.around(b, origin, scale)))
    return _ratios(*squares)


def _with_pairs(step: _Step, extremes: Extremes, i: Int[Tensor, " p"], j: Int[Tensor, " p"]) -> Extremes:
    """The extremes after evaluating the listed pairs by subtraction."""
    if len(i) == 0:
        return extremes
    critical, ratio = pair_ratios(step.before, step.after, i, j, step.scale)
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
        here, there = (
            (points[some[0]].to(wide) - points[some[1]].to(wide)) * scale for points in (before, after)
        )
        parts.append(_ratios(*(x.square().sum(dim=1) for x in (here, there, there - here))))
    critical, ratio = zip(*parts, strict=True)
    return torch.cat(critical), torch.cat(ratio)


def _ratios(
    here: Float[Tensor, "..."], there: Float[Tensor, "..."], step: Float[Tensor, "..."]
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """q and d'/d from d², d'² and |Δ_i - Δ_j|², with the rules for d = 0."""
    coincident = here == 0
    split = torch.where(there > 0, math.inf, 0.0).to(here.dtype)
    critical = torch.where(coincident, split, (step / here).sqrt())
    ratio = torch.where(coincident, split.clamp(min=1.0), (there / here).sqrt())
    return critical, ratio
