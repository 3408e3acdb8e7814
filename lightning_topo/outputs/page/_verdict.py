"""The run in one sentence."""

import math

from lightning_topo.measurement import OpenCause
from lightning_topo.outputs.page._outcome import Between, Coverage, Outcome, history
from lightning_topo.outputs.record import RunRecord
from lightning_topo.phases import Phase

_MOST_NAMED = 3
_WHY = {
    OpenCause.UNKNOWN_NEURONS: "neurons were found after it",
    OpenCause.UNSEEN: "no hook has seen the update",
    OpenCause.MOVED: "something else moved parameters before r was measured",
    OpenCause.NOT_MEASURED: "r may be 1 or more, and to measure it takes too long",
    OpenCause.NOT_FINITE: "weights are NaN or infinite",
    OpenCause.SHARDED: "of parameters in shards only some steps are measured",
    OpenCause.FAILED: "a measurement failed",
    OpenCause.NOT_ALIKE: "the parameters of processes differ",
    OpenCause.TOO_MANY: "r of more than 20,000 neurons is only bounded, and the bound is not below 1",
}


def verdict(record: RunRecord) -> str:
    """Sum up a run in one sentence; see `sentence`."""
    return sentence(history(record).outcome)


def sentence(outcome: Outcome, *, with_coverage: bool = True) -> str:
    """The most important thing that can be said of the run, then its coverage and how many events it had.

    The worst comes first: divergence, an instability, a breakdown, a loss that fell and came back, open or spanned
    steps, the edge of stability, the curvature bound; without any of them, what was preserved and for how long. A
    record without coverage lines speaks of its measured steps.
    """
    return finding(outcome) + besides(outcome, with_coverage=with_coverage)


def besides(outcome: Outcome, *, with_coverage: bool = True) -> str:
    """What follows the finding in a sentence: what guards and gates did, the coverage, and the number of events."""
    held = f"; a guard held back updates of {_count(outcome.n_held, 'measured step')}" if outcome.n_held else ""
    shown = outcome.coverage if with_coverage else None
    certified = "" if shown is None else coverage_words(shown, is_broken=bool(outcome.breakdowns))
    return f"{held}{_stopped(outcome)}{certified and '; '}{certified} \u2013 {_events(outcome)}"


def _stopped(outcome: Outcome) -> str:
    """That a gate has stopped the training, and for what."""
    if (stop := outcome.stop) is None:
        return ""
    why = ", ".join(stop.events) or "no news for as long as it waits"
    return f"; a gate stopped the training at step {stop.step:,} ({why})"


def tone(outcome: Outcome) -> Phase:
    """The phase in whose colour the verdict stands: never that of `PRESERVED` where steps are not certified."""
    if outcome.breakdowns or outcome.diverged_step is not None:
        return Phase.BREAKDOWN
    coverage = outcome.coverage
    if outcome.lost is not None and outcome.worst_phase is Phase.PRESERVED:
        return Phase.UNKNOWN
    if coverage is not None and outcome.worst_phase is Phase.PRESERVED and coverage.spanned + coverage.open:
        return Phase.UNKNOWN
    return outcome.worst_phase


def coverage_words(coverage: Coverage, *, is_broken: bool = False) -> str:
    """How many steps are certified, and how; what is not certified is counted by itself.

    Where the run `is_broken`, some of the exact values are at or above 1, and certify nothing: they are measured.

    >>> coverage_words(Coverage(exact=240, bounded=11_760, spanned=0, open=0))
    '12,000 of 12,000 steps certified: 240 exact, 11,760 by bound'
    >>> coverage_words(Coverage(exact=3, bounded=5, spanned=1, open=2))
    '8 of 11 steps certified: 3 exact, 5 by bound; 1 spanned, 2 open'
    >>> coverage_words(Coverage(exact=3, bounded=5, spanned=0, open=0), is_broken=True)
    '8 of 8 steps measured or bounded: 3 exact, 5 by bound'
    """
    known = "measured or bounded" if is_broken else "certified"
    rest = ((coverage.spanned, "spanned"), (coverage.open, "open"), (coverage.pending, "not recorded yet"))
    others = ", ".join(f"{n:,} {name}" for n, name in rest if n)
    return (
        f"{coverage.certified:,} of {_count(coverage.total, 'step')} {known}: {coverage.exact:,} exact, "
        f"{coverage.bounded:,} by bound{others and '; '}{others}"
    )


def finding(outcome: Outcome) -> str:
    """The most important thing that can be said of the run."""
    if outcome.last_step is None:
        return "Nothing was measured yet"
    if outcome.diverged_step is not None:
        return f"{_divergence(outcome)}{_broken_besides(outcome, outcome.diverged_step)}"
    if outcome.breakdowns:
        return f"{_breakdown(outcome)}{_peak(outcome)}"
    return f"{_lost(outcome)}{_known(outcome, outcome.last_step)}"


def _known(outcome: Outcome, last_step: int) -> str:
    """What is known of the topology of a run that did not fail."""
    if outcome.coverage is not None and (found := _uncertified(outcome, outcome.coverage)):
        return found
    if outcome.edge_step is not None:
        return f"Reached the edge of stability {_at(outcome.edge_since)}; {_bound(outcome)}"
    if outcome.curvature_step is not None:
        return f"Passed the curvature bound {_at(outcome.curvature_since)}; {_bound(outcome)}"
    if outcome.coverage is not None:
        return f"Topology preserved over {_count(outcome.coverage.certified, 'step')}: {_bound(outcome)}"
    if outcome.phase is Phase.UNKNOWN:
        return f"No phase is known over {_count(last_step, 'step')}: {_bound(outcome)}"
    if outcome.peak_ratio is None:
        return f"Below the edge of stability over {_count(last_step, 'step')}; {_bound(outcome)}"
    if last_step == 0:
        return "Nothing trained yet: only the initial network was measured"
    return f"Topology preserved over {_count(last_step, 'step')}: {_bound(outcome)}"


