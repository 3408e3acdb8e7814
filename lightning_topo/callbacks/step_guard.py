"""Keeping every step below the critical point."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.optim import LBFGS

from lightning_topo.callbacks.discovery import discover
from lightning_topo.callbacks.learning_rates import lower_learning_rate, overwriting_schedulers
from lightning_topo.callbacks.monitor import monitors
from lightning_topo.callbacks.training_loss import sample_batch
from lightning_topo.callbacks.watched_optimizer import WatchedOptimizer
from lightning_topo.neurons import NeuronGroup

Mode = Literal["rescale", "lower_lr", "skip"]

_STATE_VERSION = 1
_TRIES = 3
_HAIR = 1e-4
_STEEPEST = 0.1
"""The learning rate is lowered at most to this fraction at once: one pair must not end the training."""


@dataclass(frozen=True, slots=True)
class GuardedUpdate:
    """What became of one update of one optimizer.

    `proposed` holds the critical ratio by group of the update as the optimizer made it, and `factor` is the fraction of
    it that was taken: 1 as it was, 0 not at all. `critical_ratio` is that of the update taken, the worst group's,
    measured from the stored parameters in float64.
    """

    proposed: Mapping[str, float]
    factor: float
    critical_ratio: float

    @property
    def proposed_critical_ratio(self) -> float:
        """The worst group's."""
        return max(self.proposed.values(), default=0.0)


