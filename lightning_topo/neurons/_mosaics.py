"""Constants that are written part by part: `out = zeros(...)`, then `out[:, t] = h` in a loop.

Such a tensor is a mosaic of boxes. Where it is read, its axes are those of a concatenation of the boxes: cut where a
box begins or ends, and in between tied to each box that is there. Let P permute the entries of one such piece of an
axis. It permutes each box that reaches across the piece along its own axis, and what has never been written is the same
everywhere; so what P does to the boxes, it does to the whole, and nothing else changes.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from torch import Tensor

from lightning_topo.neurons._coupling import (
    Atom,
    Axis,
    flat,
    is_constant,
    merge_copies,
    new_axis,
    renewed,
    slice_axis,
    sum_axis,
    unify,
)
from lightning_topo.neurons._operator_call import OperatorCall
from lightning_topo.neurons._places import Box, Place, contains, overlap, places, whole
from lightning_topo.neurons._tensor_map import TensorMap

Origin = frozenset[str] | None
"""The parameters that a value is computed from; None where it depends on data."""


@dataclass(frozen=True, slots=True)
class Written:
    """What has been written into a box: by way of which tensor, and its axes by those of the whole."""

    number: int
    box: Box
    tensor: Tensor
    axes: dict[int, Axis]
    origin: Origin


@dataclass(frozen=True, slots=True)
class Shown:
    """What a tensor shows: its axes, what it is computed from, and by way of which tensors it was written."""

    axes: list[Axis]
    origin: Origin
    sources: list[Tensor]


@dataclass(slots=True)
class _Mosaic:
    """The boxes of one tensor, with the number of times that it has been written, and views of it that are no boxes.

    Boxes are kept by one of their axes that is at a single index, and that index: a loop over a thousand positions does
    not look at all the others each time.
    """

    shape: tuple[int, ...]
    written: dict[int | None, dict[int, dict[Box, Written]]] = field(default_factory=dict)
    count: int = 0
    elsewhere: list[Tensor] = field(default_factory=list)

    def add(self, place: Place, tensor: Tensor, axes: Sequence[Axis], origin: Origin) -> None:
        if place.box == tuple((0, size) for size in self.shape):
            self.written.clear()
        by_dim = {dim: axis for dim, axis in zip(place.dims, axes, strict=True) if dim is not None}
        single = [dim for dim, (start, stop) in enumerate(place.box) if stop - start == 1 < self.shape[dim]]
        key = (single[0], place.box[single[0]][0]) if single else (None, 0)
        boxes = self.written.setdefault(key[0], {}).setdefault(key[1], {})
        boxes[place.box] = Written(self.count, place.box, tensor, by_dim, origin)
        self.count += 1

    def within(self, box: Box) -> list[Written]:
        """What can be seen in a box, the latest first."""
        found: list[Written] = []
        for part in sorted(self._near(box), key=lambda part: -part.number):
            if overlap(part.box, box):
                found.append(part)
                if contains(part.box, box):
                    break
        return found

    def _near(self, box: Box) -> Iterator[Written]:
        for dim, by_index in self.written.items():
            indices = by_index if dim is None else [i for i in range(*box[dim]) if i in by_index]
            for index in indices:
                yield from by_index[index].values()

    @property
    def parts(self) -> list[Written]:
        """All that has been written, but for what was overwritten as it had been written."""
        return [part for by_index in self.written.values() for boxes in by_index.values() for part in boxes.values()]


class Mosaics:
    """The mosaics of a trace, and the places of views."""

    def __init__(self) -> None:
        self._places = TensorMap[tuple[Tensor, Place]]()
        self._mosaics = TensorMap[_Mosaic]()
        self._read = TensorMap[int]()  # how often the mosaic had been written when a tensor was read last

    def __contains__(self, base: Tensor) -> bool:
        return base in self._mosaics

    def home(self, tensor: Tensor) -> tuple[Tensor, Place]:
        """The tensor that this one is a view of, and its place there; by itself where that is not known."""
        return self._places.get(tensor) or (tensor, whole(tensor))

    def _of(self, tensor: Tensor) -> _Mosaic | None:
        """The mosaic of which a tensor is a box, or all."""
        known = self._places.get(tensor)
        return self._mosaics.get(tensor if known is None else known[0])

    def is_placed(self, tensor: Tensor) -> bool:
        """Whether the tensor is known to show a box of another one."""
        return tensor in self._places

    def note_views(self, call: OperatorCall, base: Tensor) -> None:
        """Remember where the views that a call returns stand in the base."""
        own, place = self.home(call.inputs[0])
        found = places(call, place) if own is base else None
        mosaic = self._mosaics.get(base)
        if found is None:
            if mosaic is not None:
                mosaic.elsewhere += call.outputs
            return
        for out, at in zip(call.outputs, found, strict=True):
            self._places[out] = base, at
            if mosaic is not None:
                self._read[out] = -1

    def lose(self, tensors: Iterable[Tensor]) -> None:
        """Forget the places of views that stand elsewhere now."""
        for tensor in tensors:
            if (place := self._places.pop(tensor)) and (mosaic := self._mosaics.get(place[0])) is not None:
                mosaic.elsewhere.append(tensor)

    def defers(self, call: OperatorCall) -> bool:
        """Whether a call returns boxes of a mosaic, whose axes are found once they are read."""
        if not call.inputs:
            return False
        tensor = call.inputs[0]
        return self._of(tensor) is not None and places(call, self.home(tensor)[1]) is not None

    def begin(self, base: Tensor, axes: list[Axis], origin: Origin, views: Iterable[Tensor]) -> None:
        """Take a tensor for a mosaic, of one part so far."""
        mosaic = self._mosaics[base] = _Mosaic(tuple(base.shape))
        mosaic.add(whole(base), base, axes, origin)
        mosaic.elsewhere += [view for view in views if view not in self._places]

    def write(self, tensor: Tensor, axes: list[Axis], origin: Origin) -> list[Tensor]:
        """Note what has been written by way of a tensor; the views that may show it and are no boxes."""
        base, place = self.home(tensor)
        mosaic = self._mosaics[base]
        for atom in (atom for axis in axes for atom in flat(axis)):
            merge_copies(atom)  # an index of theirs may be lost in the whole
        mosaic.add(place, tensor, axes, origin)
        self._read[tensor] = mosaic.count
        return mosaic.elsewhere

    def shown(self, tensor: Tensor) -> Shown | None:
        """What a tensor shows by now; None where nothing new has been written there."""
        mosaic = self._of(tensor)
        since = self._read.get(tensor, 1)  # what was there at first, the tensor's axes tell
        if mosaic is None or since == mosaic.count:
            return None
        _, place = self.home(tensor)
        self._read[tensor] = mosaic.count
        parts = mosaic.within(place.box)
        if all(part.number < since for part in parts):
            return None
        joined = [_joined(parts, dim, *ends) for dim, ends in enumerate(place.box)]
        origins = [part.origin for part in parts]
        known = [origin for origin in origins if origin is not None]
        origin = frozenset[str]().union(*known) if len(known) == len(origins) else None
        axes = [[] if dim is None else joined[dim] for dim in place.dims]
        return Shown(axes, origin, [part.tensor for part in parts if part.tensor is not tensor])

    def spoil(self, base: Tensor) -> tuple[list[Axis], list[Tensor]]:
        """All axes that were written into a mosaic, and its views that are no boxes; all of it is data from now on."""
        mosaic = self._mosaics[base]
        axes = [axis for part in mosaic.parts for axis in part.axes.values()]
        mosaic.add(whole(base), base, [new_axis(size, frozen=True) for size in base.shape], None)
        return axes, mosaic.elsewhere


def _joined(parts: Sequence[Written], dim: int, start: int, stop: int) -> Axis:
    """Entries start..stop of an axis of a mosaic."""
    ends = {end for part in parts for end in part.box[dim] if start < end < stop}
    edges = [start, *sorted(ends), stop]
    pieces: list[Axis | None] = [None] * (len(edges) - 1)
    for part in parts:
        axis = renewed(part.axes.get(dim, []))
        if all(is_constant(atom) for atom in axis):
            continue
        first, last = part.box[dim]
        for k in range(bisect_left(edges, max(first, start)), bisect_left(edges, min(last, stop))):
            piece, known = slice_axis(axis, edges[k] - first, edges[k + 1] - first), pieces[k]
            if known is None:
                pieces[k] = piece
            else:
                unify(known, piece)
    if len(pieces) > 1 and any(pieces):
        sizes = [after - before for before, after in pairwise(edges)]
        return sum_axis([piece or [Atom(size, frozen=True)] for piece, size in zip(pieces, sizes, strict=True)])
    return pieces[0] or new_axis(stop - start, frozen=len(pieces) > 1, constant=len(pieces) == 1)
