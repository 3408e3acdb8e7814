"""Exchange the findings of the last steps between processes, and report them."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace

from lightning_topo._watch.budget import Budget
from lightning_topo._watch.coverage import Coverage, Shares
from lightning_topo._watch.losses import Losses, mean_losses
from lightning_topo._watch.messages import left_alone, lost_result, not_alike, not_measured
from lightning_topo._watch.outcome import FailureKind, Outcome
from lightning_topo._watch.probing import GO_ON, Probing, measures_steps
from lightning_topo._watch.ranks import ElsewhereError
from lightning_topo._watch.rates import Rates
from lightning_topo._watch.replicas import Sample, sample_of, unlike
from lightning_topo._watch.reporting import Reporting
from lightning_topo._watch.schedule import Schedule, Slot
from lightning_topo._watch.training import Training
from lightning_topo.measurement import GLOBAL, Measurement, StepState
from lightning_topo.phases import EventName, Severity, TopologyEvent
from lightning_topo.probes import Probe
from lightning_topo.quantities import RESERVED_VALUES

EXCHANGE_STEPS = 10
"""Findings are reported at least this often."""


@dataclass(frozen=True, slots=True)
class _Message:
    """What processes send each other about the steps since the last exchange."""

    outcomes: Sequence[Outcome] = ()
    events: Sequence[TopologyEvent] = ()
    lines: Sequence[Measurement] = ()
    bounds: Mapping[str, float] = field(default_factory=dict)
    losses: Mapping[int, float] = field(default_factory=dict)
    uncertified: Mapping[int, StepState] = field(default_factory=dict)
    weights: Sample = field(default_factory=dict)
    overhead: float = 0.0
    plan: Mapping[str, Slot] = field(default_factory=dict)


class Exchange:
    """Collects what this process has found, and reports what all have found together.

    `outcomes`, `events`, `losses` and `rates` are this process's since the last exchange; `proposed` holds the critical
    ratios of updates that a guard has held in this batch. `shares` and `overhead` are those of all processes, as of the
    last exchange. `certifies` where there are groups, and a probe that measures their steps. Of `are_replicas` each
    process has the whole model, and all the same, unless they were found to be `are_unlike`. `token` names the last
    exchange, for which nobody waits in vain.
    """

    def __init__(
        self,
        training: Training,
        reporting: Reporting,
        probing: Probing,
        schedule: Schedule,
        budget: Budget,
        shares: Shares,
    ) -> None:
        self.outcomes: list[Outcome] = []
        self.events: list[TopologyEvent] = []
        self.losses: Losses = Losses()
        self.rates: Rates = Rates()
        self.proposed: dict[str, float] = {}
        self.shares: Shares = shares
        self.overhead: float = 0.0
        self.certifies: bool = True
        self.token: str = ""
        self.are_replicas: bool = False
        self.are_unlike: bool = False
        self._training, self._reporting, self._probing = training, reporting, probing
        self._schedule, self._budget = schedule, budget
        self._failing: set[tuple[str, str]] = set()
        self._noted: set[tuple[str, str]] = set()
        self._counted = training.step

    def shares_at(self, step: int, coverage: Coverage) -> Shares:
        """The shares as of a step, for a checkpoint, though the exchange may have been earlier.

        Of several processes none knows the others' steps since then: they are left out.
        """
        shares = copy(self.shares)
        if self._training.ranks.size == 1:
            shares.take(step - self._counted, coverage.uncertified, certifies=self.certifies)
        return shares

    def is_due(self, step: int, coverage: Coverage, *, measured: bool) -> bool:
        """Whether it is time to exchange: every so many steps, after a measurement, and, alone, on any news.

        Of several processes all must think alike, and only `measured` is the same for all.
        """
        if measured or step % EXCHANGE_STEPS == 0:
            return True
        has_news = bool(self.outcomes or self.events) or coverage.has_news or self.losses.is_broken()
        return self._training.ranks.size == 1 and has_news

    def run(
        self, step: int, coverage: Coverage, due: Sequence[Probe] = (), *, last: bool = False, alone: bool = False
    ) -> None:
        """Combine the findings of all processes since the last exchange, and report them: a collective.

        `due` are the probes that all have run: messages of different sizes. `last` where the training ends; `alone`
        where the other processes cannot be waited for.
        """
        epoch, several = self._training.epoch, self._training.ranks.size > 1
        mine = _Message(
            self.outcomes,
            self.events,
            coverage.lines(epoch, flush=last),
            coverage.take_bounds(),
            self.losses.take(),
            coverage.take_uncertified(),
            sample_of(self._training.module) if self.are_replicas and not alone and several else {},
            self._budget.share(),
            self._schedule.plan(step, self._budget.step_seconds),
        )
        self.outcomes, self.events = [], []
        unknown = dict.fromkeys(range(self._counted + 1, step + 1), StepState.OPEN)
        try:
            sent = self._gathered(mine, due, last=last, alone=alone) if several else [mine]
        except ElsewhereError:  # nothing was learnt of these steps
            self.shares.take(step - self._counted, unknown, certifies=self.certifies)
            self._counted = step
            raise
        missing = [rank for rank, theirs in enumerate(sent) if theirs is None]
        if missing and not alone:
            self._reporting.event(left_alone(missing, self._counted + 1, step, epoch))
        every, leading = [theirs or _Message() for theirs in sent], sent[0] or mine
        self.overhead = leading.overhead
        uncertified: dict[int, StepState] = {}
        for message in every:
            for at, state in message.uncertified.items():
                uncertified[at] = min(state, uncertified.get(at, state))
        if not self.are_unlike and (found := unlike([message.weights for message in every])) is not None:
            self.are_unlike = True
            self._reporting.event(not_alike(*found, step, epoch))
        if self.are_unlike or missing:
            uncertified |= unknown
        self.shares.take(step - self._counted, uncertified, certifies=self.certifies)
        self._counted = step
        rates, changed_rates = self.rates.take()
        seen: dict[int, dict[str, float]] = {at: {"learning_rate": rate} for at, rate in changed_rates.items()}
        for at, loss in mean_losses([message.losses for message in every]).items():
            seen[at] = {"loss": loss} | seen.get(at, {})
        for at, values in sorted(seen.items()):
            self._reporting.measurement(Measurement(at, epoch, "training", GLOBAL, values), published=False)
        for rate in list(rates.values())[-1:]:
            self._reporting.read([Measurement(step, epoch, "training", GLOBAL, {"learning_rate": rate})])
        self._reporting.lines(line for message in every for line in message.lines)
        met: set[tuple[str, int, str]] = set()
        for message in every:  # what several processes have met is one event, and so is what one has met twice
            own = {(*_key(event), event.message): event for event in message.events}
            for event in (one for one in own.values() if _key(one) not in met):
                self._reporting.event(event)
            met.update(map(_key, message.events))
        for outcome in self._probing.unite([message.outcomes for message in every]):
            self._take(outcome)
            self._reporting.read(_critical_rate(outcome, rates.get(outcome.step), self.proposed))
        self._reporting.read(
            Measurement(step, epoch, "coverage", group, {"critical_ratio_bound": bound})
            for message in every
            for group, bound in message.bounds.items()
        )
        before = dict(self._schedule.slots)
        self._schedule.slots = dict(leading.plan)
        if changed := {
            f"{name}_every": float(slot.stride)
            for name, slot in self._schedule.slots.items()
            if name not in before or before[name].stride != slot.stride
        }:
            self._reporting.lines([Measurement(step, epoch, "schedule", GLOBAL, changed)])

    def _gathered(self, mine: _Message, due: Sequence[Probe], *, last: bool, alone: bool) -> Sequence[_Message | None]:
        """What the processes have to say, by rank; None of those of which nothing comes."""
        ranks = self._training.ranks
        if last and self.token:
            return ranks.farewell(self.token, mine, waits=not alone)
        if alone:
            return [mine if rank == ranks.rank else None for rank in range(ranks.size)]
        return ranks.all("exchange of " + "+".join(probe.name for probe in due), mine)

    def validated(self, step: int, values: Mapping[str, float]) -> None:
        """Record what the training's own validation has found."""
        named = {name: value for name, value in values.items() if name not in RESERVED_VALUES}
        if named:
            epoch = self._training.epoch
            self._reporting.measurement(Measurement(step, epoch, "validation", GLOBAL, named), published=False)

    def _take(self, outcome: Outcome) -> None:
        """Report one outcome of all processes."""
        if outcome.failure is None and outcome.lag is None:
            is_setup = outcome.again_after_step and not (outcome.values or outcome.diagrams or outcome.problems)
            self._schedule.spent(outcome.probe, outcome.seconds, is_setup=is_setup)
        self._note_failure(outcome)
        measures = measures_steps(self._probing.named(outcome.probe))
        if any(not values.get("span_ratio", 0.0) < 1.0 for values in outcome.values.values()):
            self._schedule.hastened.add(outcome.probe)  # neurons may have met since the last capture
        elif outcome.values:
            self._schedule.hastened.discard(outcome.probe)
        for measurement in outcome.measurements():
            self._failing.discard((outcome.probe, measurement.group))
            for name in measurement.values if self._failing else ():
                self._failing.discard((outcome.probe, f"{GLOBAL}:{name}"))
            if measures and measurement.group in self.proposed:
                proposed = {"proposed_critical_ratio": self.proposed[measurement.group]}
                measurement = replace(measurement, values={**measurement.values, **proposed})
            self._reporting.measurement(measurement)
        for group, why in outcome.problems.items():
            self.fail(outcome.probe, group, f"{outcome.probe} could not measure {group}: {why}", GO_ON, outcome.step)
        for name, why in outcome.refused.items():
            message = f"A value of {outcome.probe} is not recorded: {why}."
            self.fail(outcome.probe, f"{GLOBAL}:{name}", message, "Its other values are.", outcome.step)
        for note in outcome.notes:
            if (outcome.probe, note) not in self._noted:
                self._noted.add((outcome.probe, note))
                self._reporting.event(not_measured(note, outcome.step, outcome.epoch))
        self._reporting.diagrams(outcome.step, outcome.diagrams)

    def _note_failure(self, outcome: Outcome) -> None:
        """Report that a probe has failed as a whole."""
        failure = outcome.failure
        if failure is None:
            self._failing.discard((outcome.probe, GLOBAL))
            return
        if failure.kind is FailureKind.LOST:
            self._reporting.event(lost_result(outcome.probe, failure.message, outcome.step, outcome.epoch))
            return
        verb = "is switched off" if failure.kind is FailureKind.UNAVAILABLE else "failed"
        message = f"{outcome.probe} {verb}: {failure.message}"
        self.fail(outcome.probe, GLOBAL, message, failure.remedy, outcome.step)

    def fail(self, probe: str, group: str, message: str, remedy: str, step: int) -> None:
        """An event, once until the probe succeeds again."""
        if (probe, group) in self._failing:
            return
        self._failing.add((probe, group))
        self._reporting.event(
            TopologyEvent(
                EventName.PROBE_FAILED,
                step,
                self._training.epoch,
                group.partition(":")[0],
                Severity.WARN,
                message=message,
                remedy=remedy,
            )
        )


def _critical_rate(outcome: Outcome, rate: float | None, proposed: Mapping[str, float]) -> list[Measurement]:
    """eta* = eta / r of the measured step, as its optimizer `proposed` it, in the group where it is smallest."""
    own = {group: values for group, values in outcome.values.items() if "critical_ratio" in values}
    ratios = [proposed.get(group, values["critical_ratio"]) for group, values in own.items()]
    if rate is None or not ratios or not max(ratios) > 0.0:
        return []
    values = {"critical_learning_rate": rate / max(ratios)}
    return [Measurement(outcome.step, outcome.epoch, "training", GLOBAL, values)]


def _key(event: TopologyEvent) -> tuple[str, int, str]:
    """What is the same of an event on all processes that meet it."""
    return str(event.name), event.step, event.group
