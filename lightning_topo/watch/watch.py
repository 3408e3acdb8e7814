"""One training watched from its first step to its last, whichever loop runs it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_topo.homology import Worker
from lightning_topo.measurement import GLOBAL, Measurement, StepState
from lightning_topo.neurons import NeuronGroup
from lightning_topo.phases import DetectorState, EventName, Severity, TopologyEvent
from lightning_topo.probes import Distortion, Persistence, Probe
from lightning_topo.watch.budget import Budget
from lightning_topo.watch.certifying import Certifying
from lightning_topo.watch.checkpoint import SavedWatch, resumed, saved_watch
from lightning_topo.watch.coverage import Shares
from lightning_topo.watch.finding import Finding, Recording
from lightning_topo.watch.losses import Losses, mean_losses
from lightning_topo.watch.messages import lost_result, moved_outside, unseen_step, unwatched
from lightning_topo.watch.outcome import FailureKind, Outcome
from lightning_topo.watch.output import ReferenceStore, Run, RunOutputs
from lightning_topo.watch.probing import Probing, measures_steps
from lightning_topo.watch.ranks import Ranks
from lightning_topo.watch.readings import Readings
from lightning_topo.watch.reference import keep, read_back
from lightning_topo.watch.reporting import Reporting
from lightning_topo.watch.schedule import Slot
from lightning_topo.watch.settings import WatchSettings
from lightning_topo.watch.snapshots import Snapshots
from lightning_topo.watch.steps import Steps
from lightning_topo.watch.training import Training
from lightning_topo.watch.training_loss import TrainingLoss

RECORD_EVERY = 4
"""Where more samples of the loss are wanted, every so many steps are recorded."""
EXCHANGE_STEPS = 10
"""Several processes tell each other what they have found at least this often."""


@dataclass(frozen=True, slots=True)
class _Message:
    """All that processes tell each other about the steps since the last exchange."""

    outcomes: Sequence[Outcome] = ()
    lines: Sequence[Measurement] = ()
    losses: Mapping[int, float] = field(default_factory=dict)
    uncertified: Mapping[int, StepState] = field(default_factory=dict)
    overhead: float = 0.0
    plan: Mapping[str, Slot] = field(default_factory=dict)


class Watch:
    """Follows one training. The loop's side calls, in every process alike:

        before_batch, (before_backward, after_backward, before_update)*, after_batch, ..., after_epoch, ..., close

    Of several processes each has a `Watch`, and all go through the same collectives in the same order. What belongs to
    one process alone (its record, its loggers) is fenced by the outputs.
    """

    def __init__(self, training: Training, settings: WatchSettings, outputs: RunOutputs, saved: Any = None) -> None:
        self._training, self._settings, self._outputs = training, settings, outputs
        self._ranks = training.ranks
        self.budget = Budget()
        self.groups: tuple[NeuronGroup, ...] = ()
        step, epoch = training.step, training.epoch
        state, damage = self._ranks.first("reading the state", lambda: saved_watch(saved, step, epoch))
        self._saved: SavedWatch | None = state
        detector = DetectorState() if state is None else state.detector
        self._reporting = Reporting(outputs, detector, settings.rules)
        self._schedule = settings.schedule(training.planned_steps)
        self._shares = Shares() if state is None else state.shares
        self._losses = Losses()
        self._worker = Worker()
        self._finding = Finding(training, settings.declared, settings.seed)
        self._recording = Recording(training)
        self._training_loss = TrainingLoss(training, settings.seed)
        self._batch: Any = None
        self._is_recorded = False
        self.steps = Steps(
            training.module,
            on_settle=self._settle_early,
            on_outside=self._moved_outside,
            keep_copies=self._finding.sharding == "whole",
        )
        self._probing = Probing(settings.probes, self._ranks, {})
        self._measures_losses = not all(isinstance(probe, Distortion | Persistence) for probe in settings.probes)
        self._snapshots: Snapshots | None = None
        self._certifying: Certifying | None = None
        self._outbox: list[Outcome] = []
        self._failing: set[tuple[str, str]] = set()
        self._proposed: dict[str, float] = {}
        self._said_outside: set[int] = set()
        self._said_unseen = False
        self._unseen: list[str] = []
        self._first_batch = True
        self._epoch_measured = -1
        self._last_step = step
        self._counted = step
        self._overhead = 0.0
        self._closed = False
        if damage is not None:
            self._reporting.event(damage)

    # --- what others may ask ----------------------------------------------------------------------------------------

    @property
    def events(self) -> Sequence[TopologyEvent]:
        """Everything that has happened, oldest first."""
        return tuple(sorted([*self._reporting.events, *self._outputs.noticed], key=lambda event: event.step))

    @property
    def has_unseen_steps(self) -> bool:
        """Whether parameters have moved by updates that no hook has seen."""
        return self._said_unseen

    @property
    def dirpath(self) -> Path | None:
        """The run folder; None where there is none."""
        return self._outputs.dirpath

    @property
    def ranks(self) -> Ranks:
        """The processes of the training."""
        return self._ranks

    @property
    def last_step(self) -> int:
        """The step of the last update; before the first, how many steps lay behind the network at the start."""
        return self._last_step

    @property
    def epochs_agree(self) -> bool:
        """Whether all processes end their epochs at the same step."""
        return self._training.epochs_agree

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold to go on from here: plain numbers, strings and containers."""
        if self._certifying is not None:
            self._certifying.coverage.cut()
        return SavedWatch(
            self._outputs.dirpath,
            self._outputs.run_id,
            self._last_step,
            self._reporting.detector,
            dict(self._schedule.slots),
            self._shares,
            self._probing.awaited.steps,
        ).to_dict()

    def proposed(self, group: str, ratio: float) -> None:
        """Note the critical ratio of an update that a guard did not let pass as it was, until the batch is over."""
        self._proposed[group] = max(ratio, self._proposed.get(group, 0.0))

    def stopped(self, values: Mapping[str, float]) -> None:
        """Note that a gate stops the training, in the record and under `topology/stopped`."""
        step, epoch = self._last_step, self._training.epoch
        self._reporting.measurement(Measurement(step, epoch, "gate", GLOBAL, values))
        self._publish(step, log=True)

    # --- the loop ---------------------------------------------------------------------------------------------------

    def before_batch(self, batch: Any = None) -> None:
        """A batch begins; it is kept while its step is looked at."""
        with self.budget.spending():
            self.steps.begin()
            if self._first_batch:
                self.steps.keep(self._training.optimizers)
            if self._records(self._training.step + 1):
                self._batch, self._is_recorded = batch, True
                self._recording.begin()
            if self._snapshots is not None:
                step = self._training.step + 1
                self._snapshots.before_step(step, self._due("step", step))
        self.budget.begin_step()

    def before_backward(self, loss: Tensor, *, scale: float = 1.0) -> None:
        """A loss is about to be differentiated; `scale` is the factor by which it exceeds the module's own."""
        with self.budget.spending():
            if self._first_batch:
                self.steps.keep(self._training.optimizers)  # lazy parameters have their shapes now
            self._recording.loss(loss, scale)

    def after_backward(self, *, goes_on: bool = False) -> None:
        """A gradient is there; `goes_on` where the step may compute further losses."""
        with self.budget.spending():
            self._recording.differentiated(goes_on=goes_on)

    def before_update(self, optimizer: Optimizer) -> None:
        """An optimizer is about to change its parameters."""
        with self.budget.spending():
            self.steps.check(optimizer)

    def after_batch(self, loss: Tensor | float | None) -> None:
        """A batch is over; `loss` is the mean loss of this process's batch, undivided and unscaled."""
        self.budget.end_step()
        with self.budget.spending():
            self._end_recording()
            step = self._training.step + 1
            stepped = self._has_stepped(step)
            if stepped:
                self._first_batch = False
                self._last_step = step
                self._losses.note(step, loss)
                if self._snapshots is None:
                    self._start(step)
                due = self._due("step", step)
                if self.steps.pending:
                    self._settle(step, due)
                elif self._certifying is not None:
                    self._certifying.unseen(step, self._unseen)
                self._run([probe for probe in due if not measures_steps(probe) or self._is_unpaired(probe)], step)
                self._outbox += self._probing.collect(step)
                if self._is_exchange(step, due):
                    self._exchange(step)
                self.steps.advance()
            self._proposed.clear()
            log = stepped and _divides(self._training.log_every_n_steps, step)
            # Before validation and every hook at the epoch's end, so that these see the new values in any order.
            if self._training.ends_epoch() and self._snapshots is not None and (stepped or self.epochs_agree):
                self._measure_epoch(step if stepped else self._training.step, log=log)
            elif stepped:
                self._publish(step, log=log)

    def break_off(self) -> None:
        """The batch has ended in an exception, and another may follow."""
        self._finding.end()
        self._proposed.clear()

    def after_epoch(self) -> None:
        """Measure what is due at the end of an epoch, unless its last batch was known to be the last."""
        with self.budget.spending():
            if self._snapshots is not None and self.epochs_agree and self._epoch_measured != self._training.epoch:
                self._measure_epoch(self._training.step)

    def close(self, *, in_haste: bool = False) -> bool:
        """Finish: take in what is awaited, and end the outputs. False if that was done already.

        `in_haste` where something has gone wrong: what is not ready is given up, and what processes would share.
        """
        if self._closed:
            return False
        self._closed = True
        try:
            self._recording.end()
            if in_haste:
                late = self._probing.give_up("training broke off before it was ready")
            else:
                late = self._probing.collect()
            self._outbox += late
            if self._snapshots is not None:
                self._exchange(self._last_step, last=True, alone=in_haste)
                self._publish(self._last_step, log=False)
        finally:
            self.release()
            self._outputs.end(in_haste=in_haste)
        self._raise_first_error()
        return True

    def release(self) -> None:
        """Leave the training alone: remove all hooks, let copies go, end the worker."""
        self._recording.end()
        self.steps.release()
        self._worker.close()

    # --- the start --------------------------------------------------------------------------------------------------

    def find_neurons(self) -> Sequence[NeuronGroup]:
        """Find the neurons on what has been recorded of the present batch so far; a collective."""
        if not self.groups:
            self.groups = self._finding.groups(self._recording.so_far(), self._recording.obstacle)
        return self.groups

    def _records(self, step: int) -> bool:
        """Whether to record the step that begins: the first, and later ones as long as samples are wanted."""
        if self._snapshots is None:
            return True
        return self._measures_losses and self._training_loss.wants_tapes and step % RECORD_EVERY == 0

    def _end_recording(self) -> None:
        """Keep what this step's losses are made of, for measuring them later."""
        tapes = self._recording.end()
        if self._is_recorded and self._measures_losses:
            self._training_loss.keep(tapes, self._batch)
            if self._recording.obstacle:
                self._training_loss.refuse(self._recording.obstacle)
        self._batch, self._is_recorded = None, False

    def _start(self, step: int) -> None:
        """The first step is done: find the neurons, and tell the outputs."""
        training, settings, saved = self._training, self._settings, self._saved
        self.find_neurons()
        self._probing.order |= {group.name: k for k, group in enumerate(self.groups)}
        self._snapshots = Snapshots(training, self.steps, self.groups, self._training_loss)
        self._certifying = Certifying(
            self._snapshots, self.steps, self._probing, limited=settings.max_overhead is not None
        )
        readings = Readings([group.name for group in self.groups], settings.log_groups)
        run = Run(self.groups, readings, settings.described(), training.step, training.epoch, training.facts())
        self._reporting.start(run)
        if saved is not None:
            self._schedule.slots.update(saved.slots)
        self._refer(step)
        for problem in self._finding.problems:
            self._fail("neurons", problem.group, problem.message, problem.remedy, step)
        sizes = {name: p.numel() for name, p in training.module.named_parameters()}
        if (event := unwatched(self._finding.uncovered, sizes, step, training.epoch)) is not None:
            self._reporting.event(event)
        self._snapshots.worker = self._worker

    def _refer(self, step: int) -> None:
        """Find or take the clouds from which distances since the beginning are measured."""
        snapshots, saved = self._snapshots, self._saved
        assert snapshots is not None
        store: ReferenceStore | None = self._outputs.store
        start = snapshots.before(step) or snapshots.now()
        clouds = start.gather(group.name for group in snapshots.active())
        kept = read_back(store, self.groups, clouds, self._ranks) if saved is not None else None
        snapshots.reference = clouds if kept is None else kept
        if kept is None:
            keep(store, step - 1, self.groups, clouds, self._ranks)
        if saved is not None:
            since = "" if kept is not None else " The clouds of the beginning are lost: totals count from here."
            since += saved.under_way()
            self._reporting.event(resumed(self._training.step, self._training.epoch, since))

    # --- measuring --------------------------------------------------------------------------------------------------

    def _has_stepped(self, step: int) -> bool:
        """Whether this batch has led to an update; one that no hook has seen is an event."""
        if self.steps.pending:
            return True
        moved = self.steps.moved()
        if moved:
            self._unseen = moved
            if not self._said_unseen:
                self._said_unseen = True
                self._reporting.event(unseen_step(self._training.optimizers, moved, step, self._training.epoch))
        return bool(moved)

    def _settle_early(self) -> None:
        """A second update in one batch is about to begin: measure the first while its beginning is known."""
        if self._certifying is not None:
            step = self._training.step + 1
            self._settle(step, self._due("step", step))

    def _settle(self, step: int, due: Sequence[Probe]) -> None:
        assert self._certifying is not None
        self._outbox += self._certifying.settle(step, self._training.epoch, due, self.budget)

    def _run(self, probes: Sequence[Probe], step: int) -> None:
        snapshots = self._snapshots
        if not probes or snapshots is None:
            return
        now = snapshots.now()
        for probe in probes:
            self._outbox.append(
                self._probing.run(
                    probe,
                    lambda previous, p=probe: snapshots.capture(p, step, now, previous),
                    step,
                    self._training.epoch,
                )
            )

    def _is_unpaired(self, probe: Probe) -> bool:
        """Whether a probe of steps is one of the user's, which looks at the whole batch's step."""
        assert self._certifying is not None
        return probe is not self._certifying.probe

    def _measure_epoch(self, step: int, *, log: bool = False) -> None:
        self._epoch_measured = self._training.epoch
        self._outbox += self._probing.collect()
        due = self._due("epoch", self._training.epoch + 1)
        self._run(due, step)
        self._exchange(step)
        self._publish(step, log=log or bool(due))

    def _due(self, unit: Any, count: int) -> list[Probe]:
        return [
            probe
            for probe in self._probing.probes
            if self._schedule.is_due(probe.name, unit, count)
            or (unit == "step" and self._probing.is_wanted_again(probe))
        ]

    def _is_exchange(self, step: int, due: Sequence[Probe]) -> bool:
        return self._ranks.size == 1 or bool(due) or step % EXCHANGE_STEPS == 0

    def _exchange(self, step: int, *, last: bool = False, alone: bool = False) -> None:
        """Put together what all processes have found since the last exchange, and report it."""
        assert self._certifying is not None
        coverage = self._certifying.coverage
        epoch = self._training.epoch
        mine = _Message(
            self._outbox,
            coverage.lines(epoch, flush=last),
            self._losses.take(),
            coverage.take_uncertified(),
            self.budget.share(),
            self._schedule.plan(step, self.budget.step_seconds),
        )
        self._outbox = []
        every = [mine] if alone else self._ranks.all("+".join(o.probe for o in mine.outcomes), mine)
        self._overhead = every[0].overhead
        uncertified: dict[int, StepState] = {}
        for message in every:
            for at, state in message.uncertified.items():
                uncertified[at] = min(state, uncertified.get(at, state))
        self._shares.take(step - self._counted, uncertified)
        self._counted = step
        for at, loss in mean_losses([message.losses for message in every]).items():
            self._reporting.measurement(Measurement(at, epoch, "training", GLOBAL, {"loss": loss}), published=False)
        self._reporting.lines(line for message in every for line in message.lines)
        for outcome in self._probing.unite([message.outcomes for message in every]):
            self._take(outcome)
        before = dict(self._schedule.slots)
        self._schedule.slots = dict(every[0].plan)
        if changed := {
            f"{name}_every": float(slot.stride)
            for name, slot in self._schedule.slots.items()
            if name not in before or before[name].stride != slot.stride
        }:
            self._reporting.lines([Measurement(step, epoch, "schedule", GLOBAL, changed)])
        if not alone:
            self._raise_first_error()

    def _take(self, outcome: Outcome) -> None:
        """Report one outcome of all processes."""
        if outcome.failure is None and outcome.lag is None:
            self._schedule.spent(outcome.probe, outcome.seconds)
        self._note_failure(outcome)
        measures = measures_steps(self._probing.named(outcome.probe))
        for measurement in outcome.measurements():
            self._failing.discard((outcome.probe, measurement.group))
            for name in measurement.values if self._failing else ():
                self._failing.discard((outcome.probe, f"{GLOBAL}:{name}"))
            if measures and measurement.group in self._proposed:
                proposed = {"proposed_critical_ratio": self._proposed[measurement.group]}
                measurement = Measurement(
                    outcome.step, outcome.epoch, outcome.probe, measurement.group, {**measurement.values, **proposed}
                )
            self._reporting.measurement(measurement)
        for group, why in outcome.problems.items():
            self._fail(outcome.probe, group, f"{outcome.probe} could not measure {group}: {why}", _GO_ON, outcome.step)
        for name, why in outcome.refused.items():
            message = f"A value of {outcome.probe} is not recorded: {why}."
            self._fail(outcome.probe, f"{GLOBAL}:{name}", message, "Its other values are.", outcome.step)
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
        self._fail(outcome.probe, GLOBAL, message, failure.remedy, outcome.step)

    def _fail(self, probe: str, group: str, message: str, remedy: str, step: int) -> None:
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

    def _moved_outside(self, optimizer: Optimizer, names: Sequence[str]) -> None:
        """Something else than the optimizer has moved its parameters."""
        if self._certifying is not None:
            self._certifying.moved_outside()
        if id(optimizer) not in self._said_outside:
            self._said_outside.add(id(optimizer))
            self._reporting.event(moved_outside(optimizer, names, self._training.step, self._training.epoch))

    def _raise_first_error(self) -> None:
        """Raise a probe's error where the user wants to know."""
        errors, self._probing.errors = self._probing.errors, {}
        if errors and self._settings.on_error == "raise":
            raise next(iter(errors.values()))

    # --- publishing -------------------------------------------------------------------------------------------------

    def _publish(self, step: int, *, log: bool) -> None:
        readings = self._reporting.readings
        if readings is None:
            return
        # Of several processes rank 0's share, as of the last exchange, so that all publish the same.
        overhead = self.budget.share() if self._ranks.size == 1 else self._overhead
        phase = float(self._reporting.detector.phase)
        epoch = self._training.epoch
        readings.take(Measurement(step, epoch, "phase", GLOBAL, {"phase": phase, "overhead": overhead}))
        readings.take(Measurement(step, epoch, "coverage", GLOBAL, self._shares.values()))
        self._training.publish(readings.metrics())
        if log:  # on every rank, so that "since the last log" means the same on each
            self._reporting.row(step, self._training.epoch)


_GO_ON = "Everything else goes on."


def _divides(period: int, step: int) -> bool:
    return period > 0 and step % period == 0
