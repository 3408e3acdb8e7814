"""Changes that happen at one step: each is an event once, however often it is looked at.

Every detector here is a pure step (state, value) -> (state, fired). Its state is a small record of numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from lightning_topo.phases.rules import PhaseRules


@dataclass(frozen=True, slots=True)
class LevelState:
    """A count as it was last reported, and the values that have differed from it since."""

    reported: float | None = None
    differing: tuple[float, ...] = ()


def follow_level(state: LevelState, value: float, confirm: int) -> tuple[LevelState, bool]:
    """Report a new level once the last `confirm` values all lay on the same side of the old one.

    A count that flickers about a threshold is never reported, one that moves steadily is every `confirm` values.

    >>> state = LevelState(reported=3.0)
    >>> state, fired = follow_level(state, 4.0, confirm=2)
    >>> follow_level(state, 5.0, confirm=2)
    (LevelState(reported=5.0, differing=()), True)
    """
    if state.reported is None:
        return LevelState(value), False
    side = math.copysign(1.0, value - state.reported)
    kept = tuple(v for v in state.differing if math.copysign(1.0, v - state.reported) == side)
    # A value on the other side, or back on the old level, begins the count anew.
    differing = (*kept, value) if len(kept) == len(state.differing) else (value,)
    if value == state.reported:
        return LevelState(state.reported), False
    if len(differing) < confirm:
        return LevelState(state.reported, differing), False
    return LevelState(value), True


@dataclass(frozen=True, slots=True)
class FloorState:
    """The lowest count reported, and the recent values that could raise it again."""

    floor: float | None = None
    recent: tuple[float, ...] = ()


def follow_floor(state: FloorState, value: float, confirm: int) -> tuple[FloorState, bool]:
    """Report each fall below the lowest count so far; that count rises when `confirm` values in a row lie above it.

    >>> follow_floor(FloorState(floor=8.0), 6.0, confirm=5)
    (FloorState(floor=6.0, recent=(6.0,)), True)
    """
    recent = (*state.recent, value)[-confirm:]
    if state.floor is None:
        return FloorState(value, recent), False
    if value < state.floor:
        return FloorState(value, recent), True
    floor = max(state.floor, min(recent)) if len(recent) == confirm else state.floor
    return FloorState(floor, recent), False


@dataclass(frozen=True, slots=True)
class SpanState:
    """Whether something goes on, and for how many measurements it has been quiet."""

    inside: bool = False
    quiet: int = 0


def follow_span(state: SpanState, *, active: bool, quiet: bool, hold: int) -> tuple[SpanState, bool]:
    """Report the beginning of a span that ends after `hold` quiet measurements in a row.

    >>> follow_span(SpanState(), active=True, quiet=False, hold=2)
    (SpanState(inside=True, quiet=0), True)
    """
    if active:
        return SpanState(inside=True), not state.inside
    if not state.inside:
        return state, False
    calm = state.quiet + 1 if quiet else 0
    return (SpanState() if calm >= hold else SpanState(inside=True, quiet=calm)), False


@dataclass(frozen=True, slots=True)
class StabilityState:
    """Recent losses and the latest sharpness ratio, which together tell a divergence."""

    losses: tuple[float, ...] = ()
    ratio: float | None = None
    span: SpanState = SpanState()


def follow_stability(
    state: StabilityState, loss: float | None, ratio: float | None, rules: PhaseRules
) -> tuple[StabilityState, bool]:
    """Report an instability: a loss that is not finite, or one that rises at a ratio over `rules.instability_ratio`.

    It is over when `rules.instability_hold` values in a row showed neither: a finite loss, and a ratio below 1.
    """
    window = rules.loss_window
    # NaN is no larger than anything, itself included: as infinity it can be ordered and compared.
    losses = state.losses if loss is None else (*state.losses, loss if loss < math.inf else math.inf)[-2 * window :]
    latest = state.ratio if ratio is None else ratio
    broken = loss is not None and not math.isfinite(loss)
    sharp = latest is not None and latest > rules.instability_ratio
    active = broken or (sharp and rises(losses, window))
    quiet = not broken and (latest is None or latest < 1.0)
    span, fired = follow_span(state.span, active=active, quiet=quiet, hold=rules.instability_hold)
    return StabilityState(losses, latest, span), fired


def rises(losses: Sequence[float], window: int) -> bool:
    """Whether the median of the last `window` losses is above that of the `window` before.

    >>> rises([1.0, 0.9, 0.8, 1.0, 1.2, 1.4], window=3), rises([1.0, 2.0], window=3)
    (True, False)
    """
    if len(losses) < 2 * window:
        return False
    return median(losses[-window:]) > median(losses[-2 * window : -window])
