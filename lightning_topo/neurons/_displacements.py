"""How far each neuron of many groups moved, from the parameters as they lie: no cloud is gathered."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from lightning_topo.geometry import upper_norms
from lightning_topo.geometry._precision import wide_dtype, worst_case_work
from lightning_topo.neurons._group import NeuronGroup, ParamSlice, Step

_SMALL = 1 << 13
"""Parameters of at most this many entries are subtracted and squared together: calls cost more than the work."""
_IN_CACHE = 1 << 17
"""A processor takes larger parameters in stretches of about this many entries, which stay in its cache meanwhile."""


@dataclass(frozen=True, slots=True, eq=False)
class _Sums:
    """The squares of one parameter, or of a window of it, summed over some axes into a stretch of the flat memory.

    Of a parameter that is taken in stretches, all but the first add to what is there.
    """

    source: Tensor
    axes: tuple[int, ...]
    target: Tensor
    adds: bool = False

    def take(self) -> None:
        """Sum the squares that are there now."""
        if self.adds:
            self.target.add_(self.source.sum(self.axes))
        elif self.axes:
            torch.sum(self.source, self.axes, out=self.target)
        else:
            self.target.copy_(self.source)


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """One parameter or a stretch of it: memory for the squares of its displacement, and the sums taken of them."""

    name: str
    is_complex: bool
    moved: Tensor
    sums: tuple[_Sums, ...]
    stretch: "Stretch | None" = None

    def of(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The parameter, or the stretch of it, among these; complex entries as pairs."""
        whole = torch.view_as_real(tensors[self.name]) if self.is_complex else tensors[self.name]
        return _part(whole, self.stretch)


