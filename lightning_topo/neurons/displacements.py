"""How far each neuron of many groups moved, from the parameters as they lie: no cloud is gathered."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from lightning_topo.geometry import upper_norms
from lightning_topo.geometry.precision import wide_dtype, worst_case_work
from lightning_topo.neurons.group import NeuronGroup, ParamSlice


@dataclass(frozen=True, slots=True, eq=False)
class _Sums:
    """One parameter's squares, summed over some axes into a stretch of the flat sums; or all, where there are none."""

    axes: tuple[int, ...]
    target: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """One parameter: memory for its displacement, shared with the others, and the sums that are taken of it."""

    name: str
    moved: Tensor
    sums: tuple[_Sums, ...]

    @property
    def is_whole(self) -> bool:
        """Whether nothing is summed, as with a bias."""
        return len(self.sums) == 1 and not self.sums[0].axes


@dataclass(frozen=True, slots=True, eq=False)
class DisplacementMeter:
    """Measures the lengths |Δ_i| of all neurons of several groups between two states of the parameters.

    Each parameter is subtracted, squared and summed once along each of its axes on which neurons lie; neurons add up
    such sums. Holds memory for one parameter at a time, and does not wait for the device. The values are those of
    `displacement_lengths` of the gathered clouds: upper bounds, rounding included.

    >>> from lightning_topo.neurons.group import ParamSlice
    >>> group = NeuronGroup("net.0", "unit", 2, (), (ParamSlice("w"), ParamSlice("b")))
    >>> start = {"w": torch.zeros(2, 3), "b": torch.zeros(2)}
    >>> meter = DisplacementMeter.of([group], start)
    >>> meter.lengths(start, {"w": torch.ones(2, 3), "b": torch.ones(2)}).round(decimals=3)
    tensor([2., 2.], dtype=torch.float64)
    """

    parts: tuple[_Part, ...]
    sums: Tensor
    terms: Int[Tensor, " m"]  # of which sum ...
    rows: Int[Tensor, " m"]  # ... to which neuron
    n_rows: int
    longest: int

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that are looked at, a stack's one by one."""
        return tuple(part.name for part in self.parts)

    @staticmethod
    def of(groups: Sequence[NeuronGroup], tensors: Mapping[str, Tensor]) -> "DisplacementMeter":
        """A meter for these groups of tensors with these names and shapes; half precision is widened.

        Raises:
            ValueError: no key fits a group, or a tensor has another shape than the group's parameter.
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

    @torch.no_grad()
    def lengths(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Float[Tensor, " rows"]:
        """Upper bounds of |Δ_i|: group by group, block by block.

        Raises:
            KeyError, RuntimeError: a tensor is missing, or has another shape than at first.
        """
        for part in self.parts:
            start, end, moved = real(before[part.name]), real(after[part.name]), part.moved
            if start.dtype is end.dtype is moved.dtype:
                torch.sub(end, start, out=moved)
            else:
                moved.copy_(end).sub_(start)
            if part.is_whole:
                torch.mul(moved, moved, out=part.sums[0].target)
                continue
            moved.mul_(moved)
            for some in part.sums:
                if some.axes:
                    torch.sum(moved, some.axes, out=some.target)
                else:
                    some.target.copy_(moved)
        wide = wide_dtype(self.sums.device)
        squares = torch.zeros(self.n_rows, dtype=wide, device=self.sums.device)
        squares.index_add_(0, self.rows, self.sums[self.terms].to(wide))
        return upper_norms(squares, self.longest, self.sums.dtype)


@dataclass(slots=True)
class _Plan:
    """A meter in the making: the stretches of sums by parameter and the axes that they keep."""

    tensors: Mapping[str, Tensor]
    kept: dict[str, dict[tuple[int, ...], int]] = field(default_factory=dict)
    size: int = 0
    terms: list[Tensor] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)

    def add(self, piece: ParamSlice, names: Sequence[str], first_row: int) -> None:
        """Let the neurons from `first_row` on have this part of a parameter, or of a stack of parameters."""
        shape = real(self.tensors[names[0]]).shape
        stacked = "*" in piece.param
        axes = _axes_of(piece, (len(names), *shape) if stacked else tuple(shape))
        kept = tuple(axis - stacked for axis in axes if axis >= stacked)
        size = math.prod(shape[axis] for axis in kept)
        places = [self._place(name, kept, size) + torch.arange(size) for name in names]
        one = [shape[axis] if axis in kept else 1 for axis in range(len(shape))]
        index = torch.stack(places).view(len(names), *one) if stacked else places[0].view(one)
        view = piece.view(index).unsqueeze(-1).flatten(len(piece.dims)).flatten(0, len(piece.dims) - 1)
        rows = torch.arange(len(view)) + first_row
        self.terms.append(view.reshape(-1))
        self.rows.append(rows[:, None].expand(view.shape).reshape(-1))

    def _place(self, name: str, kept: tuple[int, ...], size: int) -> int:
        """Where the sums of a parameter that keep these axes begin."""
        places = self.kept.setdefault(name, {})
        if kept not in places:
            places[kept] = self.size
            self.size += size
        return places[kept]

    def meter(self, n_rows: int, longest: int) -> DisplacementMeter:
        """The meter, with its memory."""
        real_tensors = {name: real(self.tensors[name]) for name in self.kept}
        device = next((tensor.device for tensor in real_tensors.values()), torch.device("cpu"))
        work = torch.float32
        for tensor in real_tensors.values():
            work = worst_case_work(torch.promote_types(work, tensor.dtype), device, longest)
        sums = torch.zeros(self.size, dtype=work, device=device)
        largest = max((tensor.numel() for tensor in real_tensors.values()), default=0)
        memory = torch.empty(largest, dtype=work, device=device)
        parts = []
        for name, tensor in real_tensors.items():
            moved = memory.as_strided(tensor.shape, torch.empty_like(tensor, device="meta").stride())
            found = []
            for kept, place in self.kept[name].items():
                shape = [tensor.shape[axis] for axis in kept]
                target = sums[place : place + math.prod(shape)].view(shape)
                found.append(_Sums(tuple(axis for axis in range(tensor.dim()) if axis not in kept), target))
            parts.append(_Part(name, moved, tuple(found)))
        empty = [torch.empty(0, dtype=torch.long)]
        terms, rows = (torch.cat([*empty, *some]).to(device) for some in (self.terms, self.rows))
        return DisplacementMeter(tuple(parts), sums, terms, rows, n_rows, longest)


def real(tensor: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The tensor without gradient; complex entries as pairs."""
    return torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()


def gather_rows(group: NeuronGroup, tensors: Mapping[str, Tensor], rows: Int[Tensor, "..."]) -> Shaped[Tensor, "... d"]:
    """Some rows of `group.gather(tensors)`, without the others: for the `pairs` of a `Snapshot`.

    Raises:
        ValueError: as `NeuronGroup.gather`.
    """
    n_leading = len(group.block_shape) + 1
    index = torch.unravel_index(rows.flatten(), (*group.block_shape, group.n))
    parts = [view[index].reshape(rows.numel(), math.prod(view.shape[n_leading:])) for view in group._views(tensors)]
    return torch.cat(parts, dim=1).unflatten(0, rows.shape)


def _axes_of(piece: ParamSlice, shape: Sequence[int]) -> tuple[int, ...]:
    """The axes of a parameter that a slice looks at in parts: all others may be summed first."""
    origins, touched = list(range(len(shape))), set[int]()
    for step in piece.steps:
        touched.add(origins[step[1]])
        if step[0] == "unflatten":
            origins[step[1] : step[1] + 1] = [origins[step[1]]] * len(step[2])
    return tuple(sorted(touched | {origins[dim] for dim in piece.dims}))
