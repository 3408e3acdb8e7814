"""The summary of a run as named facts, and the differences between runs as the facts that are not the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from lightning_topo.outputs.page._model import RunView
from lightning_topo.outputs.page._outcome import Between, Coverage, Outcome
from lightning_topo.outputs.page._verdict import broken_first
from lightning_topo.phases import Phase
from lightning_topo.quantities import QUANTITIES

ABSENT = "not measured"
NEVER = "never"
UNRECORDED = "not recorded"
ABSENT_SETTING = "\u2013"


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
    return (
        Fact("Optimizer steps", "none" if found.last_step is None else f"{found.first_step:,} to {found.last_step:,}"),
        Fact("Begun from", _origin(run)),
        Fact("Phase now", phase_words(found.phase)),
        Fact("Highest phase", phase_words(found.worst_phase)),
        Fact("Largest r", ABSENT if peak is None else f"{peak.value:.3g} at step {peak.step:,} in {peak.group}"),
        Fact("Largest bound of r", _bound(run)),
        Fact("Steps measured or bounded", UNRECORDED if found.coverage is None else _certified(found.coverage)),
        Fact("First breakdown", _broken(found)),
        Fact(
            "Edge of stability reached", _when(found.edge_since, any(name != "eta_lambda" for name in found.measured))
        ),
        Fact("Curvature bound passed", _when(found.curvature_since, "eta_lambda" in found.measured)),
        Fact("Edge ratio now", _edge(found)),
        Fact("Loss now", _number(found.final_loss)),
        Fact("Groups of neurons", f"{found.n_groups:,}"),
        Fact("Neurons", _neurons(run)),
        Fact("Captured diagrams", f"{run.n_captures:,}"),
    )


def settings(run: RunView) -> tuple[Fact, ...]:
    """How the run was trained, as far as its record says: none of it is measured."""
    training = _mapping(run.about.get("training"))
    found = [
        Fact(name, str(training[key])) for name, key in _SETTINGS if training.get(key) not in (None, "", [], {}, False)
    ]
    used = run.rates.get("used")
    if used is not None:
        rates = [rate for rate in used.columns["used"] if rate is not None]
        found.insert(1, Fact("Learning rate", _span(rates)))
    found += [Fact(str(name), str(value)) for name, value in _mapping(training.get("hparams")).items()]
    return (*found, *_circumstances(run))


_SETTINGS = (
    ("Optimizer", "optimizer"),
    ("Its options", "optimizer_options"),
    ("Schedule", "scheduler"),
    ("Batch size", "batch_size"),
    ("Accumulated batches", "accumulate_grad_batches"),
    ("Gradient clipping", "gradient_clip_val"),
    ("Precision", "precision"),
    ("Parameters", "parameters"),
    ("Planned steps", "planned_steps"),
    ("Processes", "processes"),
)


def _circumstances(run: RunView) -> list[Fact]:
    """When, how long, and with which versions."""
    about, found = run.about, []
    if isinstance(about.get("started"), str):
        found.append(Fact("Started", about["started"].replace("T", " ").replace("+00:00", " UTC")))
        if "ended" not in about:
            found.append(Fact("Ended", "not yet, or its process was killed"))
    seconds, steps = about.get("seconds"), about.get("timed_steps")
    if isinstance(seconds, int | float) and seconds > 0:
        found.append(Fact("Duration", _duration(float(seconds))))
        if isinstance(steps, int) and steps > 0:
            found.append(Fact("Steps a second", f"{steps / seconds:.3g}"))
    versions = _mapping(about.get("versions"))
    if versions:
        found.append(Fact("Versions", ", ".join(f"{name} {value}" for name, value in versions.items())))
    return found


def validation(run: RunView) -> tuple[Fact, ...]:
    """The last value of each metric that validation has logged."""
    last = {name: [v for v in table.columns[name] if v is not None][-1:] for name, table in run.logged.items()}
    return tuple(Fact(name, f"{values[0]:.4g}") for name, values in last.items() if values)


def _mapping(found: object) -> Mapping[str, Any]:
    return found if isinstance(found, dict) else {}


def _span(rates: Sequence[float]) -> str:
    low, high = min(rates), max(rates)
    if low == high:
        return f"{high:.4g}"
    return f"{rates[0]:.3g} at first, at most {high:.3g}, {rates[-1]:.3g} at last"


def _duration(seconds: float) -> str:
    """A time as people say it.

    >>> _duration(42.31), _duration(3725.0)
    ('42.3 s', '1 h 2 min')
    """
    if seconds < 120.0:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60.0)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def differences(runs: Sequence[RunView]) -> tuple[tuple[str, tuple[str, ...], bool], ...]:
    """(name, value in each run, whether they differ), those that differ first; then the groups that are not shared."""
    columns = [facts(run) for run in runs]
    rows = [
        (row[0].name, tuple(fact.value for fact in row), any(a.value != b.value for a, b in pairwise(row)))
        for row in zip(*columns, strict=True)
    ]
    for group in (settings, validation):
        named = [{fact.name: fact.value for fact in group(run)} for run in runs]
        for name in dict.fromkeys(name for own in named for name in own):
            values = tuple(own.get(name, ABSENT_SETTING) for own in named)
            rows.append((name, values, len(set(values)) > 1))
    shared = set.intersection(*(set(run.groups) for run in runs)) if runs else set()
    own = tuple(", ".join(group for group in run.groups if group not in shared) or "none" for run in runs)
    rows.append(("Groups only in this run", own, any(value != "none" for value in own)))
    return tuple(sorted(rows, key=lambda row: not row[2]))


def _bound(run: RunView) -> str:
    coverage = run.outcome.coverage
    if coverage is None or coverage.peak_bound is None:
        return UNRECORDED if coverage is None else "none needed"
    besides = ", open steps apart" if coverage.open else ""
    return f"{coverage.peak_bound.value:.3g} in {coverage.peak_bound.group}{besides}"


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


def _broken(found: Outcome) -> str:
    if found.breakdowns:
        return f"{found.broken_since} in {broken_first(found)}"
    is_known = found.peak_ratio is not None or (found.coverage is not None and found.coverage.certified > 0)
    return NEVER if is_known else ABSENT


def _when(when: Between | None, is_measured: bool) -> str:
    return str(when) if when is not None else NEVER if is_measured else ABSENT


def _edge(found: Outcome) -> str:
    if found.edge is None:
        return ABSENT
    return f"{_number(found.edge.value)} ({QUANTITIES[found.edge.quantity].title.lower()})"


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.3g}"
