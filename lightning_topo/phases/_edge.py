"""The edge of stability from several sources: one ratio, 1 at the edge, with its source."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from statistics import median

from lightning_topo.phases._rules import Band, PhaseRules


class EdgeSource(StrEnum):
    """A measured quantity that shows how close training is to the edge of stability; each is 1 at the edge.

    `SHARPNESS` and `BATCH` need the optimizer's stability threshold; `DIRECTIONAL` and `CRITICAL` do not. Where `BATCH`
    is measured, which is where batches are small, it decides whether training is at the edge; otherwise `SHARPNESS`
    does; where there is neither, the other two do. A source that is not measured any more does not decide.
    """

    SHARPNESS = "sharpness"
    BATCH = "batch"
    DIRECTIONAL = "directional"
    CRITICAL = "critical"

    @property
    def quantity(self) -> str:
        """The name of the measured value, as in the record.

        >>> EdgeSource.BATCH.quantity
        'batch_sharpness_ratio'
        """
        return {
            EdgeSource.SHARPNESS: "sharpness_ratio",
            EdgeSource.BATCH: "batch_sharpness_ratio",
            EdgeSource.DIRECTIONAL: "directional_ratio",
            EdgeSource.CRITICAL: "critical_sharpness",
        }[self]

    @property
    def knows_threshold(self) -> bool:
        """Whether it compares the curvature with the optimizer's stability threshold."""
        return self in (EdgeSource.SHARPNESS, EdgeSource.BATCH)

    def band(self, rules: PhaseRules) -> Band:
        """Return the source's band in `rules`: the levels at which training comes to the edge and leaves it."""
        return {
            EdgeSource.SHARPNESS: rules.edge,
            EdgeSource.BATCH: rules.batch_edge,
            EdgeSource.DIRECTIONAL: rules.directional_edge,
            EdgeSource.CRITICAL: rules.critical_edge,
        }[self]


EDGE_QUANTITIES = frozenset(source.quantity for source in EdgeSource)
"""The ratios of all sources."""
_MISSED = 10
"""A source is not measured any more once this many of its longest interval between two measurements have passed."""


@dataclass(frozen=True, slots=True)
class BandState:
    """Whether a quantity is inside its band, and the recent values that decide when that changes.

    `step` is that of the last value, and `interval` the largest number of steps between two; None if unknown.
    """

    inside: bool = False
    recent: tuple[float, ...] = ()
    step: int | None = None
    interval: int | None = None

    def is_measured(self, step: int) -> bool:
        """Whether values still come, as far as their interval tells."""
        if self.step is None or self.interval is None or len(self.recent) < 3:  # intervals vary
            return True
        return step - self.step <= _MISSED * self.interval


@dataclass(frozen=True, slots=True)
class EdgeState:
    """The band of each source that has been measured, and the source on whose ground training is at the edge."""

    bands: Mapping[str, BandState] = field(default_factory=dict)
    source: str | None = None

    @property
    def inside(self) -> bool:
        """Whether training is at the edge."""
        return self.source is not None

    def measured(self, step: int) -> tuple[EdgeSource, ...]:
        """The sources that are measured: those that know a threshold, and only where there are none the others."""
        every = [s for s in EdgeSource if s.value in self.bands and self.bands[s.value].is_measured(step)]
        return tuple(source for source in every if source.knows_threshold) or tuple(every)

    def deciding(self, step: int, rules: PhaseRules) -> tuple[EdgeSource, ...]:
        """The sources that decide: of two that know a threshold that of the batches, once it can."""
        measured = self.measured(step)
        if set(measured) != {EdgeSource.SHARPNESS, EdgeSource.BATCH}:
            return measured
        n_batches = len(self.bands[EdgeSource.BATCH.value].recent)
        return (EdgeSource.BATCH,) if n_batches >= rules.batch_edge.enter_window else (EdgeSource.SHARPNESS,)


@dataclass(frozen=True, slots=True)
class EdgeChange:
    """Training has come to the edge, or left it, as one source sees it."""

    entered: bool
    source: EdgeSource
    level: float


def follow_edge(
    state: EdgeState, step: int, values: Mapping[str, float], rules: PhaseRules = PhaseRules()
) -> tuple[EdgeState, EdgeChange | None]:
    """Take in the edge ratios among the `values` of a step: inside while one of the sources that decide is.

    >>> state = EdgeState()
    >>> for step in range(3):
    ...     state, change = follow_edge(state, step, {"sharpness_ratio": 1.0, "directional_ratio": 0.1})
    >>> state.inside, change
    (True, EdgeChange(entered=True, source=<EdgeSource.SHARPNESS: 'sharpness'>, level=1.0))
    """
    bands, levels = dict(state.bands), {}
    values = known_ratios(values)
    for source in EdgeSource:
        if source.quantity in values:
            before = bands.get(source.value, BandState())
            after, levels[source] = advance(before, values[source.quantity], source.band(rules))
            interval = None if before.step is None else max(step - before.step, before.interval or 1)
            bands[source.value] = replace(after, step=step, interval=interval)
    edge = EdgeState(bands)
    deciding = edge.deciding(step, rules)
    ground = next((source for source in deciding if bands[source.value].inside), None)
    edge = EdgeState(bands, None if ground is None else ground.value)
    if edge.inside == state.inside:
        return edge, None
    decisive = EdgeSource(state.source) if ground is None and state.source in deciding else ground
    decisive = decisive or deciding[0]
    return edge, EdgeChange(edge.inside, decisive, levels.get(decisive, bands[decisive.value].recent[-1]))


def known_ratios(values: Mapping[str, float]) -> Mapping[str, float]:
    """The values without a critical sharpness that is a bound: where no multiple of a step lowers the loss, as uphill.

    Such a step has no ratio to the edge, as it has no directional one. A value of 0 stays: the loss falls all along.

    >>> known_ratios({"critical_sharpness": 1e9, "critical_converged": 0.0})
    {'critical_converged': 0.0}
    """
    name = EdgeSource.CRITICAL.quantity
    if values.get("critical_converged", 1.0) > 0.0 or not values.get(name, 0.0) > 0.0:
        return values
    return {key: value for key, value in values.items() if key != name}


def advance(state: BandState, value: float, band: Band) -> tuple[BandState, float]:
    """The next state of a band, and the median that decided it."""
    recent = (*state.recent, value)[-band.memory :]
    size = band.leave_window if state.inside else band.enter_window
    level = median(recent[-size:])
    full = len(recent) >= size
    inside = not (full and level < band.leave) if state.inside else full and level >= band.enter
    return BandState(inside, recent), level
