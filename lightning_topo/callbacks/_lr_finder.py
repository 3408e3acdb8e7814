"""The critical learning rate, before training."""

import inspect
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal, get_args

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.parsing import lightning_hasattr, lightning_setattr
from torch import Tensor
from torch.optim import LBFGS

from lightning_topo._keywords import explains_keywords
from lightning_topo._watch.settings import group_list
from lightning_topo.callbacks._learning_rates import scale_learning_rate, unscalable_schedulers
from lightning_topo.callbacks._lightning_internals import (
    batches_stepped,
    is_trial_run,
    misconfigured,
    shards_parameters,
)
from lightning_topo.callbacks._lr_sweep import LRSweep
from lightning_topo.callbacks._trial_batches import can_only_be_iterated, trial_batches
from lightning_topo.callbacks._trial_look import TrialLook
from lightning_topo.callbacks._trial_steps import base_learning_rate, on_trial, set_learning_rate, take_step
from lightning_topo.callbacks._watched_optimizer import WatchedOptimizer
from lightning_topo.measurement import GLOBAL
from lightning_topo.neurons import NeuronGroup
from lightning_topo.probes import Capture, Clouds, ProbeResult, ProbeUnavailable, Sharpness

Mode = Literal["exponential", "linear"]

_REMEDY = "Name the groups by hand: TopologyLRFinder(groups=declare_neurons(module, ...))."
_MEMORY = 0.98
"""Of the running mean of the loss, as in Lightning's own finder."""


