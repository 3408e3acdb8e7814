"""The detector's state, and the phase that follows from it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lightning_topo.measurement import GLOBAL, StepState
from lightning_topo.phases._changes import FloorState, LevelState, SpanState
from lightning_topo.phases._coverage import CoverageState
from lightning_topo.phases._edge import BandState, EdgeSource, EdgeState
from lightning_topo.phases._instability import StabilityState
from lightning_topo.phases._phase import Phase


@dataclass(frozen=True, slots=True)
class Breakdown:
    """A group's span of breakdown that is not over yet."""

    since: int
    peak: float
    peak_step: int
    quiet_steps: int = 0


@dataclass(frozen=True, slots=True)
class DetectorState:
    """The detector's state. A fresh one has measured nothing.

    `distinct`, `splits` and `coverage` are kept by group, `betti`, `fates` and `jumps` by quantity and group:
    "betti_0 net.0". `finite` is whether the last loss was.
    """

    measured: bool = False
    finite: bool = True
    curvature: BandState = field(default_factory=BandState)
    edge: EdgeState = field(default_factory=EdgeState)
    breakdowns: Mapping[str, Breakdown] = field(default_factory=dict)
    coverage: Mapping[str, CoverageState] = field(default_factory=dict)
    stability: StabilityState = field(default_factory=StabilityState)
    distinct: Mapping[str, FloorState] = field(default_factory=dict)
    splits: Mapping[str, SpanState] = field(default_factory=dict)
    betti: Mapping[str, LevelState] = field(default_factory=dict)
    fates: Mapping[str, LevelState] = field(default_factory=dict)
    jumps: Mapping[str, SpanState] = field(default_factory=dict)

    @property
    def phase(self) -> Phase:
        """The phase of the whole network: the highest that holds."""
        return max((self.phase_of(group) for group in self.breakdowns), default=self.phase_of(GLOBAL))

    def phase_of(self, group: str) -> Phase:
        """The phase of one group: its own breakdown, else the curvature phase of the whole network.

        Behind a loss that is not finite only a breakdown is still known.
        """
        if group in self.breakdowns:
            return Phase.BREAKDOWN
        if not self.finite:
            return Phase.UNKNOWN
        if self.edge.inside:
            return Phase.EDGE_OF_STABILITY
        if self.curvature.inside:
            return Phase.UNPROTECTED
        return Phase.PRESERVED if self._certified(group) else Phase.UNKNOWN

    def _certified(self, group: str) -> bool:
        """Whether the last steps all had r < 1: by their coverage, or where none is recorded by what was measured."""
        if not self.coverage:
            return self.measured
        runs = list(self.coverage.values()) if group == GLOBAL else [self.coverage.get(group)]
        return all(run is not None and run.state.certified for run in runs)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, tuples and numbers, for a checkpoint."""
        plain = asdict(self)
        plain["coverage"] = {group: [run.step, int(run.state)] for group, run in self.coverage.items()}
        return plain

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> "DetectorState":
        """The inverse of `to_dict`; what an older version did not know yet is as in a fresh state.

        Raises `KeyError`, `TypeError`, `AttributeError` or `ValueError` where it is no such state.
        """

        def numbers(plain: Iterable[Any]) -> tuple[float, ...]:
            return tuple(float(value) for value in plain)

        def number(plain: Any) -> float | None:
            return None if plain is None else float(plain)

        def each(name: str, kind: Callable[..., Any]) -> dict[str, Any]:
            return {str(key): kind(**plain) for key, plain in state.get(name, {}).items()}

        def band(plain: Mapping[str, Any]) -> BandState:
            return BandState(bool(plain["inside"]), numbers(plain["recent"]))

        def span(inside: Any, quiet: Any) -> SpanState:
            return SpanState(bool(inside), int(quiet))

        def breakdown(since: Any, peak: Any, peak_step: Any, quiet_steps: Any) -> Breakdown:
            return Breakdown(int(since), float(peak), int(peak_step), int(quiet_steps))

        def level(reported: Any, differing: Any) -> LevelState:
            return LevelState(number(reported), numbers(differing))

        return cls(
            measured=bool(state["measured"]),
            finite=bool(state.get("finite", True)),
            curvature=band(state["curvature"]),
            edge=_edge(state["edge"], band),
            breakdowns=each("breakdowns", breakdown),
            coverage={
                str(group): CoverageState(int(step), StepState(int(code)))
                for group, (step, code) in state.get("coverage", {}).items()
            },
            stability=_stability(state.get("stability"), numbers, number, span),
            distinct=each("distinct", lambda floor, recent: FloorState(number(floor), numbers(recent))),
            splits=each("splits", span),
            betti=each("betti", level),
            fates=each("fates", level),
            jumps=each("jumps", span),
        )


def _edge(plain: Mapping[str, Any], band: Callable[[Mapping[str, Any]], BandState]) -> EdgeState:
    if "bands" in plain:
        bands = {EdgeSource(name).value: band(each) for name, each in plain["bands"].items()}
        source = None if plain["source"] is None else EdgeSource(plain["source"]).value
        if source is not None and source not in bands:
            raise ValueError(f"expected the band of {source}, on whose ground training is at the edge, got none")
        return EdgeState(bands, source)
    only = band(plain)  # until the edge had sources, the sharpness was the only one
    known = only.inside or bool(only.recent)
    source = EdgeSource.SHARPNESS.value
    return EdgeState({source: only} if known else {}, source if only.inside else None)


def _stability(
    plain: Mapping[str, Any] | None,
    numbers: Callable[[Iterable[Any]], tuple[float, ...]],
    number: Callable[[Any], float | None],
    span: Callable[..., SpanState],
) -> StabilityState:
    if plain is None:
        return StabilityState()
    if "first" not in plain:  # older versions stored ratios without their age: only fresh evidence counts
        return StabilityState(numbers(plain["losses"]), span=span(**plain["span"]))
    return StabilityState(
        numbers(plain["losses"]),
        number(plain["first"]),
        numbers(plain["ratios"]),
        int(plain["ratio_step"]),
        span(**plain["span"]),
    )
