"""Products of the Hessian with a vector, exact, without the Hessian."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_topo.stability._layout import Layout, dense


class Curvature(ABC):
    """Base class of a Hessian H as an operator on flat vectors: `curvature @ v` returns H v.

    Attributes:
        loss: The loss at the parameters where the Hessian is taken.
        params: The parameters by which the loss is differentiated. A flat vector holds their entries one after the
            other, p in all.
    """

    __slots__ = ()
    loss: float
    params: tuple[Tensor, ...]

    @property
    @abstractmethod
    def gradient(self) -> Float[Tensor, " p"]:
        """The gradient of the loss, as a flat vector."""

    @abstractmethod
    def __matmul__(self, vector: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        """Return H v, a flat vector."""

    def along(self, vectors: Sequence[Float[Tensor, " p"]]) -> list[float]:
        """Return v^T H v of each vector v."""
        return [self.layout.dot(vector, self @ vector) for vector in vectors]

    @property
    def layout(self) -> Layout:
        """How flat vectors lie on the processes: whole on each, or in shards."""
        return Layout.of(self.params)

    @property
    def obstacle(self) -> str | None:
        """The reason why products are finite differences, such as the name of an operator; None if they are exact."""
        return None


class NotTwiceDifferentiable(RuntimeError):
    """Raised if a loss has no second derivative; `operator` names the operator in the loss that has none.

    `finite_difference_hessian` needs first derivatives only.
    """

    def __init__(self, operator: str) -> None:
        super().__init__(
            f"expected a loss that can be differentiated twice, but {operator} has no second derivative; "
            "finite_difference_hessian needs first derivatives only"
        )
        self.operator = operator


@dataclass(frozen=True, slots=True)
class Hessian(Curvature):
    """The Hessian H of a loss as an operator on flat vectors: `hessian @ v` returns H v, exact up to rounding.

    Build it with `hessian`. It holds the graph of the gradient. An in-place update of the parameters, such as an
    optimizer step, invalidates that graph: compute all products before.

    Attributes:
        loss: The loss at the parameters where the Hessian is taken.
        params: The parameters that require a gradient. A flat vector holds their entries one after the other.
    """

    loss: float
    params: tuple[Tensor, ...]
    _gradient: tuple[Tensor, ...]

    @property
    def gradient(self) -> Float[Tensor, " p"]:
        """The gradient of the loss, as a flat vector."""
        return self.layout.flatten(g.detach() for g in self._gradient)

    def __matmul__(self, vector: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        """H v: one backward pass through the gradient's graph.

        Raises `NotTwiceDifferentiable` at an operator whose backward pass cannot be differentiated.
        """
        product = torch.zeros_like(vector)
        self.layout.add(product, _product(self._gradient, self.params, vector, keep_graph=True))
        return product


def hessian(loss_fn: Callable[[], Tensor], params: Iterable[Tensor]) -> Hessian:
    """Build the Hessian of a loss with respect to `params`, at their current values.

    The graph of the gradient is built once and kept, so that each product costs about two training steps (Pearlmutter,
    *Fast exact multiplication by the Hessian*, 1994). No `.grad` is touched.

    Args:
        loss_fn: Returns the loss; it is called once.
        params: The parameters to differentiate by; those without `requires_grad` are left out.

    Raises:
        ValueError: No parameter requires a gradient, or the loss is no scalar or has no gradient.
        FloatingPointError: The loss is not finite.
        NotTwiceDifferentiable: An autograd function in the loss is marked `once_differentiable`; its products would be
            wrong without an error. Other operators without a second derivative raise it at the first
            product.

    >>> theta = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> H = hessian(lambda: theta[0] ** 2 + 3 * theta[1] ** 2, [theta])
    >>> H @ torch.tensor([1.0, 1.0])
    tensor([2., 6.])
    """
    trainable = trainable_only(params)
    loss, gradient = _differentiated(loss_fn, trainable, create_graph=True)
    return Hessian(loss, trainable, gradient)


def _differentiated(
    loss_fn: Callable[[], Tensor], params: tuple[Tensor, ...], *, create_graph: bool
) -> tuple[float, tuple[Tensor, ...]]:
    with torch.enable_grad():
        loss = checked_loss(loss_fn)
        if (name := _once_differentiable(loss)) is not None:
            raise NotTwiceDifferentiable(name)
        gradient = torch.autograd.grad(
            loss, params, create_graph=create_graph, allow_unused=True, materialize_grads=True
        )
    return loss.item(), tuple(map(dense, gradient))


def _product(
    gradient: Sequence[Tensor], params: tuple[Tensor, ...], vector: Float[Tensor, " p"], *, keep_graph: bool
) -> Sequence[Tensor | None]:
    """H v in pieces, from the gradient with its graph; None for a parameter along which it is zero."""
    directions = Layout.of(params).shaped(vector)
    curved = [(g, v) for g, v in zip(gradient, directions, strict=True) if g.requires_grad]
    if not curved:
        return [None] * len(params)
    outputs, along = zip(*curved, strict=True)
    try:
        return torch.autograd.grad(outputs, params, along, retain_graph=keep_graph, allow_unused=True)
    except RuntimeError as error:
        operator = _undifferentiable(error)
        if operator is None:
            raise
        raise NotTwiceDifferentiable(operator) from None


def trainable_only(params: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """The entries of `params` that require a gradient. Raises `ValueError` where none does."""
    trainable = tuple(p for p in params if p.requires_grad)
    if not trainable:
        raise ValueError("expected at least one parameter that requires a gradient, got none")
    return trainable


def checked_loss(loss_fn: Callable[[], Tensor], layout: Layout | None = None) -> Tensor:
    """`loss_fn()`, where it is one finite number with a gradient; in shards all processes raise, or none."""
    loss = loss_fn()
    if loss.numel() != 1:
        raise ValueError(f"expected a scalar loss, got shape {tuple(loss.shape)}")
    is_lost = not torch.isfinite(loss).all()
    if is_lost if layout is None else layout.anywhere(is_lost):
        found = f"{loss.item()}" if is_lost else "NaN or infinity on another process"
        raise FloatingPointError(f"expected a finite loss, got {found}")
    if not loss.requires_grad:
        raise ValueError("expected a loss that depends on a parameter that requires a gradient, got a constant one")
    return loss


_DECORATOR_FILE = once_differentiable.__code__.co_filename


def _once_differentiable(loss: Tensor) -> str | None:
    """The first autograd function in a loss's graph that is marked so: differentiated twice, it counts as constant."""
    seen, ahead = set(), [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        backward = getattr(getattr(node, "_forward_cls", None), "backward", None)
        # The decorator leaves what it wraps under `__wrapped__`, and its own code is defined in torch.
        code = getattr(backward, "__code__", None)
        if hasattr(backward, "__wrapped__") and code is not None and code.co_filename == _DECORATOR_FILE:
            return node.name().removesuffix("Backward")
        ahead += [following for following, _ in node.next_functions]
    return None


_REFUSALS = (
    r"derivative for '?([\w:.]+)'? is not implemented",
    r"backward through ([\w:.]+) but no autograd formula",
    r"(\S+) does not currently support double backward",
)


def _undifferentiable(error: RuntimeError) -> str | None:
    """The operator that refused to be differentiated twice; None where something else went wrong."""
    found = (re.search(pattern, str(error)) for pattern in _REFUSALS)
    return next((match[1] for match in found if match), None)


LossPart = tuple[float, Callable[[], Tensor]]
"""A weight, and a function without arguments that returns the loss on one part of a batch."""


@dataclass(frozen=True, slots=True)
class SplitHessian(Curvature):
    """The Hessian of a weighted sum of losses as an operator on flat vectors, in the memory of one loss.

    Build it with `split_hessian`. The graph of each loss is built and freed before the next one's. A product takes the
    time of about three training steps over all losses. A loss draws the same random numbers at every evaluation, so its
    dropout mask stays the same.

    Attributes:
        loss: The weighted sum of the losses.
        params: The parameters that require a gradient. A flat vector holds their entries one after the other.
    """

    loss: float
    params: tuple[Tensor, ...]
    _parts: tuple[LossPart, ...]
    _gradient: Float[Tensor, " p"]
    _seed: int

    @property
    def gradient(self) -> Float[Tensor, " p"]:
        """The gradient of the weighted sum of losses, as a flat vector."""
        return self._gradient

    def __matmul__(self, vector: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        """H v: the weighted sum of the parts' products."""
        product = torch.zeros_like(vector)
        for weight, gradient in self._gradients():
            self.layout.add(product, _product(gradient, self.params, vector, keep_graph=False), weight)
        return product

    def along(self, vectors: Sequence[Float[Tensor, " p"]]) -> list[float]:
        """Return v^T H v of each vector v; the graph of each part is built once for all vectors."""
        found = [0.0] * len(vectors)
        for weight, gradient in self._gradients():
            for i, vector in enumerate(vectors):
                product = torch.zeros_like(vector)
                pieces = _product(gradient, self.params, vector, keep_graph=i < len(vectors) - 1)
                self.layout.add(product, pieces, weight)
                found[i] += self.layout.dot(vector, product)
        return found

    def _gradients(self) -> Iterator[tuple[float, Sequence[Tensor]]]:
        """The weight of each part and its gradient, with a graph that is freed before that of the next one is built."""
        for k, (weight, loss_fn) in enumerate(self._parts):
            with seeded(self._seed + k, self.params):
                _, gradient = _differentiated(loss_fn, self.params, create_graph=True)
            yield weight, gradient
            del gradient


def split_hessian(parts: Iterable[LossPart], params: Iterable[Tensor]) -> SplitHessian:
    """Build the Hessian of the sum of weight * loss() over `parts`, in the memory that one part takes.

    Args:
        parts: Pairs (weight, loss), the loss a function without arguments; for example one pair per micro-batch.
        params: The parameters to differentiate by; those without `requires_grad` are left out.

    Raises:
        ValueError: There are no parts, no parameter requires a gradient, or a loss is no scalar or has no gradient.
        FloatingPointError: A loss is not finite.
        NotTwiceDifferentiable: An autograd function in a loss is marked `once_differentiable`.

    >>> theta = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> H = split_hessian([(0.5, lambda: theta[0] ** 2), (0.5, lambda: 3 * theta[1] ** 2)], [theta])
    >>> H @ torch.tensor([1.0, 1.0]), H.loss
    (tensor([1., 3.]), 6.5)
    """
    parts, params = tuple(parts), trainable_only(params)
    if not parts:
        raise ValueError("expected at least one part of a batch, got none")
    seed, layout = torch.initial_seed(), Layout.of(params)
    loss, gradient = 0.0, None
    for k, (weight, loss_fn) in enumerate(parts):
        with seeded(seed + k, params):
            of_part, pieces = _differentiated(loss_fn, params, create_graph=False)
        loss += weight * of_part
        if gradient is None:
            gradient = layout.flatten(pieces).mul_(weight)
        else:
            layout.add(gradient, pieces, weight)
        del pieces
    assert gradient is not None
    return SplitHessian(loss, params, parts, gradient, seed)


@contextmanager
def seeded(seed: int, params: Iterable[Tensor]) -> Iterator[None]:
    """Random numbers from `seed` on, on the CPU and wherever the parameters are; afterwards as if none were drawn."""
    devices = sorted({p.device.index for p in params if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
