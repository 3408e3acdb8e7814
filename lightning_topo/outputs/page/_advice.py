"""One recommendation for the next run, from the evidence of a whole one, with its reasons.

r, the edge ratio and the estimate eta K all grow in proportion to the learning rate where the network stands. So the
factor 1 / max r, over all measured steps, is how far a whole schedule may be scaled for every one of these steps to
stay below eta*. The next run meets other neurons, hence the margin.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from lightning_topo._figures.rates import RateLimits, edge_ratios, largest_ratios, rate_limits
from lightning_topo.measurement import Measurement, OpenCause
from lightning_topo.outputs.page._loss_course import Level, LossCourse
from lightning_topo.outputs.page._outcome import Coverage, Outcome, history
from lightning_topo.outputs.page._verdict import above
from lightning_topo.outputs.record import RunRecord

MARGIN = 0.8
"""Of the learning rate that would just have done, so much is recommended."""
_BELOW = (
    f"The advice stays about {1.0 - MARGIN:.0%} below the lowest of these: r differs between steps, and between runs."
)
FAILED = 0.2
"""Of a learning rate at which training diverged, or learned nothing, at most so much is recommended."""
HALF = 0.5
"""At most so much where training became unstable, and the loss has fallen all the same."""
_JUMP = 3.0
"""A learning rate that rises so many times over from one step to the next is named."""
_LITTLE = 0.01
"""A loss that is higher by less than this share is about the same."""
_LARGE = 0.1
"""A step of this r moves some neuron by a tenth of the way to the next: the rate is not too low."""
_CALM = 0.7
"""A warm-up is enough where r stays below this at the full learning rate."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a run has shown: the largest r of all groups, the edge ratio by step, the loss, and learning rates.

    Without `limits` advice is in factors of the present rate.
    """

    ratios: Mapping[int, float]
    edges: Mapping[int, float]
    loss: LossCourse
    limits: RateLimits

    @classmethod
    def of(cls, measurements: Sequence[Measurement]) -> "Evidence":
        """From a record's measurements."""
        return cls(
            largest_ratios(measurements),
            edge_ratios(measurements),
            LossCourse.of(measurements),
            rate_limits(measurements),
        )

    @classmethod
    def of_record(cls, record: RunRecord) -> "Evidence":
        """From a record. Of several learning rates at once it has one: which holds for what was seen is not known."""
        found = cls.of(record.measurements)
        training = record.about.get("training")
        n_rates = training.get("n_learning_rates", 1) if isinstance(training, Mapping) else 1
        return replace(found, limits=RateLimits()) if isinstance(n_rates, int) and n_rates > 1 else found


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do next in one sentence, and why.

    `learning_rate` is the largest rate of the next run and `warmup_steps` its linear warm-up, None where they stay as
    they are.
    """

    decision: str
    reasons: tuple[str, ...] = ()
    learning_rate: float | None = None
    warmup_steps: int | None = None


def advise(outcome: Outcome, evidence: Evidence) -> Advice | None:
    """The recommendation, by the worst that has happened; None where nothing was trained.

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
    if outcome.diverged_step is not None:
        return _after_failure(evidence, outcome.diverged_step)
    if outcome.coverage is not None and OpenCause.NOT_FINITE in outcome.coverage.causes:
        return _after_failure(evidence, outcome.last_step)
    if outcome.breakdowns and not evidence.loss.has_fallen:
        return _after_failure(evidence, outcome.last_step)
    if outcome.breakdowns:
        return _after_breakdown(outcome, evidence)
    if evidence.loss.lost is not None:
        return _after_loss(outcome, evidence, evidence.loss.lost)
    if outcome.coverage is not None and outcome.coverage.open and _could_be_measured(outcome.coverage):
        return _measure(outcome, evidence)
    if outcome.edge_step is not None:
        return _at_edge(outcome, evidence, outcome.edge_step)
    return _keep(outcome, evidence)


