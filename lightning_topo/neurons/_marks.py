"""Tensors whose values give axes away once they are read: positions along an axis, and the values at one position."""

from collections.abc import Callable

from torch import Tensor

from lightning_topo._tape.program import leaves
from lightning_topo.neurons._coupling import Axis, axis_size, freeze, unify
from lightning_topo.neurons._operator_call import OperatorCall
from lightning_topo.neurons._tensor_map import TensorMap

# Operators that only move values, and those whose rules take an index for the positions that it holds.
_KEEPS_MARKS = frozenset(
    {"alias", "clone", "contiguous", "detach", "expand", "lift_fresh", "permute", "select", "slice", "squeeze",
     "transpose", "unbind", "unsqueeze", "view", "_unsafe_view", "split", "split_with_sizes", "cat"}
)  # fmt: skip
_READS_POSITIONS = {
    **dict.fromkeys(("gather", "scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce"), "index"),
    **dict.fromkeys(
        ("index", "_unsafe_index", "embedding", "_embedding_bag", "_embedding_bag_forward_only"), "indices"
    ),
    "index_select": "index",
}

_Marked = tuple[tuple[Axis, str], ...]


class Marks:
    """Keeps which axes each tensor gives away, and why; reading its values as numbers freezes them.

    `settle` is called with a tensor before it is read, to take in what was written into its memory.

    >>> from lightning_topo.neurons._coupling import new_axis
    >>> marks, axis, index = Marks(settle=lambda tensor: None), new_axis(3), Tensor([2.0])
    >>> marks.point(index, axis, "the position of an extreme")
    >>> axis[0].frozen, marks.read(index), axis[0].frozen
    (False, None, True)
    """

    def __init__(self, settle: Callable[[Tensor], None]) -> None:
        self._settle = settle
        self._positions = TensorMap[_Marked]()  # integer tensors -> the axes that their values index, and why
        self._singled = TensorMap[_Marked]()  # tensors -> the axes of which they hold one position, and why

    def point(self, tensor: Tensor, axis: Axis, reason: str) -> None:
        """Mark a tensor whose values are positions along an axis."""
        self._positions[tensor] = (*self._positions.get(tensor, ()), (axis, reason))

    def pointed(self, tensor: Tensor) -> list[Axis]:
        """The axes that the values of a tensor are positions along."""
        return [axis for axis, _ in self._positions.get(tensor, ())]

    def single_out(self, tensor: Tensor, axis: Axis, reason: str) -> None:
        """Mark a tensor that holds the values at one position of an axis."""
        self._singled[tensor] = (*self._singled.get(tensor, ()), (axis, reason))

    def address(self, axis: Axis, index: Tensor) -> bool:
        """Take entries of an axis at the positions in an index, and say whether that leaves them exchangeable.

        Positions found along an axis of that length address this one: both are permuted together. All others are data.
        """
        found = self.pointed(index)
        if found and all(axis_size(other) == axis_size(axis) for other in found):
            for other in found:
                unify(axis, other)
            return True
        self.read(index)
        freeze(axis, "an index of data")
        return False

    def read(self, tensor: Tensor) -> None:
        """Use a tensor's values as numbers: the axes that it gives away are frozen."""
        self._settle(tensor)
        for marks in (self._positions, self._singled):
            for axis, reason in marks.get(tensor, ()):
                freeze(axis, reason)

    def follow(self, call: OperatorCall) -> None:
        """Hand marks on to what a call returns if it only moves values; else read those that its rule does not take."""
        moved = call.name in _KEEPS_MARKS or (call.name == "_to_copy" and not call.out.is_floating_point())
        for tensor in call.inputs:
            if moved:
                for out in call.outputs:
                    for axis, reason in self._positions.get(tensor, ()):
                        self.point(out, axis, reason)
                    for axis, reason in self._singled.get(tensor, ()):
                        self.single_out(out, axis, reason)
            elif not any(tensor is index for index in leaves([call.get(_READS_POSITIONS.get(call.name, ""))])):
                self.read(tensor)
