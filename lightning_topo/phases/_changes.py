"""Detect changes: each is an event once, however often it is measured.

Every detector here is a pure step (state, value) -> (state, fired). Its state is a small record of numbers.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LevelState:
    """A count as it was last reported, and the values that have differed from it since."""

    reported: float | None = None
    differing: tuple[float, ...] = ()


def follow_level(state: LevelState, value: float, confirm: int, margin: float = 1.0) -> tuple[LevelState, bool]:
    """Report a new level once the last `confirm` values all lay `margin` or more from the old one, on the same side.

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
    if abs(value - state.reported) < margin:
        return LevelState(state.reported), False
    if len(differing) < confirm:
        return LevelState(state.reported, differing), False
    return LevelState(value), True


@dataclass(frozen=True, slots=True)
class FloorState:
    """The lowest count reported, and the recent values that could raise it again; of how many, where that is known."""

    floor: float | None = None
    recent: tuple[float, ...] = ()
    size: float | None = None


def follow_floor(state: FloorState, value: float, confirm: int, size: float | None = None) -> tuple[FloorState, bool]:
    """Report each fall below the lowest count so far; that count rises when `confirm` values in a row lie above it.

    Among another number than before, `size`, counting begins anew.

    >>> follow_floor(FloorState(floor=8.0), 6.0, confirm=5)
    (FloorState(floor=6.0, recent=(6.0,), size=None), True)
    """
    if size is not None and state.size not in (None, size):
        return FloorState(value, (value,), size), False
    recent, size = (*state.recent, value)[-confirm:], state.size if size is None else size
    if state.floor is None:
        return FloorState(value, recent, size), False
    if value < state.floor:
        return FloorState(value, recent, size), True
    floor = max(state.floor, min(recent)) if len(recent) == confirm else state.floor
    return FloorState(floor, recent, size), False


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


def follow_decline(state: LevelState, value: float, confirm: int, margin: float) -> tuple[LevelState, bool]:
    """Report a count that has fallen by `margin` or more, once the last `confirm` values all lay so far below.

    A rise by as much, as well confirmed, moves the level and is not reported. In between nothing happens: a count that
    wanders about a level is reported once.

    >>> follow_decline(LevelState(reported=80.0), 74.0, confirm=1, margin=5.0)
    (LevelState(reported=74.0, differing=()), True)
    >>> follow_decline(LevelState(reported=74.0), 71.0, confirm=1, margin=5.0)
    (LevelState(reported=74.0, differing=()), False)
    """
    if state.reported is not None and abs(value - state.reported) < margin:
        return LevelState(state.reported), False
    after, changed = follow_level(state, value, confirm)
    return after, changed and state.reported is not None and value < state.reported