def recommendation(record: RunRecord) -> str:
    """The decision of `advise` for a record; empty where there is none."""
    advice = advise(history(record).outcome, Evidence.of_record(record))
    return "" if advice is None else advice.decision


def floor2(value: float) -> float:
    """The largest number of two significant digits that is not above a value.

    >>> floor2(0.2325), floor2(18.9), floor2(0.1)
    (0.23, 18.0, 0.1)
    """
    if value <= 0.0 or not math.isfinite(value):
        return value
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    if unit == 0.0:  # below what a float holds
        return value
    return float(f"{math.floor(value / unit * (1 + 1e-9)) * unit:.2g}")


@dataclass(slots=True)
class _Words:
    """Learning rates as a person has them, or, where the record holds none, as factors of the present one."""

    limits: RateLimits
    present: float = field(init=False)
    is_known: bool = field(init=False)

    def __post_init__(self) -> None:
        largest = self.limits.largest
        self.is_known = largest is not None and largest > 0.0
        self.present = largest if largest is not None and largest > 0.0 else 1.0

    def rate(self, rate: float) -> str:
        return f"{rate:.3g}" if self.is_known else f"{rate:.2g} times the present one"

    @property
    def now(self) -> str:
        return f" {self.present:.3g}" if self.is_known else ""

    def lower(self, rate: float) -> str:
        return f"Lower the learning rate{f' from {self.present:.3g}' if self.is_known else ''} to {self.rate(rate)}."


def _after_failure(evidence: Evidence, step: int) -> Advice:
    """Where training has diverged at a step, or learned nothing up to it."""
    words = _Words(evidence.limits)
    end = min(evidence.loss.sound_until, step)
    # What the failure itself has made of neurons and curvature says nothing of how it began.
    before = {s: r for s, r in evidence.ratios.items() if s <= end}
    edges = {s: e for s, e in evidence.edges.items() if s < end}
    first, last = evidence.loss.first, evidence.loss.last
    base = HALF if evidence.loss.has_fallen and last is not None and math.isfinite(last) else FAILED
    factors, reasons = [base], []
    if first is not None and last is not None and math.isfinite(last) and last >= first:
        reasons.append(f"The loss has not fallen: {first:.3g} at first, {last:.3g} in the last steps.")
    if before and max(before.values()) >= 1.0:
        at = max(before, key=lambda s: before[s])
        factors.append(MARGIN / before[at])
        reasons.append(
            f"The largest r before the loss rose was {before[at]:.3g}, at step {at:,}: for that step at most "
            f"{words.rate(floor2(words.present / before[at]))}."
        )
    if edges and max(edges.values()) >= 1.0:
        at = max(edges, key=lambda s: edges[s])
        factors.append(MARGIN / edges[at])
        reasons.append(
            f"At step {at:,} the edge ratio was {edges[at]:.3g}, before the loss rose: below the edge is at most "
            f"{words.rate(floor2(words.present / edges[at]))}."
        )
    if min(factors) < base:
        reasons.append(_BELOW)
    if (jump := _jump(evidence.limits, step)) is not None:
        reasons.insert(0, jump)
    if min(factors) == base:
        reasons.append(f"No measurement sets a lower limit: {base:.0%} of the rate is a guess.")
    rate = floor2(words.present * min(factors))
    reasons.append("Begin anew, or go back to a checkpoint from before.")
    return Advice(words.lower(rate), tuple(reasons), rate if words.is_known else None)


