"""Products of the Hessian with a vector where the gradient cannot be differentiated: from differences of gradients."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_topo.stability._hessian import Curvature, LossPart, checked_loss, seeded, trainable_only
from lightning_topo.stability._layout import Layout

Differentiate = Callable[[Tensor, Sequence[Tensor]], Sequence[Tensor]]
"""A function (loss, params) that returns the gradient for each parameter, with its shape and placement."""


def by_autograd(loss: Tensor, params: Sequence[Tensor]) -> Sequence[Tensor]:
    """Compute gradients with `torch.autograd.grad`, which touches no `.grad` and fires no hook.

    Returns one gradient per parameter; zeros if the loss does not depend on it.
    """
    return torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True)


def by_backward(loss: Tensor, params: Sequence[Tensor]) -> Sequence[Tensor]:
    """Compute gradients with `loss.backward()`, then restore every `.grad`.

    Returns one gradient per parameter; zeros if the loss does not depend on it. FSDP2 needs this: its parameters are
    not leaves of the loss's graph, and its hooks write their gradients to `.grad`.
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
    """The Hessian of a loss by finite differences of its gradient g, as an operator: `hessian @ v` returns about H v.

    H v is (g(theta + h v) - g(theta - h v)) / (2 h), at the parameters theta. Use it for losses that can be
    differentiated once only. Build it with `finite_difference_hessian`. A product costs two gradients. It moves the
    parameters and restores them bit for bit, also if it fails. Every evaluation draws the same random numbers, so
    dropout masks are the same.

    Attributes:
        loss: The loss at theta.
        params: The parameters that require a gradient. A flat vector holds their entries one after the other.
    """

    loss: float
    params: tuple[Tensor, ...]
    _layout: Layout
    _evaluate: "Evaluate"
    _gradient: Float[Tensor, " p"]
    _reach: float
    _obstacle: str

    @property
    def layout(self) -> Layout:
        """How flat vectors lie on the processes: whole on each, or in shards."""
        return self._layout

    @property
    def gradient(self) -> Float[Tensor, " p"]:
        """The gradient of the loss, as a flat vector."""
        return self._gradient

    @property
    def obstacle(self) -> str:
        """The reason for finite differences: the name of the operator without a second derivative, or "by request"."""
        return self._obstacle

    def __matmul__(self, vector: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        """H v, up to the rounding and the third derivatives within the reach of the difference."""
        layout = self.layout
        length = layout.norm(vector)
        if length == 0.0:
            return torch.zeros_like(vector)
        step = self._reach / length
        kept = [p.detach().clone() for p in self.params]
        directions = layout.shaped(vector)

        def gradient_at(distance: float) -> Tensor:
            with torch.no_grad():
                for p, here, direction in zip(self.params, kept, directions, strict=True):
                    p.copy_(here).add_(direction, alpha=distance)
            torch.clear_autocast_cache()  # it holds the weights as they were
            return self._evaluate()[1]

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
    """Build the Hessian of a loss from central differences of its gradient, for losses without a second derivative.

    The parameters theta move by h |v| = eps^(1/2) (1 + |theta|) / 10 to either side. eps is the machine epsilon of the
    coarsest dtype in use, that of autocast included. The classical eps^(1/3) balances rounding and third
    derivatives, but at that length a small ReLU network crosses a kink in every product. With eps^(1/2) products err by
    about 1e-3 in float32 and a few percent under bfloat16.

    Args:
        loss_fn: Returns the loss.
        params: The parameters to differentiate by; those without `requires_grad` are left out.
        differentiate: Returns the gradients of a loss: `by_autograd`, or `by_backward` for FSDP2.
        obstacle: The reason for finite differences, such as the name of the operator without a second derivative. It
            is kept in the result.

    Raises:
        ValueError: No parameter requires a gradient, or the loss is no scalar or has no gradient.
        FloatingPointError: The loss is not finite.

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
    """Build the Hessian of a weighted sum of losses from central differences of its gradient, one loss at a time.

    Returns the same operator as `finite_difference_hessian` for the sum of weight * loss() over `parts`, but holds the
    graph of one part at a time.

    Args:
        parts: Pairs (weight, loss), the loss a function without arguments.
        params: The parameters to differentiate by; those without `requires_grad` are left out.
        differentiate: Returns the gradients of a loss: `by_autograd`, or `by_backward` for FSDP2.
        obstacle: The reason for finite differences, such as the name of the operator without a second derivative. It
            is kept in the result.

    Raises:
        ValueError: There are no parts, no parameter requires a gradient, or a loss is no scalar or has no gradient.
        FloatingPointError: A loss is not finite.
    """
    parts, params = tuple(parts), trainable_only(params)
    if not parts:
        raise ValueError("expected at least one part of a batch, got none")
    evaluate = partial(_gradient, parts, params, differentiate, torch.initial_seed())
    return _of_gradients(evaluate, Layout.of(params), _coarsest_eps(params), obstacle)


@runtime_checkable
class GradientInShards(Protocol):
    """A loss and its gradient at the present parameters, of which each process has its part; a call is a collective.

    Attributes:
        parameters: The parameters as optimizers know them.
        layout: How flat vectors lie; its `params` are this process's parts, in the parameters' own memory.
        eps: The machine epsilon of the coarsest type in which the loss is computed, the same on all processes.
    """

    @property
    def parameters(self) -> Sequence[Tensor]: ...

    @property
    def layout(self) -> Layout: ...

    @property
    def eps(self) -> float: ...

    def __call__(self) -> tuple[float, Float[Tensor, " p"]]: ...


def shard_finite_difference_hessian(gradient: GradientInShards, *, obstacle: str) -> FiniteDifferenceHessian:
    """Build the same operator from gradients that come in shards: no process holds a vector of all parameters."""
    return _of_gradients(gradient, gradient.layout, gradient.eps, obstacle)


def _of_gradients(evaluate: "Evaluate", layout: Layout, eps: float, obstacle: str) -> FiniteDifferenceHessian:
    loss, gradient = evaluate()
    size = 1.0 + layout.norm(layout.flatten(p.detach() for p in layout.params))
    return FiniteDifferenceHessian(loss, layout.params, layout, evaluate, gradient, eps**0.5 * size / 10, obstacle)


Evaluate = Callable[[], tuple[float, Float[Tensor, " p"]]]
"""The loss and its flat gradient at the present parameters."""


def _gradient(
    parts: Sequence[LossPart], params: Sequence[Tensor], differentiate: Differentiate, seed: int
) -> tuple[float, Float[Tensor, " p"]]:
    """The weighted sum of the losses, and of their gradients, where the parameters stand now."""
    total, gradient, layout = 0.0, None, Layout.of(params)
    for k, (weight, loss_fn) in enumerate(parts):
        with seeded(seed + k, params), torch.enable_grad():
            loss = checked_loss(loss_fn, layout)
            pieces = [g.detach() for g in differentiate(loss, params)]
        total += weight * loss.item()
        del loss
        if gradient is None:
            gradient = layout.flatten(pieces).mul_(weight)
        else:
            layout.add(gradient, pieces, weight)
        del pieces
    assert gradient is not None
    return total, gradient


def _coarsest_eps(params: Sequence[Tensor]) -> float:
    types = {p.dtype for p in params}
    for kind in {p.device.type for p in params}:
        if torch.is_autocast_enabled(kind):
            types.add(torch.get_autocast_dtype(kind))
    return max(torch.finfo(dtype).eps for dtype in types)