def _at(when: Between | None) -> str:
    return "" if when is None else str(when)


def _divergence(outcome: Outcome) -> str:
    step, event = outcome.nonfinite_loss_step, outcome.instability
    if step is None:
        return "" if event is None else f"Training became unstable at step {event.step:,}"
    if outcome.has_recovered:
        return f"The loss was not finite at step {step:,}, and later it was"
    if outcome.finite_again:
        return f"Training became unstable: the loss was not finite at step {step:,}"
    before = f", unstable from step {event.step:,} on" if event is not None and event.step < step else ""
    return f"Training diverged: the loss is not finite at step {step:,}{before}"


def _lost(outcome: Outcome) -> str:
    """That the run has lost what it had learned, where it has."""
    lost = outcome.lost
    if lost is None or outcome.final_loss is None:
        return ""
    return f"The loss fell to {lost.loss:.3g} by step {lost.step:,} and is back at {outcome.final_loss:.3g}. "


def _broken_besides(outcome: Outcome, diverged: int) -> str:
    """The breakdown of a run that diverged: where it came first, the likely cause; what r was in the wreck is none."""
    if not outcome.breakdowns:
        return _peak(outcome)
    order = "before that, " if outcome.breakdowns[0].step < diverged else ""
    values = [event.value for event in outcome.broken_first if event.value is not None]
    largest = f" (r up to {max(values):.3g} there)" if values else ""
    return f"; {order}neurons may have merged or torn {_at(outcome.broken_since)} in {broken_first(outcome)}{largest}"


def broken_first(outcome: Outcome) -> str:
    """The groups that broke down at the first step at which any did."""
    groups = [event.group for event in outcome.broken_first]
    return ", ".join(groups) if len(groups) <= _MOST_NAMED else f"{len(groups):,} of {outcome.n_groups:,} groups"


def _breakdown(outcome: Outcome) -> str:
    n, n_first, total = len(outcome.breakdowns), len(outcome.broken_first), outcome.n_groups
    when = _at(outcome.broken_since)
    if n == 1:
        return f"{broken_first(outcome)} broke down {when}"
    if n == n_first:
        named = f" ({broken_first(outcome)})" if n <= _MOST_NAMED else ""
        return f"{n:,} of {_count(total, 'group')} broke down {when}{named}"
    return f"{n:,} of {_count(total, 'group')} broke down, first {broken_first(outcome)} {when}"


def _peak(outcome: Outcome) -> str:
    peak = outcome.peak_ratio
    if peak is None or peak.value <= 0.0:
        return ""
    return f"; the largest r was {peak.value:.3g}, at step {peak.step:,} in {peak.group}"


def _uncertified(outcome: Outcome, coverage: Coverage) -> str:
    """What is not known, where steps are open or spanned."""
    found = []
    if coverage.first_open is not None:
        of = f"{coverage.open:,} of {_count(coverage.total, 'step')}"
        why = "; ".join(_WHY[cause] for cause in coverage.causes)
        found.append(f"Nothing is known of {of}, the first is step {coverage.first_open.first:,}{why and f' ({why})'}")
    if coverage.spanned:
        of = f"{coverage.spanned:,} of {_count(coverage.total, 'step')}"
        found.append(f"{'r' if not found else 'and r'} is not known in {of}, though no neurons merged for good")
    if not found:
        return ""
    if outcome.edge_step is not None:
        found.append(f"reached the edge of stability {_at(outcome.edge_since)}")
    if coverage.certified:
        found.append(_bound(outcome))
    return "; ".join(found)


def _bound(outcome: Outcome) -> str:
    if outcome.coverage is not None:
        return _bound_of_certified(outcome, outcome.coverage)
    if outcome.peak_ratio is None:
        return "the critical ratio r was not measured"
    if outcome.peak_ratio.value == 0.0:
        return "r was 0, no watched neuron moved against another"
    return f"r stayed below {above(outcome.peak_ratio.value)}{_measured(outcome)}"


def _bound_of_certified(outcome: Outcome, coverage: Coverage) -> str:
    """The largest of exact r and of the bounds holds for every certified step, and for no other."""
    peak, bound = (None if found is None else found.value for found in (outcome.peak_ratio, coverage.peak_bound))
    if not coverage.certified or (peak is None and bound is None):
        return "the critical ratio r is not known"
    where = "" if coverage.certified == coverage.total else " in the certified steps"
    if not peak and not bound:
        return f"r was 0{where}, no watched neuron moved against another"
    if bound is None or (peak is not None and bound <= peak):
        assert peak is not None
        return f"r was at most {above(peak)}{where}"
    measured = "" if peak is None else f"was measured up to {above(peak) if peak else 0} and "
    return f"r {measured}stayed below {above(bound)} by bound{where}"


def _measured(outcome: Outcome) -> str:
    """Which steps a statement about r is true of, unless of all."""
    if outcome.first_step is None or outcome.last_step is None:
        return ""
    taken = outcome.last_step - outcome.first_step
    return "" if outcome.n_ratio_steps >= taken else f" at the {_count(outcome.n_ratio_steps, 'measured step')}"


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