def _after_loss(outcome: Outcome, evidence: Evidence, lowest: Level) -> Advice:
    """Where the loss had fallen and is back, though nothing else says that training failed."""
    words = _Words(evidence.limits)
    then = evidence.limits.at(lowest.step) if words.is_known else None
    rates, reasons = [], []
    if then is not None and then < HALF * words.present:
        rates.append(then)
        reasons.append(f"At step {lowest.step:,} the learning rate was {then:.3g}.")
    # What the loss of all that was learned has made of the curvature says nothing of how it began.
    edges = {s: e for s, e in evidence.edges.items() if s < evidence.loss.sound_until and e >= 1.0}
    if edges:
        at = max(edges, key=lambda s: edges[s])
        own = (evidence.limits.at(at) if words.is_known else None) or words.present
        rates.append(MARGIN * own / edges[at])
        reasons.append(
            f"At step {at:,} the edge ratio was {edges[at]:.3g}: below the edge is at most "
            f"{words.rate(floor2(own / edges[at]))}, and the advice stays {1.0 - MARGIN:.0%} below that."
        )
    if not rates:
        rates.append(HALF * words.present)
        reasons.append(f"No measurement sets a lower limit: {HALF:.0%} of the rate is a guess.")
    rate = floor2(min(rates))
    reasons.insert(
        0,
        f"The loss had fallen from {evidence.loss.first:.3g} to {lowest.loss:.3g} by step {lowest.step:,}, and is "
        f"{evidence.loss.last:.3g} in the last steps: what was learned is lost.",
    )
    if outcome.coverage is not None and outcome.coverage.open:
        reasons.append(f"r of {outcome.coverage.open:,} steps is not known: neurons may have met in them.")
    reasons.append(
        "Go back to a checkpoint from before. If this loss is not meant to fall, as with adversaries, ignore this."
    )
    return Advice(words.lower(rate), tuple(reasons), rate if words.is_known else None)