@dataclass(frozen=True, slots=True, eq=False)
class DisplacementMeter:
    """Measures how far each neuron of several groups moved between two states of the parameters.

    For each neuron, `lengths` returns an upper bound of |Δ_i|, the length of the neuron's displacement Δ_i; the bound
    includes rounding errors. No cloud is gathered: each parameter's squared differences are summed over its features
    once, and each neuron adds up its sums. The working memory holds one large parameter at a time, on a processor a
    stretch of it, and no call waits for the device. Make a meter with `DisplacementMeter.of`.

    >>> from lightning_topo.neurons._group import ParamSlice
    >>> group = NeuronGroup("net.0", "unit", 2, (), (ParamSlice("w"), ParamSlice("b")))
    >>> start = {"w": torch.zeros(2, 3), "b": torch.zeros(2)}
    >>> meter = DisplacementMeter.of([group], start)
    >>> meter.lengths(start, {"w": torch.ones(2, 3), "b": torch.ones(2)}).round(decimals=3)
    tensor([2., 2.], dtype=torch.float64)
    """

    small: tuple[_Part, ...]
    large: tuple[_Part, ...]  # one after the other in the same memory
    memory: Tensor
    n_small: int  # entries at the beginning of the memory
    terms: Int[Tensor, " m"]  # of which entry ...
    rows: Int[Tensor, " m"]  # ... to which neuron
    n_rows: int
    longest: int

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parameters that the meter reads, without patterns: one name per parameter."""
        return tuple(dict.fromkeys(part.name for part in (*self.small, *self.large)))

    @staticmethod
    def of(groups: Sequence[NeuronGroup], tensors: Mapping[str, Tensor]) -> "DisplacementMeter":
        """Make a meter for groups of neurons; `tensors` map each parameter's name to a tensor of its shape and dtype.

        Half precision is computed in a wider dtype.

        Raises:
            ValueError: No key belongs to a group, or a tensor does not have its parameter's shape.
        """
        plan = _Plan(tensors)
        longest = first_row = 0
        for group in groups:
            own = [piece for piece in group.slices if all(name in tensors for name in piece.names(group.n))]
            if not own:
                raise ValueError(
                    f"expected tensors keyed by parameter name, at least one of {list(group.params)}, "
                    f"got keys {list(tensors)[:5]}"
                )
            longest = max(longest, group.dim(tensors))
            for piece in own:
                plan.add(piece, piece.names(group.n), first_row)
            first_row += group.n_blocks * group.n
        return plan.meter(first_row, longest)

    def nowhere(self) -> Float[Tensor, " rows"]:
        """Return zeros: the lengths of neurons that have not moved, in the order of `self.lengths`."""
        return torch.zeros(self.n_rows, dtype=wide_dtype(self.memory.device), device=self.memory.device)

    @torch.no_grad()
    def lengths(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Float[Tensor, " rows"]:
        """Return an upper bound of |Δ_i| for each neuron of all groups: group after group, block after block.

        `before` and `after` map the parameters' names to their values in the two states.

        Raises:
            KeyError, RuntimeError: A tensor is missing, or does not have the shape it had when the meter was made.
        """
        if self.small:
            moved = [part.moved for part in self.small]
            torch._foreach_copy_(moved, [part.of(after) for part in self.small])  # pyright: ignore[reportPrivateImportUsage]
            torch._foreach_sub_(moved, [part.of(before) for part in self.small])  # pyright: ignore[reportPrivateImportUsage]
            squares = self.memory[: self.n_small]
            torch.mul(squares, squares, out=squares)
            for part in self.small:
                for some in part.sums:
                    some.take()
        for part in self.large:
            start, end, moved = part.of(before), part.of(after), part.moved
            if start.dtype is end.dtype is moved.dtype:
                torch.sub(end, start, out=moved)
            else:
                moved.copy_(end).sub_(start)
            moved.mul_(moved)
            for some in part.sums:
                some.take()
        wide = wide_dtype(self.memory.device)
        squares = torch.zeros(self.n_rows, dtype=wide, device=self.memory.device)
        squares.index_add_(0, self.rows, self.memory[self.terms].to(wide))
        return upper_norms(squares, self.longest, self.memory.dtype)


Stretch = tuple[int, int, int]
"""A part of an axis: (axis, start, length)."""
Window = tuple[Stretch, ...]
"""Parts of axes that are summed."""


@dataclass(slots=True)
class _Plan:
    """A meter in the making: which sums of which parameter lie where in its memory."""

    tensors: Mapping[str, Tensor]
    places: dict[str, dict[tuple[tuple[int, ...], Window], int]] = field(default_factory=dict)
    small: dict[str, int] = field(default_factory=dict)
    n_sums: int = 0
    n_small: int = 0
    terms: list[tuple[Tensor, bool]] = field(default_factory=list)  # and whether they lie among the small
    rows: list[Tensor] = field(default_factory=list)

    def add(self, piece: ParamSlice, names: Sequence[str], first_row: int) -> None:
        """Let the neurons from `first_row` on have this part of a parameter, or of a stack of parameters."""
        shape = real(self.tensors[names[0]]).shape
        stacked = "*" in piece.param
        axes, window, piece = _summed(piece, len(shape) + stacked)
        kept = tuple(axis - stacked for axis in axes if axis >= stacked)
        window = tuple((axis - stacked, start, length) for axis, start, length in window)
        size = math.prod(shape[axis] for axis in kept)
        is_small = len(kept) == len(shape) and size <= _SMALL
        places = [self._place(name, kept, window, size, is_small) + torch.arange(size) for name in names]
        one = [shape[axis] if axis in kept else 1 for axis in range(len(shape))]
        index = torch.stack(places).view(len(names), *one) if stacked else places[0].view(one)
        view = piece.view(index).unsqueeze(-1).flatten(len(piece.dims)).flatten(0, len(piece.dims) - 1)
        rows = torch.arange(len(view)) + first_row
        self.terms.append((view.reshape(-1), is_small))
        self.rows.append(rows[:, None].expand(view.shape).reshape(-1))

    def _place(self, name: str, kept: tuple[int, ...], window: Window, size: int, is_small: bool) -> int:
        """Where the sums of a parameter that keep these axes begin; of a small one its own squares."""
        places = self.places.setdefault(name, {})
        n_entries = real(self.tensors[name]).numel()
        if n_entries <= _SMALL and name not in self.small:
            self.small[name] = self.n_small
            self.n_small += n_entries
        if is_small:
            return self.small[name]
        if (kept, window) not in places:
            places[kept, window] = self.n_sums
            self.n_sums += size
        return places[kept, window]

    def meter(self, n_rows: int, longest: int) -> DisplacementMeter:
        """The meter, with its memory: the small parameters, all sums, and the largest parameter."""
        real_tensors = {name: real(self.tensors[name]) for name in self.places}
        device = next((tensor.device for tensor in real_tensors.values()), torch.device("cpu"))
        work = torch.float32
        for tensor in real_tensors.values():
            work = worst_case_work(torch.promote_types(work, tensor.dtype), device, longest)
        stretches = {name: _stretches(tensor) for name, tensor in real_tensors.items() if name not in self.small}
        largest = max((_part(real_tensors[name], one[0]).numel() for name, one in stretches.items()), default=0)
        first_large = self.n_small + self.n_sums
        memory = torch.zeros(first_large + largest, dtype=work, device=device)
        small, large = list[_Part](), list[_Part]()
        for name, tensor in real_tensors.items():
            is_complex = self.tensors[name].is_complex()
            if name in self.small:
                moved = memory[self.small[name] :][: tensor.numel()].view(tensor.shape)
                small.append(_Part(name, is_complex, moved, self._sums(name, tensor, moved, memory)))
                continue
            for stretch in stretches[name]:
                own = _part(tensor, stretch)
                strides = torch.empty_like(own, device="meta").stride()
                moved = memory.as_strided(own.shape, strides, first_large)
                large.append(_Part(name, is_complex, moved, self._sums(name, tensor, moved, memory, stretch), stretch))
        empty = [torch.empty(0, dtype=torch.long)]
        terms = torch.cat([*empty, *(one if is_small else one + self.n_small for one, is_small in self.terms)])
        rows = torch.cat([*empty, *self.rows])
        return DisplacementMeter(
            tuple(small), tuple(large), memory, self.n_small, terms.to(device), rows.to(device), n_rows, longest
        )

    def _sums(
        self, name: str, tensor: Tensor, moved: Tensor, memory: Tensor, stretch: Stretch | None = None
    ) -> tuple[_Sums, ...]:
        """The sums that are taken of a parameter, or what a stretch of it has of them."""
        along, first, count = stretch or (-1, 0, 0)
        found = []
        for (kept, window), place in self.places[name].items():
            source, begun = moved, first > 0
            for axis, start, length in window:
                if axis == along:
                    low, high = max(start, first), min(start + length, first + count)
                    start, length, begun = low - first, max(high - low, 0), start < first
                source = source.narrow(axis, min(start, source.shape[axis]), length)
            if not source.numel():
                continue
            shape = [tensor.shape[axis] for axis in kept]
            target = memory[self.n_small + place :][: math.prod(shape)].view(shape)
            if along in kept:
                target, begun = target.narrow(kept.index(along), first, count), False
            axes = tuple(axis for axis in range(tensor.dim()) if axis not in kept)
            found.append(_Sums(source, axes, target, begun))
        return tuple(found)


def _stretches(tensor: Tensor) -> list[Stretch | None]:
    """The stretches of a large parameter along the axis whose entries lie farthest apart in memory; None is all."""
    if tensor.device.type != "cpu" or tensor.numel() <= _IN_CACHE:
        return [None]
    axis = max(range(tensor.dim()), key=lambda one: (tensor.shape[one] > 1, tensor.stride(one)))
    length = max(1, _IN_CACHE * tensor.shape[axis] // tensor.numel())
    return [(axis, start, min(length, tensor.shape[axis] - start)) for start in range(0, tensor.shape[axis], length)]


def _part(tensor: Tensor, stretch: Stretch | None) -> Tensor:
    return tensor if stretch is None else tensor.narrow(*stretch)


def real(tensor: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The tensor without gradient; complex entries as pairs."""
    return torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()


