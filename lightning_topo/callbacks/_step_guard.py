"""Keeping every step below the critical point."""

from typing import Any, Literal, get_args

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import LBFGS

from lightning_topo._keywords import explains_keywords
from lightning_topo._watch import Watch, WatchSettings
from lightning_topo._watch.holding import GuardedUpdate, UpdateRatios, cannot_hold, hold, is_idle
from lightning_topo._watch.settings import Groups, group_list
from lightning_topo._watch.updates import Update
from lightning_topo.callbacks._learning_rates import overwriting_schedulers, scale_learning_rate
from lightning_topo.callbacks._lightning_internals import misconfigured, shards_parameters
from lightning_topo.callbacks._monitor import monitors
from lightning_topo.callbacks._trainer_training import TrainerTraining
from lightning_topo.neurons import NeuronGroup
from lightning_topo.outputs._outputs import Outputs
from lightning_topo.outputs._warning import WarningOutput

Mode = Literal["rescale", "lower_lr", "skip"]

_STATE_VERSION = 1
_STEEPEST = 0.1
"""The learning rate is lowered at most to this fraction at once: one pair must not end the training."""


@explains_keywords
class TopologyStepGuard(Callback):
    """Keeps the critical ratio r of every update at or below `max_ratio` < 1, so that no two distinct neurons merge.

    r is the largest |Δ_i - Δ_j| / |x_i - x_j| over pairs of neurons of a group. x_i is neuron i before the update, Δ_i
    its displacement. Right after an optimizer's update, before any `on_train_batch_end`, the guard computes an upper
    bound of r for every group that the optimizer touches. Where a bound exceeds `max_ratio`, it measures r exactly. If
    the largest r of all groups exceeds `max_ratio`, it takes back a part of the whole update, weight decay included:

    x <- x - (1 - f) Δ,    f = max_ratio / r.

    A smaller learning rate would have done the same, if the update is proportional to it. Optimizer state and buffers
    stay as they are. The guard then measures r again in float64 from the stored parameters; after three tries with
    r > `max_ratio` it drops the update. It drops an update to non-finite values too.

    With r <= `max_ratio` < 1 neurons that differ before an update differ after it. Pairs at a distance of at most
    eps max(|x_i|, |x_j|) / `max_ratio` do not count (eps of the coarsest dtype among the group's parameters): they are
    equal, or differ by rounding alone. Rounding can move such a pair by more than `max_ratio` of its distance, whatever
    f is, and can split equal neurons.

    If a batch makes several updates (manual optimization), each one is kept at or below `max_ratio`. Changes between
    two updates (a wrapper's own averaging, a norm constraint, another callback) are not limited: the monitor reports
    them once as an `outside_change` event; without a monitor there is a warning.

    The guard works alone, or beside a `TopologyMonitor` in any order. The monitor then measures the step really taken,
    and records r of the optimizer's own update as `proposed_critical_ratio` where the guard acted. `latest` is the
    `GuardedUpdate` of the last update, None before the first; `groups` are the groups of neurons.

    Args:
        max_ratio: The largest critical ratio to let pass, between 0 and 1.
        mode: "rescale" keeps the part f of a larger update, as above; "skip" drops the update instead; "lower_lr" lets
            it pass and multiplies the learning rate of the optimizer's next steps by f (at least 0.1), which certifies
            nothing.
        groups: The groups of neurons. "auto" takes the monitor's groups or, without a monitor, finds and verifies them.
        seed: Seeds the search for groups.

    Raises:
        ValueError: A parameter is out of its range.
        TypeError: `groups` is neither "auto" nor a list.
        MisconfigurationException: In `fit`: LBFGS (its line search assumes the step it made), sharded parameters, no
            neurons found, an update that does not go through torch's `Optimizer.step`; with "lower_lr", a scheduler
            that would overwrite the learning rate.

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
        groups: Groups = "auto",
        seed: int = 0,
    ) -> None:
        if not 0.0 < max_ratio < 1.0:
            raise ValueError(f"expected max_ratio between 0 and 1, got {max_ratio}")
        if mode not in get_args(Mode):
            raise ValueError(f"expected mode among {', '.join(get_args(Mode))}, got {mode!r}")
        self.max_ratio: float = max_ratio
        self.mode: Mode = mode
        self.seed: int = seed
        self.chosen_groups: Groups = group_list(groups)
        self.groups: tuple[NeuronGroup, ...] = ()
        self.latest: GuardedUpdate | None = None
        self._counts: dict[str, int] = dict.fromkeys(("n_updates", "n_held", "n_dropped"), 0)
        self._trainer: Trainer | None = None
        self._watch: Watch | None = None
        self._owns_watch = False
        self._update_ratios: UpdateRatios | None = None

    @property
    def n_updates(self) -> int:
        """The number of updates by all optimizers since training began; a resumed fit continues the count."""
        return self._counts["n_updates"]

    @property
    def n_held(self) -> int:
        """The number of updates since training began whose critical ratio was above `max_ratio`."""
        return self._counts["n_held"]

    @property
    def n_dropped(self) -> int:
        """The number of updates since training began that were undone completely, such as updates to NaN."""
        return self._counts["n_dropped"]

    @property
    def n_exact(self) -> int:
        """How many times r was measured exactly in this fit, because an upper bound of r exceeded `max_ratio`."""
        return 0 if self._update_ratios is None else self._update_ratios.n_exact

    @property
    def state_key(self) -> str:
        """The key of this guard's state in a checkpoint; it contains `max_ratio` and `mode`."""
        return self._generate_state_key(max_ratio=self.max_ratio, mode=self.mode)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._release()
            self.latest, self._counts, self._update_ratios = None, dict.fromkeys(self._counts, 0), None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._refuse(trainer)
        self._trainer = trainer

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._watch is None:
            self._watch, self._owns_watch = self._watch_of(trainer, pl_module)
            # First, before anybody measures what the guard is about to change.
            self._watch.steps.guards.insert(0, self._updated)
        if self._owns_watch:
            self._watch.before_batch(batch)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self._watch is not None and self._owns_watch:
            self._watch.before_backward(loss, scale=TrainerTraining(trainer, pl_module).loss_scale)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._watch is not None and self._owns_watch:
            self._watch.after_backward(goes_on=not pl_module.automatic_optimization)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._watch is None:
            return
        if self._owns_watch:
            self._watch.after_batch(None)
        if self._watch.has_unseen_steps:
            raise misconfigured(trainer, cannot_hold("TopologyStepGuard", trainer.optimizers))

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
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError, IndexError, RuntimeError) as error:
            rank_zero_warn(
                f"TopologyStepGuard cannot use its state in the checkpoint ({type(error).__name__}: {error}): "
                "it counts from zero."
            )

    def __getstate__(self) -> dict[str, Any]:
        # Neither the hooks of one fit nor what Lightning attaches, bound to the module, belongs to a copy.
        state = {name: value for name, value in self.__dict__.items() if name not in ("log", "log_dict")}
        return state | {"_trainer": None, "_watch": None, "_owns_watch": False, "_update_ratios": None}

    def _release(self) -> None:
        watch, self._watch = self._watch, None
        if self._update_ratios is not None:
            self._update_ratios.release()
        if watch is not None and self._owns_watch:
            watch.release()
        elif watch is not None and self._updated in watch.steps.guards:
            watch.steps.guards.remove(self._updated)

    def _refuse(self, trainer: Trainer) -> None:
        if any(isinstance(optimizer, LBFGS) for optimizer in trainer.optimizers):
            raise misconfigured(
                trainer,
                "TopologyStepGuard cannot change the steps of LBFGS, whose line search and history assume the step "
                "that it made. Use a first-order optimizer, or leave the guard out and watch r with TopologyMonitor.",
            )
        if shards_parameters(trainer):
            raise misconfigured(
                trainer,
                f"TopologyStepGuard needs whole neurons on every device, and {type(trainer.strategy).__name__} shards "
                "them. Use DDP, or leave the guard out and watch r with TopologyMonitor.",
            )
        if self.mode != "lower_lr":
            return
        if found := overwriting_schedulers(config.scheduler for config in trainer.lr_scheduler_configs):
            raise misconfigured(
                trainer,
                f'TopologyStepGuard(mode="lower_lr") lowers the learning rate, and {", ".join(found)} would overwrite '
                'it at the next step. Use mode="rescale", which leaves the learning rate alone, or a scheduler that '
                "multiplies the present one (StepLR, ExponentialLR, LinearLR, CosineAnnealingLR, SequentialLR, ...).",
            )

    def _watch_of(self, trainer: Trainer, module: LightningModule) -> tuple[Watch, bool]:
        """The watch of a monitor beside the guard, else one of its own; whether it is its own."""
        if isinstance(self.chosen_groups, str):
            for monitor in monitors(trainer):
                if monitor.watch is not None:
                    return monitor.watch, False
        settings = WatchSettings(probes=(), groups=self.chosen_groups, seed=self.seed, report=False, verbose=False)
        outputs = Outputs((WarningOutput("TopologyStepGuard"),) if trainer.is_global_zero else ())
        return Watch(TrainerTraining(trainer, module), settings, outputs), True

    def _updated(self, update: Update) -> None:
        """Hold back the update that an optimizer has just made, if it is too large."""
        assert self._trainer is not None
        assert self._watch is not None
        if not self.groups and is_idle(update):
            self._counts["n_updates"] += 1
            self.latest = GuardedUpdate({}, 1.0, 0.0)
            return
        if not self.groups:
            self.groups = self._found()
        elif self._watch.groups and self._watch.groups != self.groups:  # on all losses of the first step
            self.groups = self._watch.groups
            if self._update_ratios is not None:
                self._update_ratios.look_at(self.groups)
        self._counts["n_updates"] += 1
        if self.mode == "lower_lr":
            self.latest = self._let_pass(update)
        else:
            self.latest = hold(
                update, lambda: self._ratios(update), self.max_ratio, tries=3 if self.mode == "rescale" else 0
            )
            if self.latest.factor < 1.0:
                self._counts["n_held"] += 1
                self._counts["n_dropped"] += self.latest.factor == 0.0
                for monitor in monitors(self._trainer):
                    for group, ratio in self.latest.proposed.items():
                        monitor.note_proposal(group, ratio)

    def _let_pass(self, update: Update) -> GuardedUpdate:
        """Leave the update as it is; above the limit, lower the learning rate of the next steps."""
        assert self._trainer is not None
        proposed = self._ratios(update)
        worst = max(proposed.values(), default=0.0)
        if worst > self.max_ratio:
            self._counts["n_held"] += 1
            schedulers = [config.scheduler for config in self._trainer.lr_scheduler_configs]
            scale_learning_rate(update.optimizer, max(self.max_ratio / worst, _STEEPEST), schedulers)
        return GuardedUpdate(proposed, 1.0, worst)

    def _found(self) -> tuple[NeuronGroup, ...]:
        """The groups to hold; raises `MisconfigurationException` where there are none."""
        assert self._watch is not None
        assert self._trainer is not None
        groups = tuple(self._watch.find_neurons())
        if not groups:
            raise misconfigured(
                self._trainer,
                "TopologyStepGuard has no neurons to work on: no group of exchangeable neurons was found in the first "
                "step. Name the groups by hand: TopologyStepGuard(groups=declare_neurons(module, ...)).",
            )
        return groups

    def _ratios(self, update: Update) -> dict[str, float]:
        """The critical ratio by group of an update as it stands now; the same on every process."""
        assert self._watch is not None
        if self._update_ratios is None:
            self._update_ratios = UpdateRatios(self.groups, self.max_ratio, self._watch.training, self._watch.steps)
        return self._update_ratios.of(update)
