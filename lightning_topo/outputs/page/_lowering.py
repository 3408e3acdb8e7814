"""Where training has failed or neurons have merged: how far to lower the learning rate, or how long to warm it up."""

import math
from collections.abc import Mapping
from itertools import pairwise

from lightning_topo._figures.rates import RateLimits
from lightning_topo.outputs.page._evidence import Evidence
from lightning_topo.outputs.page._loss_course import Level
from lightning_topo.outputs.page._next_rate import FAILED, HALF, MARGIN, Advice, RateWords, floor2
from lightning_topo.outputs.page._outcome import Outcome

_BELOW = (
    f"The advice stays about {1.0 - MARGIN:.0%} below the lowest of these: r differs between steps, and between runs."
)
_JUMP = 3.0
"""A learning rate that rises so many times over from one step to the next is named."""
_NEARLY_EQUAL = 30.0
"""Of a step that is so many times the critical one not its size is the cause: what it tears was nearly equal."""
_CALM = 0.7
"""A warm-up is enough where r stays below this at the full learning rate."""


def advise_after_failure(evidence: Evidence, step: int) -> Advice:
    """Where training has diverged at a step, or learned nothing up to it."""
    words = RateWords(evidence.limits)
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
    return words.advice(rate, reasons)


def advise_after_loss(outcome: Outcome, evidence: Evidence, lowest: Level) -> Advice:
    """Where the loss had fallen and is back, though nothing else says that training failed."""
    words = RateWords(evidence.limits)
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
    return words.advice(rate, reasons)


def advise_after_breakdown(outcome: Outcome, evidence: Evidence) -> Advice:
    """Where a step was critical and the loss has fallen all the same: a warm-up if only the first ones were."""
    words = RateWords(evidence.limits)
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
    return words.advice(rate, reasons)


def advise_after_outside_change(evidence: Evidence) -> Advice | None:
    """Where something else moves parameters, and then r is so large that it is a matter of neurons that nearly meet."""
    at = max(evidence.ratios, key=lambda s: evidence.ratios[s], default=0)
    largest = evidence.ratios.get(at, 0.0)
    if evidence.outside_step is None or evidence.outside_step > at or not _NEARLY_EQUAL <= largest < math.inf:
        return None
    words = RateWords(evidence.limits)
    return Advice(
        f"Keep the learning rate{words.now}, and look at what moves parameters beside the optimizer.",
        (
            f"Since step {evidence.outside_step:,} something does, as outside_change says. Clipped or copied weights "
            "make neurons nearly equal, and any step tears those.",
            f"The largest r was {largest:.3g}, at step {at:,}: no learning rate of use would have kept it below 1.",
        ),
    )


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
