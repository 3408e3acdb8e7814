"""One fit, as the monitor lives through it: what is captured when, and what is made of it."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_topo.callbacks.awaited import lost_result
from lightning_topo.callbacks.budget import Budget
from lightning_topo.callbacks.capturing import Capturing, needs_step
from lightning_topo.callbacks.discovery import discover_together
from lightning_topo.callbacks.journal import open_journal
from lightning_topo.callbacks.lightning_internals import batches_stepped, is_last_of_epoch, log_period, torch_optimizer
from lightning_topo.callbacks.probing import GO_ON, Found, Late, Look, Probing
from lightning_topo.callbacks.ranks import Ranks
from lightning_topo.callbacks.references import keep, read_back
from lightning_topo.callbacks.saved import SavedSession, resumed, saved_session
from lightning_topo.callbacks.settings import MonitorSettings
from lightning_topo.callbacks.training_loss import batch_loss
from lightning_topo.homology import Worker
from lightning_topo.measurement import GLOBAL, Measurement
from lightning_topo.outputs.feed import Findings
from lightning_topo.outputs.record import REPORT, read_record
from lightning_topo.phases import EventName, Severity, TopologyEvent
from lightning_topo.probes import Probe
from lightning_topo.probes.pacing import REPACE_STEPS

REPORT_SECONDS = 60.0
"""The report is rewritten during training at most this often."""

HASTE_SECONDS = 10.0
"""When training breaks off, what other processes still compute is waited for so long."""


class Session:
    """From the first step to the last of one `Trainer.fit`.

    `batch` is the probe batch. `saved` is the state of an earlier session of the same run, when it is resumed, as the
    checkpoint has it.

    Of several processes each has a session, and all go through the same collectives in the same order: `_look` and
    what the start and the pacing tell each other. What one process does by itself (`_alone`: its record, its loggers)
    may fail; the error waits until the collectives of that hook are done.
    """

    def __init__(
        self,
        settings: MonitorSettings,
        trainer: Trainer,
        module: LightningModule,
        batch: Any,
        saved: Any,
        ranks: Ranks,
    ) -> None:
        self._settings, self._trainer, self._module, self._ranks = settings, trainer, module, ranks
        self._budget = Budget(settings.pacer(), ranks)
        self._reported = 0.0
        self._stepped = False
        self._failing: set[tuple[str, str]] = set()
        self._proposed: dict[str, float] = {}
        self._found: dict[str, Mapping[str, Mapping[str, float]]] | None = None
        self._found_at = self._n_events_told = 0
        self._epoch_measured = -1
        self._overhead = 0.0
        self._waiting: Exception | None = None
        self._probing = Probing(settings.probes, ranks)
        self._worker = Worker()
        self._handles = [torch_optimizer(o).register_step_post_hook(self._note_step) for o in trainer.optimizers]
        self._closed = False
        try:
            with self._timed():
                self._start(saved, batch)
            # What is measured at the start is wanted at once; later, homology may be left to it.
            self._capturing.worker = self._worker
        except BaseException:
            self._release()
            raise

    @property
    def events(self) -> Sequence[TopologyEvent]:
        """Everything that has happened, oldest first."""
        return tuple(self._journal.events)

    @property
    def dirpath(self) -> Path | None:
        """The run folder; None where there is none."""
        return None if self._journal.record is None else self._journal.record.dirpath

    def before_batch(self) -> None:
        """Capture the neurons before a step that will be measured, unless the last capture stands just there."""
        with self._timed():
            step = batches_stepped(self._trainer) + 1
            self._capturing.before_step(self._due("step", step), step)

    def after_batch(self, outputs: Any) -> None:
        """Measure what is due, if the batch has led to a step."""
        with self._timed():
            stepped, self._stepped = self._stepped, False
            step = batches_stepped(self._trainer) + 1
            if stepped:
                self._take_late(step, self._probing.late(self.groups, step))
                if due := self._due("step", step):
                    self._measure(due, step, batch_loss(self._trainer, outputs))
                if step % REPACE_STEPS == 0:
                    self._repace(step)
            self._proposed.clear()
            log = stepped and _divides(log_period(self._trainer), step)
            # Before validation and every hook at the epoch's end, so that these see the new values in any order.
            if (epoch := self._epoch_that_ends(stepped)) is not None:
                self._measure_epoch(step, epoch, log=log)
            elif stepped:
                self._alone(self._publish, step, log=log)

    def after_epoch(self) -> None:
        """Measure what is due at the end of an epoch, unless its last batch was known to be the last."""
        with self._timed():
            if self.epochs_agree and self._epoch_measured != self._trainer.current_epoch:
                self._measure_epoch(batches_stepped(self._trainer), self._trainer.current_epoch)
        if self._budget.seconds() - self._reported > REPORT_SECONDS:
            self.write_report()

    def proposed(self, group: str, ratio: float) -> None:
        """Note the critical ratio of an update that a guard did not let pass as it was, until the batch is over."""
        self._proposed[group] = max(ratio, self._proposed.get(group, 0.0))

    def stopped(self, values: Mapping[str, float]) -> None:
        """Note that a gate stops the training, in the record and under `topology/stopped`."""
        step, publisher = self._found_at, self._journal.publisher
        self._journal.noted(Measurement(step, self._trainer.current_epoch, "gate", GLOBAL, values))
        publisher.take(GLOBAL, {"stopped": 1.0})
        self._publish(step, log=True)

    def take_findings(self) -> Findings | None:
        """What was measured and what happened since this was last asked; None where nothing was measured."""
        if self._found is None:
            return None
        found, self._found = self._found, None
        events = tuple(self._journal.events[self._n_events_told :])
        self._n_events_told += len(events)
        return Findings(self._found_at, self._trainer.current_epoch, found, events)

    def close(self, *, in_haste: bool = False) -> bool:
        """Finish: take in what is awaited, close the record, write the report. False if that was done already.

        `in_haste` where something has gone wrong: what is not ready within seconds is then given up, and what other
        processes would have to share.
        """
        if self._closed:
            return False
        self._closed = True
        try:
            if in_haste and self._ranks.size > 1:
                late = self._probing.give_up("training broke off before all processes had shared it")
            else:
                late = self._probing.late(self.groups, most_seconds=HASTE_SECONDS if in_haste else None)
            self._take_late(batches_stepped(self._trainer), late)
        finally:
            self._release()
            self._journal.close()
        try:
            self._raise_what_waits()
            self.write_report()
            self._say_what_it_came_to()
        finally:
            self._journal.tracking.closed()
        return True

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._worker.close()

    def write_report(self) -> None:
        """Write the report from the record as it stands."""
        self._reported = self._budget.seconds()
        if self.dirpath is None or not self._settings.report:
            return
        from lightning_topo.outputs.page import write_report

        with self._timed():
            write_report([read_record(self.dirpath)], self.dirpath / REPORT)

    def _say_what_it_came_to(self) -> None:
        if self.dirpath is not None and self._settings.verbose:
            where = self.dirpath / REPORT if self._settings.report else self.dirpath
            self._journal.terminal.closed(read_record(self.dirpath), where)

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold to go on from here: plain numbers, strings and containers."""
        record = self._journal.record
        place = (None, None) if record is None else (record.dirpath, record.run_id)
        return SavedSession(*place, self._journal.detector, self._budget.every, self._probing.awaited.steps).to_dict()

    # --- the start -------------------------------------------------------------------------------------------------

    def _start(self, state: Any, batch: Any) -> None:
        trainer, settings, ranks = self._trainer, self._settings, self._ranks
        step = batches_stepped(trainer)
        saved, damage = ranks.first("reading the state", lambda: saved_session(state, step, trainer.current_epoch))
        lengths = ranks.all("lengths", float(trainer.num_training_batches))
        self.epochs_agree = ranks.size == 1 or (len(set(lengths)) == 1 and math.isfinite(lengths[0]))
        found, problems = discover_together(settings.groups, trainer, self._module, batch, settings.seed, ranks)
        self.groups = tuple(group for group in found if group.n > 1)
        ranks.together("record", lambda: self._open_journal(saved))
        self._capturing = Capturing(trainer, self._module, self.groups, batch, settings.seed, ranks)
        if saved is not None:
            self._budget.go_on_with(saved.every)
        for problem in problems:
            self._alone(self._fail, "neurons", problem.group, problem.message, problem.remedy, step)
        if damage is not None:
            self._alone(self._journal.happened, damage)
        self._refer(step, saved)
        for probe in tuple(self._probing.probes):
            # A step that was not taken yet has the identity's values, and a resumed state has been recorded already.
            if saved is not None or needs_step(probe):
                self._preview(probe, step)
            else:
                self._measure([probe], step)
        self._alone(self._publish, step, log=saved is None and log_period(trainer) > 1)
        if saved is not None:
            self._journal.publisher.row()  # dropped: the loggers had the row of this step before the resume
        ranks.together("start", self._raise_what_waits)

    def _open_journal(self, saved: SavedSession | None) -> None:
        self._journal = open_journal(self._trainer, self._settings, self.groups, saved)

    def _refer(self, step: int, saved: SavedSession | None) -> None:
        """Find or take the clouds from which distances since the beginning are measured."""
        capturing, journal = self._capturing, self._journal
        now = capturing.own_clouds(capturing.clouds())
        kept = read_back(journal.record, self.groups, now, self._ranks) if saved is not None else None
        capturing.reference = now if kept is None else kept
        if kept is None:
            keep(journal, step, self.groups, capturing.parameters(), now, self._ranks)
        if saved is not None:
            since = "" if kept is not None else " The clouds of the beginning are lost: totals count from here."
            since += saved.under_way()
            self._alone(journal.happened, resumed(step, self._trainer.current_epoch, since))

    def _preview(self, probe: Probe, step: int) -> None:
        """Publish what a probe sees before the first step, without recording it."""
        found = self._probing.look([probe], self._capturing, step, self._capturing.clouds()).found[probe.name]
        self._alone(self._note_failure, probe, found, step)
        for group, values in found.values.items():
            self._alone(self._journal.publisher.take, group, values)

    # --- measuring -------------------------------------------------------------------------------------------------

    def _measure(self, probes: Sequence[Probe], step: int, loss: float | None = None) -> None:
        now = self._capturing.clouds()
        look = self._probing.look(probes, self._capturing, step, now, loss, self._budget.share())
        self._overhead = look.overhead
        self._note_findings(step, look.found)
        self._alone(self._take, probes, look, step)
        self._capturing.after_step(probes, step, now)

    def _take_late(self, step: int, late: Sequence[Late]) -> None:
        """Take in what was captured before and computed elsewhere."""
        for one in late:
            self._note_findings(step, {one.probe.name: one.found})
            self._alone(self._take_one, one.probe, one.found, one.step, one.epoch)

    def _note_findings(self, step: int, founds: Mapping[str, Found]) -> None:
        """Have something to tell the other callbacks: before anything can fail, since they decide together."""
        fresh = {name: found.values for name, found in founds.items() if found.values or not found.error}
        self._found, self._found_at = (self._found or {}) | fresh, step

    def _measure_epoch(self, step: int, epoch: int, *, log: bool = False) -> None:
        self._epoch_measured = epoch
        self._take_late(step, self._probing.late(self.groups))
        due = self._due("epoch", epoch + 1)
        if due:
            self._measure(due, step)
        self._repace(step)
        self._alone(self._publish, step, log=log or bool(due))

    def _epoch_that_ends(self, stepped: bool) -> int | None:
        """In `after_batch`: the epoch of which this was the last batch; None where more follow.

        Where processes have different numbers of batches, or unknown ones, it is rank 0's epoch, and at a step, which
        is what they have in common.
        """
        epoch = self._trainer.current_epoch if is_last_of_epoch(self._trainer) else None
        if self.epochs_agree:
            return epoch
        return self._ranks.all("epoch", epoch)[0] if stepped else None

    def _take(self, probes: Sequence[Probe], look: Look, step: int) -> None:
        """Take in what was found, by this process or all together."""
        epoch = self._trainer.current_epoch
        if look.loss is not None:
            self._journal.noted(Measurement(step, epoch, "training", GLOBAL, {"loss": look.loss}))
        for probe in probes:
            if look.found[probe.name].lag is None:
                self._take_one(probe, look.found[probe.name], step, epoch)

    def _take_one(self, probe: Probe, found: Found, step: int, epoch: int) -> None:
        if not found.error:
            self._budget.spent(probe.name, found.seconds)
        self._note_failure(probe, found, step)
        for group, values in found.values.items():
            self._failing.discard((probe.name, group))
            if group in self._proposed and needs_step(probe):
                values = {**values, "proposed_critical_ratio": self._proposed[group]}
            self._journal.measured(Measurement(step, epoch, probe.name, group, values))
        for group, message in found.failures.items():
            self._fail(probe.name, group, f"{probe.name} could not measure {group}: {message}", GO_ON, step)
        self._journal.captured(step, found.diagrams)

    def _note_failure(self, probe: Probe, found: Found, step: int) -> None:
        """An event where a probe has failed as a whole; or its error, where the user wants to know."""
        if not found.error:
            return
        if found.lost:
            self._journal.happened(lost_result(probe.name, found.error, step, self._trainer.current_epoch))
            return
        if self._settings.on_error == "raise" and not found.off:
            raise self._probing.errors[probe.name]
        what = f"is switched off: {found.error}" if found.off else f"failed: {found.error}"
        self._fail(probe.name, GLOBAL, f"{probe.name} {what}", found.remedy, step)

    def _fail(self, probe: str, group: str, message: str, remedy: str, step: int) -> None:
        """An event, once until the probe succeeds again."""
        if (probe, group) in self._failing:
            return
        self._failing.add((probe, group))
        epoch = self._trainer.current_epoch
        self._journal.happened(
            TopologyEvent(EventName.PROBE_FAILED, step, epoch, group, Severity.WARN, message=message, remedy=remedy)
        )

    def _due(self, unit: str, count: int) -> list[Probe]:
        return [
            probe
            for probe in self._probing.probes
            if self._budget.due(probe.name, unit, count) or (unit == "step" and self._probing.is_wanted_again(probe))
        ]

    def _note_step(self, *_: Any) -> None:
        self._stepped = True

    # --- publishing and pacing -------------------------------------------------------------------------------------

    def _publish(self, step: int, *, log: bool) -> None:
        # Of several processes rank 0's counts, as of the last look, so that all publish the same.
        overhead = self._budget.share() if self._ranks.size == 1 else self._overhead
        self._journal.publisher.take(GLOBAL, {"phase": float(self._journal.detector.phase), "overhead": overhead})
        metrics = self._journal.publisher.metrics()
        self._trainer.callback_metrics.update(metrics)
        ratio = metrics.get("topology/critical_ratio")
        self._journal.terminal.progress(self._journal.detector.phase, None if ratio is None else float(ratio))
        if log:  # on every rank, so that "since the last log" means the same on each
            publisher = self._journal.publisher
            self._journal.tracking.row(publisher.row(), step, publisher.keys)

    def _repace(self, step: int) -> None:
        """Fit the adaptive periods to the budget, and record what they are where that has changed them."""
        epoch = self._trainer.current_epoch
        if every := self._budget.repace(step, epoch + 1):
            periods = {f"{name}_every": float(n) for name, n in every.items()}
            self._alone(self._journal.noted, Measurement(step, epoch, "schedule", GLOBAL, periods))

    @contextmanager
    def _timed(self) -> Iterator[None]:
        with self._budget.spending():
            yield
            self._raise_what_waits()

    def _alone(self, action: Callable[..., None], *args: Any, **options: Any) -> None:
        """Do what no other process waits for; an error waits until the collectives of this hook are done."""
        try:
            action(*args, **options)
        except Exception as error:
            self._waiting = self._waiting or error

    def _raise_what_waits(self) -> None:
        error, self._waiting = self._waiting, None
        if error is not None:
            raise error


def _divides(period: int, step: int) -> bool:
    return period > 0 and step % period == 0
