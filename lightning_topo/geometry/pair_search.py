"""The pairs of neurons that a step brings nearest, parts farthest, and moves most against each other.

Branch and bound over tiles of pairs. Matrix products in the cloud's own precision bound every pair's ratios
with their rounding error; a pair whose bound does not exceed the best value so far is done with. The few
others are evaluated by subtraction in float64, and a tile with many of them by float64 products.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_topo.geometry.distances import Rows, binary_scale, mean_point, squared_distances, upper_tiles
from lightning_topo.geometry.precision import product_slack, real_dtype, wide_dtype, worst_case_slack

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
        return _Products(rows, torch.linalg.vector_norm(rows, dim=1).square_())

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
    unlikely: float  # what is added to the slack to make it certain

    @staticmethod
    def of(before: Float[Tensor, "n d"], after: Float[Tensor, "n d"], scale: float) -> "_Step":
        work = torch.promote_types(real_dtype(before), after.dtype)
        positions = _centred(before, scale, work)
        steps = torch.empty_like(positions)
        for rows, moved in _differences(before, after, scale):
            steps[rows] = moved
        lengths = torch.stack([positions.square().mean(), steps.square().mean()]).tolist()
        magnification = 1.0
        if lengths[0] > 0 and lengths[1] > 0:
            magnification = 2.0 ** round(math.log2(lengths[0] / lengths[1]) / 2)
        steps *= magnification
        d = before.shape[1]
        return _Step(
            before=before,
            after=after,
            scale=scale,
            magnification=magnification,
            positions=_Products.of(positions),
            steps=_Products.of(steps),
            magnified=_Products.of(positions + steps),
            slack=product_slack(work, d),
            unlikely=max(0.0, worst_case_slack(work, d) - product_slack(work, d)),
        )


def _centred(points: Float[Tensor, "n d"], scale: float, work: torch.dtype) -> Float[Tensor, "n d"]:
    """The points relative to their mean, or near it: any centre serves that is the same for all."""
    return points.to(work).sub(mean_point(points).to(work)).mul_(scale)


def _differences(
    before: Float[Tensor, "n d"], after: Float[Tensor, "n d"], scale: float
) -> Iterator[tuple[slice, Float[Tensor, "m d"]]]:
    """Blocks of rows of Δ - mean Δ, subtracted in the widest dtype."""
    mean = mean_point(after) - mean_point(before)
    size = max(1, _TILE_ELEMENTS // (32 * max(1, before.shape[1])))
    for start in range(0, len(before), size):
        rows = slice(start, start + size)
        yield rows, (after[rows].to(mean.dtype) - before[rows].to(mean.dtype) - mean) * scale


@dataclass(frozen=True, slots=True)
class _Reference:
    """An earlier cloud, from which only contraction and expansion to the present one are wanted."""

    step: _Step
    before: Float[Tensor, "n d"]
    positions: _Products

    @staticmethod
    def of(step: _Step, before: Float[Tensor, "n d"]) -> "_Reference":
        work = step.positions.rows.dtype
        return _Reference(step, before, _Products.of(_centred(before, step.scale, work)))


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
    step = _Step.of(before, after, min(binary_scale(cloud) for cloud in clouds))
    origin = None if reference is None else _Reference.of(step, reference)
    extremes, total = Extremes(), None if origin is None else Extremes(critical=Extreme(math.inf))
    squares = before.new_full((len(before),), math.inf, dtype=step.positions.rows.dtype)
    for rows, columns in upper_tiles(len(before), step_tile_rows(before)):
        bounds = _Bounds.of(step, rows, columns)
        extremes = _search_tile(step, extremes, bounds, rows, columns)
        there = bounds.growth.div(step.magnification).add_(bounds.position)
        if origin is not None and total is not None:
            total = _search_total(origin, total, bounds, there, rows, columns)
        if rows == columns:
            there.fill_diagonal_(math.inf)
        squares[rows] = torch.minimum(squares[rows], there.amin(dim=1))
        squares[columns] = torch.minimum(squares[columns], there.amin(dim=0))
    return Found(extremes, total, *_least_distances(step, squares))


def _least_distances(step: _Step, squares: Float[Tensor, " n"]) -> tuple[Float[Tensor, " n"], float]:
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
    rows = _TILE_ROWS if points.device.type == "cpu" else 8 * _TILE_ROWS
    return min(rows, max(32, _TILE_ELEMENTS // max(1, points.shape[1])))


def _search_tile(step: _Step, extremes: Extremes, bounds: "_Bounds", rows: slice, columns: slice) -> Extremes:
    """The extremes after one more tile of pairs."""
    extremes = _beyond(bounds, (step.before, step.after, step.scale), extremes, rows, columns)
    if extremes.critical.value < 1:  # a certificate, as far as rounding is what it is likely to be
        pairs = bounds.possible_breaks(step, bounds.position.numel() // _PAIRS_PER_CANDIDATE)
        if pairs is None:
            pairs = _leaders_in_float64(step.before, step.after, step.scale, rows, columns)
        extremes = _with_pairs(step.before, step.after, step.scale, extremes, *pairs)
    return extremes


def _search_total(
    origin: _Reference, extremes: Extremes, bounds: "_Bounds", there: Float[Tensor, "m k"], rows: slice, columns: slice
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
    bounds: "_Bounds", clouds: tuple[Tensor, Tensor, float], extremes: Extremes, rows: slice, columns: slice
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

    def candidates(self, extremes: Extremes, most: int) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]] | None:
        """The pairs that may exceed the extremes; None where they are more than `most`."""
        hopes = []
        if extremes.critical.value < math.inf:
            hopes.append(self._step_beyond(max(extremes.critical.value, 0.0)))
        if extremes.expansion.value < math.inf:
            hopes.append(self._growth_beyond(extremes.expansion.value, sign=1))
        if extremes.contraction.value > 0:
            hopes.append(self._growth_beyond(extremes.contraction.value, sign=-1))
        i = j = torch.empty(0, dtype=torch.long, device=self.position.device)
        for hope in hopes:
            pairs = self._positive(hope, most)
            if pairs is None:
                return None
            i, j = torch.cat([i, pairs[0]]), torch.cat([j, pairs[1]])
        return (i, j) if len(i) <= most else None

    def leaders(self) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
        """The pairs that look extreme, distances taken no smaller than the products resolve."""
        apart = self.position.clamp(min=32 * (self.row_gap.amax() + self.column_gap.amax()))
        growth = self.growth / apart
        diagonal = self.corner[0] == self.corner[1]
        if diagonal:
            growth.fill_diagonal_(-math.inf)
        flat = [_argmax(self.step / apart), _argmax(growth)]
        growth.neg_()
        if diagonal:
            growth.fill_diagonal_(-math.inf)
        index = torch.tensor([*flat, _argmax(growth)], device=growth.device)
        i, j = index // growth.shape[1], index % growth.shape[1]
        if diagonal:
            i, j = torch.minimum(i, j), torch.maximum(i, j)
        return self.pairs(i, j)

    def possible_breaks(self, step: _Step, most: int) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]] | None:
        """The pairs for which |Δ_i - Δ_j| >= d_ij cannot be excluded whatever the rounding was, or None for many."""
        rows, columns = (slice(start, start + size) for start, size in zip(self.corner, self.step.shape, strict=True))
        weight = 1 / self.magnification**2
        margin = step.unlikely * (step.positions.squares + weight * step.steps.squares)
        hope = self.step.mul(weight).sub_(self.position)
        return self._positive(_with_margins(hope, margin[rows], margin[columns]), most)

    def _positive(
        self, hope: Float[Tensor, "m k"] | None, most: int
    ) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]] | None:
        """The pairs with a positive entry; None where they are more than `most`, those on the diagonal included."""
        nothing = torch.empty(0, dtype=torch.long, device=self.position.device)
        if hope is None:
            return nothing, nothing
        if self.corner[0] == self.corner[1]:
            hope.fill_diagonal_(-1.0)
        # Most rows have none: what is made of whole rows first is cheap.
        rows = (hope.amax(dim=1) > 0).nonzero().flatten()
        if len(rows) > most:
            return None
        i, j = (hope[rows] > 0).nonzero(as_tuple=True)
        return self.pairs(rows[i], j) if len(i) <= 2 * most else None

    def _step_beyond(self, ratio: float) -> Float[Tensor, "m k"]:
        """Positive where |Δ_i - Δ_j| / d_ij may lie above a ratio."""
        limit = (ratio * self.magnification) ** 2
        if limit > 1:  # which float32 may not hold
            return self.step.mul(1 / limit).sub_(self.position)
        return self.step.sub(self.position, alpha=limit)

    def _growth_beyond(self, ratio: float, sign: int) -> Float[Tensor, "m k"] | None:
        """Positive where d'/d may lie above (sign 1) or below (sign -1) a ratio; None where it lies so nowhere."""
        limit = self.magnification * (ratio - 1) * (ratio + 1)
        if not math.isfinite(limit):
            return torch.ones_like(self.growth)
        # The worst case of -sign * limit * d² takes the upper bound of d² where this is positive.
        extra = max(-sign * limit, 0.0)
        weight = 1 / max(1.0, abs(limit))  # float32 may not hold the limit itself
        hope = self.growth.mul(sign * weight) if weight < 1 else self.growth * sign
        hope.sub_(self.position, alpha=sign * limit * weight)
        row = weight * self.row_margin + extra * weight * self.row_gap
        column = weight * self.column_margin + extra * weight * self.column_gap
        return _with_margins(hope, row, column)

    def pairs(self, i: Int[Tensor, " p"], j: Int[Tensor, " p"]) -> tuple[Int[Tensor, " q"], Int[Tensor, " q"]]:
        """Pairs of the tile as pairs i < j of the cloud."""
        i, j = i + self.corner[0], j + self.corner[1]
        kept = i < j
        return i[kept], j[kept]


def _with_margins(
    hope: Float[Tensor, "m k"], row: Float[Tensor, " m"], column: Float[Tensor, " k"]
) -> Float[Tensor, "m k"] | None:
    """hope_ij + row_i + column_j, in place; None where nothing of it can be positive."""
    if hope.amax() + row.amax() + column.amax() <= 0:
        return None
    return hope.add_(row[:, None]).add_(column)


def _argmax(values: Float[Tensor, "m k"]) -> int:
    """The flat index of the largest entry; NumPy finds it ten times faster than torch on a CPU."""
    return int(values.numpy().argmax()) if values.device.type == "cpu" else int(values.argmax())


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
