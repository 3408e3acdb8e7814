"""Ways to take the curvature of a loss: whole or in parts, exactly or by differences of the gradient."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from lightning_topo.memory import is_out_of_memory
from lightning_topo.probes.batch_loss import BatchLoss
from lightning_topo.stability import (
    Curvature,
    Differentiate,
    LossPart,
    NotTwiceDifferentiable,
    by_autograd,
    hessian,
    split_finite_difference_hessian,
    split_hessian,
)
from lightning_topo.tape import TapeLoss

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Approach:
    """On so many samples at a time (None: on all), and by finite differences where something is the `obstacle`.

    A recorded step is never cut: where it has more samples, it is a part by itself. `differentiate` is how finite
    differences get their gradients.
    """

    micro_batch: int | None = None
    obstacle: str | None = None
    differentiate: Differentiate = by_autograd

    def curvature(self, loss_fn: Callable[[], Tensor], params: Sequence[Tensor]) -> Curvature:
        """The Hessian of `loss_fn()`, taken this way."""
        parts = [(1.0, loss_fn)] if self.micro_batch is None else parts_of(loss_fn, self.micro_batch)
        if self.obstacle is not None:
            return split_finite_difference_hessian(
                parts, params, differentiate=self.differentiate, obstacle=self.obstacle
            )
        return hessian(loss_fn, params) if self.micro_batch is None else split_hessian(parts, params)

    def part_size(self, loss_fn: Callable[[], Tensor]) -> int | None:
        """How many samples the largest part really has; None where the loss is taken whole."""
        if self.micro_batch is None or not isinstance(loss_fn, BatchLoss | TapeLoss):
            return self.micro_batch
        return round(max(weight for weight, _ in loss_fn.parts(self.micro_batch)) * loss_fn.n_samples)

    def smaller(self, loss_fn: Callable[[], Tensor]) -> "Approach | None":
        """The same with half as many samples at a time, or one recorded step; None where nothing is left to divide."""
        if isinstance(loss_fn, TapeLoss):
            is_divided = self.micro_batch is not None or len(loss_fn.tapes) < 2
            return None if is_divided else replace(self, micro_batch=max(tape.n_samples for tape in loss_fn.tapes))
        if not isinstance(loss_fn, BatchLoss) or loss_fn.n_samples == 0:
            return None
        present = loss_fn.n_samples if self.micro_batch is None else min(self.micro_batch, loss_fn.n_samples)
        return replace(self, micro_batch=(present + 1) // 2) if present > 1 else None


def adapted(approach: Approach, loss_fn: Callable[[], Tensor], measure: Callable[[Approach], T]) -> tuple[Approach, T]:
    """`measure(approach)`, and the approach with which it went well.

    Where an operator cannot be differentiated twice, once more by finite differences; where memory runs out, once
    more in parts of half the size, as often as it takes.

    >>> def measure(approach):
    ...     if approach.micro_batch != 2:
    ...         raise torch.OutOfMemoryError
    ...     return "found"
    >>> approach, found = adapted(Approach(), BatchLoss(lambda batch: batch.mean(), torch.ones(8)), measure)
    >>> approach.micro_batch, found
    (2, 'found')
    """
    while True:
        try:
            return approach, measure(approach)
        except NotTwiceDifferentiable as error:
            if approach.obstacle is not None:
                raise
            following = replace(approach, obstacle=error.operator)
        except (RuntimeError, MemoryError) as error:
            smaller = approach.smaller(loss_fn) if is_out_of_memory(error) else None
            if smaller is None:
                raise
            following = smaller
        # Out here the failed attempt's frames, and the tensors in them, are gone.
        approach = following
        torch.cuda.empty_cache()


def parts_of(loss_fn: Callable[[], Tensor], size: int) -> Sequence[LossPart]:
    """The parts of a loss on so many samples each; of the loss of recorded steps, one part for each of them.

    Raises `ValueError` for a loss that has no parts.
    """
    if not isinstance(loss_fn, BatchLoss | TapeLoss):
        raise ValueError(
            f"expected a BatchLoss or a TapeLoss, which have parts of {size} samples, got {type(loss_fn).__name__}"
        )
    return loss_fn.parts(size)
