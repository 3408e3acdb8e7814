"""Changing a learning rate from outside, so that the schedulers keep it changed."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.optim import Optimizer, lr_scheduler

# These multiply the present learning rate, or find it from `base_lrs` in places: an outside change lasts.
_KEEPERS = (
    lr_scheduler.ChainedScheduler,
    lr_scheduler.ConstantLR,
    lr_scheduler.CosineAnnealingLR,
    lr_scheduler.ExponentialLR,
    lr_scheduler.LinearLR,
    lr_scheduler.MultiplicativeLR,
    lr_scheduler.MultiStepLR,
    lr_scheduler.PolynomialLR,
    lr_scheduler.ReduceLROnPlateau,
    lr_scheduler.SequentialLR,
    lr_scheduler.StepLR,
)
# These set a multiple of `base_lrs`.
_MULTIPLIERS = (lr_scheduler.CosineAnnealingWarmRestarts, lr_scheduler.LambdaLR)


def overwriting_schedulers(schedulers: Iterable[Any]) -> list[str]:
    """The names of those schedulers that set the learning rate whatever it was, or are not known not to.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    >>> schedulers = lr_scheduler.StepLR(optimizer, 10), lr_scheduler.LambdaLR(optimizer, lambda k: 1 / (k + 1))
    >>> overwriting_schedulers(schedulers)
    ['LambdaLR']
    """
    return [type(s).__name__ for s in _with_parts(schedulers) if not isinstance(s, _KEEPERS)]


def unscalable_schedulers(schedulers: Iterable[Any]) -> list[str]:
    """The names of schedulers that may set learning rates of their own, whatever rate they start from.

    `LambdaLR` and `CosineAnnealingWarmRestarts` overwrite the present one, by a multiple of that which they start from.
    """
    return [type(s).__name__ for s in _with_parts(schedulers) if not isinstance(s, (*_KEEPERS, *_MULTIPLIERS))]


def scale_learning_rate(optimizer: Optimizer, factor: float, schedulers: Iterable[Any] = ()) -> None:
    """Multiply the learning rate of all parameter groups, and the starting rate of the optimizer's schedulers.

    The latter because `SequentialLR` at its milestones and `CosineAnnealingLR` after its minimum begin with it again.
    """
    for group in optimizer.param_groups:
        lr = group["lr"]
        group["lr"] = lr.mul_(factor) if isinstance(lr, Tensor) else lr * factor
        if "initial_lr" in group:
            group["initial_lr"] = group["initial_lr"] * factor
    for scheduler in _with_parts(schedulers):
        if getattr(scheduler, "optimizer", None) is optimizer and hasattr(scheduler, "base_lrs"):
            scheduler.base_lrs = [lr * factor for lr in scheduler.base_lrs]


def _with_parts(schedulers: Iterable[Any]) -> Iterator[Any]:
    """Each scheduler, and those that it chains."""
    for scheduler in schedulers:
        yield scheduler
        yield from _with_parts(getattr(scheduler, "_schedulers", ()))