@explains_keywords
class TopologyLRFinder(Callback):
    """Sweeps the learning rate before training, and finds the largest one whose steps stay below the critical point.

    As with Lightning's `LearningRateFinder`, the sweep is a short real training in which the learning rate rises from
    step to step; arguments of the same name mean the same in both classes. For each learning rate lr the sweep records
    the loss and three measures:

    - The critical ratio r of the sweep's own step at lr: the largest |Δ_i - Δ_j| / |x_i - x_j| over pairs of neurons of
      a group, and over groups. x_i is neuron i before the step, Δ_i its displacement. If the update is proportional to
      lr, the critical learning rate of this step is lr / r. As lr rises gradually, this is the r of a warmed-up
      training.
    - The critical ratio r of a *first* step at lr, from the weights and optimizer state before the sweep, as in a
      training without warm-up. For adaptive optimizers it is often far larger, as their first step has unit size in
      every entry.
    - The curvature at lr: `eta_lambda` (the paper's sufficient condition needs less than 1) and the sharpness ratio
      (1 at the edge of stability). It is measured at the sweep's present weights, on about 256 samples of the first
      batches.

    The result is in `sweep`, an `LRSweep`; None before `fit`. `sweep.suggestion_by_ratio` is the largest learning rate
    up to which both r stayed below 1. It is an observation and does not cover later steps.
    `sweep.suggestion_by_curvature` is the largest learning rate up to which `eta_lambda` stayed below 1, not counting
    the first steps of adaptive optimizers. It is usually far smaller, and no certificate either. A suggestion is None
    if the sweep did not cross the critical point: for many networks r is still below 1 where the loss diverges.

    The sweep leaves no trace. It draws batches from copies of the dataloaders, through their samplers and the transfer
    hooks. It restores weights, optimizer, buffers, metrics, scaler, random states and the states of samplers and data
    sets, bit for bit. Schedulers, loops, loggers and other callbacks take no part. There is no sweep in a resumed
    training or under `fast_dev_run`. The order of the callbacks does not matter.

    If several processes hold whole parameters (DDP), each draws its own batches. All processes get the same result: it
    is as if one process accumulated the batches of all.

    Args:
        min_lr: The smallest learning rate, above 0. With several parameter groups it is the first group's; the others
            keep their ratio to it.
        max_lr: The largest learning rate.
        num_training_steps: The number of learning rates to try, one step each; at least 2.
        mode: How the learning rates rise: "exponential" or "linear".
        early_stop_threshold: The sweep ends when the running mean of the loss exceeds its minimum this many times;
            None: never. A loss that is not finite always ends it.
        update_attr: Whether to train with `sweep.suggestion`: it is set in the module's attribute, the optimizer, and
            the schedulers as their starting rate. By default the suggestion is only logged.
        attr_name: The attribute of the module or its `hparams` with the learning rate; by default `lr` or
            `learning_rate`.
        groups: The groups of neurons, or "auto" to find and verify them.
        sharpness: The probe that measures the curvature, "auto" for `Sharpness()`, or None to leave it out, which makes
            the sweep several times faster.
        seed: Seeds the order of batches, dropout in the sweep, and the search for groups.

    Raises:
        ValueError: A parameter is out of its range.
        TypeError: `groups` is neither "auto" nor a list.
        AttributeError: In `fit`, with `update_attr` but without the attribute.
        MisconfigurationException: In `fit`: LBFGS, several optimizers, manual optimization, a `training_step` that
            draws its own batches, data that can only be iterated, sharded parameters, no neurons found, a learning rate
            of 0, an `optimizer_step` that sets the learning rate itself; with `update_attr`, a scheduler that would
            overwrite it.

    Source: Smith, arXiv:1506.01186 (range test); Yang et al., arXiv:2510.02670 (critical point).

    >>> TopologyLRFinder(min_lr=1.0, max_lr=0.1)
    Traceback (most recent call last):
    ...
    ValueError: expected 0 < min_lr < max_lr, got min_lr=1.0 and max_lr=0.1
    """

    def __init__(
        self,
        min_lr: float = 1e-8,
        max_lr: float = 1.0,
        num_training_steps: int = 100,
        mode: Mode = "exponential",
        early_stop_threshold: float | None = 4.0,
        update_attr: bool = False,
        attr_name: str = "",
        *,
        groups: Literal["auto"] | Sequence[NeuronGroup] = "auto",
        sharpness: Literal["auto"] | Sharpness | None = "auto",
        seed: int = 0,
    ) -> None:
        if not 0.0 < min_lr < max_lr:
            raise ValueError(f"expected 0 < min_lr < max_lr, got min_lr={min_lr} and max_lr={max_lr}")
        if num_training_steps < 2:
            raise ValueError(f"expected num_training_steps >= 2, got {num_training_steps}")
        if mode not in get_args(Mode):
            raise ValueError(f"expected mode among {', '.join(get_args(Mode))}, got {mode!r}")
        if early_stop_threshold is not None and not early_stop_threshold > 1.0:
            raise ValueError(f"expected early_stop_threshold > 1 or None, got {early_stop_threshold}")
        if isinstance(sharpness, str) and sharpness != "auto":
            raise ValueError(f'expected sharpness "auto", a Sharpness or None, got {sharpness!r}')
        self.min_lr: float = min_lr
        self.max_lr: float = max_lr
        self.num_training_steps: int = num_training_steps
        self.mode: Mode = mode
        self.early_stop_threshold: float | None = early_stop_threshold
        self.update_attr: bool = update_attr
        self.attr_name: str = attr_name
        self.chosen_groups: tuple[NeuronGroup, ...] | None = (
            None if isinstance(groups, str) else tuple(group_list(groups))
        )
        self.sharpness: Sharpness | None = Sharpness() if isinstance(sharpness, str) else sharpness
        self.seed: int = seed
        self.sweep: LRSweep | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.sweep = None
        # Those that watch and guard begin in the same hook: they have to see the learning rate that is set here.
        everyone = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        trainer.callbacks = [self, *(other for other in everyone if other is not self)]  # pyright: ignore[reportAttributeAccessIssue]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_trial_run(trainer):
            rank_zero_warn("TopologyLRFinder does nothing, since fast_dev_run is enabled.")
        elif batches_stepped(trainer) > 0:
            rank_zero_info("TopologyLRFinder does nothing: this training has begun already.")
        else:
            self._find(trainer, pl_module)

    def __getstate__(self) -> dict[str, Any]:
        # What Lightning attaches, bound to the module, does not belong to a copy.
        return {name: value for name, value in self.__dict__.items() if name not in ("log", "log_dict")}

    def learning_rates(self) -> tuple[float, ...]:
        """Return the `num_training_steps` learning rates to try, rising from `min_lr` to `max_lr`.

        >>> TopologyLRFinder(1.0, 2.0, 3, mode="linear").learning_rates()
        (1.0, 1.5, 2.0)
        """
        n = self.num_training_steps
        if self.mode == "linear":
            return tuple(self.min_lr + (self.max_lr - self.min_lr) * k / (n - 1) for k in range(n))
        low, high = math.log(self.min_lr), math.log(self.max_lr)
        middle = (math.exp(low + (high - low) * k / (n - 1)) for k in range(1, n - 1))
        return (self.min_lr, *middle, self.max_lr)

    def _find(self, trainer: Trainer, module: LightningModule) -> None:
        attribute = self._refuse(trainer, module)
        if can_only_be_iterated(trainer):
            raise misconfigured(
                trainer,
                "TopologyLRFinder draws batches of the data, and these can only be iterated: it would consume "
                "what the training is to see. Use a map-style data set, or leave the finder out.",
            )
        look = TrialLook.of(trainer, module, self.chosen_groups, self.seed)
        if not look.groups:
            raise misconfigured(trainer, f"TopologyLRFinder has no neurons to work on. {look.problems} {_REMEDY}")
        if look.problems:
            rank_zero_warn(f"TopologyLRFinder: {look.problems} {_REMEDY}")
        self.sweep = _Sweep(self, trainer, module, look).run()
        rank_zero_info(f"TopologyLRFinder: {self.sweep}")
        if attribute is None:
            return
        if (lr := self.sweep.suggestion) is None:
            rank_zero_warn(
                "TopologyLRFinder leaves the learning rate as it is: the sweep did not cross the critical point. Widen "
                "min_lr and max_lr."
            )
            return
        lightning_setattr(module, attribute, lr)
        [optimizer] = trainer.optimizers
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        scale_learning_rate(optimizer, lr / base_learning_rate(optimizer), schedulers)
        rank_zero_info(f"TopologyLRFinder: the learning rate ({attribute}) is set to {lr:.6g}.")

    def _refuse(self, trainer: Trainer, module: LightningModule) -> str | None:
        """Raise if a sweep makes no sense here; return the attribute to set, None if there is none."""
        if (why := _obstacle(trainer, module)) is not None:
            raise misconfigured(
                trainer,
                f"TopologyLRFinder {why}. Leave it out, and watch r with TopologyMonitor as the learning rate grows.",
            )
        if not self.update_attr:
            return None
        if found := unscalable_schedulers(config.scheduler for config in trainer.lr_scheduler_configs):
            raise misconfigured(
                trainer,
                f"TopologyLRFinder(update_attr=True) sets the learning rate, and {', '.join(found)} would overwrite "
                "it. Use update_attr=False, and set the scheduler to `sweep.suggestion`.",
            )
        names = (self.attr_name,) if self.attr_name else ("lr", "learning_rate")
        for name in names:
            if lightning_hasattr(module, name):
                return name
        raise AttributeError(
            f"TopologyLRFinder(update_attr=True) expected {' or '.join(map(repr, names))} as an attribute of "
            f"{type(module).__name__} or of its hparams, and found none: give its name as attr_name."
        )


