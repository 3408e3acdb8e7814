"""One fit, as the monitor lives through it: what is captured when, and what is made of it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_topo.callbacks.awaited import Awaited, AwaitedResults, lost_result
from lightning_topo.callbacks.clock import Clock
from lightning_topo.callbacks.discovery import discover
from lightning_topo.callbacks.findings import Findings
from lightning_topo.callbacks.journal import Journal
from lightning_topo.callbacks.lightning_internals import batches_stepped, is_last_of_epoch, log_period, run_folder
from lightning_topo.callbacks.publish import Publisher
from lightning_topo.callbacks.saved import SavedSession, saved_session
from lightning_topo.callbacks.settings import MonitorSettings
from lightning_topo.callbacks.terminal import Terminal
from lightning_topo.callbacks.tracking import Tracking, run_facts
from lightning_topo.callbacks.training_loss import training_loss
from lightning_topo.homology import Worker
from lightning_topo.measurement import GLOBAL, Measurement
from lightning_topo.phases import DetectorState, EventName, Severity, TopologyEvent
from lightning_topo.probes import Capture, Clouds, Pending, Probe, ProbeResult, ProbeUnavailable, ResultLost
from lightning_topo.probes.pacing import FULL_STEPS, REPACE_STEPS
from lightning_topo.record import REPORT, RecordWriter, read_record

REPORT_SECONDS = 60.0
"""The report is rewritten during training at most this often."""

HASTE_SECONDS = 10.0
"""When training breaks off, what other processes still compute is waited for so long."""

# Of the time the monitor may take, so much may go into figures and other costly things for the trackers.
_COSTLY_SHARE = 0.25
_GO_ON = (
    "Everything else goes on. If weights or loss are no longer finite, training has diverged: lower the learning rate."
)

T = TypeVar("T")


class Session:
    """From the first step to the last of one `Trainer.fit`.

    `batch` is the probe batch. `saved` is the state of an earlier session of the same run, when it is resumed, as the
    checkpoint has it.
    """

    def __init__(
        self,
        settings: MonitorSettings,
        trainer: Trainer,
        module: LightningModule,
        batch: Any,
        saved: Any,
    ) -> None:
        self._settings, self._trainer, self._module, self._batch = settings, trainer, module, batch
        self._clock = Clock()
        self._reported = self._spent = 0.0
        self._pace_mark = (0.0, 0.0, 0)
        self._stepped = False
        self._before: tuple[int, Clouds] | None = None
        self._parameters_before: tuple[int, Mapping[str, Tensor]] | None = None
        self._previous: dict[str, ProbeResult] = {}
        self._failing: set[tuple[str, str]] = set()
        self._proposed: dict[str, float] = {}
        self._found: dict[str, Mapping[str, Mapping[str, float]]] | None = None
        self._found_at = self._n_events_told = 0
        self._epoch_measured = -1
        self._probes = list(settings.probes)
        self._awaited = AwaitedResults()
        self._worker: Worker | None = None  # what is measured at the start is wanted at once
        self._pacer = settings.pacer()
        self._every_recorded: dict[str, int] = dict(self._pacer.every)
        self._handles = [o.register_step_post_hook(self._note_step) for o in trainer.optimizers]
        self._closed = False
        try:
            with self._timed():
                self._start(saved)
            self._worker = Worker()
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
            at = None if self._before is None else self._before[0]
            due = self._due("step", step)
            if at != step - 1 and any(_needs_step(probe) for probe in due):
                self._before = (step - 1, self._clouds().gather())
            at = None if self._parameters_before is None else self._parameters_before[0]
            if at != step - 1 and any(_needs_parameters_before(probe) for probe in due):
                trainable = {n: p.detach().clone() for n, p in self._module.named_parameters() if p.requires_grad}
                self._parameters_before = (step - 1, trainable)

    def after_batch(self, outputs: Any) -> None:
        """Measure what is due, if the batch has led to a step."""
        with self._timed():
            stepped, self._stepped = self._stepped, False
            step = batches_stepped(self._trainer) + 1
            if stepped:
                self._take_in(step, self._awaited.due(step))
                if due := self._due("step", step):
                    self._note_loss(step, outputs)
                    self._measure(due, step)
                if step % REPACE_STEPS == 0:
                    self._repace(step)
                self._publish(step, log=_divides(log_period(self._trainer), step))
            self._proposed.clear()
            # Before validation and every hook at the epoch's end, so that these see the new values in any order.
            if is_last_of_epoch(self._trainer):
                self._measure_epoch(step)

    def after_epoch(self) -> None:
        """Measure what is due at the end of an epoch, unless its last batch was known to be the last."""
        with self._timed():
            if self._epoch_measured != self._trainer.current_epoch:
                self._measure_epoch(batches_stepped(self._trainer))
        if self._clock.seconds() - self._reported > REPORT_SECONDS:
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

        `in_haste` where something has gone wrong: what is not ready within seconds is then given up.
        """
        if self._closed:
            return False
        self._closed = True
        try:
            self._take_in(batches_stepped(self._trainer), self._awaited.due(), HASTE_SECONDS if in_haste else None)
        finally:
            self._release()
            self._journal.close()
        try:
            self.write_report()
            self._say_what_it_came_to()
        finally:
            self._journal.tracking.closed()
        return True

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        if self._worker is not None:
            self._worker.close()

    def write_report(self) -> None:
        """Write the report from the record as it stands."""
        self._reported = self._clock.seconds()
        if self.dirpath is None or not self._settings.report:
            return
        from lightning_topo.report import write_report

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
        return SavedSession(*place, self._journal.detector, self._pacer.every, self._awaited.steps).to_dict()

    # --- the start -------------------------------------------------------------------------------------------------

    def _start(self, state: Any) -> None:
        step, epoch = batches_stepped(self._trainer), self._trainer.current_epoch
        saved, damage = saved_session(state, step, epoch)
        found, problems = discover(self._settings.groups, self._trainer, self._module, self._batch, self._settings.seed)
        self.groups = tuple(group for group in found if group.n > 1)
        detector = DetectorState() if saved is None else saved.detector
        names, settings = [group.name for group in self.groups], self._settings
        loggers = self._trainer.loggers if self._trainer.is_global_zero else ()
        share = None if settings.max_overhead is None else settings.max_overhead * _COSTLY_SHARE
        self._journal = Journal(
            Publisher(names, settings.log_groups),
            self._open_record(saved),
            Tracking(loggers, names, settings.log_groups, share),
            Terminal(self._trainer, settings.verbose),
            detector,
        )
        self._journal.tracking.began(run_facts(self._journal.record, self.groups, settings.described()))
        if saved is not None:
            self._pacer.every |= {name: n for name, n in saved.every.items() if name in self._pacer.every}
            self._every_recorded = dict(self._pacer.every)
        for problem in problems:
            self._fail("neurons", problem.group, problem.message, problem.remedy, step)
        if damage is not None:
            self._journal.happened(damage)
        self._refer(step, epoch, saved)
        for probe in tuple(self._probes):
            # A step that was not taken yet has the identity's values, and a resumed state has been recorded already.
            if saved is not None or _needs_step(probe):
                self._preview(probe, step)
            else:
                self._measure([probe], step)
        self._publish(step, log=log_period(self._trainer) > 1)

    def _open_record(self, saved: SavedSession | None) -> RecordWriter | None:
        if not self._trainer.is_global_zero:
            return None
        wanted = self._settings.dirpath or run_folder(self._trainer) / "topology"
        try:
            if saved is not None and saved.dirpath is not None and saved.run_id is not None:
                return RecordWriter.resume(saved.dirpath, saved.run_id, wanted, self._settings.max_record_bytes)
            return RecordWriter.create(wanted, self._settings.max_record_bytes)
        except OSError as error:
            if self._settings.on_error == "raise":
                raise
            rank_zero_warn(
                f"No topology record: {wanted} cannot be written ({error}). Training and measuring go on, and values "
                "still go to the loggers. Remove what stands there, or give TopologyMonitor another dirpath."
            )
            return None

    def _refer(self, step: int, epoch: int, saved: SavedSession | None) -> None:
        """Find or take the clouds from which distances since the beginning are measured."""
        record = self._journal.record
        kept = record.read_reference() if saved is not None and record is not None else None
        now = self._clouds().gather()
        if kept is not None and {n: c.shape for n, c in kept[1].items()} == {n: c.shape for n, c in now.items()}:
            self._reference: Mapping[str, Tensor] = kept[1]
        else:
            self._reference = now
            self._journal.began(step, now)
        if saved is not None:
            since = "" if kept is not None else " The clouds of the beginning are lost: totals count from here."
            since += saved.under_way()
            self._journal.happened(
                TopologyEvent(
                    EventName.GAP,
                    step,
                    epoch,
                    message=f"Resumed from a checkpoint at step {step}; later steps are measured again.{since}",
                    remedy="Nothing to do.",
                )
            )

    def _preview(self, probe: Probe, step: int) -> None:
        """Publish what a probe sees before the first step, without recording it."""
        if (result := self._run(probe, step, self._clouds())) is not None:
            for group, values in result.values.items():
                self._journal.publisher.take(group, values)

    # --- measuring -------------------------------------------------------------------------------------------------

    def _measure(self, probes: Sequence[Probe], step: int) -> None:
        now = self._clouds()
        self._found, self._found_at = self._found or {}, step
        for probe in probes:
            if (result := self._run(probe, step, now)) is not None:
                self._found[probe.name] = result.values
                self._take(probe, step, result, self._trainer.current_epoch)
        if any(_needs_step(probe) for probe in probes):
            self._before = (step, now.gather())
        self._parameters_before = None

    def _measure_epoch(self, step: int) -> None:
        self._epoch_measured = self._trainer.current_epoch
        self._take_in(step, self._awaited.due())
        due = self._due("epoch", self._epoch_measured + 1)
        if due:
            self._measure(due, step)
        self._repace(step)
        self._publish(step, log=bool(due))

    def _run(self, probe: Probe, step: int, now: Clouds) -> ProbeResult | None:
        """What a probe finds; None where it fails, with an event, or where its result is still to come."""
        began = self._clock.seconds()
        found = self._attempt(probe, step, lambda: probe.measure(self._capture(probe, step, now)))
        seconds = self._clock.seconds() - began
        if isinstance(found, Pending):
            self._awaited.add(Awaited(probe, step, self._trainer.current_epoch, found, seconds))
            return None
        return None if found is None else self._finished(probe, ProbeResult.of(found), seconds)

    def _take_in(self, step: int, due: Iterable[Awaited], most_seconds: float | None = None) -> None:
        """Take in what was captured before and computed elsewhere, waiting for it if need be."""
        for awaited in due:
            probe, collect, began = awaited.probe, awaited.pending.collect, self._clock.seconds()
            previous = self._previous.get(probe.name)
            # The loop waits for each in turn; nothing is called later.
            found = self._attempt(probe, awaited.step, lambda: collect(previous, most_seconds))  # noqa: B023
            if isinstance(found, ProbeResult):
                result = self._finished(probe, found, awaited.seconds + self._clock.seconds() - began)
                self._found, self._found_at = self._found or {}, step
                self._found[probe.name] = result.values
                self._take(probe, awaited.step, result, awaited.epoch)

    def _finished(self, probe: Probe, result: ProbeResult, seconds: float) -> ProbeResult:
        self._pacer.spent(probe.name, seconds)
        self._previous[probe.name] = result
        return result

    def _attempt(self, probe: Probe, step: int, measure: Callable[[], T]) -> T | None:
        """What a probe does; None, with an event, where it fails."""
        try:
            return measure()
        except ProbeUnavailable as error:
            self._probes.remove(probe)
            self._fail(probe.name, GLOBAL, f"{probe.name} is switched off: {error}", error.remedy, step)
        except ResultLost as error:
            self._journal.happened(lost_result(probe.name, str(error), step, self._trainer.current_epoch))
        except Exception as error:
            if self._settings.on_error == "raise":
                raise
            self._fail(probe.name, GLOBAL, f"{probe.name} failed: {error or type(error).__name__}", _GO_ON, step)
        return None

    def _capture(self, probe: Probe, step: int, now: Clouds) -> Capture:
        before = self._before[1] if self._before is not None and self._before[0] == step - 1 else None
        at, parameters = self._parameters_before or (None, None)
        return Capture(
            step=step,
            epoch=self._trainer.current_epoch,
            module=self._module,
            groups=self.groups,
            neurons=now,
            before=before,
            reference=self._reference,
            optimizers=self._trainer.optimizers,
            training_loss=lambda loss_fn: training_loss(
                self._trainer, self._module, self._batch, loss_fn, self._settings.seed
            ),
            previous=self._previous.get(probe.name),
            parameters_before=parameters if at == step - 1 and _needs_parameters_before(probe) else None,
            worker=self._worker,
        )

    def _take(self, probe: Probe, step: int, result: ProbeResult, epoch: int) -> None:
        for group, values in result.values.items():
            self._failing.discard((probe.name, group))
            if group in self._proposed and _needs_step(probe):
                values = {**values, "proposed_critical_ratio": self._proposed[group]}
            self._journal.measured(Measurement(step, epoch, probe.name, group, values))
        for group, message in result.failures.items():
            self._fail(probe.name, group, f"{probe.name} could not measure {group}: {message}", _GO_ON, step)
        self._journal.captured(step, result.diagrams)

    def _fail(self, probe: str, group: str, message: str, remedy: str, step: int) -> None:
        """An event, once until the probe succeeds again."""
        if (probe, group) in self._failing:
            return
        self._failing.add((probe, group))
        epoch = self._trainer.current_epoch
        self._journal.happened(
            TopologyEvent(EventName.PROBE_FAILED, step, epoch, group, Severity.WARN, message=message, remedy=remedy)
        )

    def _note_loss(self, step: int, outputs: Any) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor) and loss.numel() == 1:
            # Lightning divides by the number of accumulated batches; the loss is the module's own again.
            scale = self._trainer.accumulate_grad_batches if self._module.automatic_optimization else 1
            values = {"loss": float(loss) * scale}
            self._journal.noted(Measurement(step, self._trainer.current_epoch, "training", GLOBAL, values))

    def _clouds(self) -> Clouds:
        return Clouds(self.groups, dict(self._module.named_parameters()))

    def _due(self, unit: str, count: int) -> list[Probe]:
        return [
            probe
            for probe in self._probes
            if self._pacer.due(probe.name, unit, count) or (unit == "step" and self._is_wanted_again(probe))
        ]

    def _is_wanted_again(self, probe: Probe) -> bool:
        """Whether the probe waited for a step that has come now, or will have come when this batch is done."""
        result = self._previous.get(probe.name)
        return result is not None and result.again_after_step

    def _note_step(self, *_: Any) -> None:
        self._stepped = True

    # --- publishing and pacing -------------------------------------------------------------------------------------

    def _publish(self, step: int, *, log: bool) -> None:
        overhead = self._spent / max(self._clock.seconds(), 1e-9)
        self._journal.publisher.take(GLOBAL, {"phase": float(self._journal.detector.phase), "overhead": overhead})
        metrics = self._journal.publisher.metrics()
        self._trainer.callback_metrics.update(metrics)
        ratio = metrics.get("topology/critical_ratio")
        self._journal.terminal.progress(self._journal.detector.phase, None if ratio is None else float(ratio))
        if log:  # on every rank, so that "since the last log" means the same on each
            self._journal.tracking.row(self._journal.publisher.row(), step)

    def _repace(self, step: int) -> None:
        """Fit the adaptive periods to the budget, by rank 0's clock."""
        now, (then, spent, since) = self._clock.seconds(), self._pace_mark
        if step < FULL_STEPS or step == since:
            return
        self._pace_mark = (now, self._spent, step)
        seconds = max(now - then - (self._spent - spent), 0.0) / (step - since)
        epochs = self._trainer.current_epoch + 1
        self._pacer.repace(seconds, steps_per_epoch=step / epochs)
        every = self._trainer.strategy.broadcast(self._pacer.every)
        if every != self._every_recorded:
            self._every_recorded = dict(every)
            self._journal.noted(
                Measurement(step, epochs - 1, "schedule", GLOBAL, {f"{k}_every": float(v) for k, v in every.items()})
            )
        self._pacer.every = every

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = self._clock.seconds()
        try:
            yield
        finally:
            self._spent += self._clock.seconds() - began


def _needs_step(probe: Probe) -> bool:
    """Whether the probe measures a step, and not a state."""
    return getattr(probe, "measures_steps", False)


def _needs_parameters_before(probe: Probe) -> bool:
    """Whether the probe looks at where the whole step began."""
    return getattr(probe, "needs_parameters_before", False)


def _divides(period: int, step: int) -> bool:
    return period > 0 and step % period == 0