def gather_rows(group: NeuronGroup, tensors: Mapping[str, Tensor], rows: Int[Tensor, "..."]) -> Shaped[Tensor, "... d"]:
    """Return chosen rows of `group.gather(tensors)` without gathering the others.

    `rows` holds indices (block * n + neuron) in a tensor of any shape, such as the `pairs` of a `geometry.Snapshot`.
    The result has the shape of `rows` and one more axis of length d. Indices must be in range, which is not checked.

    Raises:
        ValueError: No key of `tensors` belongs to the group, or a tensor does not have its parameter's shape.

    >>> group = NeuronGroup("net.0", "unit", 2, (), (ParamSlice("w"), ParamSlice("b")))
    >>> gather_rows(group, {"w": torch.tensor([[1, 2], [3, 4]]), "b": torch.tensor([5, 6])}, torch.tensor([1]))
    tensor([[3, 4, 6]])
    """
    n_leading = len(group.block_shape) + 1
    index = torch.unravel_index(rows.flatten(), (*group.block_shape, group.n))
    parts = [view[index].reshape(rows.numel(), math.prod(view.shape[n_leading:])) for view in group._views(tensors)]
    return torch.cat(parts, dim=1).unflatten(0, rows.shape)


def _summed(piece: ParamSlice, n_axes: int) -> tuple[tuple[int, ...], Window, ParamSlice]:
    """The axes that must be kept for a slice, the parts of others that are summed, and the slice of these sums."""
    origins, kept = list(range(n_axes)), set[int]()
    for step in piece.steps:
        origin = origins[step[1]]
        if step[0] == "unflatten":
            origins[step[1] : step[1] + 1] = [origin] * len(step[2])
        elif origins.count(origin) > 1:
            kept.add(origin)
    kept |= {origins[dim] for dim in piece.dims}
    origins, steps = list(range(n_axes)), list[Step]()
    window: dict[int, tuple[int, int]] = {}
    for step in piece.steps:
        origin = origins[step[1]]
        if step[0] == "unflatten":
            origins[step[1] : step[1] + 1] = [origin] * len(step[2])
            steps.append(step if origin in kept else ("unflatten", step[1], (1,) * len(step[2])))
        elif origin in kept:
            steps.append(step)
        else:
            window[origin] = (window.get(origin, (0, 0))[0] + step[2], step[3])
    summed = tuple((axis, start, length) for axis, (start, length) in sorted(window.items()))
    return tuple(sorted(kept)), summed, replace(piece, steps=tuple(steps))
