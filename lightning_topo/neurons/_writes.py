"""What operators write in place, seen in all tensors that show the same memory."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_topo._tape.program import leaves, write_positions
from lightning_topo.neurons._ancestry import Ancestry
from lightning_topo.neurons._coupling import Axis, axis_size, flat, freeze, is_constant, new_axis, renewed
from lightning_topo.neurons._mosaics import Mosaics
from lightning_topo.neurons._operator_call import OperatorCall
from lightning_topo.neurons._places import TURNS_IN_PLACE
from lightning_topo.neurons._shared_memory import WRITTEN, Part, SharedMemory
from lightning_topo.neurons._tensor_map import TensorMap


def written_in_place(func: Any, call: OperatorCall) -> list[Tensor]:
    """The tensors that a call writes to."""
    if call.name in TURNS_IN_PLACE:
        return []
    found = [part for _, name in write_positions(func) for part in leaves([call.get(name)])]
    return [part for part in found if isinstance(part, Tensor)]


class Writes:
    """Keeps the axes and origins of tensors up to date with what is written into their memory.

    Constants of which boxes are written are mosaics, read as they are by then. Where a view is no box, what is written
    through it or seen through it is frozen; so is memory that is shown under several tensors, unless each part is read
    by itself. Of tensors without constants nothing is kept: their views have their atoms.
    """

    def __init__(self, axes: TensorMap[list[Axis]], weights: TensorMap[frozenset[str]], ancestry: Ancestry) -> None:
        self._axes = axes
        self._weights = weights
        self._ancestry = ancestry
        self.memory = SharedMemory()
        self._mosaics = Mosaics()

    def settle(self, tensor: Tensor) -> None:
        """A tensor is read: let it show what has been written into its memory."""
        self.memory.settle(tensor)
        self._show(tensor)

    def read_by(self, call: OperatorCall) -> bool:
        """Bring what a call reads up to date; False if it only makes views, which are read later."""
        if self._mosaics.defers(call):
            return False
        for tensor in call.inputs:
            self._show(tensor)
        return True

    def _show(self, tensor: Tensor) -> None:
        shown = self._mosaics.shown(tensor)
        if shown is None:
            return
        if [axis_size(axis) for axis in shown.axes] != list(tensor.shape):
            raise RuntimeError(f"expected axes of sizes {list(tensor.shape)} from what was written in parts")
        self._axes[tensor] = shown.axes
        if shown.origin is not None:
            self._weights[tensor] = shown.origin
        else:
            self._weights.pop(tensor)
            self._ancestry.add(tensor, shown.sources)

    def is_constant(self, base: Tensor, part: Part) -> bool:
        """Whether a part of a tensor's memory is known to hold constants."""
        if self.memory.base(base) is not None or base not in self._axes or base in self._mosaics:
            return False
        constant = all(is_constant(atom) for axis in self._axes[base] for atom in flat(axis))
        return constant or self.memory.is_untouched(base, part)

    def note_views(self, call: OperatorCall) -> None:
        """Remember where the views that a call returns stand in memory."""
        self._mosaics.note_views(call, self.memory.root(call.out))

    def begun(self, tensor: Tensor) -> Tensor | None:
        """Before a write: constants of which a box is written, taken for a mosaic from now on."""
        base, _ = self._mosaics.home(tensor)
        axes, views = self._axes.get(base), self.memory.views(base)
        if base in self._mosaics or not axes or not views or self.memory.is_parted(base):
            return None
        if base is tensor and self.memory.base(tensor) is not None:  # a view that is no box
            return None
        if not any(is_constant(atom) for axis in axes for atom in flat(axis)):
            return None
        self._mosaics.begin(base, [renewed(axis) for axis in axes], self._weights.get(base), views)
        return base

    def done(self, call: OperatorCall, written: Sequence[Tensor]) -> None:
        """After a call: let what it has written be seen in all tensors that show the same memory."""
        if call.name in TURNS_IN_PLACE:
            self._turned(call.inputs[0])
            return
        for tensor in written:
            base = self.memory.root(tensor)
            if base in self._mosaics:
                self._write_box(tensor, base)
            elif base is not tensor:
                self._write_through(base, call, tensor)

    def drawn(self, tensor: Tensor) -> None:
        """Random numbers have been written into a tensor, and been given axes of their own."""
        if (base := self.memory.root(tensor)) in self._mosaics:
            self._write_box(tensor, base)

    def _write_box(self, tensor: Tensor, base: Tensor) -> None:
        axes = self._axes.get(tensor)
        if axes is None:
            return
        if base is not tensor and not self._mosaics.is_placed(tensor):
            self._spoil(base, axes)
            return
        for view in self._mosaics.write(tensor, axes, self._weights.get(tensor)):
            if view is not tensor:
                self.memory.owe(view, [*axes, *self._axes.get(view, ())])
                self._make_data(view)
                self._weights.pop(view)

    def _spoil(self, base: Tensor, axes: Sequence[Axis]) -> None:
        """A mosaic is written where it is no box: nothing that it holds, or held, is exchangeable."""
        known, views = self._mosaics.spoil(base)
        for axis in [*known, *axes, *(axis for view in views for axis in self._axes.get(view, ()))]:
            freeze(axis, WRITTEN)

    def _turned(self, tensor: Tensor) -> None:
        """A tensor shows its memory in another way: views of it are no boxes any longer."""
        base = self.memory.base(tensor)
        if base is None and tensor in self._mosaics:
            self._spoil(tensor, self._axes.get(tensor, ()))
        self._mosaics.lose(self.memory.views(tensor) if base is None else [tensor])

    def _write_through(self, base: Tensor, call: OperatorCall, target: Tensor) -> None:
        """Let what is written into a view be seen in its base, and in the base's other views."""
        is_data = any(tensor not in self._weights for tensor in call.inputs)
        for seen in self.memory.seen_with(target):
            self._overwritten(seen, base, call, target)
            if is_data:
                self._weights.pop(seen)
        if is_data:
            self.memory.forget_views(target)

    def _overwritten(self, seen: Tensor, base: Tensor, call: OperatorCall, target: Tensor) -> None:
        """Constants of which a part is written become data; where all is written anew, they are what was written."""
        axes = self._axes.get(seen)
        if _geometry(seen) == _geometry(base) == _geometry(target):
            self._axes[seen] = self._axes[target]
        elif axes and (self.memory.owes(seen) or any(is_constant(atom) for axis in axes for atom in flat(axis))):
            written = [axis for tensor in call.inputs for axis in self._axes.get(tensor) or []]
            self.memory.write_part(seen, target, written)
            self._make_data(seen)

    def _make_data(self, tensor: Tensor) -> None:
        self._axes[tensor] = [new_axis(size, frozen=True) for size in tensor.shape]


def _geometry(tensor: Tensor) -> tuple[Sequence[int], Sequence[int]]:
    return tensor.shape, tensor.stride()
