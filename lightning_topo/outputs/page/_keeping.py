"""Where no step is known to have broken a limit: keep the learning rate, measure more, or look for another one."""

import math
from dataclasses import replace

from lightning_topo.measurement import OpenCause
from lightning_topo.outputs.page._evidence import Evidence
from lightning_topo.outputs.page._next_rate import FAILED, MARGIN, Advice, RateWords, floor2
from lightning_topo.outputs.page._outcome import Outcome
from lightning_topo.outputs.page._verdict import above

_LITTLE = 0.01
"""A loss that is higher by less than this share is about the same."""
_LARGE = 0.1
"""A step of this r moves some neuron by a tenth of the way to the next: the rate is not too low."""


def advise_to_measure(outcome: Outcome, evidence: Evidence) -> Advice:
    """Where steps are open, as the outcome's coverage says: measure more often, if that would cover them."""
    assert outcome.coverage is not None
    words, coverage = RateWords(evidence.limits), outcome.coverage
    reasons = [
        f"{coverage.open:,} of {coverage.total:,} steps are open: neither r nor a bound of it below 1 is known there, "
        "so nothing is claimed of them.",
        *(_unlearned(evidence) or _learned(evidence)),
    ]
    if outcome.peak_ratio is not None and outcome.peak_ratio.value > 0.0:
        highest = words.rate(floor2(words.present / outcome.peak_ratio.value))
        reasons.append(
            f"Of the measured steps the largest r was {outcome.peak_ratio.value:.2g}, at step "
            f"{outcome.peak_ratio.step:,}: \u03b7* is {highest} there."
        )
    if set(coverage.causes) == {OpenCause.TOO_MANY}:  # to measure more often measures none of them
        reasons.append("They are of groups with more than 20,000 neurons, of which r is bounded and never measured.")
        return Advice(f"Keep the learning rate{words.now}.", tuple(reasons))
    return Advice(
        f"Keep the learning rate{words.now}, and measure every step: probes=[Distortion(every_n_steps=1), ...].",
        tuple(reasons),
    )


def advise_at_edge(outcome: Outcome, evidence: Evidence, step: int) -> Advice:
    """Where training has met the edge of stability at a step: the loss since then decides."""
    words = RateWords(evidence.limits)
    reasons = []
    largest = max(evidence.edges.values(), default=0.0)
    if largest > 0.0:
        at = max(evidence.edges, key=lambda s: evidence.edges[s])
        highest = words.rate(floor2(words.present / max(largest, 1.0)))
        reasons.append(
            f"The edge ratio was at most {largest:.3g}, at step {at:,}: a learning rate of at most {highest} would "
            "have kept it below 1."
        )
    if outcome.peak_ratio is not None:
        peak = outcome.peak_ratio.value
        reasons.append(f"No measured step was critical: r was {f'below {above(peak)}' if peak else '0'}.")
    entered, end = evidence.loss.level(step), evidence.loss.level(outcome.last_step or step)
    began = evidence.loss.first
    if not evidence.loss.has_fallen and end is not None and began is not None:
        entered = min(began, entered or began)  # a peak where the edge was met is no level from which to fall
    is_lost = entered is not None and end is not None and end > entered + _LITTLE * abs(entered)
    if largest <= 1.0 and evidence.loss.has_stalled:
        return _stalled(outcome, evidence, tuple(reasons))
    if largest > 1.0 and (is_lost or not evidence.loss.has_fallen) and entered is not None and end is not None:
        rate = floor2(words.present * MARGIN / largest)
        reasons.insert(0, f"The loss has not fallen at the edge: {entered:.3g} before, {end:.3g} in the last steps.")
        return words.advice(rate, reasons)
    if entered is not None and end is not None:
        went = "went on falling" if end < entered else "stayed about the same"
        reasons.insert(0, f"The loss {went} there, from {entered:.3g} to {end:.3g} in the last steps.")
    return Advice(f"Keep the learning rate{words.now}: it is as large as this network bears.", tuple(reasons))


def advise_guarded(evidence: Evidence) -> Advice:
    """Where a guard has held updates back: what would do without it."""
    words = RateWords(evidence.limits)
    at = max(evidence.held, key=lambda s: evidence.held[s])
    largest, n = evidence.held[at], len(evidence.held)
    rate = floor2((evidence.limits.at(at) or words.present) * MARGIN / largest) if largest < math.inf else None
    lower = "lower the learning rate" if rate is None else words.lower(rate).removesuffix(".").replace("L", "l", 1)
    reasons = (
        f"The guard has held back the updates of {n} measured step{'s' if n > 1 else ''}: that of step {at:,} would "
        f"have had r = {largest:.3g}, and r was kept below the guard's limit.",
        *(_unlearned(evidence) or _learned(evidence)),
    )
    return Advice(f"Keep the guard, or {lower}.", reasons, rate if words.is_known else None)


