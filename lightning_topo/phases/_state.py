"""The detector's state, and the phase that follows from it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lightning_topo.measurement import GLOBAL, StepState
from lightning_topo.phases._changes import FloorState, LevelState, SpanState
from lightning_topo.phases._climb import ClimbState
from lightning_topo.phases._coverage import CoverageState
from lightning_topo.phases._edge import BandState, EdgeSource, EdgeState
from lightning_topo.phases._instability import StabilityState
from lightning_topo.phases._phase import Phase


@dataclass(frozen=True, slots=True)
class Breakdown:
    """A breakdown of a group that is not over: its first step, its largest critical ratio and that ratio's step.

    `quiet_steps` counts the steps with a ratio below the threshold since the last one above it.
    """

    since: int
    peak: float
    peak_step: int
    quiet_steps: int = 0


@dataclass(frozen=True, slots=True)
class DetectorState:
    """The memory of the detector between measurements: pass it to `observe`, which returns the next one.

    `DetectorState()` has seen no measurement. Fields of the whole network:

    - `measured`: whether a critical ratio, `eta_lambda` or an edge ratio was measured.
    - `finite`: whether the last loss was finite.
    - `curvature`, `edge`: the recent values of `eta_lambda` and of each edge ratio, and whether they are in their band.
    - `stability`: the recent losses and edge ratios, and whether an instability is going on.

    Fields that map each group to its own value:

    - `breakdowns`: the breakdown that has not ended; groups without one are missing.
    - `coverage`: the `StepState` of the group's last steps, and the number of the last one.
    - `distinct`: the lowest number of distinct neurons so far, and the recent numbers that could raise it.
    - `splits`: whether equal neurons have parted within the last `PhaseRules.hold_steps` measurements.

    Fields that map a quantity and a group, as in "betti_0 net.0":

    - `betti`, `fates`: the number last reported (a Betti number, aligned clusters, or minus the vanishing neurons), and
      the later numbers that differ from it.
    - `jumps`: whether the persistence diagram has jumped, and has not come to rest since.
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
        """The phase of the whole network: breakdown if any group has broken down, else `self.phase_of("")`."""
        return max((self.phase_of(group) for group in self.breakdowns), default=self.phase_of(GLOBAL))

    def phase_of(self, group: str) -> Phase:
        """Return the phase of one group: the highest phase that holds.

        `""` is the whole network, without the breakdowns of single groups. Breakdown and preserved depend on the group
        alone, the edge of stability and unprotected on the whole network. While the loss is not finite, the phase is
        unknown, unless the group has broken down.
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
        """Return the state as plain dicts, tuples, lists and numbers; `DetectorState.from_dict` restores it."""
        plain = asdict(self)
        plain["coverage"] = {group: [run.step, int(run.state)] for group, run in self.coverage.items()}
        return plain

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> "DetectorState":
        """Restore a state from the mapping that `DetectorState.to_dict` returned, also that of an older version.

        Fields that the older version did not have start fresh. Raises `KeyError`, `TypeError`, `AttributeError` or
        `ValueError` if the mapping is not such a state.
        """

        def numbers(plain: Iterable[Any]) -> tuple[float, ...]:
            return tuple(float(value) for value in plain)

        def number(plain: Any) -> float | None:
            return None if plain is None else float(plain)

        def each(name: str, kind: Callable[..., Any]) -> dict[str, Any]:
            return {str(key): kind(**plain) for key, plain in state.get(name, {}).items()}

        def band(plain: Mapping[str, Any]) -> BandState:
            step, interval = (None if at is None else int(at) for at in map(plain.get, ("step", "interval")))
            return BandState(bool(plain["inside"]), numbers(plain["recent"]), step, interval)

        def span(inside: Any, quiet: Any) -> SpanState:
            return SpanState(bool(inside), int(quiet))

        def breakdown(since: Any, peak: Any, peak_step: Any, quiet_steps: Any) -> Breakdown:
            return Breakdown(int(since), float(peak), int(peak_step), int(quiet_steps))

        def lowest(floor: Any, recent: Any, size: Any = None) -> FloorState:
            return FloorState(number(floor), numbers(recent), number(size))

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
            distinct=each("distinct", lowest),
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
    climb = plain.get("climb")  # older versions kept neither it nor the calm level: both begin with the recent losses
    return StabilityState(
        numbers(plain["losses"]),
        number(plain["first"]),
        numbers(plain["ratios"]),
        int(plain["ratio_step"]),
        span(**plain["span"]),
        number(plain.get("calm")),
        ClimbState() if climb is None else _climb(**climb),
    )


def _climb(n_losses: Any, level: Any, rises: Iterable[Any], n_at_edge: Any) -> ClimbState:
    known = None if level is None else float(level)
    return ClimbState(int(n_losses), known, tuple(int(at) for at in rises), int(n_at_edge))
