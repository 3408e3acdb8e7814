"""The summary of a run as named facts, and the differences between runs as the facts that are not the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from lightning_topo.outputs.page.model import RunView
from lightning_topo.outputs.page.outcome import Coverage
from lightning_topo.phases import Phase

ABSENT = "not measured"
NEVER = "never"
UNRECORDED = "not recorded"


@dataclass(frozen=True, slots=True)
class Fact:
    """One line of a run's summary."""

    name: str
    value: str


def phase_words(phase: Phase) -> str:
    """The name of a phase as people write it.

    >>> phase_words(Phase.EDGE_OF_STABILITY)
    'Edge of stability'
    """
    return phase.name.replace("_", " ").capitalize()


def facts(run: RunView) -> tuple[Fact, ...]:
    """The summary of a run, the same lines for every run."""
    found = run.outcome
    peak = found.peak_ratio
    first = found.breakdowns[0] if found.breakdowns else None
    return (
        Fact("Optimizer steps", "none" if found.last_step is None else f"{found.first_step:,} to {found.last_step:,}"),
        Fact("Begun from", _origin(run)),
        Fact("Phase now", phase_words(found.phase)),
        Fact("Highest phase", phase_words(found.worst_phase)),
        Fact("Largest r", ABSENT if peak is None else f"{peak.value:.3g} at step {peak.step:,} in {peak.group}"),
        Fact("Largest bound of r", _bound(run)),
        Fact("Steps certified", UNRECORDED if found.coverage is None else _certified(found.coverage)),
        Fact("First breakdown", NEVER if first is None else f"step {first.step:,} in {first.group}"),
        Fact("Edge of stability reached", _at(found.edge_step)),
        Fact("Curvature bound passed", _at(found.curvature_step)),
        Fact("Sharpness ratio now", _number(found.final_sharpness_ratio)),
        Fact("Loss now", _number(found.final_loss)),
        Fact("Groups of neurons", f"{found.n_groups:,}"),
        Fact("Neurons", _neurons(run)),
        Fact("Captured diagrams", f"{run.n_captures:,}"),
    )


def differences(runs: Sequence[RunView]) -> tuple[tuple[str, tuple[str, ...], bool], ...]:
    """(name, value in each run, whether they differ), those that differ first; then the groups that are not shared."""
    columns = [facts(run) for run in runs]
    rows = [
        (row[0].name, tuple(fact.value for fact in row), any(a.value != b.value for a, b in pairwise(row)))
        for row in zip(*columns, strict=True)
    ]
    shared = set.intersection(*(set(run.groups) for run in runs)) if runs else set()
    own = tuple(", ".join(group for group in run.groups if group not in shared) or "none" for run in runs)
    rows.append(("Groups only in this run", own, any(value != "none" for value in own)))
    return tuple(sorted(rows, key=lambda row: not row[2]))


def _bound(run: RunView) -> str:
    coverage = run.outcome.coverage
    if coverage is None or coverage.peak_bound is None:
        return UNRECORDED if coverage is None else "none needed"
    return f"{coverage.peak_bound.value:.3g} in {coverage.peak_bound.group}"


def _certified(coverage: Coverage) -> str:
    """The counts of `coverage_words`, shorter."""
    parts = ((coverage.exact, "exact"), (coverage.bounded, "by bound"), (coverage.spanned, "spanned"))
    named = [f"{n:,} {name}" for n, name in (*parts, (coverage.open, "open")) if n]
    return f"{coverage.certified:,} of {coverage.total:,} ({', '.join(named)})"


def _origin(run: RunView) -> str:
    return "its own start" if run.parent is None else f"step {run.parent.step:,} of run {run.parent.run_id[:8]}"


def _neurons(run: RunView) -> str:
    counts = [(d.n_neurons, d.n_distinct) for d in run.details if d.n_neurons is not None]
    if not counts:
        return ABSENT
    total = sum(n for n, _ in counts if n is not None)
    merged = sum(max(0, n - distinct) for n, distinct in counts if n is not None and distinct is not None)
    return f"{total:,}, {merged:,} of them merged" if merged else f"{total:,}"


def _at(step: int | None) -> str:
    return NEVER if step is None else f"step {step:,}"


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.3g}"
