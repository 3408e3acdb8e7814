"""Stopping on what happens to the topology."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_topo.callbacks.lightning_internals import epochs_finished, is_trial_run, misconfigured
from lightning_topo.callbacks.monitor import monitors
from lightning_topo.measurement import GLOBAL
from lightning_topo.outputs.feed import Findings
from lightning_topo.phases import EventName
from lightning_topo.probes import Persistence

_STATE_VERSION = 1
# These are about the monitor, not about the network: they leave a quiet time quiet.
_OF_THE_MONITOR = (EventName.GAP, EventName.PROBE_FAILED)
_ELSEWHERE = "Another process has met its condition to stop on topology."


@dataclass(frozen=True, slots=True)
class StopRules:
    """When to stop: after `min_count` of the `events`, or after `patience` quiet captures in a row; see the callback.

    Raises `ValueError` for an unknown event, and unless there is a rule at all with positive numbers.
    """

    events: tuple[EventName, ...] = (EventName.TOPOLOGY_BREAKDOWN,)
    min_count: int = 1
    patience: int | None = None
    groups: tuple[str, ...] | None = None
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        if not self.events and self.patience is None:
            raise ValueError("expected events to stop on, or a patience, got neither")
        if self.min_count < 1:
            raise ValueError(f"expected min_count >= 1, got {self.min_count}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"expected patience >= 1 or None, got {self.patience}")
        if not self.tolerance >= 0.0:
            raise ValueError(f"expected tolerance >= 0, got {self.tolerance}")

    def concerns(self, group: str) -> bool:
        """Whether to look at a group: the whole network always counts."""
        return self.groups is None or group == GLOBAL or any(fnmatchcase(group, pattern) for pattern in self.groups)


@dataclass(frozen=True, slots=True)
class StopState:
    """What has been counted so far, up to and with the measurements of `step`."""

    step: int = -1
    counts: Mapping[str, int] = field(default_factory=dict)
    quiet_captures: int = 0
    eventful: bool = False
    latest: str = ""

    @property
    def n_events(self) -> int:
        """How many of the events in question there were."""
        return sum(self.counts.values())


def advance(state: StopState, findings: Findings, rules: StopRules) -> StopState:
    """Count in what the monitor has found.

    A capture is quiet where no event has happened since the one before, and every log-bottleneck distance to it is
    at most the tolerance. Measurements of a step that was counted already (after a resume) are passed over.

    >>> rules = StopRules(patience=2)
    >>> still = Findings(8, 0, {"persistence": {"net.0": {"log_bottleneck_0": 0.01}}})
    >>> advance(StopState(), still, rules).quiet_captures
    1
    """
    counts, eventful, latest = dict(state.counts), state.eventful, state.latest
    for event in findings.events:
        if not rules.concerns(event.group):
            continue
        eventful |= event.name not in _OF_THE_MONITOR
        if event.name in rules.events:
            counts[str(event.name)] = counts.get(str(event.name), 0) + 1
            latest = f"{event.name} at step {event.step}" + (f" in {event.group}" if event.group else "")
    state = replace(state, counts=counts, eventful=eventful, latest=latest)
    changes = _changes(findings, rules)
    if not changes or findings.step <= state.step:
        return state
    quiet = not eventful and all(change <= rules.tolerance for change in changes)
    return replace(
        state,
        step=findings.step,
        quiet_captures=state.quiet_captures + 1 if quiet else 0,
        eventful=False,
    )


def reason_to_stop(state: StopState, rules: StopRules) -> str | None:
    """Why to stop now, in a sentence; None where there is no reason."""
    if state.n_events >= rules.min_count:
        times = f" ({state.n_events} of the events to stop on, min_count={rules.min_count})"
        return f"Training stops on topology: {state.latest}{times if state.n_events > 1 else ''}."
    if rules.patience is not None and state.quiet_captures >= rules.patience:
        return (
            f"Training stops on topology: nothing has happened in {state.quiet_captures} captures in a row, and no "
            f"log-bottleneck distance was above {rules.tolerance:g}."
        )
    return None


def _changes(findings: Findings, rules: StopRules) -> list[float]:
    """Every log-bottleneck distance to the capture before."""
    return [
        value
        for groups in findings.values.values()
        for group, values in groups.items()
        if rules.concerns(group)
        for name, value in values.items()
        if name.startswith("log_bottleneck_") and name != "log_bottleneck_bound"
    ]


class TopologyEarlyStopping(Callback):
    """Stops training on topological events, or when the topology has come to rest.

    Stands beside a `TopologyMonitor`, in any order. Counts what is measured in this fit, and goes on counting when a
    fit is resumed from a checkpoint; a fit that it stopped begins to count anew when it is resumed. All processes
    decide together: if one has a reason to stop, all stop.

    Why it stopped stands in `stopping_reason` (also under Lightning's name `stopping_reason_message`), in the log, in
    the record as a measurement of the probe "gate" (`stopped`, the count of each event by its name, and
    `quiet_captures`), and under `topology/stopped` in `trainer.callback_metrics` and the loggers.

    Args:
        stop_on: The name of an event, or several; none, with a `patience`.
        min_count: So many of these events together stop the training.
        patience: After so many quiet captures in a row training stops: captures of the `Persistence` probe without an
            event in between and with every log-bottleneck distance at most `tolerance`. None: never.
        groups: Names or patterns (as in `fnmatch`) of the groups whose events and captures count; None for all. Events
            of the whole network always count.
        min_epochs: Not to stop before so many epochs are over. What happens in them is counted. `Trainer(min_epochs=,
            min_steps=)` are obeyed besides.
        verbose: Whether to log each event that is counted.
        tolerance: What counts as no change of a diagram: 0.05 is a change by 5 % of a birth or death.

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
        self.rules = StopRules(
            events=_event_names(stop_on),
            min_count=min_count,
            patience=patience,
            groups=(groups,) if isinstance(groups, str) else None if groups is None else tuple(groups),
            tolerance=tolerance,
        )
        self.min_epochs, self.verbose = min_epochs, verbose
        self.stopping_reason: str | None = None
        self.stopped_epoch = 0
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

    def on_topology_findings(self, trainer: Trainer, pl_module: LightningModule, findings: Findings) -> None:
        """Count in what the monitor has found, and decide."""
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
        counted = asdict(self._counted) | {"counts": dict(self._counted.counts)}
        return {
            "version": _STATE_VERSION,
            "counted": counted,
            "stopping_reason": self.stopping_reason,
            "stopped_epoch": self.stopped_epoch,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        try:
            if state_dict["version"] != _STATE_VERSION:
                raise ValueError(f"version {state_dict['version']!r}")
            counted = StopState(**state_dict["counted"])
            counts = {str(name): int(n) for name, n in counted.counts.items()}
            numbers = {"step": int(counted.step), "quiet_captures": int(counted.quiet_captures)}
            reason, epoch = state_dict["stopping_reason"], int(state_dict["stopped_epoch"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            rank_zero_warn(
                f"TopologyEarlyStopping expected a checkpoint state of version {_STATE_VERSION}, got one that cannot "
                f"be used ({type(error).__name__}: {error}): it counts from zero."
            )
            return
        self._counted = replace(counted, counts=counts, **numbers)
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
        self.stopping_reason, self.stopped_epoch = reason or _ELSEWHERE, trainer.current_epoch
        rank_zero_info(self.stopping_reason)
        values = {"stopped": 1.0, "quiet_captures": float(self._counted.quiet_captures)}
        for monitor in monitors(trainer):
            monitor.note_stop(values | {name: float(n) for name, n in self._counted.counts.items()})
        self._counted = StopState(step=self._counted.step)

    def _check_groups(self, trainer: Trainer) -> None:
        """Say once that a pattern fits no group: it is nearly always misspelt."""
        if self._groups_checked or self.rules.groups is None:
            return
        self._groups_checked = True
        names = [group.name for monitor in monitors(trainer) for group in monitor.groups]
        for pattern in self.rules.groups:
            if not any(fnmatchcase(name, pattern) for name in names):
                rank_zero_warn(f"TopologyEarlyStopping: no group of neurons fits {pattern!r}; there are {names}.")


def _event_names(stop_on: str | Iterable[str] | None) -> tuple[EventName, ...]:
    names = (stop_on,) if isinstance(stop_on, str) else tuple(stop_on or ())
    known = [str(name) for name in EventName]
    for name in names:
        if name not in known:
            raise ValueError(f"expected stop_on among {', '.join(known)}, got {name!r}")
    return tuple(EventName(name) for name in names)
