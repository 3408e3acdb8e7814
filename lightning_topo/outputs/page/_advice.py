"""One recommendation for the next run, from the evidence of a whole one, with its reasons.

r, the edge ratio and the estimate eta K all grow in proportion to the learning rate where the network stands. So the
factor 1 / max r, over all measured steps, is how far a whole schedule may be scaled for every one of these steps to
stay below eta*. The next run meets other neurons, hence the margin.
"""

from dataclasses import replace

from lightning_topo.measurement import OpenCause
from lightning_topo.outputs.page._evidence import Evidence
from lightning_topo.outputs.page._keeping import (
    advise_at_edge,
    advise_guarded,
    advise_to_keep,
    advise_to_measure,
    after_bad_batch,
)
from lightning_topo.outputs.page._lowering import (
    advise_after_breakdown,
    advise_after_failure,
    advise_after_loss,
    advise_after_outside_change,
)
from lightning_topo.outputs.page._next_rate import Advice
from lightning_topo.outputs.page._outcome import Coverage, Outcome, history
from lightning_topo.outputs.page._own_steps import advise_own_steps, own_steps
from lightning_topo.outputs.record import RunRecord


def advise(outcome: Outcome, evidence: Evidence) -> Advice | None:
    """The recommendation, by the worst that has happened; None where nothing was trained.

    >>> from lightning_topo.measurement import Measurement
    >>> ratio = [Measurement(k, 0, "distortion", "net.0", {"critical_ratio": 0.5 * k}) for k in (1, 2, 3)]
    >>> rate = Measurement(1, 0, "training", "", {"learning_rate": 0.3})
    >>> from lightning_topo.outputs.page._outcome import history
    >>> from lightning_topo.outputs.record import RunRecord
    >>> from pathlib import Path
    >>> record = RunRecord(Path(), "id", (rate, *ratio))
    >>> advise(history(record).outcome, Evidence.of(record.measurements)).decision
    'Lower the learning rate from 0.3 to 0.16.'
    """
    if outcome.last_step is None or outcome.last_step == 0:
        return None
    if optimizer := own_steps(evidence.training):
        return advise_own_steps(outcome, evidence, optimizer)
    if outcome.diverged_step is not None and not _has_gone_on(outcome):
        return advise_after_failure(evidence, outcome.diverged_step)
    evidence = replace(evidence, loss=evidence.loss.finite)
    if outcome.coverage is not None and OpenCause.NOT_FINITE in outcome.coverage.causes:
        return advise_after_failure(evidence, outcome.last_step)
    if outcome.breakdowns and (moved := advise_after_outside_change(evidence)) is not None:
        return moved
    if outcome.breakdowns and not evidence.loss.has_fallen:
        return advise_after_failure(evidence, outcome.last_step)
    if outcome.breakdowns:
        return advise_after_breakdown(outcome, evidence)
    if evidence.loss.lost is not None:
        return advise_after_loss(outcome, evidence, evidence.loss.lost)
    if evidence.held:
        return advise_guarded(evidence)
    if outcome.coverage is not None and outcome.coverage.open and _could_be_measured(outcome.coverage):
        return advise_to_measure(outcome, evidence)
    if outcome.edge_step is not None:
        return advise_at_edge(outcome, evidence, outcome.edge_step)
    kept = advise_to_keep(outcome, evidence)
    return kept if outcome.diverged_step is None else after_bad_batch(outcome.diverged_step, kept)


def recommendation(record: RunRecord) -> str:
    """The decision of `advise` for a record; empty where there is none."""
    advice = advise(history(record).outcome, Evidence.of_record(record))
    return "" if advice is None else advice.decision


def _has_gone_on(outcome: Outcome) -> bool:
    """Whether a loss that was not finite has left no trace: no step is open for weights that are not finite either."""
    return outcome.has_recovered and (outcome.coverage is None or OpenCause.NOT_FINITE not in outcome.coverage.causes)


def _could_be_measured(coverage: Coverage) -> bool:
    """Whether steps are open that more measurements would have covered; older records do not say why they are."""
    return not coverage.causes or not {OpenCause.NOT_MEASURED, OpenCause.SHARDED}.isdisjoint(coverage.causes)
