"""Operators that join tensors along an axis or take an axis apart.

An axis that is taken apart index by index (fused query-key-value, stacked experts, layers of a recurrent
net) leaves the other axes independent per index: each index gets its own copies of their atoms.
"""

from collections.abc import Iterable, Sequence

from torch import Tensor

from lightning_topo.neurons._coupling import (
    Atom,
    Axis,
    axis_size,
    flat,
    is_copied_along,
    new_axis,
    slice_axis,
    sum_axis,
    take,
    unify,
)
from lightning_topo.neurons._registry import aten_rule
from lightning_topo.neurons._trace import CouplingTrace, OperatorCall, Piece


@aten_rule("slice")
def slice_(trace: CouplingTrace, call: OperatorCall) -> None:
    tensor, dim = call.inputs[0], call.get("dim", 0)
    size = tensor.shape[dim]
    start, stop, step = (call.get(name) for name in ("start", "end", "step"))
    start, stop, step = slice(start, stop, step).indices(size)
    axes = trace.axes(tensor)
    axes[dim] = (
        slice_axis(axes[dim], start, max(start, stop))
        if step == 1
        else _strided(trace, call, axes, dim % tensor.dim(), range(start, stop, step))
    )
    trace.assign(call.out, axes)


def _strided(trace: CouplingTrace, call: OperatorCall, axes: list[Axis], dim: int, chosen: range) -> Axis:
    """Every `step`-th entry of an axis: one index of its last factor, where it is (rows, step), and of what is left."""
    count, rows = len(chosen), axis_size(axes[dim]) // chosen.step
    first, index = divmod(chosen.start, chosen.step)
    if rows < 2 or count < 2:
        return sum_axis([slice_axis(axes[dim], i, i + 1) for i in chosen]) if chosen else new_axis(0, frozen=True)
    within = flat(slice_axis(axes[dim], 0, rows * chosen.step))
    outer = take(within, rows)
    if outer is None:
        trace.freeze(axes[dim], "a strided slice")
        return new_axis(count, frozen=True)
    refined = [*axes[:dim], outer, within, *axes[dim + 1 :]]
    column = _at(trace, call, call.inputs[0], refined, dim + 1, [index])[0][dim]
    parts = [slice_axis(column, first, min(first + count, rows))] if first < rows else []
    if first + count > rows:  # the last one stands behind the last whole row
        parts.append(slice_axis(axes[dim], chosen[-1], chosen[-1] + 1))
    return sum_axis(parts)


@aten_rule(
    "split", "split_with_sizes", "chunk", "unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes",
    "tensor_split", "split_copy", "split_with_sizes_copy",
)  # fmt: skip
def split(trace: CouplingTrace, call: OperatorCall) -> None:
    tensor, dim, offset = call.inputs[0], call.get("dim", 0), 0
    for out in call.outputs:
        axes = trace.axes(tensor)
        axes[dim] = slice_axis(axes[dim], offset, offset + out.shape[dim])
        offset += out.shape[dim]
        trace.assign(out, axes)


@aten_rule("glu")
def glu(trace: CouplingTrace, call: OperatorCall) -> None:
    """The first half of the axis, gated by the second."""
    tensor, dim, half = call.inputs[0], call.get("dim", -1), call.out.shape[call.get("dim", -1)]
    axes, gates = trace.axes(tensor), trace.axes(tensor)
    gates[dim] = slice_axis(gates[dim], half, 2 * half)
    axes[dim] = slice_axis(axes[dim], 0, half)
    unify(axes[dim], gates[dim])
    trace.assign(call.out, axes)


@aten_rule("cat", "concat")
def cat(trace: CouplingTrace, call: OperatorCall) -> None:
    tensors = [tensor for tensor in call.inputs if tensor.dim() == call.out.dim()]
    dim = call.get("dim", 0) % call.out.dim()
    joined = [trace.axes(tensor) for tensor in tensors]
    axes = list(joined[0])
    for other in joined[1:]:
        for i, axis in enumerate(other):
            if i != dim:
                unify(axes[i], axis)
    parts = [
        axes_[dim] or [Atom(1, frozen=True)] for axes_, tensor in zip(joined, tensors, strict=True) if tensor.shape[dim]
    ]
    axes[dim] = sum_axis(parts) if parts else []
    trace.assign(call.out, axes)


@aten_rule("stack")
def stack(trace: CouplingTrace, call: OperatorCall) -> None:
    """Axes that differ between the tensors are kept per index, and unified only if used as a whole."""
    dim = call.get("dim", 0) % call.out.dim()
    all_axes = [trace.axes(tensor) for tensor in call.inputs]
    stacked, axes = Atom(len(call.inputs), frozen=True), []
    for versions in zip(*all_axes, strict=True):
        flattened = [flat(axis) for axis in versions]
        first = flattened[0]
        if all(len(axis) == len(first) and all(a is b for a, b in zip(axis, first)) for axis in flattened):  # noqa: B905 - lengths were compared
            axes.append(first)
        else:
            whole = Atom(call.inputs[0].shape[len(axes)])
            whole.copies, whole.stack, stacked.is_stack = flattened, stacked, True
            axes.append([whole])
    new = [stacked] if len(call.inputs) > 1 else []
    trace.assign(call.out, [*axes[:dim], new, *axes[dim:]])


