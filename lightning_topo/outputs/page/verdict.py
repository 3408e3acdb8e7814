"""The run in one sentence."""

import math

from lightning_topo.outputs.page.outcome import Coverage, Outcome, history
from lightning_topo.outputs.record import RunRecord
from lightning_topo.phases import Phase


def verdict(record: RunRecord) -> str:
    """Sum up a run in one sentence; see `sentence`."""
    return sentence(history(record).outcome)


def sentence(outcome: Outcome, *, with_coverage: bool = True) -> str:
    """The most important thing that can be said of the run, then its coverage and how many events it had.

    Divergence comes first, then a breakdown, open or spanned steps, the edge of stability, the curvature bound; without
    any of them, what was preserved and for how long. A record without coverage lines speaks of its measured steps.
    """
    certified = coverage_words(outcome.coverage) if with_coverage and outcome.coverage is not None else ""
    return f"{_finding(outcome)}{_loss(outcome)}{certified and '; '}{certified} \u2013 {_events(outcome)}"


def tone(outcome: Outcome) -> Phase:
    """The phase in whose colour the verdict stands: never that of `PRESERVED` where steps are not certified."""
    if outcome.coverage is None:
        return outcome.worst_phase
    if outcome.breakdowns or _has_diverged(outcome):
        return Phase.BREAKDOWN
    if outcome.worst_phase is Phase.PRESERVED and outcome.coverage.spanned + outcome.coverage.open:
        return Phase.UNKNOWN
    return outcome.worst_phase


def coverage_words(coverage: Coverage) -> str:
    """How many steps are certified, and how; what is not certified is counted by itself.

    >>> coverage_words(Coverage(exact=240, bounded=11_760, spanned=0, open=0))
    '12,000 of 12,000 steps certified: 240 exact, 11,760 by bound'
    >>> coverage_words(Coverage(exact=3, bounded=5, spanned=1, open=2))
    '8 of 11 steps certified: 3 exact, 5 by bound; 1 spanned, 2 open'
    """
    rest = ((coverage.spanned, "spanned"), (coverage.open, "open"), (coverage.pending, "not recorded yet"))
    others = ", ".join(f"{n:,} {name}" for n, name in rest if n)
    return (
        f"{coverage.certified:,} of {_count(coverage.total, 'step')} certified: {coverage.exact:,} exact, "
        f"{coverage.bounded:,} by bound{others and '; '}{others}"
    )


def _finding(outcome: Outcome) -> str:
    if outcome.last_step is None:
        return "Nothing was measured yet"
    if outcome.coverage is not None and _has_diverged(outcome):
        return f"{_divergence(outcome)}{'; ' if outcome.breakdowns else ''}{_breakdown(outcome)}"
    if outcome.breakdowns:
        return _breakdown(outcome)
    if outcome.coverage is not None and (found := _uncertified(outcome, outcome.coverage)):
        return found
    if outcome.edge_step is not None:
        return f"Entered the edge of stability at step {outcome.edge_step}; {_bound(outcome)}"
    if outcome.curvature_step is not None:
        return f"Passed the curvature bound at step {outcome.curvature_step}; {_bound(outcome)}"
    if outcome.coverage is not None:
        return f"Topology preserved over {_count(outcome.coverage.certified, 'step')}: {_bound(outcome)}"
    if outcome.phase is Phase.UNKNOWN:
        return f"No phase could be told over {_count(outcome.last_step, 'step')}: {_bound(outcome)}"
    if outcome.peak_ratio is None:
        return f"Below the edge of stability over {_count(outcome.last_step, 'step')}; {_bound(outcome)}"
    if outcome.last_step == 0:
        return "Nothing trained yet: only the initial network was measured"
    return f"Topology preserved over {_count(outcome.last_step, 'step')}: {_bound(outcome)}"


def _has_diverged(outcome: Outcome) -> bool:
    return outcome.instability is not None or outcome.nonfinite_loss_step is not None


def _divergence(outcome: Outcome) -> str:
    step = outcome.nonfinite_loss_step
    event = outcome.instability
    if step is not None and (event is None or step <= event.step):
        return f"Training diverged: the loss is not finite at step {step:,}"
    if event is None:
        return ""
    later = "" if step is None else f", the loss is not finite at step {step:,}"
    return f"Training became unstable at step {event.step:,}{later}"


def _breakdown(outcome: Outcome) -> str:
    if not outcome.breakdowns:
        return ""
    first = outcome.breakdowns[0]
    ratio = "" if first.value is None else f" (r = {first.value:.3g})"
    others = len(outcome.breakdowns) - 1
    more = f", and later in {_count(others, 'more group')}" if others else ""
    return f"{first.group}: {first.name} at step {first.step}{ratio}{more}"


def _uncertified(outcome: Outcome, coverage: Coverage) -> str:
    """What is not known, where steps are open or spanned."""
    found = []
    if coverage.first_open is not None:
        of = f"{coverage.open:,} of {_count(coverage.total, 'step')}"
        found.append(f"Nothing is known of {of}, the first is step {coverage.first_open.first:,}")
    if coverage.spanned:
        of = f"{coverage.spanned:,} of {_count(coverage.total, 'step')}"
        found.append(f"{'r' if not found else 'and r'} is not known in {of}, though no neurons merged for good")
    if not found:
        return ""
    if outcome.edge_step is not None:
        found.append(f"entered the edge of stability at step {outcome.edge_step}")
    if coverage.certified:
        found.append(_bound(outcome))
    return "; ".join(found)


def _bound(outcome: Outcome) -> str:
    if outcome.coverage is not None:
        return _bound_of_certified(outcome, outcome.coverage)
    if outcome.peak_ratio is None:
        return "the critical ratio r was not measured"
    if outcome.peak_ratio.value == 0.0:
        return "r was 0, no neuron moved against another"
    return f"r stayed below {above(outcome.peak_ratio.value)}{_measured(outcome)}"


def _bound_of_certified(outcome: Outcome, coverage: Coverage) -> str:
    """The largest of exact r and of the bounds holds for every certified step, and for no other."""
    known = [peak.value for peak in (outcome.peak_ratio, coverage.peak_bound) if peak is not None]
    if not coverage.certified or not known:
        return "the critical ratio r is not known"
    where = "" if coverage.certified == coverage.total else " in the certified steps"
    return f"r was at most {above(max(known)) if max(known) else 0}{where}"


def _measured(outcome: Outcome) -> str:
    """Which steps a statement about r is true of, unless of all."""
    if outcome.first_step is None or outcome.last_step is None:
        return ""
    taken = outcome.last_step - outcome.first_step
    return "" if outcome.n_ratio_steps >= taken else f" at the {_count(outcome.n_ratio_steps, 'measured step')}"


def _loss(outcome: Outcome) -> str:
    step = outcome.nonfinite_loss_step
    return "" if step is None or outcome.coverage is not None else f"; the loss is not finite at step {step}"


def _events(outcome: Outcome) -> str:
    notes = f", {_count(outcome.n_notes, 'note')}" if outcome.n_notes else ""
    return f"{_count(outcome.n_events - outcome.n_notes, 'event')}{notes}"


def _count(n: int, noun: str) -> str:
    return f"{'no' if n == 0 and noun == 'event' else f'{n:,}'} {noun}{'' if n == 1 else 's'}"


def above(value: float) -> str:
    """The next number of two significant digits above a value, so that "below" is true of it.

    >>> above(0.0187), above(0.02), above(0.0999)
    ('0.019', '0.021', '0.1')
    """
    if math.isinf(value):
        return "infinity"
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{(math.floor(value / unit * (1 + 1e-12)) + 1) * unit:.2g}"
