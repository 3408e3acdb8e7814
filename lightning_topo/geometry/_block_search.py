"""The extreme pairs of many small clouds at once, by products in the widest dtype."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_topo.geometry._lower_bounds import UNRESOLVED, lower_roots
from lightning_topo.geometry._pair_search import pair_ratios
from lightning_topo.geometry._precision import wide_dtype, worst_case_slack
from lightning_topo.geometry._tile_bounds import Extreme, Extremes

MAX_ROWS = 128
"""Clouds of at most this many neurons are searched together."""

_ACCURACY = 1e-7
_ENTRIES = 1 << 16
"""So many entries of a cloud are widened at once: few enough for a CPU's cache."""


@dataclass(frozen=True, slots=True)
class Searched:
    """The extremes of each block's step, and which blocks the products resolve; search the others one by one.

    `nearest` bounds the distance of each neuron to its nearest after the step from below, and is good to a percent from
    `clear` on.
    """

    extremes: tuple[Extremes, ...]
    resolved: tuple[bool, ...]
    nearest: Float[Tensor, "b n"]
    clear: Float[Tensor, "b 1"]


def search_blocks(before: Float[Tensor, "b n d"], after: Float[Tensor, "b n d"]) -> Searched:
    """The extreme ratios over the pairs of each of b clouds of n >= 2 points; see `StepDistortion` for the formulas.

    A block counts as resolved where rounding moves no ratio by more than 1e-7 of itself, no pair coincides before or
    after, and r is not so near 1 that this could decide.
    """
    b, n, d = before.shape
    slack = worst_case_slack(wide_dtype(before.device), d)
    products = _products(before, after)
    square, step, cross = (_differences(some) for some in products)
    growth = 2 * cross + step
    above = torch.ones(n, n, dtype=torch.bool, device=before.device).triu_(1)
    largest, longest = (some.diagonal(dim1=1, dim2=2).amax(dim=1) for some in products[:2])
    nearest, clear = _nearest(square + growth, 8 * slack * (largest + longest)[:, None], d)
    # Errors of d², of |Δ_i - Δ_j|² and of growth, for each block.
    coarse = (2 * slack / _ACCURACY) * largest
    sound = _all(square > coarse[:, None, None], above) & _all(square + growth > coarse[:, None, None], above)
    sound &= coarse > torch.finfo(coarse.dtype).tiny  # smaller squares have lost digits, or vanished
    critical = (step / square).masked_fill_(~above, -math.inf).flatten(1)
    growth = growth / square
    low, high = (growth.masked_fill(~above, fill).flatten(1) for fill in (math.inf, -math.inf))
    flat = torch.stack([critical.argmax(dim=1), low.argmin(dim=1), high.argmax(dim=1)], dim=1)
    # The step's own rounding, against the largest ratio.
    sound &= step.flatten(1).gather(1, flat[:, :1])[:, 0] > (2 * slack / _ACCURACY) * longest
    rows = torch.arange(b, device=before.device)[:, None] * n
    i, j = (flat // n + rows).flatten(), (flat % n + rows).flatten()
    q, ratio = pair_ratios(before.flatten(0, 1), after.flatten(0, 1), i, j, 1.0)
    values = torch.stack([q, ratio], dim=1).unflatten(0, (b, 3)).tolist()
    resolved, places = sound.tolist(), flat.tolist()
    extremes = []
    for block in range(b):
        pairs = [(place // n, place % n) for place in places[block]]
        (r, _), (_, least), (_, most) = values[block]
        resolved[block] = resolved[block] and not 1 - 1e-5 < r < 1
        extremes.append(Extremes(Extreme(r, pairs[0]), Extreme(least, pairs[1]), Extreme(most, pairs[2])))
    return Searched(tuple(extremes), tuple(resolved), nearest, clear)


def _products(before: Float[Tensor, "b n d"], after: Float[Tensor, "b n d"]) -> Float[Tensor, "3 b n n"]:
    """x_i·x_j, Δ_i·Δ_j and x_i·Δ_j, centred, in the widest dtype, a few coordinates after the others."""
    b, n, d = before.shape
    wide = wide_dtype(before.device)
    found = torch.zeros(3, b, n, n, dtype=wide, device=before.device)
    size = max(1, _ENTRIES // (b * n)) if before.device.type == "cpu" else max(1, d)
    for here, there in zip(before.split(size, dim=2), after.split(size, dim=2), strict=True):
        here = here.to(wide)
        moved = there.to(wide) - here
        moved -= moved.mean(dim=1, keepdim=True)
        here = here - here.mean(dim=1, keepdim=True)
        for some, (x, y) in zip(found, ((here, here), (moved, moved), (here, moved)), strict=True):
            some.baddbmm_(x, y.mT)
    return found


def _differences(products: Float[Tensor, "b n n"]) -> Float[Tensor, "b n n"]:
    """(x_i - x_j)·(y_i - y_j) of all pairs, from x_i·y_j."""
    own = products.diagonal(dim1=1, dim2=2)
    return own[:, :, None] + own[:, None, :] - products - products.mT


def _nearest(
    squares: Float[Tensor, "b n n"], error: Float[Tensor, "b 1"], d: int
) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b 1"]]:
    """Lower bounds of the distance to the nearest neighbour, and from where on they are good to a percent."""
    squares.diagonal(dim1=1, dim2=2).fill_(math.inf)
    return lower_roots(squares.amin(dim=2) - error, squares.dtype, d), (UNRESOLVED * error).sqrt()


def _all(true: Bool[Tensor, "b n n"], among: Bool[Tensor, "n n"]) -> Bool[Tensor, " b"]:
    return (true | ~among).flatten(1).all(dim=1)