def advise_to_keep(outcome: Outcome, evidence: Evidence) -> Advice:
    """Where nothing that was measured has met a limit: keep the rate, as far as that goes."""
    words = RateWords(evidence.limits)
    if _is_still(outcome) and evidence.equal:
        name, n = next(iter(evidence.equal.items()))
        left = len(evidence.equal) - 1
        others = f", and those of {left} other group{'s' if left > 1 else ''}" if left else ""
        return Advice(
            "Initialize the neurons at random: they are equal.",
            (f"All {n:,} neurons of {name} are equal{others}. They get equal gradients, so they stay equal.",),
        )
    if _is_still(outcome):
        return Advice(
            "As far as the watched neurons go, there is nothing to change: none of them moved against another.",
            ("No trained parameter is part of a watched neuron, or what is trained of them has stayed the same.",),
        )
    if not evidence.ratios and not _measured_edge(outcome):
        return Advice(
            "Measure what the learning rate does: probes=[Distortion(), Sharpness()].",
            ("Neither the critical ratio r nor an edge ratio was measured, so nothing is known of its limits.",),
        )
    reasons = []
    peak = outcome.peak_ratio
    if peak is not None and peak.value > 0.0:
        own = evidence.limits.at(peak.step) or 1.0
        reasons.append(
            f"The largest measured r was {peak.value:.2g}, at step {peak.step:,}: that step would have been critical "
            f"at {'a learning rate of ' if words.is_known else ''}{words.rate(floor2(own / peak.value))}"
            f"{f'; it was {words.rate(own)}' if words.is_known else ''}."
        )
    if evidence.loss.has_stalled:
        return _stalled(outcome, evidence, tuple(reasons))
    if evidence.edges and (largest := max(evidence.edges.values())) > 0.0:
        reasons.append(
            f"The edge ratio was at most {largest:.2g}: the edge of stability is near "
            f"{words.rate(floor2(words.present / largest))}."
        )
    reasons = [*(_unlearned(evidence) or _learned(evidence)), *reasons]
    if not _measured_edge(outcome):
        decision = f"As far as r goes, keep the learning rate{words.now}; the edge of stability was not measured."
    elif not evidence.ratios:
        decision = f"As far as the edge of stability goes, keep the learning rate{words.now}; r was not measured."
    else:
        decision = f"As far as stability goes, keep the learning rate{words.now}: no limit was met."
    return Advice(decision, tuple(reasons))


def after_bad_batch(step: int, kept: Advice) -> Advice:
    """Where one loss was not finite, and later ones are: what else holds, behind a look at its data."""
    decision = f"Look at the data of step {step:,}: the loss was not finite there, and later it was."
    return replace(kept, decision=decision, reasons=(kept.decision, *kept.reasons))


def _is_still(outcome: Outcome) -> bool:
    """Whether every step is certified to have moved no neuron against another."""
    coverage = outcome.coverage
    if coverage is None or not coverage.total or coverage.certified < coverage.total:
        return False
    known = [one.value for one in (outcome.peak_ratio, coverage.peak_bound) if one is not None]
    return bool(known) and max(known) == 0.0


def _measured_edge(outcome: Outcome) -> bool:
    """Whether the edge of stability was measured in any way."""
    return bool(set(outcome.measured) - {"eta_lambda"})


def _stalled(outcome: Outcome, evidence: Evidence, measured: tuple[str, ...]) -> Advice:
    """Where the loss has not fallen, and nothing that was measured says why."""
    words, loss = RateWords(evidence.limits), evidence.loss
    reasons = [
        f"It was {loss.first:.3g} at first and {loss.last:.3g} in the last steps. No limit that was measured explains "
        "it."
    ]
    if not _measured_edge(outcome):
        reasons.append(
            "The edge of stability was not measured; Sharpness(every_n_steps=1) shows it in the first steps."
        )
    fallen = "the loss has hardly fallen" if loss.has_fallen else "the loss has not fallen"
    decision, rate = f"Sweep the learning rate, by TopologyLRFinder(sharpness=None): {fallen}.", None
    is_large = any(_LARGE <= r < math.inf for r in evidence.ratios.values())
    if loss.has_risen or (is_large and not loss.has_fallen):
        rate = floor2(words.present * FAILED)
        decision = f"{words.lower(rate).removesuffix('.')}: {fallen}."
        reasons.append(
            f"{FAILED:.0%} of the rate is a guess. A warm-up may do where only the first steps are too large."
        )
    reasons.append("TopologyLRFinder(sharpness=None) finds an upper limit: begin at a tenth of suggestion_by_ratio.")
    reasons.append("If this loss is not meant to fall, as with adversaries, ignore this.")
    return Advice(decision, (*reasons, *measured), rate if words.is_known else None)


def _learned(evidence: Evidence) -> list[str]:
    first, last = evidence.loss.first, evidence.loss.last
    if first is None or last is None:
        return []
    return [
        f"Whether it learns well at that rate is for the loss to say: {first:.3g} at first, {last:.3g} in the last "
        "steps. If the loss is still too high, begin at a tenth of what TopologyLRFinder(sharpness=None) finds."
    ]


def _unlearned(evidence: Evidence) -> list[str]:
    """That the loss has not fallen, where it has not."""
    first, last = evidence.loss.first, evidence.loss.last
    if evidence.loss.has_fallen or first is None or last is None:
        return []
    return [f"The loss has not fallen: {first:.3g} at first, {last:.3g} in the last steps. No limit explains it."]
