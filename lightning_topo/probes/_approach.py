"""Ways to take the curvature of a loss: whole or in parts, exactly or by differences of the gradient."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from lightning_topo._memory import is_out_of_memory
from lightning_topo._tape import TapeLoss
from lightning_topo._tape.footprint import recorded_bytes
from lightning_topo.probes._batch_loss import BatchLoss
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

T = TypeVar("T")


SMALL = 2**25
"""Bytes of a graph that nobody notices."""


@dataclass(frozen=True, slots=True)
class Approach:
    """How to evaluate curvature: samples at a time, and finite differences if there is an `obstacle`.

    Without a `micro_batch` a batch is taken whole, and recorded steps in parts whose graphs take no more than the
    step's own values did (or than a quarter of the parameters, or `SMALL`): together where they are small, else one by
    one, or cut. A recorded step that cannot be cut is a part by itself. `differentiate` is how finite differences get
    their gradients.
    """

    micro_batch: int | None = None
    obstacle: str | None = None
    differentiate: Differentiate = by_autograd

    def curvature(self, loss_fn: Callable[[], Tensor], params: Sequence[Tensor]) -> Curvature:
        """The Hessian of `loss_fn()`, taken this way."""
        parts = self._parts(loss_fn)
        if self.obstacle is not None:
            return split_finite_difference_hessian(
                parts, params, differentiate=self.differentiate, obstacle=self.obstacle
            )
        if len(parts) > 1:
            return split_hessian(parts, params)
        [(_, whole)] = parts
        return hessian(whole, params)

    def part_size(self, loss_fn: Callable[[], Tensor]) -> int | None:
        """How many samples the largest part really has; None where the loss is taken whole."""
        if not isinstance(loss_fn, BatchLoss | TapeLoss):
            return self.micro_batch
        parts = self._parts(loss_fn)
        if self.micro_batch is None and len(parts) == 1:
            return None
        if isinstance(loss_fn, TapeLoss):
            return max(part.n_samples for _, part in parts if isinstance(part, TapeLoss))
        return round(max(weight for weight, _ in parts) * loss_fn.n_samples)

    def smaller(self, loss_fn: Callable[[], Tensor]) -> "Approach | None":
        """The same with half as many samples at a time, or one recorded step; None where nothing is left to divide."""
        if not isinstance(loss_fn, BatchLoss | TapeLoss) or loss_fn.n_samples == 0:
            return None
        size = self.part_size(loss_fn)
        present = loss_fn.n_samples if size is None else size
        if size is None and isinstance(loss_fn, TapeLoss) and len(loss_fn.tapes) > 1:
            wanted = max(tape.n_samples for tape in loss_fn.tapes)
        else:
            wanted = (present + 1) // 2
        divided = replace(self, micro_batch=wanted)
        return divided if (divided.part_size(loss_fn) or present) < present else None

    def _parts(self, loss_fn: Callable[[], Tensor]) -> Sequence[LossPart]:
        if self.micro_batch is not None:
            return (
                loss_fn.pieces(self.micro_batch)
                if isinstance(loss_fn, TapeLoss)
                else parts_of(loss_fn, self.micro_batch)
            )
        if not isinstance(loss_fn, TapeLoss):
            return [(1.0, loss_fn)]
        parts = loss_fn.within(_room(loss_fn))
        return parts if len(parts) > 1 else [(1.0, loss_fn)]


def _room(loss_fn: TapeLoss) -> int:
    """Bytes that the graph of one part may take: at least what the values of the training's own step take."""
    weights = sum(p.numel() * p.element_size() for p in loss_fn.module.parameters())
    return max(SMALL, weights // 4, *(recorded_bytes(tape) for tape in loss_fn.tapes))


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
    """The parts of a loss, of `size` samples each; for the loss of recorded steps, one part for each step.

    Raises `ValueError` for a loss that has no parts.
    """
    if isinstance(loss_fn, TapeLoss):
        return loss_fn.parts()
    if not isinstance(loss_fn, BatchLoss):
        raise ValueError(
            f"expected a BatchLoss or a TapeLoss, which have parts of {size} samples, got {type(loss_fn).__name__}"
        )
    return loss_fn.parts(size)