@aten_rule("select")
def select(trace: CouplingTrace, call: OperatorCall) -> None:
    tensor = call.inputs[0]
    trace.assign(call.out, _picked(trace, call, call["dim"] % tensor.dim(), [call["index"]])[0])


@aten_rule("unbind")
def unbind(trace: CouplingTrace, call: OperatorCall) -> None:
    tensor = call.inputs[0]
    dim = call.get("dim", 0) % tensor.dim()
    for out, axes in zip(call.outputs, _picked(trace, call, dim, range(tensor.shape[dim])), strict=True):
        trace.assign(out, axes)


def _picked(trace: CouplingTrace, call: OperatorCall, dim: int, indices: Iterable[int]) -> list[list[Axis]]:
    """The axes that remain at each index of axis `dim`."""
    tensor = call.inputs[0]
    return _at(trace, call, tensor, trace.axes(tensor), dim, [index % tensor.shape[dim] for index in indices])


def _at(
    trace: CouplingTrace, call: OperatorCall, tensor: Tensor, axes: list[Axis], dim: int, indices: Sequence[int]
) -> list[list[Axis]]:
    """The same for axes into which those of a tensor may have been refined."""
    picked, rest = [atom for atom in flat(axes[dim]) if atom.size > 1], axes[:dim] + axes[dim + 1 :]
    if len(picked) == 1 and picked[0].is_leaf:
        stacked = picked[0]
        if not stacked.is_stack:
            _unstack(trace, tensor, dim, stacked, axes)
        if stacked.is_stack and stacked not in (atom for axis in rest for atom in flat(axis)):
            return [[_copied(axis, stacked, i) for axis in rest] for i in indices]
    for out in call.outputs if picked else ():
        trace.single_out(out, axes[dim], "a single index is selected")
    return [rest] * len(indices)


def _copied(axis: Axis, stacked: Atom, index: int) -> Axis:
    """An axis at one index of a stacked one."""
    found: Axis = []
    for atom in flat(axis):
        found += atom.copies[index] if is_copied_along(atom, stacked) and atom.copies else [atom]
    return found


def _unstack(trace: CouplingTrace, tensor: Tensor, dim: int, stacked: Atom, axes: list[Axis]) -> None:
    """Give the atoms beside a stacked one a copy per index, if nothing has used them yet."""
    source = stacked.outer.root if stacked.outer is not None else None
    name = trace.names.get(id(tensor))
    rest = axes[:dim] + axes[dim + 1 :]
    if source is not None and source.factors is not None and flat(source.factors)[0] is stacked:
        inner = flat(source.factors)[1:]  # one axis (index, ...) of a parameter, as in a fused projection
        if source.frozen or not _untouched(inner):
            return
        copies = _copies(inner, stacked.size)
        source.factors, source.summands = (
            None,
            [[copy for atom in inner for copy in copies[atom][i]] for i in range(stacked.size)],
        )
    elif source is not None and source.factors is not None and flat(source.factors)[-1] is stacked:
        inner = flat(source.factors)[:-1]  # one axis (..., index), as where every second unit gates another
        if source.frozen or stacked.touched or not _untouched(inner):
            return
        copies = _copies(inner, stacked.size)
    elif (
        name
        and len(axes) == tensor.dim()
        and len(trace.pieces[name]) == 1
        and not stacked.touched
        and not stacked.frozen
    ):
        inner = [atom for axis in rest for atom in flat(axis)]  # a whole axis of a parameter
        if not _untouched(inner):
            return
        copies = _copies(inner, stacked.size)
        axes = [*axes[:dim], [], *axes[dim + 1 :]]
        trace.pieces[name] = [
            Piece((("narrow", dim, i, 1),), axes, {atom: copies[atom][i] for atom in inner})
            for i in range(stacked.size)
        ]
    else:
        return
    for atom in inner:
        atom.copies, atom.stack = copies[atom], stacked
    stacked.is_stack, stacked.frozen, stacked.reason = True, True, "stacked"


def _untouched(atoms: list[Atom]) -> bool:
    return all(atom.is_leaf and not atom.touched for atom in atoms)


def _copies(atoms: list[Atom], count: int) -> dict[Atom, list[Axis]]:
    return {atom: [[Atom(atom.size, frozen=atom.frozen)] for _ in range(count)] for atom in atoms}


@aten_rule("select_backward")
def select_backward(trace: CouplingTrace, call: OperatorCall) -> None:
    """Zeros but at one index."""
    dim, axes = call["dim"] % call.out.dim(), trace.axes(call.inputs[0])
    trace.assign(call.out, [*axes[:dim], new_axis(call.out.shape[dim], frozen=True), *axes[dim:]])


@aten_rule("slice_backward")
def slice_backward(trace: CouplingTrace, call: OperatorCall) -> None:
    """Zeros around a part."""
    axes, dim = trace.axes(call.inputs[0]), call["dim"] % call.out.dim()
    size, length = call.out.shape[dim], call.inputs[0].shape[dim]
    start, _, step = slice(call["start"], call["end"], call["step"]).indices(size)
    if step != 1:
        trace.freeze(axes[dim], "a strided slice")
        axes[dim] = new_axis(size, frozen=True)
    elif length != size:
        around = [[Atom(n, constant=True)] if n else None for n in (start, size - start - length)]
        parts = [around[0], axes[dim] or [Atom(1, frozen=True)], around[1]]
        axes[dim] = sum_axis([part for part in parts if part])
    trace.assign(call.out, axes)
