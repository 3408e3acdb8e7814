"""The parameters as their update has left them, where something else writes to them before they are measured."""

from collections.abc import Iterable

from torch import Tensor

from lightning_topo._watch.same_bits import same_values

_AT_FIRST, _EVERY = 20, 10
"""Of the updates the first ones are looked at by some of their values, and one in so many of the rest."""
_ENTRIES = 512


class ValuesAfter:
    """Tells which parameters are no longer as the present batch's updates have left them.

    A wrapper that averages, a clamp behind the step or another callback writes before the batch is over. That is seen
    by the parameters' versions and, on the CPU, by some of their values: `.data` writes without a version, and reading
    a value would wait for a device. Whoever writes once does so again: from then on (`keeps`) the values are copied
    right after every update, and `copies` holds them, by the ids of the parameters.

    >>> import torch
    >>> weight = torch.zeros(3)
    >>> values = ValuesAfter()
    >>> values.updated([weight]); weight.clamp_(min=1.0); values.overwritten(), values.keeps, values.copies
    tensor([1., 1., 1.])
    ([tensor([1., 1., 1.])], True, {})
    """

    def __init__(self) -> None:
        self.keeps: bool = False
        self.copies: dict[int, Tensor] = {}
        self._versions: dict[int, tuple[Tensor, int]] = {}
        self._some: dict[int, Tensor] = {}
        self._n_updates = 0

    def updated(self, parameters: Iterable[Tensor]) -> None:
        """An update of these parameters has just ended."""
        self._n_updates += 1
        looks = self._n_updates <= _AT_FIRST or self._n_updates % _EVERY == 0
        if not (looks or self.keeps):
            self._versions.update({id(p): (p, p._version) for p in parameters})
            return
        for parameter in parameters:
            self._note(parameter, looks=looks)

    def rewritten(self, parameters: Iterable[Tensor]) -> None:
        """A guard has changed an update of these parameters, which may have been noted before."""
        for parameter in parameters:
            if (known := self._versions.get(id(parameter))) is not None and known[1] != parameter._version:
                self._note(parameter, looks=id(parameter) in self._some)

    def overwritten(self) -> list[Tensor]:
        """The parameters that something else has written to since their update."""
        if self._some or self.copies:
            found = [parameter for parameter, version in self._versions.values() if self._differs(parameter, version)]
        else:
            found = [parameter for parameter, version in self._versions.values() if parameter._version != version]
        self.keeps = self.keeps or bool(found)
        return found

    def forget(self) -> None:
        """The updates so far are done with."""
        for kept in (self.copies, self._versions, self._some):
            kept.clear()

    def _note(self, parameter: Tensor, *, looks: bool) -> None:
        self._versions[id(parameter)] = parameter, parameter._version
        if self.keeps:
            self.copies[id(parameter)] = parameter.detach().clone()
        elif looks and parameter.device.type == "cpu":
            self._some[id(parameter)] = _some(parameter).clone()

    def _differs(self, parameter: Tensor, version: int) -> bool:
        copy, some = self.copies.get(id(parameter)), self._some.get(id(parameter))
        has_counted = parameter._version != version
        if copy is not None:
            return (has_counted or parameter.device.type == "cpu") and not same_values(copy, parameter.detach())
        return has_counted or (some is not None and not same_values(some, _some(parameter)))


def _some(parameter: Tensor) -> Tensor:
    """Some of the values, evenly spread."""
    flat = parameter.detach().flatten()
    return flat[:: max(1, flat.numel() // _ENTRIES)]