class TopologyStepGuard(Callback):
    """Keeps every step below the critical point, so that no two distinct neurons merge.

    Right after an optimizer's update, before any `on_train_batch_end`, the critical ratio r of that update is measured
    exactly, over all pairs of neurons of every group that the optimizer touches. Where the worst group has
    r > `max_ratio`, the whole update (weight decay included) is taken back in part,

        x <- x - (1 - f) Δ,    f = max_ratio / r,

    which is what a smaller learning rate would have done for any rule linear in it. Optimizer state and buffers stay.
    r is measured again in float64 from the stored parameters; after three tries above `max_ratio` the update is
    dropped. An update to non-finite values is dropped too.

    With r <= `max_ratio` < 1 neurons that differ before an update differ after it. A pair does not count whose distance
    is at most eps max(|x_i|, |x_j|) / `max_ratio` (eps of the coarsest dtype among the group's parameters): equal
    neurons, or those that differ by rounding alone. Rounding by itself can move such a pair by more than `max_ratio` of
    its distance, and no factor mends that; equal neurons can split by it.

    Where a batch makes several updates (manual optimization), each by itself is kept below `max_ratio`.

    Works alone, and beside a `TopologyMonitor` in any order: the monitor measures the step really taken, and records
    `proposed_critical_ratio` beside it where the guard acted. `n_updates`, `n_held` and `n_dropped` count updates,
    those above `max_ratio`, and those of them not taken at all; `latest` is the last update's `GuardedUpdate`.

    Args:
        max_ratio: The largest critical ratio to let pass, between 0 and 1.
        mode: "rescale" as above; "skip" drops the update instead; "lower_lr" lets it pass and multiplies the learning
            rate of the optimizer's next steps by f (at least 0.1 at once), which certifies nothing.
        groups: The groups of neurons, or "auto" for those of the monitor, else to find and verify them.
        seed: Of the search for groups.

    Raises:
        ValueError: A parameter is out of its range.
        MisconfigurationException: In `fit`: LBFGS (its line search assumes the step it made), sharded parameters, no
            neurons found; with "lower_lr", a scheduler that would overwrite the learning rate.

    Source: arXiv:2510.02670.

    >>> TopologyStepGuard(max_ratio=1.5)
    Traceback (most recent call last):
    ...
    ValueError: expected max_ratio between 0 and 1, got 1.5
    """

    def __init__(
        self,
        max_ratio: float = 0.9,
        mode: Mode = "rescale",
        *,
        groups: Literal["auto"] | Sequence[NeuronGroup] = "auto",
        seed: int = 0,
    ) -> None:
        if not 0.0 < max_ratio < 1.0:
            raise ValueError(f"expected max_ratio between 0 and 1, got {max_ratio}")
        if mode not in get_args(Mode):
            raise ValueError(f"expected mode among {', '.join(get_args(Mode))}, got {mode!r}")
        if isinstance(groups, str) and groups != "auto":
            raise ValueError(f'expected groups "auto" or a list of NeuronGroup, got {groups!r}')
        self.max_ratio, self.mode, self.seed = max_ratio, mode, seed
        self.chosen_groups = None if isinstance(groups, str) else tuple(groups)
        self.groups: tuple[NeuronGroup, ...] = ()
        self.latest: GuardedUpdate | None = None
        self._counts: dict[str, int] = dict.fromkeys(("n_updates", "n_held", "n_dropped"), 0)
        self._watched: list[WatchedOptimizer] = []
        self._waits_for_batch = False

    @property
    def n_updates(self) -> int:
        """How many updates of optimizers there were."""
        return self._counts["n_updates"]

    @property
    def n_held(self) -> int:
        """How many of them were above `max_ratio`."""
        return self._counts["n_held"]

    @property
    def n_dropped(self) -> int:
        """How many of them were not taken at all."""
        return self._counts["n_dropped"]

    @property
    def state_key(self) -> str:
        """Distinguishes several guards in one checkpoint."""
        return self._generate_state_key(max_ratio=self.max_ratio, mode=self.mode)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._release()
            self.latest, self._counts = None, dict.fromkeys(self._counts, 0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._refuse(trainer)
        self._waits_for_batch = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._waits_for_batch:
            self._waits_for_batch = False
            self.groups = self._find_groups(trainer, pl_module, batch)
            self._watched = [
                WatchedOptimizer(trainer, pl_module, optimizer, self.groups, self.max_ratio, self._updated)
                for optimizer in trainer.optimizers
            ]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._release()
        rank_zero_info(
            f"TopologyStepGuard: {self.n_held} of {self.n_updates} updates were above {self.max_ratio:g} times the "
            f"critical one; {self.n_dropped} were not taken at all."
        )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._release()

    def state_dict(self) -> dict[str, Any]:
        return {"version": _STATE_VERSION, **self._counts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        try:
            if state_dict["version"] == _STATE_VERSION:
                self._counts = {name: int(state_dict[name]) for name in self._counts}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            rank_zero_warn(
                f"TopologyStepGuard cannot use its state in the checkpoint ({type(error).__name__}: {error}): "
                "it counts from zero."
            )

    def __getstate__(self) -> dict[str, Any]:
        # Neither the hooks of one fit nor what Lightning attaches, bound to the module, belongs to a copy.
        state = {name: value for name, value in self.__dict__.items() if name not in ("log", "log_dict")}
        return state | {"_watched": [], "_waits_for_batch": False}

    def _release(self) -> None:
        self._waits_for_batch = False
        while self._watched:
            self._watched.pop().release()

    def _refuse(self, trainer: Trainer) -> None:
        if any(isinstance(optimizer, LBFGS) for optimizer in trainer.optimizers):
            raise MisconfigurationException(
                "TopologyStepGuard cannot change the steps of LBFGS, whose line search and history assume the step "
                "that it made. Use a first-order optimizer, or leave the guard out and watch r with TopologyMonitor."
            )
        if isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy | ModelParallelStrategy):
            raise MisconfigurationException(
                f"TopologyStepGuard needs whole neurons on every device, and {type(trainer.strategy).__name__} shards "
                "them. Use DDP, or leave the guard out and watch r with TopologyMonitor."
            )
        if self.mode != "lower_lr":
            return
        if found := overwriting_schedulers(config.scheduler for config in trainer.lr_scheduler_configs):
            raise MisconfigurationException(
                f'TopologyStepGuard(mode="lower_lr") lowers the learning rate, and {", ".join(found)} would overwrite '
                'it at the next step. Use mode="rescale", which leaves the learning rate alone, or a scheduler that '
                "multiplies the present one (StepLR, ExponentialLR, LinearLR, CosineAnnealingLR, SequentialLR, ...)."
            )

    def _find_groups(self, trainer: Trainer, module: LightningModule, batch: Any) -> tuple[NeuronGroup, ...]:
        if self.chosen_groups is None:
            for monitor in monitors(trainer):
                if monitor.groups:
                    return tuple(monitor.groups)
        sample = sample_batch(trainer, self.seed)
        found, problems = discover(self.chosen_groups, trainer, module, batch if sample is None else sample, self.seed)
        groups = tuple(group for group in found if group.n > 1)
        said = " ".join(problem.message for problem in problems)
        remedy = "Name the groups by hand: TopologyStepGuard(groups=declare_neurons(module, ...))."
        if not groups:
            raise MisconfigurationException(f"TopologyStepGuard has nothing to guard. {said} {remedy}")
        if problems:
            rank_zero_warn(f"TopologyStepGuard: {said} {remedy}")
        return groups

    def _updated(self, watched: WatchedOptimizer) -> None:
        """Hold back the update that an optimizer has just made, if it is too large."""
        proposed = watched.ratios()
        worst = max(proposed.values(), default=0.0)
        self._counts["n_updates"] += 1
        factor = 1.0
        if worst > self.max_ratio:
            self._counts["n_held"] += 1
            if self.mode == "lower_lr":
                lower = max(self.max_ratio / worst, _STEEPEST)
                schedulers = [config.scheduler for config in watched.trainer.lr_scheduler_configs]
                lower_learning_rate(watched.optimizer, lower, schedulers)
            else:
                factor, worst = self._hold(watched, worst)
                self._counts["n_dropped"] += factor == 0.0
                for monitor in monitors(watched.trainer):
                    for group, ratio in proposed.items():
                        monitor.note_proposal(group, ratio)
        self.latest = GuardedUpdate(proposed, factor, worst)

    def _hold(self, watched: WatchedOptimizer, ratio: float) -> tuple[float, float]:
        """Shrink the update until it fits; the fraction that is taken, and its critical ratio."""
        update, factor, margin = watched.update(), 1.0, _HAIR
        for _ in range(_TRIES if self.mode == "rescale" and math.isfinite(ratio) else 0):
            factor *= self.max_ratio / ratio * (1.0 - margin)
            watched.take(update, factor)
            ratio = max(watched.ratios().values())
            if ratio <= self.max_ratio:
                return factor, ratio
            margin *= 100.0 / 3.0
        watched.drop()
        return 0.0, 0.0
