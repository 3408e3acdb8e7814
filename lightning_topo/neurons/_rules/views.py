"""Operators that show the same entries under another shape, and copies of a tensor."""

import torch

from lightning_topo.neurons._coupling import Axis, axis_size, flat, new_axis, take
from lightning_topo.neurons._registry import aten_rule
from lightning_topo.neurons._trace import CouplingTrace, OperatorCall


@aten_rule("view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy", "view_copy", "flatten", "unflatten")
def reshape(trace: CouplingTrace, call: OperatorCall) -> None:
    """Read the atoms in order and deal them out to the new axes."""
    atoms = [atom for axis in trace.axes(call.inputs[0]) for atom in flat(axis)]
    remaining, axes = list(atoms), []
    for size in call.out.shape:
        taken = take(remaining, size)
        if taken is None:
            trace.freeze(atoms, "a view that does not follow the axes")
            trace.assign_data(call.out)
            return
        axes.append(taken)
    trace.assign(call.out, axes)


@aten_rule("squeeze")
def squeeze(trace: CouplingTrace, call: OperatorCall) -> None:
    axes, dims = trace.axes(call.inputs[0]), call.get("dim")  # in place, the input already has the new shape
    chosen = range(len(axes)) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = {dim % max(len(axes), 1) for dim in chosen}
    trace.assign(call.out, [axis for i, axis in enumerate(axes) if i not in gone or axis_size(axis) != 1])


@aten_rule("unsqueeze")
def unsqueeze(trace: CouplingTrace, call: OperatorCall) -> None:
    axes, dim = trace.axes(call.inputs[0]), call["dim"] % call.out.dim()
    trace.assign(call.out, [*axes[:dim], [], *axes[dim:]])


@aten_rule("permute")
def permute(trace: CouplingTrace, call: OperatorCall) -> None:
    axes = trace.axes(call.inputs[0])
    trace.assign(call.out, [axes[dim] for dim in call["dims"]])


@aten_rule("transpose", "swapaxes", "swapdims")
def transpose(trace: CouplingTrace, call: OperatorCall) -> None:
    axes = trace.axes(call.inputs[0])
    i, j = (call.get(name, call.get(other)) for name, other in (("dim0", "axis0"), ("dim1", "axis1")))
    if axes:
        axes[i], axes[j] = axes[j], axes[i]
    trace.assign(call.out, axes)


@aten_rule("t", "numpy_T", "mT")
def matrix_transpose(trace: CouplingTrace, call: OperatorCall) -> None:
    trace.assign(call.out, trace.axes(call.inputs[0])[::-1])


@aten_rule(
    "clone", "contiguous", "detach", "alias", "_to_copy", "to", "dropout",
    "fill", "zero", "nan_to_num", "logical_not",
)  # fmt: skip
def same(trace: CouplingTrace, call: OperatorCall) -> None:
    """The output has the axes of the (first) input."""
    trace.assign(call.out, trace.axes(call.inputs[0]))


@aten_rule("lift_fresh", "lift_fresh_copy")
def literal(trace: CouplingTrace, call: OperatorCall) -> None:
    """A tensor written out in the code."""
    source = call.inputs[0]
    trace.literals[call.out] = trace.values.get(source, source)
    trace.assign(call.out, trace.axes(source))


@aten_rule(
    "empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like",
    "new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided",
)  # fmt: skip
def constant_like(trace: CouplingTrace, call: OperatorCall) -> None:
    """A constant, or noise that is alike for all entries, couples nothing."""
    trace.assign_constant(call.out)


@aten_rule("as_strided")
def as_strided(trace: CouplingTrace, call: OperatorCall) -> None:
    """Allow strides that are those of a contiguous tensor of this shape, as of a pooled image; bar all others."""
    axes, shape = trace.axes(call.inputs[0]), call.out.shape
    in_order = torch.empty(shape, device="meta").stride()
    plain = all(size == 1 or a == b for size, a, b in zip(shape, call.out.stride(), in_order, strict=True))
    if plain and [axis_size(axis) for axis in axes] == list(shape) and not call.get("storage_offset"):
        trace.assign(call.out, axes)
        return
    for axis in axes:
        trace.freeze(axis, "a view by strides")
    trace.assign_data(call.out)


@aten_rule("expand")
def expand(trace: CouplingTrace, call: OperatorCall) -> None:
    tensor, axes = call.inputs[0], trace.axes(call.inputs[0])
    offset = call.out.dim() - len(axes)
    trace.assign(
        call.out,
        [
            new_axis(size, constant=True) if i < offset or tensor.shape[i - offset] != size else axes[i - offset]
            for i, size in enumerate(call.out.shape)
        ],
    )


@aten_rule("repeat")
def repeat(trace: CouplingTrace, call: OperatorCall) -> None:
    axes = trace.axes(call.inputs[0])
    offset = call.out.dim() - len(axes)
    repeated: list[Axis] = []
    for i, times in enumerate(call["repeats"]):
        repeated.append(new_axis(times, constant=True) + (axes[i - offset] if i >= offset else []))
    trace.assign(call.out, repeated)
