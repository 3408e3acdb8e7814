"""Follow a loss that climbs above every level at which it has stood, threefold again and again."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise

from lightning_topo.phases._rules import PhaseRules

_SLOWER = 1.25
"""Growth is steady while no rise takes so many times as long as an earlier one: that of t ** 4 and slower is not."""


@dataclass(frozen=True, slots=True)
class ClimbState:
    """How far the loss has climbed: the number of losses, the `level` to pass next, and the rises made so far.

    `rises` holds the number of losses at each of the latest rises; the last `n_at_edge` rises happened at the edge.
    """

    n_losses: int = 0
    level: float | None = None
    rises: tuple[int, ...] = ()
    n_at_edge: int = 0


class Ground(StrEnum):
    """What makes a climb an instability: steps that are too large, the edge of stability, or its own speed and height.

    It takes one rise after steps that are too large, `edge_rises` at the edge, and else `loss_rises` in little time.
    """

    LARGE_STEPS = "large steps"
    EDGE = "edge"
    SPEED = "speed"


@dataclass(frozen=True, slots=True)
class Climb:
    """A climb that is an instability: on which ground, and the level that the loss has passed last."""

    ground: Ground
    level: float


def follow_climb(
    state: ClimbState,
    losses: Sequence[float],
    first: float | None,
    *,
    large_steps: bool,
    at_edge: bool,
    rules: PhaseRules,
) -> tuple[ClimbState, Climb | None]:
    """Count a rise whenever the last `loss_window` losses are all above the level; the next level is above them.

    `losses` are the recent ones, the newest last. The first level is above the first loss and above all that the loss
    held for `loss_window` of the first losses. Until there are enough of them, and steps are too large, it is above the
    first loss alone. So a level does not move with the loss, and a jump of any height is one rise. Rises are at least
    `loss_window` losses apart.
    """
    size, finite = rules.loss_window, tuple(filter(math.isfinite, losses))
    level = state.level
    if level is None and first is not None and len(finite) >= 2 * size:
        held = (min(finite[k : k + size]) for k in range(len(finite) - size + 1))
        level = explosion_level(max(first, *held), finite)
    state = replace(state, n_losses=state.n_losses + 1, level=level)
    if level is None and first is not None and large_steps:
        level = explosion_level(first, ())
    lowest = min(losses[-size:]) if len(losses) >= size else -math.inf
    is_new = not state.rises or state.n_losses - state.rises[-1] >= size
    if level is None or not (is_new and level < lowest < math.inf):
        return state, None
    rises = (*state.rises, state.n_losses)[-max(rules.loss_rises, rules.edge_rises) :]
    n_at_edge = state.n_at_edge + 1 if at_edge else 0
    state = ClimbState(state.n_losses, explosion_level(lowest, finite[:-size]), rises, n_at_edge)
    ground = Ground.LARGE_STEPS if large_steps else None
    if n_at_edge >= rules.edge_rises and is_steady(rises[-rules.edge_rises :]):
        ground = ground or Ground.EDGE
    alone = rises[-rules.loss_rises :]
    if len(alone) == rules.loss_rises and is_steady(alone, longest=rules.loss_memory):
        ground = ground or Ground.SPEED
    if ground is None:
        return state, None
    return replace(state, rises=(), n_at_edge=0), Climb(ground, level)


def is_steady(rises: Sequence[int], longest: float = math.inf) -> bool:
    """Whether the last rise took hardly longer than each before it, and none took more than `longest` losses.

    Exponential growth is steady, however slow. A jump, a linear or quadratic growth, and one to a new level are not.

    >>> is_steady([100, 130, 160, 190]), is_steady([100, 105, 113, 129])
    (True, False)
    """
    taken = [after - before for before, after in pairwise(rises)]
    return all(taken[-1] <= _SLOWER * earlier for earlier in taken) and max(taken, default=0) <= longest


def explosion_level(usual: float, losses: Sequence[float]) -> float:
    """A level far above the `usual` loss L and beyond the losses' own noise: L + max(2 |L|, 5 (q90 - q10)).

    q90 and q10 are quantiles of `losses`.

    >>> explosion_level(2.0, (1.0, 1.1, 0.9, 1.0))
    6.0
    """
    spread = quantile(losses, 0.9) - quantile(losses, 0.1) if losses else 0.0
    return usual + max(2.0 * abs(usual), 5.0 * spread)


def quantile(values: Sequence[float], q: float) -> float:
    """The value below which at least the fraction q of the values lie, or which they equal.

    >>> quantile((1.0, 2.0, 3.0, 4.0), 0.5), quantile((5.0,), 0.9)
    (2.0, 5.0)
    """
    return sorted(values)[max(math.ceil(q * len(values)) - 1, 0)]
