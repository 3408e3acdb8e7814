"""Detect divergence from fresh evidence beyond the loss's own noise."""

import math
from dataclasses import dataclass, field
from statistics import median

from lightning_topo.phases._changes import SpanState, follow_span
from lightning_topo.phases._rules import PhaseRules


@dataclass(frozen=True, slots=True)
class StabilityState:
    """The evidence of divergence: recent losses, the first one, and the latest edge ratios with the last one's step."""

    losses: tuple[float, ...] = ()
    first: float | None = None
    ratios: tuple[float, ...] = ()
    ratio_step: int = -1
    span: SpanState = field(default_factory=SpanState)


@dataclass(frozen=True, slots=True)
class Divergence:
    """Why training is called unstable: a loss that is not finite or explodes, or one that rises at this ratio."""

    loss: float
    ratio: float | None = None
    level: float | None = None


def follow_stability(
    state: StabilityState, step: int, loss: float | None, ratio: float | None, rules: PhaseRules
) -> tuple[StabilityState, Divergence | None]:
    """Report an instability once: one of three things, for any period of measuring.

    The loss is not finite. Or it explodes: each of the last `loss_window` losses is above `explosion_level`. Or it
    rises (each of them is above nine tenths of the losses before) while the last `instability_confirm` edge ratios were
    all over `instability_ratio`, the last one no older than `instability_age` steps. It is over when
    `instability_hold` losses in a row showed none of these.
    """
    ratios, ratio_step = state.ratios, state.ratio_step
    if ratio is not None:
        ratios, ratio_step = (*ratios, ratio)[-rules.instability_confirm :], step
    if loss is None:
        return StabilityState(state.losses, state.first, ratios, ratio_step, state.span), None
    # NaN is no larger than anything, itself included: as infinity it can be ordered and compared.
    ordered = loss if loss < math.inf else math.inf
    first = ordered if state.first is None and math.isfinite(loss) else state.first
    losses = (*state.losses, ordered)[-(rules.loss_memory + rules.loss_window) :]
    window, before = losses[-rules.loss_window :], losses[: -rules.loss_window]
    finite = tuple(filter(math.isfinite, before))
    lowest = min(window) if len(window) == rules.loss_window else -math.inf
    # The level is at least three times a first loss above 0: mostly that is enough to know.
    is_low = first is None or not before or (first >= 0.0 and lowest <= 3.0 * first)
    level = math.inf if first is None or is_low else explosion_level(first, finite)
    fresh = 0 <= step - ratio_step <= rules.instability_age
    sharp = fresh and len(ratios) == rules.instability_confirm and min(ratios) > rules.instability_ratio
    # Of a loss that rises alone nothing follows, unless something goes on: mostly it need not be known.
    asks = sharp or state.span.inside
    risen = asks and len(finite) >= 2 * rules.loss_window and lowest > quantile(finite, 0.9)
    found = None
    if not math.isfinite(loss):
        found = Divergence(loss)
    elif sharp and (risen or lowest > level):
        found = Divergence(loss, ratio=ratios[-1])
    elif lowest > level:
        found = Divergence(loss, level=level)
    span, fired = follow_span(state.span, active=found is not None, quiet=not risen, hold=rules.instability_hold)
    return StabilityState(losses, first, ratios, ratio_step, span), found if fired else None


def explosion_level(first: float, before: tuple[float, ...]) -> float:
    """A loss that no healthy training keeps to: L + max(2 |L|, 5 (q90 - q10)), L the first loss or the later median.

    `before` holds recent losses, q90 and q10 are their quantiles: what they vary by is no explosion.

    >>> explosion_level(2.0, (1.0, 1.1, 0.9, 1.0))
    6.0
    """
    usual = max(first, median(before)) if before else first
    spread = quantile(before, 0.9) - quantile(before, 0.1) if before else 0.0
    return usual + max(2.0 * abs(usual), 5.0 * spread)


def quantile(values: tuple[float, ...], q: float) -> float:
    """The value below which at least the fraction q of the values lie, or which they equal.

    >>> quantile((1.0, 2.0, 3.0, 4.0), 0.5), quantile((5.0,), 0.9)
    (2.0, 5.0)
    """
    return sorted(values)[max(math.ceil(q * len(values)) - 1, 0)]
