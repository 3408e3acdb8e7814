"""Detect divergence from fresh evidence beyond the loss's own noise."""

import math
from dataclasses import dataclass, field
from statistics import median

from lightning_topo.phases._changes import SpanState, follow_span
from lightning_topo.phases._climb import ClimbState, Ground, explosion_level, follow_climb, quantile
from lightning_topo.phases._rules import PhaseRules


@dataclass(frozen=True, slots=True)
class StabilityState:
    """The evidence of divergence: recent losses, the first one, and the latest edge ratios with the last one's step.

    `calm` is far above the losses up to the last edge ratio that was not over its limit, and `climb` follows the loss
    beyond all that it has been.
    """

    losses: tuple[float, ...] = ()
    first: float | None = None
    ratios: tuple[float, ...] = ()
    ratio_step: int = -1
    span: SpanState = field(default_factory=SpanState)
    calm: float | None = None
    climb: ClimbState = field(default_factory=ClimbState)


@dataclass(frozen=True, slots=True)
class Divergence:
    """Why training is called unstable: a loss that is not finite, or is high at this edge ratio, or climbs.

    The last losses are above `level`: with a `ratio`, one from before the ratio rose; with a `ground`, the climb's.
    """

    loss: float
    ratio: float | None = None
    level: float | None = None
    ground: Ground | None = None


def follow_stability(
    state: StabilityState,
    step: int,
    loss: float | None,
    ratio: float | None,
    *,
    at_edge: bool = False,
    is_broken: bool = False,
    rules: PhaseRules = PhaseRules(),
) -> tuple[StabilityState, Divergence | None]:
    """Report an instability once: one of three things, for any period of measuring.

    The loss is not finite. Or it is high after steps that were too large: the last `loss_window` losses are above what
    the noise of those before explains, and a group is broken down, or the last `instability_confirm` edge ratios were
    all over `instability_ratio`, the last one no older than `instability_age` steps. For these ratios a loss above the
    level `calm` from before them is as good. Or it climbs beyond all that it has been, as `follow_climb` says. It is
    over once, after `instability_hold` finite losses in a row, the last `loss_window` were not all above nine tenths of
    those before.
    """
    ratios, ratio_step, calm = state.ratios, state.ratio_step, state.calm
    if ratio is not None:
        ratios, ratio_step = (*ratios, ratio)[-rules.instability_confirm :], step
        if not ratio > rules.instability_ratio:
            calm = _calm(state.losses, rules) or calm
    if loss is None:
        return StabilityState(state.losses, state.first, ratios, ratio_step, state.span, calm, state.climb), None
    # NaN is no larger than anything, itself included: as infinity it can be ordered and compared.
    ordered = loss if loss < math.inf else math.inf
    first = ordered if state.first is None and math.isfinite(loss) else state.first
    losses = (*state.losses, ordered)[-(rules.loss_memory + rules.loss_window) :]
    window, before = losses[-rules.loss_window :], losses[: -rules.loss_window]
    fresh = 0 <= step - ratio_step <= rules.instability_age
    large = is_broken or (fresh and ratios[-1:] > (rules.instability_ratio,))
    climb, climbed = follow_climb(state.climb, losses, first, large_steps=large, at_edge=at_edge, rules=rules)
    sharp = fresh and len(ratios) == rules.instability_confirm and min(ratios) > rules.instability_ratio
    lowest = min(window) if len(window) == rules.loss_window else -math.inf
    # Of a loss that rises alone nothing follows, unless something goes on: mostly the noise need not be known.
    noise = _noise(before, rules) if sharp or is_broken or state.span.inside else _Noise()
    high = _high(first, calm)
    found = None
    if not math.isfinite(loss):
        found = Divergence(loss)
    elif sharp and lowest > high:
        found = Divergence(loss, ratio=ratios[-1], level=high)
    elif sharp and lowest > noise.level:
        found = Divergence(loss, ratio=ratios[-1])
    elif climbed is not None:
        found = Divergence(loss, level=climbed.level, ground=climbed.ground)
    elif is_broken and lowest > noise.level:
        found = Divergence(loss, level=noise.level, ground=Ground.LARGE_STEPS)
    quiet = not lowest > noise.usual
    span, fired = follow_span(state.span, active=found is not None, quiet=quiet, hold=rules.instability_hold)
    return StabilityState(losses, first, ratios, ratio_step, span, calm, climb), found if fired else None


@dataclass(frozen=True, slots=True)
class _Noise:
    """Nine tenths of the losses are at most `usual`; noise alone does not stay above `level`."""

    usual: float = math.inf
    level: float = math.inf


def _noise(losses: tuple[float, ...], rules: PhaseRules) -> _Noise:
    """The noise of the finite ones; infinite where they are too few to know."""
    finite = tuple(filter(math.isfinite, losses))
    if len(finite) < 2 * rules.loss_window:
        return _Noise()
    usual = quantile(finite, 0.9)
    return _Noise(usual, usual + (usual - quantile(finite, 0.1)))


def _high(first: float | None, calm: float | None) -> float:
    """The level of a loss that is far above the calm ones, or above the first where no ratio was within its limit."""
    if calm is not None:
        return calm
    return math.inf if first is None else explosion_level(first, ())


def _calm(losses: tuple[float, ...], rules: PhaseRules) -> float | None:
    """The level far above the recent losses; None where these are too few."""
    recent = tuple(filter(math.isfinite, losses[-rules.loss_memory :]))
    return explosion_level(median(recent), recent) if len(recent) >= 2 * rules.loss_window else None
