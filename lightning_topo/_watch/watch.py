"""One training watched from its first step to its last, whichever loop runs it."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from torch import Tensor

from lightning_topo._watch.budget import Budget
from lightning_topo._watch.checkpoint import SavedWatch, saved_watch
from lightning_topo._watch.coverage import Shares
from lightning_topo._watch.finding import Finding
from lightning_topo._watch.findings_exchange import EXCHANGE_STEPS, Exchange
from lightning_topo._watch.loss_probes import LossProbes
from lightning_topo._watch.measuring import Measuring
from lightning_topo._watch.messages import unwatched
from lightning_topo._watch.movements import Movements
from lightning_topo._watch.output import Run, RunOutputs
from lightning_topo._watch.probing import Probing
from lightning_topo._watch.published_values import Readings
from lightning_topo._watch.recording import Recording
from lightning_topo._watch.reference import begin_reference, keep_parameters
from lightning_topo._watch.reporting import Reporting
from lightning_topo._watch.settings import WatchSettings
from lightning_topo._watch.step_under_way import StepUnderWay
from lightning_topo._watch.steps import Steps
from lightning_topo._watch.training import Training
from lightning_topo._watch.training_loss import TrainingLoss
from lightning_topo._watch.watched_neurons import WatchedNeurons
from lightning_topo.homology import Worker
from lightning_topo.measurement import GLOBAL, Measurement, OpenCause
from lightning_topo.neurons import NeuronGroup
from lightning_topo.phases import DetectorState, TopologyEvent
from lightning_topo.probes import Probe
from lightning_topo.stability._recognition import maximizes

STEPS_PER_FATE = 4.0
"""What the first counts of what becomes of the neurons are taken to cost: products of the clouds with themselves."""


class Watch:
    """Follows one training. The loop's side calls, in every process alike:

        before_batch, (before_backward, after_backward)*, after_batch, ..., after_epoch, ..., close

    Of several processes each has a `Watch`, and all go through the same collectives in the same order. What belongs to
    one process alone (its record, its loggers) is fenced by the outputs.
    """

    def __init__(self, training: Training, settings: WatchSettings, outputs: RunOutputs, saved: Any = None) -> None:
        self._training, self._settings, self._outputs = training, settings, outputs
        self._ranks = training.ranks
        self.budget: Budget = Budget()
        step, epoch = training.step, training.epoch
        state, damage = self._ranks.first("reading the state", lambda: saved_watch(saved, step, epoch))
        self._saved: SavedWatch | None = state
        detector = DetectorState() if state is None else state.detector
        self._reporting = Reporting(outputs, detector, settings.rules)
        self._schedule = settings.schedule(training.planned_steps)
        self._worker = Worker()
        finding = Finding(training, settings.declared, settings.seed)
        self._training_loss = TrainingLoss(training, settings.seed)
        self._loss_probes = LossProbes.among(settings.measured)
        self._recording = Recording(
            training,
            self._training_loss if self._loss_probes.are_any else None,
            partial(self._schedule.steps_until_any, self._loss_probes.of_samples),
            partial(self._schedule.steps_until_any, self._loss_probes.of_batches),
        )
        self._probing = Probing(settings.measured, self._ranks, {})
        shares = Shares() if state is None else state.shares
        self._exchange = Exchange(training, self._reporting, self._probing, self._schedule, self.budget, shares)
        limited = settings.max_overhead is not None
        self._measuring = Measuring(
            training, self._probing, self._schedule, self._exchange, self.budget, limited=limited
        )
        self._movements = Movements(
            training, lambda event: self._exchange.events.append(event), self._measuring.moved_outside
        )
        self.steps: Steps = Steps(
            training.module,
            on_settle=self._measuring.update_before_another,
            on_outside=self._movements.outside,
            on_overwritten=self._movements.overwritten,
            on_deferred=lambda stands: self._measuring.finish(stands=stands),
            on_begin=lambda runs_closure, names: self._recording.update_begins(names, runs_closure=runs_closure),
            on_made=lambda update: self._under_way.made(update),
            on_end=self._recording.update_ends,
            spending=self.budget.spending,
            keep_copies=finding.sharding == "whole",
        )
        self._neurons = WatchedNeurons(
            training,
            finding,
            self._recording,
            self._training_loss,
            self.steps,
            self._probing,
            self._measuring,
            self._exchange,
        )
        self._under_way = StepUnderWay(
            training, self.steps, self._movements, self._recording, self._probing, self._measuring, self._neurons
        )
        self._epoch_measured = -1
        self._last_step = step
        self._closed = False
        if damage is not None:
            self._reporting.event(damage)

    # --- what others may ask ----------------------------------------------------------------------------------------

    @property
    def groups(self) -> tuple[NeuronGroup, ...]:
        """The groups of neurons, once they are found."""
        return self._neurons.groups

    @property
    def events(self) -> Sequence[TopologyEvent]:
        """Everything that has happened, oldest first."""
        return tuple(sorted([*self._reporting.events, *self._outputs.noticed], key=lambda event: event.step))

    @property
    def has_unseen_steps(self) -> bool:
        """Whether parameters have moved by updates that no hook has seen."""
        return self._movements.has_unseen_steps

    @property
    def dirpath(self) -> Path | None:
        """The run folder; None where there is none."""
        return self._outputs.dirpath

    @property
    def training(self) -> Training:
        """The training that is watched."""
        return self._training

    @property
    def last_step(self) -> int:
        """The step of the last update; before the first, the number of steps completed at the start."""
        return self._last_step

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold to go on from here: plain numbers, strings and containers."""
        self.steps.take_deferred()
        self._measuring.coverage.cut()
        return SavedWatch(
            self._outputs.dirpath,
            self._outputs.run_id,
            self._last_step,
            self._reporting.detector,
            dict(self._schedule.slots),
            self._exchange.shares_at(self._last_step, self._measuring.coverage),
            self._probing.awaited.steps,
            self._exchange.rates.reported,
            self._probing.saved(),
        ).to_dict()

    def proposed(self, group: str, ratio: float) -> None:
        """Note the critical ratio of an update that a guard has changed, until the batch is over."""
        self._exchange.proposed[group] = max(ratio, self._exchange.proposed.get(group, 0.0))

    def stopped(self, values: Mapping[str, float]) -> None:
        """Note that a gate stops the training, in the record and under `topology/stopped`."""
        step, epoch = self._last_step, self._training.epoch
        self._reporting.measurement(Measurement(step, epoch, "gate", GLOBAL, values))
        self._publish(step, log=True)

    # --- the loop ---------------------------------------------------------------------------------------------------

    def before_batch(self, batch: Any = None) -> None:
        """A batch begins; it is kept while its step is looked at."""
        with self.budget.spending():
            self._under_way.begin(batch)
        self.budget.begin_step()

    def before_backward(self, loss: Tensor, *, scale: float = 1.0, in_engine: bool = False) -> None:
        """A loss is about to be differentiated; `scale` is the factor by which it exceeds the module's own.

        `in_engine` as for the `after_backward` that follows.
        """
        with self.budget.spending():
            self._under_way.loss(loss, scale, in_engine=in_engine)

    def after_backward(self, *, goes_on: bool = False, in_engine: bool = False) -> None:
        """A gradient is there; `goes_on` where the step may have further losses, `in_engine` where autograd calls."""
        with self.budget.spending():
            self._under_way.differentiated(goes_on=goes_on, in_engine=in_engine)

    def after_batch(self, loss: Tensor | float | None) -> None:
        """A batch is over; `loss` is the mean loss of this process's batch, undivided and unscaled."""
        self.budget.end_step()
        with self.budget.spending():
            step = self._training.step + 1
            stepped = self._under_way.end()
            if stepped:
                self._last_step = step
                self._exchange.losses.note(step, loss, is_maximized=maximizes(self._training.optimizers))
                stepped = not self._neurons.wait(step)
            log = shares = False
            if stepped:
                self._exchange.rates.note(step, next((u.learning_rate for u in self.steps.pending), None))
                self._meet_neurons(step)
                due, log = self._measuring.due("step", step), self._is_row_due(step)
                at_once = bool(due) or log or step % EXCHANGE_STEPS == 0 or self._training.ends_epoch()
                # What fails on this process alone: it raises when nobody waits for this one any more.
                error: Exception | None = None
                try:
                    unseen, is_lost = self._unseen()
                    at_once = at_once or self.steps.copies_values
                    self._measuring.step(step, due, unseen=unseen, is_lost=is_lost, at_once=at_once)
                    if self._neurons.moves_unknown:
                        self._measuring.doubt(step)
                    if self._exchange.are_unlike:
                        self._measuring.doubt(step, OpenCause.NOT_ALIKE)
                except Exception as raised:
                    error = raised
                    self._measuring.leave_failed(step, raised)
                shares = log or self._exchange.is_due(step, self._measuring.coverage, measured=bool(due))
                if shares:
                    self._share(step, due)
                self._let_go()
                if error is not None:
                    raise error
            elif self._measuring.has_begun:
                self._measuring.rest(step)
            self._exchange.proposed.clear()
            # Before validation and every hook at the epoch's end, so that these see the new values in any order.
            if self._training.ends_epoch() and self._measuring.has_begun and (stepped or self._training.epochs_agree):
                self._measure_epoch(step if stepped else self._training.step, log=log)
            elif shares:
                self._publish(step, log=log)
            self.steps.raise_failure()

    def _meet_neurons(self, step: int) -> None:
        """Find the neurons on the first step, and again where that is wanted; else see who has joined or left."""
        if not self._measuring.has_begun:
            self._start(step)
            return
        is_wanted = self._neurons.is_again_wanted
        have_changed = self._neurons.follow_members(step)
        if is_wanted and not have_changed and self._neurons.begin_again(step):
            self._tell_neurons(step)

    def _is_row_due(self, step: int) -> bool:
        period = self._training.log_every_n_steps
        return period > 0 and step % period == 0

    def _unseen(self) -> tuple[Sequence[str] | None, bool]:
        """Parameters whose movement in this batch cannot be measured, and whether their values are lost."""
        lost = self.steps.overwritten()
        return (lost or None) if self.steps.pending else self._movements.unseen, bool(lost)

    def _let_go(self) -> None:
        """Let the tapes of a measured step go, and the copies from before it unless they are awaited."""
        self._recording.forget()
        if self._measuring.is_awaited:
            self.steps.defer()
        else:
            self.steps.advance()

    @property
    def is_in_update(self) -> bool:
        """Whether the present batch has led to an update, of neurons that are known."""
        return not self._closed and self._measuring.has_begun and self.steps.has_updates

    def break_off(self) -> None:
        """The batch has ended in an exception, and another may follow."""
        self._under_way.break_off()
        self._exchange.proposed.clear()

    def after_epoch(self) -> None:
        """Measure what is due at the end of an epoch, unless its last batch was known to be the last."""
        with self.budget.spending():
            self._under_way.break_off()
            self.steps.take_deferred()
            is_due = self._training.epochs_agree and self._epoch_measured != self._training.epoch
            if self._measuring.has_begun and is_due:
                self._measure_epoch(self._training.step)

    def validated(self, values: Mapping[str, float]) -> None:
        """Take in what the training's own validation has found."""
        if self._measuring.has_begun:
            # The loop may count the batch behind which it validates only later.
            self._exchange.validated(max(self._training.step, self._last_step), values)

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
                self._measuring.finish(stands=False)
                late = self._probing.give_up("training broke off before it was ready")
            else:
                self.steps.take_deferred()
                if (first := self._neurons.first_step) is not None:
                    self._start(first)
                late = self._probing.collect()
                self._exchange.events += self._under_way.left_over(self._last_step)
            self._exchange.outcomes += late
            if self._measuring.has_begun:
                self._share(self._last_step, last=True, alone=in_haste)
                if not in_haste:  # the trainer's values are as its failure has left them
                    self._publish(self._last_step, log=False)
        finally:
            try:
                self.release()
            finally:
                self._outputs.end(in_haste=in_haste)
        self._raise_first_error()
        return True

    def release(self) -> None:
        """Leave the training alone: remove all hooks, let copies go, end the worker."""
        with ExitStack() as each:  # one that fails leaves no other undone
            each.callback(self._worker.close)
            for holder in (self._probing, self._training_loss, self._neurons, self._measuring, self.steps):
                each.callback(holder.release)
            each.callback(self._recording.end)

    # --- the start --------------------------------------------------------------------------------------------------

    def find_neurons(self) -> Sequence[NeuronGroup]:
        """Find the neurons on the part of the present batch recorded so far; a collective."""
        return self._neurons.find()

    def _start(self, step: int) -> None:
        """The first step is done: find the neurons, and start the outputs."""
        training, settings, saved = self._training, self._settings, self._saved
        snapshots = self._neurons.begin(step)
        readings = Readings([group.name for group in self.groups], settings.log_groups)
        run = Run(self.groups, readings, settings.described(), training.step, training.epoch, training.facts())
        self._reporting.start(run)
        if saved is not None:
            self._schedule.slots.update(saved.slots)
            self._exchange.rates.reported = saved.rate
            self._probing.load(saved.carried)
        self._loss_probes.expect_costs(self._schedule, self._training_loss.n_wanted)
        self._schedule.expect("fate", STEPS_PER_FATE, like="distortion")
        store, probes = self._outputs.store, self._probing.probes
        resumption = begin_reference(snapshots, store, self.groups, training, saved, step, probes)
        if resumption is not None:
            self._reporting.event(resumption)
        self._exchange.token = training.ranks.first("a name for the end", lambda: uuid4().hex)
        self._tell_neurons(step)
        finding = self._neurons.finding
        is_whole = finding.sharding == "whole"
        event = unwatched(finding.uncovered, finding.n_entries, step, training.epoch, looks_again=is_whole)
        if event is not None:
            self._reporting.event(event)
        snapshots.worker = self._worker

    def _tell_neurons(self, step: int) -> None:
        self._neurons.report_problems(step)
        keep_parameters(self._outputs.store, self.groups, self._neurons.finding.coverage)

    # --- reporting ---------------------------------------------------------------------------------------------------

    def _measure_epoch(self, step: int, *, log: bool = False) -> None:
        self._epoch_measured = self._training.epoch
        due = self._measuring.epoch(step)
        self._share(step, due)
        self._publish(step, log=log or bool(due))

    def _share(self, step: int, due: Sequence[Probe] = (), *, last: bool = False, alone: bool = False) -> None:
        """Combine and report the findings of all processes since the last exchange."""
        if (event := self._training_loss.take_event(step)) is not None:
            self._exchange.events.append(event)
        self._exchange.run(step, self._measuring.coverage, due, last=last, alone=alone)
        if not alone:
            self._raise_first_error()

    def _raise_first_error(self) -> None:
        """Raise a probe's error where the user wants to know."""
        errors, self._probing.errors = self._probing.errors, {}
        if errors and self._settings.on_error == "raise":
            raise next(iter(errors.values()))

    def _publish(self, step: int, *, log: bool) -> None:
        readings = self._reporting.readings
        if readings is None:
            return
        # Of several processes rank 0's share, as of the last exchange, so that all publish the same.
        overhead = self.budget.share() if self._ranks.size == 1 else self._exchange.overhead
        phase = float(self._reporting.detector.phase)
        epoch = self._training.epoch
        readings.take(Measurement(step, epoch, "phase", GLOBAL, {"phase": phase, "overhead": overhead}))
        readings.take(Measurement(step, epoch, "coverage", GLOBAL, self._exchange.shares.values()))
        self._training.publish(readings.metrics())
        if log:  # on every rank, so that "since the last log" means the same on each
            self._reporting.row(step, self._training.epoch)