def _obstacle(trainer: Trainer, module: LightningModule) -> str | None:
    """Why this training cannot be swept; None if it can."""
    if len(trainer.optimizers) != 1:
        return f"works with one optimizer, and configure_optimizers returned {len(trainer.optimizers)}"
    if not module.automatic_optimization:
        return "cannot sweep where training_step steps the optimizer itself (manual optimization)"
    if isinstance(trainer.optimizers[0], LBFGS):
        return "cannot sweep the learning rate of LBFGS, whose line search finds a step length of its own"
    if shards_parameters(trainer):
        return f"needs whole neurons on every device, and {type(trainer.strategy).__name__} shards them"
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        return "draws the batches, and training_step draws its own (dataloader_iter)"
    if base_learning_rate(trainer.optimizers[0]) == 0.0:
        return "sweeps multiples of the learning rate, and that of the optimizer is 0"
    return None


_SAID_EVERY_S = 10.0


class _Course:
    """Tells how far a sweep is, every ten seconds: a short one runs silently."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._begun = self._said = time.monotonic()
        self._in_curvature = 0.0

    @contextmanager
    def curvature(self) -> Iterator[None]:
        """Around a measurement of curvature, which may be left out."""
        began = time.monotonic()
        yield
        self._in_curvature += time.monotonic() - began

    def passed(self, k: int) -> None:
        """So many learning rates have been tried."""
        now = time.monotonic()
        if now - self._said < _SAID_EVERY_S:
            return
        self._said, taken = now, now - self._begun
        hint = "; most of it is curvature, which sharpness=None leaves out" if 2 * self._in_curvature > taken else ""
        steps = taken - self._in_curvature  # in the end one more step is taken with each learning rate
        left = taken / k * (self._n - k) + steps / k * self._n
        rank_zero_info(f"TopologyLRFinder: {k} of {self._n} learning rates, about {left:.0f} s left{hint}.")


class _Sweep:
    """One sweep, from the state in which it finds the training."""

    def __init__(
        self,
        finder: TopologyLRFinder,
        trainer: Trainer,
        module: LightningModule,
        look: TrialLook,
    ) -> None:
        self._finder, self._trainer, self._module, self._look = finder, trainer, module, look
        self._batches = trial_batches(trainer)
        self._first: list[Any] = []
        self._sharpness, self._curvature = finder.sharpness, ProbeResult()
        self._ratio = math.nan

    def run(self) -> LRSweep:
        rows, smoothed, least, diverged = [], 0.0, math.inf, False
        threshold = self._finder.early_stop_threshold or math.inf
        rates = self._finder.learning_rates()
        course = _Course(len(rates))
        with on_trial(self._trainer, self._module, self._finder.seed):
            for k, lr in enumerate(rates):
                set_learning_rate(self._trainer.optimizers[0], lr)
                batches = list(islice(self._batches, self._trainer.accumulate_grad_batches))
                self._first = self._first or batches
                if k == 0 and self._sharpness is not None:
                    self._first_step(lr)  # how much of its gradient a step is handed, the curvature has to know
                # Of several processes the first measures: all have the same weights, and its samples are those of all.
                with course.curvature():
                    curvature = self._look.ranks.first("curvature", lambda k=k: self._measure_curvature(k))
                loss, ratio = self._step(lr, batches)
                rows.append((lr, loss, ratio, *curvature))
                smoothed = _MEMORY * smoothed + (1.0 - _MEMORY) * loss
                average = smoothed / (1.0 - _MEMORY ** (k + 1))
                if diverged := not math.isfinite(loss) or average > threshold * abs(least):
                    break
                least = min(least, average)
                course.passed(k + 1)
        lrs, losses, ratios, eta_lambdas, sharpness_ratios = zip(*rows, strict=True)
        first = tuple(self._first_step(lr) for lr in lrs)
        return LRSweep(lrs, losses, ratios, first, eta_lambdas, sharpness_ratios, diverged)

    def _step(self, lr: float, batches: Sequence[Any]) -> tuple[float, float]:
        """Loss and r of one step with the learning rate that is set."""
        trainer, [optimizer] = self._trainer, self._trainer.optimizers
        self._ratio = math.nan
        watched = WatchedOptimizer(trainer, self._module, optimizer, self._look.groups, 1.0, self._updated)
        try:
            loss = take_step(trainer, self._module, batches, self._look.scales)
        finally:
            watched.release()
        if not math.isclose(float(optimizer.param_groups[0]["lr"]), lr, rel_tol=1e-6):
            raise misconfigured(
                trainer,
                "TopologyLRFinder sweeps the learning rate, and the module's optimizer_step sets it itself. Move that "
                "into a scheduler, or leave the finder out.",
            )
        return loss, self._ratio

    def _first_step(self, lr: float) -> float:
        """r of a first step of this size, from where the sweep began."""
        with on_trial(self._trainer, self._module, self._finder.seed):
            set_learning_rate(self._trainer.optimizers[0], lr)
            return self._step(lr, self._first)[1]

    def _updated(self, watched: WatchedOptimizer) -> None:
        self._ratio = max(watched.ratios().values(), default=math.nan)

    def _measure_curvature(self, k: int) -> tuple[float, float]:
        """eta lambda and sharpness ratio of a step with the learning rate that is set; NaN where they are not known."""
        if self._sharpness is None:
            return math.nan, math.nan
        try:
            self._curvature = self._sharpness.measure(self._capture(k))
        except ProbeUnavailable as error:
            rank_zero_warn(f"TopologyLRFinder measures no curvature: {error} {error.remedy}")
            self._sharpness = None
            return math.nan, math.nan
        except (ValueError, ArithmeticError, RuntimeError):  # the loss is no longer finite
            return math.nan, math.nan
        values = self._curvature.values[GLOBAL]
        return values.get("eta_lambda", math.nan), values.get("sharpness_ratio", math.nan)

    def _capture(self, k: int) -> Capture:
        tensors: dict[str, Tensor] = dict(self._module.named_parameters())
        return Capture(
            step=k,
            epoch=self._trainer.current_epoch,
            module=self._module,
            groups=self._look.groups,
            neurons=Clouds(self._look.groups, tensors),
            before=None,
            reference={},
            optimizers=self._trainer.optimizers,
            training_loss=self._look.loss,
            previous=self._curvature if self._curvature.carry is not None else None,
            gradient_scales=self._look.scales.of(self._trainer.optimizers),
        )
