"""The learning rate by step, and the learning rates at which each measured step would have met a limit."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning_topo.measurement import GLOBAL, Measurement
from lightning_topo.phases import EdgeSource, PhaseRules
from lightning_topo.phases._edge import EDGE_QUANTITIES, EdgeState, follow_edge

Series = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class RateLimits:
    """Learning rates by step: the one `used` (at its changes), and those at which a limit is met.

    `critical` is eta* = eta / r by the largest r of all groups, `curvature` eta over the estimate eta K, `edge` eta
    over the edge ratio. Empty where the record holds no learning rate, or the other quantity was not measured.
    """

    used: Series = ()
    critical: Series = ()
    curvature: Series = ()
    edge: Series = ()

    def at(self, step: int) -> float | None:
        """The learning rate of a step; None before the first one that is known.

        >>> limits = RateLimits(used=((1, 0.1), (5, 0.2)))
        >>> limits.at(4), limits.at(5), limits.at(0)
        (0.1, 0.2, None)
        """
        i = bisect_right(self.used, step, key=lambda point: point[0])
        return self.used[i - 1][1] if i else None

    @property
    def largest(self) -> float | None:
        """The largest learning rate that was used."""
        return max((rate for _, rate in self.used), default=None)


def rate_limits(measurements: Sequence[Measurement]) -> RateLimits:
    """The learning rates of a record, and what its measurements say of them.

    >>> rate = Measurement(1, 0, "training", "", {"learning_rate": 0.5})
    >>> rate_limits([rate, Measurement(3, 0, "distortion", "net.0", {"critical_ratio": 2.0})]).critical
    ((3, 0.25),)
    """
    used = dict[int, float]()
    for m in measurements:
        rate = m.values.get("learning_rate", math.nan) if m.probe == "training" else math.nan
        if 0.0 <= rate < math.inf:
            used[m.step] = rate
    limits = RateLimits(tuple(sorted(used.items())))
    if not used:
        return limits

    def over(ratios: Mapping[int, float]) -> Series:
        return tuple(
            (step, rate / ratio)
            for step, ratio in sorted(ratios.items())
            if ratio > 0.0 and (rate := limits.at(step)) is not None and rate > 0.0
        )

    return RateLimits(
        limits.used,
        over(largest_ratios(measurements)),
        over(of_network(measurements, "eta_lambda")),
        over(edge_ratios(measurements)),
    )


def largest_ratios(measurements: Sequence[Measurement]) -> dict[int, float]:
    """The largest measured r of all groups, by step; an infinite one, of equal neurons that part, is left out.

    Where a guard has held an update back, r of the update as the optimizer made it: the learning rate is its own.
    """
    found = dict[int, float]()
    for m in measurements:
        ratio = m.values.get("proposed_critical_ratio", m.values.get("critical_ratio"))
        # A comparison with NaN is false: it never counts.
        if m.group != GLOBAL and ratio is not None and found.get(m.step, -1.0) < ratio < math.inf:
            found[m.step] = ratio
    return found


def held_ratios(measurements: Sequence[Measurement]) -> dict[int, float]:
    """The largest r that updates had before a guard held them back, by step, of those that were measured."""
    found = dict[int, float]()
    for m in measurements:
        if (ratio := m.values.get("proposed_critical_ratio")) is not None:
            found[m.step] = max(ratio, found.get(m.step, 0.0))
    return found


def edge_source(measurements: Sequence[Measurement]) -> EdgeSource | None:
    """The source that was the last to decide whether training is at the edge; None where none was measured."""
    state, rules, last = EdgeState(), PhaseRules(), None
    own = (m for m in measurements if m.group == GLOBAL and not EDGE_QUANTITIES.isdisjoint(m.values))
    for m in sorted(own, key=lambda m: m.step):
        state, _ = follow_edge(state, m.step, m.values, rules)
        last = next((source for source in state.deciding(m.step, rules) if source.quantity in m.values), last)
    return last


def edge_ratios(measurements: Sequence[Measurement]) -> dict[int, float]:
    """The edge ratio by step, of the source that decides."""
    source = edge_source(measurements)
    return {} if source is None else of_network(measurements, source.quantity)


def of_network(measurements: Sequence[Measurement], name: str) -> dict[int, float]:
    """One value of the whole network by step; infinities and NaN are left out."""
    found = {m.step: m.values[name] for m in measurements if m.group == GLOBAL and name in m.values}
    return {step: value for step, value in sorted(found.items()) if abs(value) < float("inf")}
