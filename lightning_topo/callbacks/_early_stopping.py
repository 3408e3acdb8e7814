"""Stopping on what happens to the topology."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_topo._keywords import explains_keywords
from lightning_topo.callbacks._lightning_internals import epochs_finished, is_trial_run, misconfigured
from lightning_topo.callbacks._monitor import monitors
from lightning_topo.outputs._feed import Findings
from lightning_topo.outputs._gates import ELSEWHERE, StopRules, StopState, advance, how_blind, reason_to_stop, why_never
from lightning_topo.phases import EventName

_STATE_VERSION = 1


@explains_keywords
class TopologyEarlyStopping(Callback):
    """Stops training on topological events, or when the topology has come to rest.

    It needs a `TopologyMonitor` among the trainer's callbacks, in any order. It counts the events of a fit; a resumed
    fit continues the count, unless the earlier one was stopped by this callback. If one process has a reason to stop,
    all processes stop together.

    The reason is a sentence in `stopping_reason` (Lightning's name `stopping_reason_message` works too) and in the log.
    The record gets a measurement of the probe "gate" with `stopped`, the count of each event, and `quiet_captures`.
    `topology/stopped` goes to `trainer.callback_metrics` and the loggers.

    Args:
        stop_on: The name of an event, or several names; None to stop by `patience` alone.
        min_count: Stop after this many of the events in `stop_on`, counted together.
        patience: Stop after this many quiet captures in a row; None: never. A capture is one measurement by the probe
            `Persistence`. It is quiet if the network had no event since the last capture, and every log-bottleneck
            distance to the last capture's diagrams is at most `tolerance`.
        groups: Names or patterns (as in `fnmatch`) of the groups whose events and captures count; None for all. Events
            of the whole network always count.
        min_epochs: Training does not stop before this many epochs are over; their events count. `Trainer(min_epochs=,
            min_steps=)` hold too.
        verbose: Whether to log each event that is counted.
        tolerance: The largest log-bottleneck distance of a quiet capture: 0.05 is a change of a birth or death by 5 %.

    Raises:
        ValueError: An unknown event, a number out of its range, or neither `stop_on` nor `patience`.
        MisconfigurationException: In `fit`: no `TopologyMonitor`, a `patience` without the probe `Persistence`, or an
            event in `stop_on` that none of the monitor's probes can see.

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
        self._looks: set[tuple[str, int]] = set()
        self._groups_checked = False

    @property
    def stopping_reason_message(self) -> str | None:
        """The reason why this callback stopped the training, as a sentence; None if it did not."""
        return self.stopping_reason

    @property
    def state_key(self) -> str:
        """The key of this callback's state in a checkpoint; it contains the stop rules."""
        return self._generate_state_key(**{name: str(value) for name, value in asdict(self.rules).items()})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._counted, self.stopping_reason, self.stopped_epoch, self._groups_checked = StopState(), None, 0, False
        self._looks = set()
        watching = monitors(trainer)
        if not watching:
            raise misconfigured(
                trainer,
                "TopologyEarlyStopping counts what a TopologyMonitor finds, and there is none: add one, as in "
                "Trainer(callbacks=[TopologyMonitor(), TopologyEarlyStopping(...)]).",
            )
        probes = [probe for monitor in watching for probe in monitor.settings.probes]
        if reason := why_never(self.rules, {probe.name for probe in probes}):
            raise misconfigured(trainer, f"TopologyEarlyStopping: {reason}")

    def on_topology_findings(self, trainer: Trainer, pl_module: LightningModule, findings: Findings) -> None:
        """Count the events and captures that a monitor has just found, and stop the training if a rule is met.

        `TopologyMonitor` calls it on every process, in each hook with new measurements or events.
        """
        self._check_groups(trainer)
        self._looks |= {(m.probe, m.step) for m in findings.measurements if m.probe != "distortion"}
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

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.stopping_reason is not None or is_trial_run(trainer):
            return
        looks = Counter(probe for probe, _ in self._looks)
        if reason := how_blind(self.rules, looks):
            rank_zero_warn(f"TopologyEarlyStopping was blind: {reason} Give it a shorter period, as every_n_steps=...")
        share = 1.0 - float(trainer.callback_metrics.get("topology/coverage", 1.0))
        if EventName.TOPOLOGY_BREAKDOWN in self.rules.events and share > 1e-6:
            rank_zero_warn(
                f"TopologyEarlyStopping was blind in {share:.0%} of the steps: r is not known there, and may have been "
                "1 or more. TopologyMonitor([Distortion(every_n_steps=1)], max_overhead=None) measures every step."
            )

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
