"""Bounds of the ratios of a tile's pairs from matrix products, rounding included."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_topo.geometry._distances import mean_point
from lightning_topo.geometry._precision import product_slack, real_dtype, worst_case_slack

Pair = tuple[int, int]

_BLOCK_ELEMENTS = 1 << 18
_MOST_OCTAVES = 400
"""A step is brought to the size of the cloud by at most so many powers of two: their square must be a number."""


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
class Products:
    """Rows whose squared distances come as matrix products, with error at most slack * (s_i + s_j)."""

    rows: Float[Tensor, "n d"]
    squares: Float[Tensor, " n"]

    @staticmethod
    def of(rows: Float[Tensor, "n d"]) -> "Products":
        return Products(rows, torch.linalg.vector_norm(rows, dim=1).square_())

    def tile(self, rows: slice, columns: slice, weight: float = 1.0) -> Float[Tensor, "m k"]:
        """Squared distances, the squares |x_i|² + |x_j|² in them multiplied by a weight."""
        norms = weight * self.squares
        a, b = self.rows[rows], self.rows[columns]
        return torch.addmm(norms[columns].expand(len(a), -1), a, b.T, alpha=-2).add_(norms[rows, None])


@dataclass(frozen=True, slots=True)
class Step:
    """A step, scaled and centred: X, tΔ, X + tΔ in the working precision, t bringing Δ to the size of X.

    |x + tδ|² - |x|² - |tδ|² = 2t x·δ then has an error in proportion to |x| |δ|, however small the step.
    """

    before: Float[Tensor, "n d"]
    after: Float[Tensor, "n d"]
    scale: float
    magnification: float
    positions: Products
    steps: Products
    magnified: Products
    slack: float
    unlikely: float  # what is added to the slack to make it certain

    @staticmethod
    def of(before: Float[Tensor, "n d"], after: Float[Tensor, "n d"], scale: float) -> "Step":
        work = torch.promote_types(real_dtype(before), after.dtype)
        positions = centred(before, scale, work)
        steps = torch.empty_like(positions)
        for rows, moved in _differences(before, after, scale):
            steps[rows] = moved
        lengths = torch.stack([torch.linalg.vector_norm(rows) for rows in (positions, steps)]).tolist()
        magnification = 1.0
        if lengths[0] > 0 and lengths[1] > 0:
            magnification = 2.0 ** max(-_MOST_OCTAVES, min(_MOST_OCTAVES, round(math.log2(lengths[0] / lengths[1]))))
        steps *= magnification
        d = before.shape[1]
        return Step(
            before=before,
            after=after,
            scale=scale,
            magnification=magnification,
            positions=Products.of(positions),
            steps=Products.of(steps),
            magnified=Products.of(positions + steps),
            slack=product_slack(work, d),
            unlikely=max(0.0, worst_case_slack(work, d) - product_slack(work, d)),
        )


def centred(points: Float[Tensor, "n d"], scale: float, work: torch.dtype) -> Float[Tensor, "n d"]:
    """The points relative to their mean, or near it: any centre serves that is the same for all."""
    # Scaled first: the difference of two numbers near the largest there are would be infinite.
    return points.to(work).mul(scale).sub_((mean_point(points) * scale).to(work))


def _differences(
    before: Float[Tensor, "n d"], after: Float[Tensor, "n d"], scale: float
) -> Iterator[tuple[slice, Float[Tensor, "m d"]]]:
    """Blocks of rows of Δ - mean Δ, subtracted in the widest dtype."""
    mean = mean_point(after) - mean_point(before)
    size = max(1, _BLOCK_ELEMENTS // (max(1, before.shape[1])))
    for start in range(0, len(before), size):
        rows = slice(start, start + size)
        yield rows, (after[rows].to(mean.dtype) - before[rows].to(mean.dtype) - mean) * scale


@dataclass(frozen=True, slots=True)
class TileBounds:
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
    def of(step: Step, rows: slice, columns: slice) -> "TileBounds":
        t, slack = step.magnification, step.slack
        position = step.positions.tile(rows, columns, 1 - slack)
        moved = step.steps.tile(rows, columns, 1 + slack)
        growth = step.magnified.tile(rows, columns).sub_(position).sub_(moved, alpha=1 - 1 / t)
        gap = 2 * slack * step.positions.squares
        margin = gap + slack * (step.magnified.squares + 2 * (1 + 1 / t) * step.steps.squares)
        return TileBounds(
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

    def possible_breaks(self, step: Step, most: int) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]] | None:
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
        """Positive where d'/d may lie above (sign 1) or below (sign -1) a ratio; None if it cannot anywhere."""
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
