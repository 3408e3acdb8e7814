"""Keeping every step of a loop below the critical point."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch.optim import LBFGS

from lightning_topo._watch import Training, Watch
from lightning_topo._watch.holding import GuardedUpdate, UpdateRatios, cannot_hold, hold, is_idle
from lightning_topo._watch.updates import Update
from lightning_topo.neurons._capture import sharding


@dataclass(slots=True)
class LoopGuard:
    """Shrinks every update whose critical ratio exceeds `max_ratio`, by the same factor on all processes.

    `n_updates` counts all updates, `n_held` the updates above `max_ratio`, and `n_dropped` the updates that were undone
    completely. `latest` is the outcome of the last update.

    Raises `ValueError` unless `max_ratio` lies between 0 and 1.

    >>> LoopGuard(1.5)
    Traceback (most recent call last):
    ...
    ValueError: expected max_ratio between 0 and 1, got 1.5
    """

    max_ratio: float
    n_updates: int = 0
    n_held: int = 0
    n_dropped: int = 0
    latest: GuardedUpdate | None = field(default=None, init=False)
    _watch: Watch | None = field(default=None, init=False, repr=False)
    _ratios: UpdateRatios | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0.0 < self.max_ratio < 1.0:
            raise ValueError(f"expected max_ratio between 0 and 1, got {self.max_ratio}")

    def refuse(self, training: Training) -> None:
        """Raise `ValueError` if an optimizer is LBFGS, or parameters are sharded."""
        if any(isinstance(optimizer, LBFGS) for optimizer in training.optimizers):
            raise ValueError(
                "expected max_ratio=None with LBFGS, whose line search and history assume the step that it made; use a "
                "first-order optimizer, or watch r alone"
            )
        if (kind := sharding(training.root)) != "whole":
            raise ValueError(f"expected whole parameters on every device with max_ratio, got {kind}: use DDP")

    def attach(self, watch: Watch) -> None:
        """Hold every update that the watch sees from now on."""
        self._watch, self._ratios = watch, None
        # First, before anybody measures what the guard is about to change.
        watch.steps.guards.insert(0, self._updated)

    def check(self, training: Training) -> None:
        """Raise `RuntimeError` where parameters have moved by updates that no hook has seen."""
        if self._watch is not None and self._watch.has_unseen_steps:
            raise RuntimeError(cannot_hold("TopologyWatch(max_ratio=...)", training.optimizers))

    def counts(self) -> dict[str, int]:
        """The counts, for a checkpoint."""
        return {"n_updates": self.n_updates, "n_held": self.n_held, "n_dropped": self.n_dropped}

    def restore(self, state: Mapping[str, int]) -> None:
        """Restore the counts of a checkpoint; raise `KeyError`, `TypeError` or `ValueError` if they are damaged."""
        self.n_updates, self.n_held, self.n_dropped = (int(state[name]) for name in self.counts())

    def _updated(self, update: Update) -> None:
        watch = self._watch
        assert watch is not None
        if not watch.groups and is_idle(update):
            self.n_updates, self.latest = self.n_updates + 1, GuardedUpdate({}, 1.0, 0.0)
            return
        groups = watch.find_neurons()
        if not groups:
            raise RuntimeError(
                "TopologyWatch(max_ratio=...) has no neurons to work on: no group of exchangeable neurons was found in "
                "the first step. Name the groups by hand: TopologyWatch(groups=declare_neurons(module, ...))."
            )

        if self._ratios is None:
            self._ratios = UpdateRatios(groups, self.max_ratio, watch.training, watch.steps)
        ratios = self._ratios
        ratios.look_at(groups)  # found anew, perhaps, on all losses of the first step
        self.latest = hold(update, lambda: ratios.of(update), self.max_ratio)
        self.n_updates += 1
        if self.latest.factor < 1.0:
            self.n_held += 1
            self.n_dropped += self.latest.factor == 0.0
            for group, ratio in self.latest.proposed.items():
                watch.proposed(group, ratio)
