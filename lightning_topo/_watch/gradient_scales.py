"""How the training makes the gradient that an optimizer uses: clipping, sums over losses, accumulated batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_topo._tape import Tape
from lightning_topo._watch.loss_multiple import LossMultiple

_ALIKE = 1e-3
"""So much of each other may factors differ by rounding."""
_EVEN = {torch.float64: 1e-4, torch.float32: 1e-4}
_EVEN_IN_HALF = 2e-2
"""The same of norms of gradients, by their type."""


class GradientScales:
    """Measures s: an optimizer is handed s g for a gradient g of the recorded loss, of a batch's losses the sum.

    With G the gradient after the last backward pass, G' that with which the optimizer has stepped, and f_b the mean
    factor with which losses of batch b were differentiated that have changed its gradient since its update before,

        s = h (f_1 + f_2 + ...) |G'| / |G|

    h is the factor of hooks that scale all gradients alike, which act before G is there. The last recorded step tells
    it by the gradient of its tape; it is 1 where none does.

    Loss scaling of mixed precision is in each f and in G: it cancels. So does the 1/k of k accumulated batches; where
    they are added up undivided, s is k. Norms are taken at `wanted` steps only, over whole parameters, and read when
    asked for: no step waits for the device.

    There is no s where entries of G' are those of G times different factors, as where they are clipped by value. The
    norms |.|_1 and |.|_2 of a parameter tell: both are scaled by one factor only if all its entries are.

    G' is what stands in the gradients just before the step or, where that runs a closure, when this is over:
    optimizers may write over them.
    """

    def __init__(self) -> None:
        self.wanted: bool = False
        self._multiple, self._factor = LossMultiple(), 1.0
        self._taken: dict[int, _Taken] = {}
        self._given: dict[int, _Given] = {}
        self._measured: dict[int, Tensor] = {}
        self._uneven: dict[int, Tensor] = {}
        self._batches: dict[int, tuple[Tensor, Tensor]] = {}
        self._hooked: dict[int, float] = {}

    def recorded(
        self, tapes: Sequence[Tape], optimizers: Sequence[Optimizer], parameters: Mapping[str, Tensor]
    ) -> None:
        """Take in the tapes of a recorded step, which name the `parameters`."""
        for optimizer in optimizers:
            own = {id(p) for group in optimizer.param_groups for p in group["params"]}
            names = {name for name, p in parameters.items() if id(p) in own}
            mine = [tape for tape in tapes if not names.isdisjoint(names if tape.owners is None else tape.owners)]
            factors = [tape.gradient_factor for tape in mine if tape.gradient_factor is not None]
            if factors:  # those of several losses that differ are no factor of their sum
                is_common = max(factors) - min(factors) <= _ALIKE * max(factors)
                self._hooked[id(optimizer)] = factors[0] if is_common else 1.0

    def want(self, wanted: bool) -> None:
        """Whether s is wanted of the step that begins."""
        self.wanted = wanted
        if not wanted:  # those of an optimizer that sat out the last step: its gradient goes on unseen
            self._taken.clear()
            self._given.clear()

    def begin_batch(self) -> None:
        """Another batch begins."""
        self._multiple.forget()
        for taken in self._taken.values():
            taken.begin_batch()

    def loss(self, loss: Tensor, factor: float, optimizers: Sequence[Optimizer] = ()) -> None:
        """A loss, `factor` times the recorded one, is about to be differentiated, itself or a multiple of it."""
        if not self.wanted:
            return
        for optimizer in optimizers:
            taken, length = self._taken.setdefault(id(optimizer), _Taken()), _gradient_norm(optimizer)
            taken.forget_unless(length)
        self._factor = factor
        self._multiple.listen(loss)

    def differentiated(self, optimizers: Sequence[Optimizer]) -> None:
        """A gradient is there, as the backward pass has left it."""
        if not self.wanted:
            return
        multiple = self._multiple.heard()
        arriving = 0.0 if multiple is None else self._factor * multiple.float()
        for optimizer in optimizers:
            if (length := _gradient_norm(optimizer)) is not None:
                self._taken.setdefault(id(optimizer), _Taken()).add(arriving, length, _norms(optimizer))

    def stepping(self, optimizer: Optimizer) -> None:
        """The optimizer is about to step, with the gradient that is there; the last call counts."""
        if id(optimizer) in self._taken and (length := _gradient_norm(optimizer)) is not None:
            self._given[id(optimizer)] = _Given(length, _norms(optimizer))

    def stepped(self, optimizer: Optimizer) -> None:
        """The optimizer has stepped."""
        self._multiple.forget()
        key = id(optimizer)
        taken, given = self._taken.pop(key, None), self._given.pop(key, None)
        if taken is None or taken.length is None or (now := _gradient_norm(optimizer)) is None:
            return
        given = given or _Given(now, _norms(optimizer))
        self._measured[key] = taken.factor() * given.length / taken.length
        self._batches[key] = taken.batches()
        self._uneven.pop(key, None)
        if (uneven := _are_uneven(taken.norms, given.norms)) is not None:
            self._uneven[key] = uneven

    def of(self, optimizers: Sequence[Optimizer]) -> tuple[float | None, ...]:
        """The last measured scale of each optimizer; 1 where there is none, or no gradient to measure it by.

        None where no one factor scales all entries of the gradient.
        """
        return tuple(None if bool(self._uneven.get(id(o), False)) else self._of(o) for o in optimizers)

    def _of(self, optimizer: Optimizer) -> float:
        scale = float(self._measured.get(id(optimizer), 1.0))
        return (scale if 0.0 < scale < float("inf") else 1.0) * self._hooked.get(id(optimizer), 1.0)

    def batches_per_update(self, optimizers: Sequence[Optimizer]) -> int | None:
        """How many batches the optimizers' last measured updates have taken together, this process's alone.

        None where that was not measured, or differs; and where several losses of one batch went into an update: they
        may be parts of the batch, or terms of its loss.
        """
        found: set[int | None] = set()
        for n, most_losses in (self._batches[id(o)] for o in optimizers if id(o) in self._batches):
            found.add(round(float(n)) if float(most_losses) <= 1.0 <= float(n) else None)
        return found.pop() if len(found) == 1 else None


@dataclass(frozen=True, slots=True)
class _Given:
    """|G'| and its norms."""

    length: Tensor
    norms: "_Norms | None"


