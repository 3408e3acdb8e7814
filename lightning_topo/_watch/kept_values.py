"""Copies of parameters' values, by which a write that no update made is seen."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from lightning_topo._watch.same_bits import Likeness


@dataclass(slots=True)
class Kept:
    """A parameter, and its value after its last update or when it was first met."""

    parameter: Tensor
    copy: Tensor
    version: int
    likeness: Likeness

    @staticmethod
    def of(parameter: Tensor) -> "Kept":
        """A parameter with its present value."""
        copy = parameter.detach().clone()
        return Kept(parameter, copy, parameter._version, Likeness(parameter, copy))

    @property
    def is_written(self) -> bool:
        """Whether a write has counted since; `.data` writes without counting."""
        return self.parameter._version != self.version

    def has_moved(self) -> bool:
        """Whether anything has written to the parameter since.

        On the CPU by value: `.data` writes without counting. On a device the comparison would wait for the device.
        """
        if not self.parameter.is_cpu:
            return self.is_written
        return not self.likeness.holds()


class KeptValues:
    """Holds one copy of each parameter that it has met, and renews it in place.

    `n_met` counts the copies that were made for parameters without one, or with one of another form.
    """

    def __init__(self) -> None:
        self.n_met: int = 0
        self._kept: dict[int, Kept] = {}
        self._has_lent = False

    def __iter__(self) -> Iterator[Kept]:
        return iter(self._kept.values())

    def of(self, parameters: Iterable[Tensor]) -> list[Kept]:
        """What is kept of these parameters; nothing of those not met yet."""
        return [self._kept[id(p)] for p in parameters if id(p) in self._kept]

    def is_any_written(self) -> bool:
        """Whether a write to any of the parameters has counted since it was last copied."""
        return any(k.parameter._version != k.version for k in self._kept.values())

    def meet(self, parameter: Tensor) -> None:
        """Copy a parameter's value unless there is a copy; a lazy one has none yet."""
        if id(parameter) not in self._kept and not is_lazy(parameter):
            self._kept[id(parameter)] = Kept.of(parameter)
            self.n_met += 1

    def moved(self, parameters: Iterable[Tensor]) -> list[Kept]:
        """Those that have moved since they were last copied; copies those that were not met in their present form."""
        found = []
        for parameter in parameters:
            kept = self._kept.get(id(parameter))
            if kept is None:
                self.meet(parameter)
            elif kept.copy.shape != parameter.shape or kept.copy.dtype is not parameter.dtype:  # as `double()` makes it
                del self._kept[id(parameter)]
                self.meet(parameter)
            elif kept.has_moved():
                found.append(kept)
        return found

    @torch.no_grad()
    def renew(self, kept: Sequence[Kept]) -> None:
        """Copy the present values; into other memory where somebody still reads the old ones."""
        if self._has_lent:
            for k in kept:
                self._kept[id(k.parameter)] = Kept.of(k.parameter)
        elif kept:
            copies, present = [k.copy for k in kept], [k.parameter for k in kept]
            torch._foreach_copy_(copies, present)  # pyright: ignore[reportPrivateImportUsage]
        for k in kept:
            k.version = k.parameter._version

    def lend(self) -> dict[int, Tensor]:
        """The copies by the ids of their parameters, which stay as they are until `take_back`."""
        self._has_lent = True
        return {key: kept.copy for key, kept in self._kept.items() if kept.parameter.requires_grad}

    def take_back(self) -> None:
        """Nobody reads the lent copies any more: they may be overwritten."""
        self._has_lent = False

    def clear(self) -> None:
        """Let all copies go."""
        self._kept.clear()
