"""The run in one sentence."""

import math

from lightning_topo.outputs.page.outcome import Outcome, history
from lightning_topo.outputs.record import RunRecord
from lightning_topo.phases import Phase


def verdict(record: RunRecord) -> str:
    """What can be said of a run in one sentence; see `sentence`."""
    return sentence(history(record).outcome)


def sentence(outcome: Outcome) -> str:
    """The most important thing that can be said of the run, then how many events it had.

    A breakdown comes first, then the edge of stability, then the curvature bound; without any of them, what was
    preserved and for how long.
    """
    return f"{_finding(outcome)}{_loss(outcome)} \u2013 {_count(outcome.n_events, 'event')}"


def _finding(outcome: Outcome) -> str:
    if outcome.last_step is None:
        return "Nothing was measured yet"
    if outcome.breakdowns:
        first = outcome.breakdowns[0]
        ratio = "" if first.value is None else f" (r = {first.value:.3g})"
        others = len(outcome.breakdowns) - 1
        more = f", and later in {_count(others, 'more group')}" if others else ""
        return f"{first.group}: {first.name} at step {first.step}{ratio}{more}"
    if outcome.edge_step is not None:
        return f"Entered the edge of stability at step {outcome.edge_step}; {_bound(outcome)}"
    if outcome.curvature_step is not None:
        return f"Passed the curvature bound at step {outcome.curvature_step}; {_bound(outcome)}"
    if outcome.phase is Phase.UNKNOWN:
        return f"No phase could be told over {_count(outcome.last_step, 'step')}: {_bound(outcome)}"
    if outcome.peak_ratio is None:
        return f"Below the edge of stability over {_count(outcome.last_step, 'step')}; {_bound(outcome)}"
    if outcome.last_step == 0:
        return "Nothing trained yet: only the initial network was measured"
    return f"Topology preserved over {_count(outcome.last_step, 'step')}: {_bound(outcome)}"


def _bound(outcome: Outcome) -> str:
    if outcome.peak_ratio is None:
        return "the critical ratio r was not measured"
    if outcome.peak_ratio.value == 0.0:
        return "r was 0, no neuron moved against another"
    return f"r stayed below {above(outcome.peak_ratio.value)}{_measured(outcome)}"


def _measured(outcome: Outcome) -> str:
    """Which steps a statement about r is true of, unless of all."""
    if outcome.first_step is None or outcome.last_step is None:
        return ""
    taken = outcome.last_step - outcome.first_step
    return "" if outcome.n_ratio_steps >= taken else f" at the {_count(outcome.n_ratio_steps, 'measured step')}"


def _loss(outcome: Outcome) -> str:
    step = outcome.nonfinite_loss_step
    return "" if step is None else f"; the loss is not finite at step {step}"


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
