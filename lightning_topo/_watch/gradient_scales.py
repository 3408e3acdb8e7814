"""How the training changes a gradient before the optimizer uses it: clipping, and sums over several losses."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.optim import Optimizer


class GradientScales:
    """Measures s: an optimizer is handed s g for a gradient g of the recorded losses' mean.

    With G the gradient after the last backward pass, G' that with which the optimizer has stepped, and f_1, f_2, ...
    the factors with which losses were differentiated since the update before,

        s = (f_1 + f_2 + ...) |G'| / |G|

    Loss scaling of mixed precision is in each f and in G: it cancels. So does the 1/k of k accumulated batches; where
    they are added up undivided, s is k. Norms are taken at `wanted` steps only, over whole parameters, and read when
    asked for: no step waits for the device.
    """

    def __init__(self) -> None:
        self.wanted: bool = False
        self._factors: Tensor | float = 0.0
        self._has_stepped = False
        self._failure: Exception | None = None
        self._raw: dict[int, Tensor] = {}
        self._measured: dict[int, Tensor] = {}

    def loss(self, loss: Tensor, factor: float) -> None:
        """A loss, `factor` times the recorded one, is about to be differentiated, itself or a multiple of it."""
        if self._has_stepped:
            self._factors, self._has_stepped, self._raw = 0.0, False, {}
        if self.wanted and loss.requires_grad and loss.numel() == 1:
            loss.register_hook(partial(self._hear, factor))

    def differentiated(self, optimizers: Sequence[Optimizer]) -> None:
        """A gradient is there, as the backward pass has left it."""
        if self.wanted:
            for optimizer in optimizers:
                if (length := _gradient_norm(optimizer)) is not None:
                    self._raw[id(optimizer)] = length

    def stepped(self, optimizer: Optimizer) -> None:
        """The optimizer has stepped; its gradient is still the one that it took."""
        self._has_stepped = True
        raw = self._raw.pop(id(optimizer), None)
        taken = None if raw is None else _gradient_norm(optimizer)
        if raw is not None and taken is not None:
            self._measured[id(optimizer)] = self._factors * taken / raw

    def of(self, optimizers: Sequence[Optimizer]) -> tuple[float, ...]:
        """The last measured scale of each optimizer; 1 where there is none, or no gradient to measure it by."""
        found = [float(self._measured.get(id(optimizer), 1.0)) for optimizer in optimizers]
        return tuple(scale if 0.0 < scale < float("inf") else 1.0 for scale in found)

    def raise_failure(self) -> None:
        """Raise what has failed in a backward pass, which it must not end."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _hear(self, factor: float, multiple: Tensor) -> None:
        try:
            self._arrive(factor, multiple)
        except Exception as error:
            self._factors, self._failure = math.nan, error

    def _arrive(self, factor: float, multiple: Tensor) -> None:
        self._factors = self._factors + factor * multiple.detach().reshape(()).float()


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
