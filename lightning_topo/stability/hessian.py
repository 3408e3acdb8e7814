"""Products of the Hessian with a vector, exact, without the Hessian."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


class Curvature(ABC):
    """A Hessian as an operator on flat vectors, with the loss and the parameters where it is taken."""

    __slots__ = ()
    loss: float
    params: tuple[Tensor, ...]

    @property
    @abstractmethod
    def gradient(self) -> Float[Tensor, " p"]:
        """g = d L / d theta, flat."""

    @abstractmethod
    def __matmul__(self, vector: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        """H v."""


@dataclass(frozen=True, slots=True)
class Hessian(Curvature):
    """H = d^2 L / d theta^2 at one point, as the map v -> H v on flat vectors.

    Holds the graph of the gradient, which an in-place update of the parameters (an optimizer step) invalidates:
    take all products before.
    """

    loss: float
    params: tuple[Tensor, ...]
    _gradient: tuple[Tensor, ...]

    @property
    def gradient(self) -> Float[Tensor, " p"]:
        """g = d L / d theta, flat."""
        return flatten(g.detach() for g in self._gradient)

    def __matmul__(self, vector: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        """H v: one backward pass through the gradient's graph."""
        curved = [(g, v) for g, v in zip(self._gradient, self._split(vector), strict=True) if g.requires_grad]
        if not curved:
            return torch.zeros_like(vector)
        outputs, directions = zip(*curved, strict=True)
        product = torch.autograd.grad(
            outputs,
            self.params,
            directions,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return flatten(product)

    def _split(self, vector: Tensor) -> Sequence[Tensor]:
        pieces = vector.split([p.numel() for p in self.params])
        return [piece.view_as(p).to(p.dtype) for piece, p in zip(pieces, self.params, strict=True)]


def hessian(loss_fn: Callable[[], Tensor], params: Iterable[Tensor]) -> Hessian:
    """The Hessian of `loss_fn()` with respect to `params`, where they stand now.

    The gradient's graph is built once and kept, so that each product costs about two training steps (Pearlmutter,
    *Fast exact multiplication by the Hessian*, 1994). Parameters that do not require a gradient are left out. No
    `.grad` is touched.

    Raises `ValueError` if no parameter requires a gradient or the loss is no scalar, and `FloatingPointError` if
    the loss is not finite.

    >>> theta = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> H = hessian(lambda: theta[0] ** 2 + 3 * theta[1] ** 2, [theta])
    >>> H @ torch.tensor([1.0, 1.0])
    tensor([2., 6.])
    """
    trainable = tuple(p for p in params if p.requires_grad)
    if not trainable:
        raise ValueError("expected at least one parameter that requires a gradient, got none")
    with torch.enable_grad():
        loss = loss_fn()
        if loss.numel() != 1:
            raise ValueError(f"expected a scalar loss, got shape {tuple(loss.shape)}")
        if not torch.isfinite(loss).all():
            raise FloatingPointError(f"expected a finite loss, got {loss.item()}")
        gradient = torch.autograd.grad(loss, trainable, create_graph=True, allow_unused=True, materialize_grads=True)
    return Hessian(loss.item(), trainable, gradient)


LossPart = tuple[float, Callable[[], Tensor]]
"""A weight, and the loss on one part of a batch."""


@dataclass(frozen=True, slots=True)
class SplitHessian(Curvature):
    """The Hessian of a weighted sum of losses, whose graphs are built and freed one after the other.

    A product costs about three training steps over all parts, and the memory of one part. Every evaluation of a part
    draws the same random numbers: one dropout mask per part.
    """

    loss: float
    params: tuple[Tensor, ...]
    _parts: tuple[LossPart, ...]
    _gradient: Float[Tensor, " p"]
    _seed: int

    @property
    def gradient(self) -> Float[Tensor, " p"]:
        """g = d L / d theta, flat."""
        return self._gradient

    def __matmul__(self, vector: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        """H v: the weighted sum of the parts' products."""
        product = torch.zeros_like(vector)
        for weight, part in _each(self._parts, self.params, self._seed):
            product += weight * (part @ vector)
        return product


def split_hessian(parts: Iterable[LossPart], params: Iterable[Tensor]) -> SplitHessian:
    """The Hessian of sum of weight * loss() over `parts`, in the memory that one part takes.

    Raises as `hessian`, and `ValueError` without a part.

    >>> theta = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> H = split_hessian([(0.5, lambda: theta[0] ** 2), (0.5, lambda: 3 * theta[1] ** 2)], [theta])
    >>> H @ torch.tensor([1.0, 1.0]), H.loss
    (tensor([1., 3.]), 6.5)
    """
    parts, params = tuple(parts), tuple(p for p in params if p.requires_grad)
    if not parts:
        raise ValueError("expected at least one part of a batch, got none")
    seed = torch.initial_seed()
    loss, gradient = 0.0, None
    for weight, part in _each(parts, params, seed):
        loss += weight * part.loss
        scaled = weight * part.gradient
        gradient = scaled if gradient is None else gradient + scaled
    assert gradient is not None
    return SplitHessian(loss, params, parts, gradient, seed)


def _each(parts: Iterable[LossPart], params: Sequence[Tensor], seed: int) -> Iterator[tuple[float, Hessian]]:
    devices = sorted({p.device.index for p in params if p.device.type == "cuda"})
    for k, (weight, loss_fn) in enumerate(parts):
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed + k)
            part = hessian(loss_fn, params)
        yield weight, part


def flatten(tensors: Iterable[Tensor]) -> Float[Tensor, " p"]:
    """All entries of the tensors in one vector, in at least float32."""
    return torch.cat([t.reshape(-1).to(torch.promote_types(t.dtype, torch.float32)) for t in tensors])
