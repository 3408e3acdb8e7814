"""Measuring the neurons, once they are found: each step's certificate, and the probes that are due."""

from collections import deque
from collections.abc import Collection, Sequence
from functools import partial

from lightning_topo._tape import outside_modes
from lightning_topo._watch.budget import Allowance, Budget
from lightning_topo._watch.certifying import Certifying
from lightning_topo._watch.coverage import Certificate, Coverage
from lightning_topo._watch.findings_exchange import Exchange
from lightning_topo._watch.frozen_stamps import FrozenAtUpdate
from lightning_topo._watch.messages import lost_beginning, missed_updates, step_failed
from lightning_topo._watch.probing import Probing, measures_steps
from lightning_topo._watch.schedule import Schedule, Unit
from lightning_topo._watch.snapshots import Snapshots
from lightning_topo._watch.steps import Steps
from lightning_topo._watch.training import Training
from lightning_topo.measurement import OpenCause
from lightning_topo.probes import Probe

_MOST_DOUBTED = 10_000
"""Of so many steps it is remembered that they have moved parts whose neurons were not known."""


class Measuring:
    """Runs the probes at their times and leaves what they find to the exchange.

    `snapshots` is None until the neurons are found. `coverage` holds the states of all steps, also when the neurons are
    found anew. `limited` where exact passes that the bounds ask for may take a share of the time only.
    """

    def __init__(
        self,
        training: Training,
        probing: Probing,
        schedule: Schedule,
        exchange: Exchange,
        budget: Budget,
        *,
        limited: bool,
    ) -> None:
        self.snapshots: Snapshots | None = None
        self.coverage: Coverage = Coverage()
        self._training, self._probing, self._schedule = training, probing, schedule
        self._exchange, self._budget, self._allowance = exchange, budget, Allowance(limited)
        self._certifying: Certifying | None = None
        self.frozen: FrozenAtUpdate = FrozenAtUpdate()
        self._has_begun = False
        self._has_missed_update = False
        self._lost: Sequence[str] = ()
        self._doubted: deque[int] = deque(maxlen=_MOST_DOUBTED)
        self._said_failed: set[str] = set()

    @property
    def has_begun(self) -> bool:
        """Whether there are neurons to measure."""
        return self._has_begun

    @property
    def certifies(self) -> bool:
        """Whether there is a probe that measures steps."""
        return self._certifying is not None and self._certifying.probe is not None

    def look_at(
        self, snapshots: Snapshots, steps: Steps, lost: Sequence[str] = (), keeps_merged: Collection[str] = ()
    ) -> None:
        """Measure these neurons from now on; the steps of the groups `lost` are open.

        In the groups `keeps_merged` no merged neurons part again, as far as the recorded step shows.
        """
        present = {group.name for group in snapshots.groups}
        self._lost = [name for name in dict.fromkeys((*self._lost, *lost)) if name not in present]
        self.snapshots, self._has_begun = snapshots, True
        if self._certifying is not None and not self._certifying.drops_as_before():
            keeps_merged = ()  # nobody has seen what the present dropout does to groups that were found before it
        self._certifying = Certifying(
            snapshots, steps, self._probing, self.coverage, self._allowance, self.frozen, keeps_merged=keeps_merged
        )

    def release(self) -> None:
        """Let all copies go: nothing is measured any more."""
        self.snapshots = self._certifying = None

    def leave_open(self, step: int, names: Sequence[str] | None = None) -> None:
        """Say that a step moved neurons before they were found, of groups with these parameters or of all."""
        assert self._certifying is not None
        self._certifying.leave_open(step, OpenCause.UNKNOWN_NEURONS, names)

    def leave_failed(self, step: int, error: Exception) -> None:
        """Say that a step could not be measured on this process, for an error that is not a probe's."""
        if self._certifying is not None:
            self._certifying.leave_open(step, OpenCause.FAILED)
        if (why := f"{type(error).__name__}: {error}") not in self._said_failed:
            self._said_failed.add(why)
            self._exchange.events.append(step_failed(step, self._training.epoch, why, self._training.ranks.rank))

    def doubt(self, step: int, cause: OpenCause = OpenCause.UNKNOWN_NEURONS) -> None:
        """Say that what is known of a step is not all: by default it has moved parts whose neurons are not known."""
        if self.snapshots is not None and self.certifies:
            if cause is OpenCause.UNKNOWN_NEURONS:
                self._doubted.append(step)
            unknown = Certificate.open(cause)
            self.coverage.note(step, {group.name: unknown for group in self.snapshots.own})

    def open_past(self, group: str, first: int, last: int) -> None:
        """Say that those of these steps which are in doubt have moved a group that is known only now."""
        if self.snapshots is not None and any(group == own.name for own in self.snapshots.own):
            steps = [step for step in self._doubted if first <= step <= last]
            self.coverage.open_past(group, steps, last, OpenCause.UNKNOWN_NEURONS)

    def rest(self, step: int) -> None:
        """Note a step that has moved nothing."""
        if self.snapshots is not None and self.certifies:
            self.coverage.rest(step, [group.name for group in self.snapshots.own])

    def due(self, unit: Unit, count: int) -> list[Probe]:
        """The probes to run at this step, or at the end of this epoch."""
        return self._probing.due(self._schedule, unit, count)

    @outside_modes()
    def step(
        self,
        step: int,
        due: Sequence[Probe],
        *,
        unseen: Sequence[str] | None = None,
        is_lost: bool = False,
        at_once: bool = True,
    ) -> None:
        """Certify this batch's updates, and measure what is due; no collective where parameters are whole.

        `unseen` are the parameters that moved where no update was seen, or where its values are lost (`is_lost`).
        Unless `at_once`, the step may be `is_awaited` until `finish`.
        """
        assert self._certifying is not None
        self.coverage.note(step, dict.fromkeys(self._lost, Certificate.open(OpenCause.MOVED)))
        if unseen is None:
            self._exchange.outcomes += self._certifying.settle(
                step, self._training.epoch, due, self._budget, at_once=at_once
            )
            self._tell_lost(step)
        else:
            self._certifying.leave_open(step, OpenCause.MOVED if is_lost else OpenCause.UNSEEN, unseen)
        if self._has_missed_update:
            self._has_missed_update = False
            self._certifying.leave_open(step, OpenCause.UNKNOWN_NEURONS)
            self._exchange.events.append(missed_updates(step, self._training.epoch))
        # A user's own probe of steps looks at the whole batch's.
        self._run([probe for probe in due if not measures_steps(probe) or probe is not self._certifying.probe], step)
        self._exchange.outcomes += self._probing.collect(step)

    @outside_modes()
    def update_before_another(self, lost: Sequence[str] = ()) -> None:
        """Measure an update while its beginning is known: a second one in the same batch is about to begin.

        `lost` are the parameters that something else has written to since: then it can no longer be measured.
        """
        if self._certifying is None:
            self._has_missed_update = True  # the neurons are not known yet
        else:
            step = self._training.step + 1
            if lost:
                self._certifying.leave_open(step, OpenCause.MOVED, lost)
                return
            self._exchange.outcomes += self._certifying.settle(
                step, self._training.epoch, self.due("step", step), self._budget
            )
            self._tell_lost(step)

    @outside_modes()
    def epoch(self, step: int) -> list[Probe]:
        """Measure what is due at the end of the present epoch; returns which probes were."""
        self._exchange.outcomes += self._probing.collect()
        due = self.due("epoch", self._training.epoch + 1)
        self._run(due, step)
        return due

    def moved_outside(self) -> None:
        """Something other than an update has moved parameters."""
        if self._certifying is not None:
            self._certifying.moved_outside()

    @property
    def is_awaited(self) -> bool:
        """Whether the last step's bounds are to be read when the device has computed them."""
        return self._certifying is not None and self._certifying.is_awaited

    @outside_modes()
    def finish(self, *, stands: bool) -> None:
        """Certify the step that is awaited; `stands` as `Certifying.finish`."""
        if self._certifying is not None:
            with self._budget.spending():
                self._exchange.outcomes += self._certifying.finish(self._budget, stands=stands)
            self._tell_lost(self._training.step)

    def _run(self, probes: Sequence[Probe], step: int) -> None:
        snapshots, epoch = self.snapshots, self._training.epoch
        if probes and snapshots is not None:
            now = snapshots.now()
            self._exchange.outcomes += [
                self._probing.run(probe, partial(snapshots.capture, probe, step, now), step, epoch) for probe in probes
            ]
            self._tell_lost(step)

    def _tell_lost(self, step: int) -> None:
        reference = None if self.snapshots is None else self.snapshots.reference
        if reference is not None and (lost := reference.take_lost()):
            self._exchange.events.append(lost_beginning(lost, step, self._training.epoch))
