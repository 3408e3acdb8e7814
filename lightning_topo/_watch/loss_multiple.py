"""How many times a loss is differentiated: a step may scale it, or take a multiple of its gradient."""

from contextlib import suppress
from functools import partial

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from lightning_topo._tape.foreign import is_plain


class LossMultiple:
    """Hears with which gradient the backward pass arrives at a loss. Nothing is left on the loss once it is forgotten.

    >>> import torch
    >>> loss, multiple = torch.ones((), requires_grad=True) * 2, LossMultiple()
    >>> multiple.listen(loss)
    >>> (3 * loss).backward()
    >>> multiple.take(), multiple.take()
    (3.0, None)
    """

    def __init__(self) -> None:
        self._heard: list[Tensor] = []
        self._handle: RemovableHandle | None = None

    def listen(self, loss: Tensor) -> None:
        """Begin with another loss, which is about to be differentiated."""
        self.forget()
        if is_plain(loss) and loss.requires_grad and loss.numel() == 1:
            self._handle = loss.register_hook(partial(_note, self._heard))

    def heard(self) -> Tensor | None:
        """The multiple of the last loss, of shape (); None if there was no backward pass. Waits for no device."""
        return self._heard[-1] if self._heard else None

    def forget(self) -> None:
        """Be done with the loss."""
        if self._handle is not None:
            self._handle.remove()
        self._handle, self._heard = None, []

    def take(self) -> float | None:
        """The multiple of the last loss as a number, which is then forgotten; None where nothing tells it."""
        multiple = self.heard()
        self.forget()
        with suppress(Exception):
            return None if multiple is None else float(multiple)
        return None


def _note(heard: list[Tensor], multiple: Tensor) -> None:
    with suppress(Exception):  # a backward pass must not end because of us
        heard[:] = [multiple.detach().clone().reshape(())]