@dataclass(slots=True)
class _Taken:
    """The factors with which losses have gone into an optimizer's gradient, and its length after the last of them."""

    length: Tensor | None = None
    norms: "_Norms | None" = None
    earlier: Tensor | float = 0.0
    here: Tensor | float = 0.0
    n_here: Tensor | float = 0.0
    n_batches: Tensor | float = 0.0
    most_losses: Tensor | float = 0.0

    def begin_batch(self) -> None:
        self.n_batches, self.most_losses = self.batches()
        self.earlier, self.here, self.n_here = self.factor(), 0.0, 0.0

    def add(self, factor: Tensor | float, length: Tensor, norms: "_Norms") -> None:
        """A loss was differentiated: it counts if the gradient is another one now."""
        counts = (length != (0.0 if self.length is None else self.length)).float()
        self.here, self.n_here, self.length = self.here + factor * counts, self.n_here + counts, length
        self.norms = norms

    def forget_unless(self, length: Tensor | None) -> None:
        """Forget everything if the gradient was cleared: it has no length any more, or none left."""
        if length is None:
            self.length, self.earlier, self.here, self.n_here = None, 0.0, 0.0, 0.0
            self.n_batches, self.most_losses = 0.0, 0.0
            return
        is_there = (length > 0.0).float()
        self.earlier, self.here, self.n_here = self.earlier * is_there, self.here * is_there, self.n_here * is_there
        self.n_batches, self.most_losses = self.n_batches * is_there, self.most_losses * is_there
        self.length = length

    def batches(self) -> tuple[Tensor, Tensor]:
        """How many batches have changed the gradient, and the most losses of one batch that did."""
        here = torch.as_tensor(self.n_here)
        earlier, most = (torch.as_tensor(each, device=here.device) for each in (self.n_batches, self.most_losses))
        return earlier + (here > 0.0).float(), torch.maximum(most.float(), here.float())

    def factor(self) -> Tensor | float:
        """The sum over batches of the mean factor."""
        return self.earlier + self.here / torch.as_tensor(self.n_here).clamp(min=1.0)


@torch.no_grad()
def _gradient_norm(optimizer: Optimizer) -> Tensor | None:
    """|g| over all of an optimizer's parameters; None where they have no plain gradient."""
    gradients = _gradients(optimizer)
    if not gradients:
        return None
    norms = torch._foreach_norm(gradients)  # pyright: ignore[reportPrivateImportUsage]
    device = norms[0].device
    return torch.stack([norm.float().to(device) for norm in norms]).norm()


def _gradients(optimizer: Optimizer) -> list[Tensor]:
    return [
        p.grad
        for group in optimizer.param_groups
        for p in group["params"]
        if p.grad is not None and not p.grad.is_sparse
    ]


@dataclass(frozen=True, slots=True)
class _Norms:
    """|g|_1 and |g|_2 of each gradient, and how much of each other they may differ by rounding."""

    values: Tensor
    rounding: float


@torch.no_grad()
def _norms(optimizer: Optimizer) -> _Norms:
    gradients = _gradients(optimizer)
    norms = [
        norm
        for order in (1, 2)
        for norm in torch._foreach_norm(gradients, order)  # pyright: ignore[reportPrivateImportUsage]
    ]
    rounding = max((_EVEN.get(norm.dtype, _EVEN_IN_HALF) for norm in norms), default=0.0)
    device = norms[0].device if norms else None
    return _Norms(torch.stack([norm.float().to(device) for norm in norms]) if norms else torch.empty(0), rounding)


def _are_uneven(before: _Norms | None, after: _Norms | None) -> Tensor | None:
    """Whether gradients with these norms were scaled by different factors, of shape (); None if nothing tells it."""
    if before is None or after is None or len(before.values) != len(after.values) or not len(after.values):
        return None
    old, new = before.values, after.values.to(before.values.device)
    factors, is_there = new / old, old > 0.0
    largest = torch.where(is_there, factors, -torch.inf).amax()
    least = torch.where(is_there, factors, torch.inf).amin()
    has_grown = ((new > 0.0) & ~is_there).any() & is_there.any()
    return (largest - least > max(before.rounding, after.rounding) * largest) | has_grown
