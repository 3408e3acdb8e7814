"""How the training changes a gradient before the optimizer uses it: clipping, and sums over several losses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_topo._tape import Tape
from lightning_topo._watch.loss_multiple import LossMultiple

_ALIKE = 1e-3
"""So much of each other may factors differ by rounding."""


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
    """

    def __init__(self) -> None:
        self.wanted: bool = False
        self._multiple, self._factor = LossMultiple(), 1.0
        self._taken: dict[int, _Taken] = {}
        self._measured: dict[int, Tensor] = {}
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
                self._taken.setdefault(id(optimizer), _Taken()).add(arriving, length)

    def stepped(self, optimizer: Optimizer) -> None:
        """The optimizer has stepped; its gradient is still the one that it took."""
        self._multiple.forget()
        taken = self._taken.pop(id(optimizer), None)
        length = None if taken is None or taken.length is None else _gradient_norm(optimizer)
        if taken is not None and taken.length is not None and length is not None:
            self._measured[id(optimizer)] = taken.factor() * length / taken.length

    def of(self, optimizers: Sequence[Optimizer]) -> tuple[float, ...]:
        """The last measured scale of each optimizer; 1 where there is none, or no gradient to measure it by."""
        found = [(float(self._measured.get(id(o), 1.0)), self._hooked.get(id(o), 1.0)) for o in optimizers]
        return tuple((scale if 0.0 < scale < float("inf") else 1.0) * hooked for scale, hooked in found)


@dataclass(slots=True)
class _Taken:
    """The factors with which losses have gone into an optimizer's gradient, and its length after the last of them."""

    length: Tensor | None = None
    earlier: Tensor | float = 0.0
    here: Tensor | float = 0.0
    n_here: Tensor | float = 0.0

    def begin_batch(self) -> None:
        self.earlier, self.here, self.n_here = self.factor(), 0.0, 0.0

    def add(self, factor: Tensor | float, length: Tensor) -> None:
        """A loss was differentiated: it counts if the gradient is another one now."""
        counts = (length != (0.0 if self.length is None else self.length)).float()
        self.here, self.n_here, self.length = self.here + factor * counts, self.n_here + counts, length

    def forget_unless(self, length: Tensor | None) -> None:
        """Forget everything if the gradient was cleared: it has no length any more, or none left."""
        if length is None:
            self.length, self.earlier, self.here, self.n_here = None, 0.0, 0.0, 0.0
            return
        is_there = (length > 0.0).float()
        self.earlier, self.here, self.n_here = self.earlier * is_there, self.here * is_there, self.n_here * is_there
        self.length = length

    def factor(self) -> Tensor | float:
        """The sum over batches of the mean factor."""
        return self.earlier + self.here / torch.as_tensor(self.n_here).clamp(min=1.0)


@torch.no_grad()
def _gradient_norm(optimizer: Optimizer) -> Tensor | None:
    """|g| over all of an optimizer's parameters; None where they have no plain gradient."""
    gradients = [
        p.grad
        for group in optimizer.param_groups
        for p in group["params"]
        if p.grad is not None and not p.grad.is_sparse
    ]
    if not gradients:
        return None
    norms = torch._foreach_norm(gradients)  # pyright: ignore[reportPrivateImportUsage]
    device = norms[0].device
    return torch.stack([norm.float().to(device) for norm in norms]).norm()
