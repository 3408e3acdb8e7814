"""Which tensors of a trace show the same memory, and what is owed since a part of it was written."""

import math
from collections.abc import Iterable, Iterator

from torch import Tensor

from lightning_topo.neurons._coupling import Axis, freeze
from lightning_topo.neurons._tensor_map import TensorMap

Part = tuple[float, float]
"""First and last place in memory, the last one excluded."""

WRITTEN = "written through a view"
_ALL: Part = (-math.inf, math.inf)


class SharedMemory:
    """Views by the tensor whose memory they show.

    Where a part of a tensor is written, the axes of what was written are owed: they are frozen once the whole is read.
    """

    def __init__(self) -> None:
        self._bases = TensorMap[Tensor]()
        self._views = TensorMap[list[Tensor]]()
        self._parts = TensorMap[Part]()  # of views whose place is known
        self._written = TensorMap[list[Part]]()  # of memory that held constants
        self._owed = TensorMap[list[Axis]]()

    def base(self, tensor: Tensor) -> Tensor | None:
        """The tensor of which this one is a view."""
        return self._bases.get(tensor)

    def root(self, tensor: Tensor) -> Tensor:
        """The tensor whose memory this one shows, itself if it is no view."""
        return self._bases.get(tensor, tensor)

    def views(self, base: Tensor) -> list[Tensor]:
        """The views of a tensor; those that showed what has been overwritten may be missing."""
        return self._views.get(base) or []

    def is_parted(self, base: Tensor) -> bool:
        """Whether parts of a tensor are owed, or its memory is shown under other tensors."""
        return base in self._owed or base in self._written or any(view in self._parts for view in self.views(base))

    def owe(self, tensor: Tensor, axes: Iterable[Axis]) -> None:
        """Freeze the axes of what may have been written into a tensor once it is read."""
        self._owed[tensor] = [*self._owed.get(tensor, ()), *axes]

    def add(self, view: Tensor, of: Tensor, part: Part | None = None) -> None:
        """Say that a tensor is a view of another, or of what that one is a view of."""
        base = self._bases[view] = self._bases.get(of, of)
        if base not in self._views:
            self._views[base] = []
        self._views[base].append(view)
        if part is not None:
            self._parts[view] = part

    def adopt(self, tensor: Tensor, other: Tensor) -> None:
        """Take `tensor` for a view of what `other` is a view of."""
        if other in self._bases:
            self._bases[tensor] = self._bases[other]

    def seen_with(self, target: Tensor) -> Iterator[Tensor]:
        """The other tensors that may show what is written into a view."""
        base, part = self._bases[target], self._parts.get(target, _ALL)
        yield from (
            seen
            for seen in (base, *self._views.get(base, ()))
            if seen is not target and (seen is base or not _are_apart(self._parts.get(seen, _ALL), part))
        )

    def forget_views(self, target: Tensor) -> None:
        """Nothing constant is left where this view shows: a thousand writes must not look at all the other views."""
        base, part = self._bases[target], self._parts.get(target, _ALL)
        views = self._views.get(base, ())
        self._views[base] = [seen for seen in views if _are_apart(self._parts.get(seen, _ALL), part)]

    def write_part(self, seen: Tensor, target: Tensor, axes: list[Axis]) -> None:
        """A part of what `seen` shows is written, by way of the view `target`, with values along these axes."""
        if seen is self._bases[target]:
            self._written[seen] = [*self._written.get(seen, ()), self._parts.get(target, _ALL)]
        self.owe(seen, axes)

    def owes(self, tensor: Tensor) -> bool:
        """Whether parts of this tensor have been written, and not been read with the whole."""
        return tensor in self._owed

    def settle(self, tensor: Tensor) -> None:
        """The whole is read: what has been written into parts of it is no longer exchangeable."""
        for axis in self._owed.pop(tensor) or ():
            freeze(axis, WRITTEN)

    def is_untouched(self, base: Tensor, part: Part) -> bool:
        """Whether parts of memory that held constants have been written, and this is none of them."""
        written = self._written.get(base)
        return written is not None and all(_are_apart(part, other) for other in written)


def _are_apart(one: Part, other: Part) -> bool:
    return one[1] <= other[0] or other[1] <= one[0]
