"""Where in a tensor a view of it stands: a box of entries, followed through operators that return views."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_topo.neurons._operator_call import OperatorCall

Box = tuple[tuple[int, int], ...]
"""First and last index along each axis, the last one excluded."""


@dataclass(frozen=True, slots=True)
class Place:
    """The box of a base that a view shows, and for each axis of the view that of the base.

    An axis that the view has added has none. An axis of the base that the view does not have is at one index.
    """

    box: Box
    dims: tuple[int | None, ...]

    def picked(self, dim: int, index: int) -> "Place":
        """The place at one index of an axis."""
        return Place(self._within(dim, index, index + 1), self.dims[:dim] + self.dims[dim + 1 :])

    def narrowed(self, dim: int, start: int, stop: int) -> "Place":
        """The place of entries start..stop of an axis."""
        return Place(self._within(dim, start, stop), self.dims)

    def reordered(self, order: Sequence[int]) -> "Place":
        """The place with its axes in another order."""
        return Place(self.box, tuple(self.dims[dim] for dim in order))

    def _within(self, dim: int, start: int, stop: int) -> Box:
        base = self.dims[dim]
        if base is None:
            return self.box
        first = self.box[base][0]
        return (*self.box[:base], (first + start, first + stop), *self.box[base + 1 :])


def whole(tensor: Tensor) -> Place:
    """The place of a tensor in itself."""
    return Place(tuple((0, size) for size in tensor.shape), tuple(range(tensor.dim())))


def overlap(one: Box, other: Box) -> bool:
    """Whether two boxes have an entry in common."""
    return all(a < d and c < b for (a, b), (c, d) in zip(one, other, strict=True))


def contains(one: Box, other: Box) -> bool:
    """Whether the first box holds all entries of the second."""
    return all(a <= c and d <= b for (a, b), (c, d) in zip(one, other, strict=True))


def places(call: OperatorCall, place: Place) -> list[Place] | None:
    """The places of what a call returns, given that of its first tensor; None where they are no boxes of it."""
    follow = _VIEWS.get(call.name)
    tensor = call.inputs[0]
    if follow is None or len(place.dims) != tensor.dim() or any(out.dtype != tensor.dtype for out in call.outputs):
        return None
    found = list(follow(call, place))
    shapes = [tuple(1 if d is None else p.box[d][1] - p.box[d][0] for d in p.dims) for p in found]
    return found if shapes == [tuple(out.shape) for out in call.outputs] else None


def _same(call: OperatorCall, place: Place) -> Iterator[Place]:
    yield place  # under another shape it is none: the caller compares them


def _select(call: OperatorCall, place: Place) -> Iterator[Place]:
    dim, shape = call["dim"] % call.inputs[0].dim(), call.inputs[0].shape
    yield place.picked(dim, call["index"] % shape[dim])


def _unbind(call: OperatorCall, place: Place) -> Iterator[Place]:
    dim = call.get("dim", 0) % call.inputs[0].dim()
    for index in range(call.inputs[0].shape[dim]):
        yield place.picked(dim, index)


def _slice(call: OperatorCall, place: Place) -> Iterator[Place]:
    dim, shape = call.get("dim", 0) % call.inputs[0].dim(), call.inputs[0].shape
    start, stop, step = slice(call.get("start"), call.get("end"), call.get("step")).indices(shape[dim])
    if step == 1:
        yield place.narrowed(dim, start, max(start, stop))


def _split(call: OperatorCall, place: Place) -> Iterator[Place]:
    dim, offset = call.get("dim", 0) % call.inputs[0].dim(), 0
    for out in call.outputs:
        yield place.narrowed(dim, offset, offset + out.shape[dim])
        offset += out.shape[dim]


def _permute(call: OperatorCall, place: Place) -> Iterator[Place]:
    yield place.reordered([dim % len(place.dims) for dim in call["dims"]])


def _transpose(call: OperatorCall, place: Place) -> Iterator[Place]:
    order = list(range(len(place.dims)))
    i, j = (call.get(name, call.get(other)) for name, other in (("dim0", "axis0"), ("dim1", "axis1")))
    if order:
        order[i], order[j] = order[j], order[i]
    yield place.reordered(order)


def _turn(call: OperatorCall, place: Place) -> Iterator[Place]:
    yield Place(place.box, place.dims[::-1])


def _unsqueeze(call: OperatorCall, place: Place) -> Iterator[Place]:
    dim = call["dim"] % call.out.dim()
    yield Place(place.box, (*place.dims[:dim], None, *place.dims[dim:]))


def _squeeze(call: OperatorCall, place: Place) -> Iterator[Place]:
    shape, dims = call.inputs[0].shape, call.get("dim")
    chosen = range(len(shape)) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = {dim % max(len(shape), 1) for dim in chosen}
    yield Place(place.box, tuple(d for i, d in enumerate(place.dims) if i not in gone or shape[i] != 1))


_VIEWS: dict[str, Callable[[OperatorCall, Place], Iterator[Place]]] = {
    **dict.fromkeys(("alias", "detach", "view", "_unsafe_view", "reshape", "_reshape_alias", "expand"), _same),
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "tensor_split"), _split),
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), _transpose),
    **dict.fromkeys(("t", "numpy_T"), _turn),
    "select": _select,
    "unbind": _unbind,
    "slice": _slice,
    "permute": _permute,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
}

TURNS_IN_PLACE: frozenset[Any] = frozenset(
    {"t_", "transpose_", "swapaxes_", "swapdims_", "squeeze_", "unsqueeze_", "resize_", "resize_as_", "as_strided_",
     "set_"}
)  # fmt: skip
"""Operators that change how a tensor shows its memory, and write nothing into it."""