def _after_breakdown(outcome: Outcome, evidence: Evidence) -> Advice:
    words = _Words(evidence.limits)
    critical = {s: r for s, r in evidence.ratios.items() if r >= 1.0}
    if not critical:  # a thinned record may have lost them
        known = {event.step: event.value for event in outcome.breakdowns if event.value is not None}
        critical = {step: value for step, value in known.items() if value < math.inf}
    if not critical and outcome.peak_ratio is not None and outcome.peak_ratio.value == math.inf:
        return Advice(
            f"Keep the learning rate{words.now}: neurons that were equal have parted, at any learning rate.",
            (f"r was infinite at step {outcome.peak_ratio.step:,} in {outcome.peak_ratio.group}, and below 1 else.",),
        )
    at = max(critical, key=lambda s: critical[s], default=outcome.breakdowns[0].step)
    largest = critical.get(at, 1.0)
    of = outcome.peak_ratio
    place = f" in {of.group}" if of is not None and of.step == at else ""
    highest = words.rate(floor2(words.present / largest))
    peak = f"the largest r was {largest:.3g}, at step {at:,}{place}"
    last = max(critical, default=at)
    steps = outcome.last_step or last
    later = {s: r for s, r in evidence.ratios.items() if s > 2 * last}
    is_early = last <= max(30, steps // 10) and len(later) >= 2 and max(later.values()) < _CALM
    if is_early and evidence.limits.used:
        warmup = _warmup(critical, evidence.limits)
        if warmup <= steps // 2:
            return Advice(
                f"Warm the learning rate up to{words.now} over the first {warmup:,} steps.",
                (
                    f"Steps were critical only up to step {last:,}: {peak}.",
                    f"From step {min(later):,} on r was at most {max(later.values()):.2g} where it was measured.",
                    f"Without a longer warm-up, at most {highest} would have kept every measured step below \u03b7*.",
                ),
                warmup_steps=warmup,
            )
    factors = [MARGIN / largest]
    reasons = [f"At most {highest} would have kept every measured step below \u03b7*: {peak}."]
    if last > max(30, steps // 10):
        reasons.append(f"A warm-up alone would not have: a step was critical as late as step {last:,}.")
    if outcome.edge_step is not None and evidence.edges and max(evidence.edges.values()) > largest:
        edge = max(evidence.edges.values())
        factors.append(1.0 / edge)
        reasons.append(f"The edge of stability asks for more: its ratio went to {edge:.3g}.")
    if outcome.coverage is not None and outcome.coverage.open:
        reasons.append(f"r of {outcome.coverage.open:,} steps is not known: the largest may be among them.")
    if MARGIN / largest == min(factors):
        reasons.append(_BELOW)
    if (jump := _jump(evidence.limits, outcome.breakdowns[0].step)) is not None:
        reasons.append(jump)
    rate = floor2(words.present * min(factors))
    return Advice(words.lower(rate), tuple(reasons), rate if words.is_known else None)


def _jump(limits: RateLimits, until: int) -> str | None:
    """The last jump of the learning rate up to a step, if it rose to three times what it was or more."""
    used = [(step, rate) for step, rate in limits.used if step <= until]
    for (_, before), (step, after) in reversed(tuple(pairwise(used))):
        if before > 0.0 and after >= _JUMP * before:
            return f"The learning rate rose from {before:.3g} to {after:.3g} at step {step:,}."
    return None


def _warmup(critical: Mapping[int, float], limits: RateLimits) -> int:
    """So many steps of a linear warm-up that each critical step would have stayed below eta*, with the margin."""
    needed = max(step * ratio for step, ratio in critical.items())
    full = limits.largest or 1.0
    begun = limits.used[0][1]
    if begun < 0.9 * full:  # there is a warm-up already: longer by as much as it failed
        end = next(step for step, rate in limits.used if rate >= 0.99 * full)
        needed = max(needed, end * max(critical.values()))
    steps = max(math.ceil(needed / MARGIN), 2 * max(critical))
    unit = 10 ** max(math.floor(math.log10(steps)), 1) if steps > 20 else 5
    return (
        math.ceil(steps / unit) * unit if steps <= 20 or steps / unit >= 5 else math.ceil(2 * steps / unit) * unit // 2
    )


def _could_be_measured(coverage: Coverage) -> bool:
    """Whether steps are open that more measurements would have covered; older records do not say why they are."""
    return not coverage.causes or not {OpenCause.NOT_MEASURED, OpenCause.SHARDED}.isdisjoint(coverage.causes)


def _measure(outcome: Outcome, evidence: Evidence) -> Advice:
    assert outcome.coverage is not None
    words, coverage = _Words(evidence.limits), outcome.coverage
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


def _at_edge(outcome: Outcome, evidence: Evidence, step: int) -> Advice:
    words = _Words(evidence.limits)
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
        return Advice(words.lower(rate), tuple(reasons), rate if words.is_known else None)
    if entered is not None and end is not None:
        went = "went on falling" if end < entered else "stayed about the same"
        reasons.insert(0, f"The loss {went} there, from {entered:.3g} to {end:.3g} in the last steps.")
    return Advice(f"Keep the learning rate{words.now}: it is as large as this network bears.", tuple(reasons))


def _keep(outcome: Outcome, evidence: Evidence) -> Advice:
    words = _Words(evidence.limits)
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
        decision = f"As far as r goes, keep the learning rate{words.now}: the edge of stability was not measured."
    elif not evidence.ratios:
        decision = f"As far as the edge of stability goes, keep the learning rate{words.now}: r was not measured."
    else:
        decision = f"As far as stability goes, keep the learning rate{words.now}: no limit was met."
    return Advice(decision, tuple(reasons))


def _measured_edge(outcome: Outcome) -> bool:
    """Whether the edge of stability was measured in any way."""
    return bool(set(outcome.measured) - {"eta_lambda"})


def _stalled(outcome: Outcome, evidence: Evidence, measured: tuple[str, ...]) -> Advice:
    """Where the loss has not fallen, and nothing that was measured says why."""
    words, loss = _Words(evidence.limits), evidence.loss
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
        "steps. If that is too little, begin at a tenth of what TopologyLRFinder(sharpness=None) finds."
    ]


def _unlearned(evidence: Evidence) -> list[str]:
    """That the loss has not fallen, where it has not."""
    first, last = evidence.loss.first, evidence.loss.last
    if evidence.loss.has_fallen or first is None or last is None:
        return []
    return [f"The loss has not fallen: {first:.3g} at first, {last:.3g} in the last steps. No limit explains it."]
