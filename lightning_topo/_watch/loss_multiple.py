"""How many times a loss is differentiated: a step may scale it, or take a multiple of its gradient."""

from contextlib import suppress
from functools import partial

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from lightning_topo._tape.foreign import is_plain


class LossMultiple:
    """Hears with which gradient the backward pass arrives at a loss. Nothing is left on the loss once it is taken."""

    def __init__(self) -> None:
        self._heard: list[Tensor] = []
        self._handle: RemovableHandle | None = None

    def listen(self, loss: Tensor) -> None:
        """Begin with another loss, which is about to be differentiated."""
        self.take()
        if is_plain(loss) and loss.requires_grad and loss.numel() == 1:
            self._handle = loss.register_hook(partial(_note, self._heard))

    def take(self) -> float | None:
        """The multiple of the last loss; None if there was no backward pass, or none that tells.

        >>> import torch
        >>> loss, multiple = torch.ones((), requires_grad=True) * 2, LossMultiple()
        >>> multiple.listen(loss)
        >>> (3 * loss).backward()
        >>> multiple.take(), multiple.take()
        (3.0, None)
        """
        if self._handle is not None:
            self._handle.remove()
        heard, self._handle, self._heard = self._heard, None, []
        with suppress(Exception):
            return float(heard[-1]) if heard else None
        return None


def _note(heard: list[Tensor], multiple: Tensor) -> None:
    with suppress(Exception):  # a backward pass must not end because of us
        heard[:] = [multiple.detach().clone().reshape(())]
