"""Stopping on what happens to the topology."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_topo._keywords import explains_keywords
from lightning_topo.callbacks._lightning_internals import epochs_finished, is_trial_run, misconfigured
from lightning_topo.callbacks._monitor import monitors
from lightning_topo.outputs._feed import Findings
from lightning_topo.outputs._gates import ELSEWHERE, StopRules, StopState, advance, reason_to_stop, unseen_events
from lightning_topo.phases import EventName
from lightning_topo.probes import Persistence

_STATE_VERSION = 1


@explains_keywords
class TopologyEarlyStopping(Callback):
    """Stops training on topological events, or when the topology has come to rest.

    Needs a `TopologyMonitor` beside it, in any order. It counts the events of this fit and continues the count after
    a resume; after a fit that it stopped itself, it counts from zero. All processes decide together: if one has a
    reason to stop, all stop.

    The reason is in `stopping_reason` (Lightning's name for it, `stopping_reason_message`, works too), in the log, in
    the record as a measurement of the probe "gate" (`stopped`, the count of each event, `quiet_captures`), and as
    `topology/stopped` in `trainer.callback_metrics` and the loggers.

    Args:
        stop_on: The name of an event, or several; None only with a `patience`.
        min_count: How many of these events stop the training.
        patience: How many quiet captures in a row stop the training. A capture of the `Persistence` probe is quiet if
            no event came since the last one and every log-bottleneck distance is at most `tolerance`. None: never.
        groups: Names or patterns (as in `fnmatch`) of the groups whose events and captures count; None for all. Events
            of the whole network always count.
        min_epochs: How many epochs must be over before training may stop; their events count. `Trainer(min_epochs=,
            min_steps=)` hold too.
        verbose: Whether to log each event that is counted.
        tolerance: The largest change of a quiet diagram: 0.05 is a change of a birth or death by 5 %.

    Raises:
        ValueError: An unknown event, a number out of its range, or no rule at all.
        MisconfigurationException: In `fit`, without a `TopologyMonitor`, or with a `patience` but without captures.

    >>> TopologyEarlyStopping(stop_on="edge_of_stability_enter", min_count=0)
    Traceback (most recent call last):
    ...
    ValueError: expected min_count >= 1, got 0
    """

    def __init__(
        self,
        stop_on: str | Iterable[str] | None = EventName.TOPOLOGY_BREAKDOWN,
        min_count: int = 1,
        patience: int | None = None,
        groups: str | Sequence[str] | None = None,
        min_epochs: int = 0,
        verbose: bool = False,
        *,
        tolerance: float = 0.05,
    ) -> None:
        if min_epochs < 0:
            raise ValueError(f"expected min_epochs >= 0, got {min_epochs}")
        self.rules: StopRules = StopRules.of(
            stop_on, min_count=min_count, patience=patience, groups=groups, tolerance=tolerance
        )
        self.min_epochs: int = min_epochs
        self.verbose: bool = verbose
        self.stopping_reason: str | None = None
        self.stopped_epoch: int = 0
        self._counted = StopState()
        self._groups_checked = False

    @property
    def stopping_reason_message(self) -> str | None:
        """Why training was stopped, in a sentence; None where it was not."""
        return self.stopping_reason

    @property
    def state_key(self) -> str:
        """Distinguishes several gates in one checkpoint."""
        return self._generate_state_key(**{name: str(value) for name, value in asdict(self.rules).items()})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._counted, self.stopping_reason, self.stopped_epoch, self._groups_checked = StopState(), None, 0, False
        watching = monitors(trainer)
        if not watching:
            raise misconfigured(
                trainer,
                "TopologyEarlyStopping counts what a TopologyMonitor finds, and there is none: add one, as in "
                "Trainer(callbacks=[TopologyMonitor(), TopologyEarlyStopping(...)]).",
            )
        probes = [probe for monitor in watching for probe in monitor.settings.probes]
        if self.rules.patience is not None and not any(isinstance(probe, Persistence) for probe in probes):
            raise misconfigured(
                trainer,
                "TopologyEarlyStopping(patience=...) counts captures of persistence diagrams, and there are none: add "
                "Persistence() to the probes of TopologyMonitor.",
            )
        for event, could in unseen_events(self.rules.events, {probe.name for probe in probes}).items():
            raise misconfigured(
                trainer,
                f"TopologyEarlyStopping(stop_on={str(event)!r}) can never stop: no probe of TopologyMonitor sees that "
                f"event. Add the probe {' or '.join(map(repr, could))}.",
            )

    def on_topology_findings(self, trainer: Trainer, pl_module: LightningModule, findings: Findings) -> None:
        """Count the monitor's findings, and decide."""
        self._check_groups(trainer)
        before, self._counted = self._counted, advance(self._counted, findings, self.rules)
        if self.verbose and self._counted.n_events > before.n_events:
            rank_zero_info(
                f"TopologyEarlyStopping: {self._counted.latest}, {self._counted.n_events} of {self.rules.min_count}."
            )
        self._decide(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Where processes end their epochs at different steps, they cannot decide together here.
        if all(monitor.epochs_agree for monitor in monitors(trainer)):
            self._decide(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {
            "version": _STATE_VERSION,
            "counted": self._counted.to_dict(),
            "stopping_reason": self.stopping_reason,
            "stopped_epoch": self.stopped_epoch,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        try:
            if state_dict["version"] != _STATE_VERSION:
                raise ValueError(f"version {state_dict['version']!r}")
            counted = StopState.from_dict(state_dict["counted"])
            reason, epoch = state_dict["stopping_reason"], int(state_dict["stopped_epoch"])
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError, IndexError, RuntimeError) as error:
            rank_zero_warn(
                f"TopologyEarlyStopping expected a checkpoint state of version {_STATE_VERSION}, got one that cannot "
                f"be used ({type(error).__name__}: {error}): it counts from zero."
            )
            return
        self._counted = counted
        self.stopping_reason, self.stopped_epoch = reason if isinstance(reason, str) else None, epoch

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.stopping_reason is not None:
            rank_zero_info(f"Resumed: {self.stopping_reason} Counting begins anew.")
            self.stopping_reason, self.stopped_epoch = None, 0

    def _decide(self, trainer: Trainer) -> None:
        """Stop if any process has a reason to, and enough epochs are over."""
        if self.stopping_reason is not None or is_trial_run(trainer):
            return
        # Every process votes, whatever it thinks of its epochs.
        is_early = epochs_finished(trainer) < self.min_epochs
        reason = None if is_early else reason_to_stop(self._counted, self.rules)
        if not trainer.strategy.reduce_boolean_decision(reason is not None, all=False):
            return
        trainer.should_stop = True
        self.stopping_reason, self.stopped_epoch = reason or ELSEWHERE, trainer.current_epoch
        rank_zero_info(self.stopping_reason)
        for monitor in monitors(trainer):
            monitor.note_stop(self._counted.values())
        self._counted = StopState(step=self._counted.step)

    def _check_groups(self, trainer: Trainer) -> None:
        """Warn once of a pattern that matches no group: it is nearly always misspelt."""
        if self._groups_checked or self.rules.groups is None:
            return
        self._groups_checked = True
        names = [group.name for monitor in monitors(trainer) for group in monitor.groups]
        for pattern in self.rules.without_a_group(names):
            rank_zero_warn(f"TopologyEarlyStopping: no group of neurons fits {pattern!r}; there are {names}.")
