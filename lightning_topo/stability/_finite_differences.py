"""Products of the Hessian with a vector where the gradient cannot be differentiated: from differences of gradients."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_topo.stability._hessian import (
    Curvature,
    LossPart,
    add_flat,
    checked_loss,
    flatten,
    seeded,
    shaped,
    trainable_only,
)

Differentiate = Callable[[Tensor, Sequence[Tensor]], Sequence[Tensor]]
"""The gradients of a loss with respect to some parameters, shaped and placed as these."""


def by_autograd(loss: Tensor, params: Sequence[Tensor]) -> Sequence[Tensor]:
    """Differentiate by `torch.autograd.grad`, which touches no `.grad` and fires no hook."""
    return torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True)


def by_backward(loss: Tensor, params: Sequence[Tensor]) -> Sequence[Tensor]:
    """Compute gradients with `loss.backward()`, then restore every `.grad`.

    Needed for FSDP2, whose parameters are not leaves of the loss's graph: its hooks write their gradients to `.grad`.
    """
    kept = [p.grad for p in params]
    try:
        for p in params:
            p.grad = None
        loss.backward()
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
    finally:
        for p, grad in zip(params, kept, strict=True):
            p.grad = grad


@dataclass(frozen=True, slots=True)
class FiniteDifferenceHessian(Curvature):
    """The Hessian as the map v -> (g(theta + h v) - g(theta - h v)) / 2 h, for losses that can be differentiated once.

    A product costs two gradients. It moves the parameters and restores them bit for bit, also if it fails. Every
    evaluation draws the same random numbers, so dropout masks are the same.
    """

    loss: float
    params: tuple[Tensor, ...]
    _parts: tuple[LossPart, ...]
    _gradient: Float[Tensor, " p"]
    _differentiate: Differentiate
    _seed: int
    _reach: float
    _obstacle: str

    @property
    def gradient(self) -> Float[Tensor, " p"]:
        """g = d L / d theta, flat."""
        return self._gradient

    @property
    def obstacle(self) -> str:
        """The operator that forces finite differences."""
        return self._obstacle

    def __matmul__(self, vector: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        """H v, up to the rounding and the third derivatives within the reach of the difference."""
        length = float(vector.norm())
        if length == 0.0:
            return torch.zeros_like(vector)
        step = self._reach / length
        kept = [p.detach().clone() for p in self.params]
        directions = shaped(vector, self.params)

        def gradient_at(distance: float) -> Tensor:
            with torch.no_grad():
                for p, here, direction in zip(self.params, kept, directions, strict=True):
                    p.copy_(here).add_(direction, alpha=distance)
            torch.clear_autocast_cache()  # it holds the weights as they were
            return _gradient(self._parts, self.params, self._differentiate, self._seed)[1]

        try:
            difference = gradient_at(step)
            difference -= gradient_at(-step)
        finally:
            with torch.no_grad():
                for p, here in zip(self.params, kept, strict=True):
                    p.copy_(here)
            torch.clear_autocast_cache()
        return difference.div_(2.0 * step)


def finite_difference_hessian(
    loss_fn: Callable[[], Tensor],
    params: Iterable[Tensor],
    *,
    differentiate: Differentiate = by_autograd,
    obstacle: str = "by request",
) -> FiniteDifferenceHessian:
    """The Hessian of `loss_fn()` by central differences of its gradient, for operators without a double backward.

    The length of a difference is h |v| = eps^(1/2) (1 + |theta|) / 10, with eps that of the coarsest dtype in use,
    autocast's included. The classical eps^(1/3) balances rounding and third derivatives, but at that length a small
    ReLU network crosses a kink in every product. With eps^(1/2) products err by about 1e-3 in float32 and a few percent
    under bfloat16.

    Args:
        loss_fn: Evaluates the loss.
        params: The parameters to differentiate by; those without `requires_grad` are left out.
        differentiate: Returns the gradients of a loss: `by_autograd`, or `by_backward` for FSDP2.
        obstacle: The reason for finite differences: the operator without a double backward. Kept in the result.

    Raises as `hessian`.

    Source: Nocedal and Wright, *Numerical Optimization*, section 8.1.

    >>> theta = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    >>> H = finite_difference_hessian(lambda: theta[0] ** 2 + 3 * theta[1] ** 2, [theta])
    >>> (H @ torch.ones(2, dtype=torch.float64)).round(decimals=6), H.obstacle
    (tensor([2., 6.], dtype=torch.float64), 'by request')
    """
    return split_finite_difference_hessian([(1.0, loss_fn)], params, differentiate=differentiate, obstacle=obstacle)


def split_finite_difference_hessian(
    parts: Iterable[LossPart],
    params: Iterable[Tensor],
    *,
    differentiate: Differentiate = by_autograd,
    obstacle: str = "by request",
) -> FiniteDifferenceHessian:
    """`finite_difference_hessian` of the sum of weight * loss() over `parts`, evaluated one part at a time.

    Args:
        parts: Pairs of a weight and a function that evaluates a loss.
        params: The parameters to differentiate by; those without `requires_grad` are left out.
        differentiate: Returns the gradients of a loss: `by_autograd`, or `by_backward` for FSDP2.
        obstacle: The reason for finite differences: the operator without a double backward. Kept in the result.

    Raises as `split_hessian`.
    """
    parts, params = tuple(parts), trainable_only(params)
    if not parts:
        raise ValueError("expected at least one part of a batch, got none")
    seed = torch.initial_seed()
    loss, gradient = _gradient(parts, params, differentiate, seed)
    size = 1.0 + float(flatten(p.detach() for p in params).norm())
    reach = _coarsest_eps(params) ** 0.5 * size / 10
    return FiniteDifferenceHessian(loss, params, parts, gradient, differentiate, seed, reach, obstacle)


def _gradient(
    parts: Sequence[LossPart], params: Sequence[Tensor], differentiate: Differentiate, seed: int
) -> tuple[float, Float[Tensor, " p"]]:
    """The weighted sum of the losses, and of their gradients, where the parameters stand now."""
    total, gradient = 0.0, None
    for k, (weight, loss_fn) in enumerate(parts):
        with seeded(seed + k, params), torch.enable_grad():
            loss = checked_loss(loss_fn)
            pieces = [g.detach() for g in differentiate(loss, params)]
        total += weight * loss.item()
        del loss
        if gradient is None:
            gradient = flatten(pieces).mul_(weight)
        else:
            add_flat(gradient, pieces, params, weight)
        del pieces
    assert gradient is not None
    return total, gradient


def _coarsest_eps(params: Sequence[Tensor]) -> float:
    types = {p.dtype for p in params}
    for kind in {p.device.type for p in params}:
        if torch.is_autocast_enabled(kind):
            types.add(torch.get_autocast_dtype(kind))
    return max(torch.finfo(dtype).eps for dtype in types)
