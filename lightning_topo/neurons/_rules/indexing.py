"""Operators that pick or write entries at positions given by data, and operators that read values out."""

import torch
from torch import Tensor

from lightning_topo.neurons._coupling import Axis, axis_size, new_axis, slice_axis
from lightning_topo.neurons._registry import aten_rule
from lightning_topo.neurons._trace import CouplingTrace, OperatorCall


@aten_rule("index", "_unsafe_index")
def index(trace: CouplingTrace, call: OperatorCall) -> None:
    """Indexed axes are frozen; the axes of the index take the place of the first, if adjacent.

    One index of positions that were found along an axis addresses that axis: `codebook[distances.argmin(-1)]`.
    """
    tensor, positions, dim = call.inputs[0], [], 0
    axes = trace.axes(tensor)
    chosen = [(i, index) for i, index in enumerate(call["indices"]) if index is not None]
    if len(chosen) == 1 and _is_literal(trace, chosen[0][1]):
        dim, index = chosen[0]
        first = int(trace.literals[index]) % tensor.shape[dim]
        axes[dim] = slice_axis(axes[dim], first, first + 1)
        trace.assign(call.out, axes)
        return
    if len(chosen) == 1 and _is_found(trace, tensor, chosen[0][1]) and trace.address(axes[chosen[0][0]], chosen[0][1]):
        dim, index = chosen[0]
        if trace.is_weight(tensor):
            trace.pick(index, [], axes[dim])
        _look_up(trace, tensor, axes, dim)
        trace.assign(call.out, [*axes[:dim], *trace.axes(index), *axes[dim + 1 :]])
        return
    for _, index in chosen:
        _read_index(trace, index)
    for index in call["indices"]:
        width = 1
        if index is not None:
            width = index.dim() if index.dtype in (torch.bool, torch.uint8) else 1
            positions += range(dim, dim + width)
        dim += width
    for i in positions:
        trace.freeze(axes[i], "an index of data")
    count = call.out.dim() - (tensor.dim() - len(positions))
    adjacent = positions == list(range(positions[0], positions[0] + len(positions)))
    start = positions[0] if adjacent else 0
    new = [new_axis(size, frozen=True) for size in call.out.shape[start : start + count]]
    kept = [axis for i, axis in enumerate(axes) if i not in positions]
    if len(chosen) == len(positions) == 1:
        _pick(trace, tensor, chosen[0][1], new, axes[positions[0]])
    trace.assign(call.out, [*kept[:start], *new, *kept[start:]])


def _pick(trace: CouplingTrace, table: Tensor, index: Tensor, places: list[Axis], experts: Axis) -> None:
    """Matrices, or vectors beside them, that data pick from a weight: each place has those of one expert."""
    if trace.is_weight(table) and table.dim() > 1:
        trace.pick(index, [atom for axis in places for atom in axis], experts)


def _is_literal(trace: CouplingTrace, index: Tensor) -> bool:
    """Whether an index is a list of one number in the code: a slice of length 1."""
    return index in trace.literals and index.shape == (1,) and index.dtype == torch.int64


def _is_found(trace: CouplingTrace, tensor: Tensor, index: Tensor) -> bool:
    """Whether an index holds positions that were found along an axis, and picks rows with them.

    What picks matrices from a weight picks experts, which are guessed from their router.
    """
    picks_experts = trace.picks_by_data(index) or tensor.dim() > 2
    return bool(trace.pointed(index)) and not (trace.is_weight(tensor) and picks_experts)


def _look_up(trace: CouplingTrace, table: Tensor, axes: list[Axis], dim: int) -> None:
    """The neurons along `dim` read out the rows of a weight, which feed what comes with them."""
    for i, axis in enumerate(axes):
        trace.used(table, axis, "outgoing" if i == dim else "incoming")


def _read_index(trace: CouplingTrace, index: Tensor) -> None:
    """An index whose values are used as they are: each stands for a place of its own."""
    trace.read(index)
    for axis in trace.axes(index):
        trace.freeze(axis, "an index of data")


@aten_rule("index_select")
def index_select(trace: CouplingTrace, call: OperatorCall) -> None:
    tensor = call.inputs[0]
    axes, dim = trace.axes(tensor), call["dim"] % max(tensor.dim(), 1)
    if _is_found(trace, tensor, call["index"]) and trace.address(axes[dim], call["index"]):
        _look_up(trace, tensor, axes, dim)
        axes[dim] = trace.axes(call["index"])[0]
    else:
        _read_index(trace, call["index"])
        trace.freeze(axes[dim], "an index of data")
        places = new_axis(call.out.shape[dim], frozen=True)
        _pick(trace, tensor, call["index"], [places], axes[dim])
        axes[dim] = places
    trace.assign(call.out, axes)


@aten_rule("_pack_padded_sequence")
def pack_padded_sequence(trace: CouplingTrace, call: OperatorCall) -> None:
    """Samples and times become one axis, of those that are no padding; what comes with each time passes."""
    axes = trace.axes(call["input"])
    for axis in axes[:2]:
        trace.freeze(axis, "positions in time")
    packed, sizes = call.outputs
    trace.assign(packed, [new_axis(packed.shape[0], frozen=True), *axes[2:]])
    trace.assign_data(sizes)


@aten_rule("gather")
def gather(trace: CouplingTrace, call: OperatorCall) -> None:
    """Entries are picked along `dim`; the other axes pass where the index leaves them whole."""
    tensor = call.inputs[0]
    axes, dim = trace.axes(tensor), call["dim"] % max(tensor.dim(), 1)
    trace.address(axes[dim] if axes else [], call["index"])
    trace.assign(
        call.out,
        [
            axis if i != dim and size == axis_size(axis) else new_axis(size, frozen=True)
            for i, (axis, size) in enumerate(zip(axes, call.out.shape, strict=True))
        ],
    )


@aten_rule("scatter", "scatter_add", "scatter_reduce", "index_add", "index_copy", "index_fill")
def scatter(trace: CouplingTrace, call: OperatorCall) -> None:
    """Entries are written along `dim`; the other axes of what is written are tied to the tensor's."""
    tensor = call.inputs[0]
    dim = call["dim"] % max(tensor.dim(), 1)
    source = call.get("src", call.get("source"))
    index = call["index"]
    written = trace.pointed(index) if call.name.startswith("scatter") else []
    if not written:
        _write(trace, call, {dim}, source)
        return
    axes = trace.axes(tensor)
    if not trace.address(axes[dim], index):
        _write(trace, call, {dim}, source)
        return
    for other in [index] if source is None else [index, source]:
        for i, axis in enumerate(trace.axes(other)):
            if i == dim or other.shape[i] != tensor.shape[i]:
                trace.freeze(axis, "written in parts")
            else:
                trace.unify(axes[i], axis)
    axes[dim] = written[0]
    trace.assign(call.out, axes)


@aten_rule("index_put", "_index_put_impl", "_unsafe_index_put")
def index_put(trace: CouplingTrace, call: OperatorCall) -> None:
    _write(trace, call, {i for i, chosen in enumerate(call["indices"]) if chosen is not None}, call["values"])


def _write(trace: CouplingTrace, call: OperatorCall, dims: set[int], source: Tensor | None) -> None:
    tensor = call.inputs[0]
    axes = trace.axes(tensor)
    if isinstance(source, Tensor):
        free = [axis for i, axis in enumerate(axes) if i not in dims]
        written = trace.axes(source)
        if source.dim() == tensor.dim():
            for i in dims:
                trace.freeze(written[i], "an index of data")
            written = [axis for i, axis in enumerate(written) if i not in dims]
        for i in range(1, min(len(free), len(written)) + 1):
            if not free[-i] or not written[-i]:
                continue
            if axis_size(free[-i]) == axis_size(written[-i]):
                trace.unify(free[-i], written[-i])
                axes[[j for j in range(len(axes)) if j not in dims][-i]] = written[-i]
            else:
                trace.freeze(free[-i], "written in parts")
                trace.freeze(written[-i], "written in parts")
    for i in dims:
        trace.freeze(axes[i], "an index of data")
        axes[i] = new_axis(tensor.shape[i], frozen=True)
    trace.assign(call.out, axes)


@aten_rule("copy")
def copy(trace: CouplingTrace, call: OperatorCall) -> None:
    """Writing over a tensor: its axes become those of the source."""
    trace.broadcast(call.out, call.inputs)


@aten_rule(
    "masked_fill",
    "native_dropout",
    "where",
    "isin",
    "_prelu_kernel",
    "rrelu_with_noise",
    "floor_divide",
    "fmod",
    "remainder",
)
def elementwise(trace: CouplingTrace, call: OperatorCall) -> None:
    """Pointwise operators that torch does not tag so, or that return several tensors."""
    for out in call.outputs:
        trace.broadcast(out, [tensor for tensor in call.inputs if tensor.dim() <= out.dim()])


@aten_rule("masked_select")
def masked_select(trace: CouplingTrace, call: OperatorCall) -> None:
    """What a mask lets through, in order."""
    for tensor in call.inputs:
        for axis in trace.axes(tensor):
            trace.freeze(axis, "a mask of data picks entries")
    trace.assign_data(call.out)


@aten_rule(
    "nonzero", "nonzero_numpy", "_local_scalar_dense", "item", "bincount", "one_hot",
    "unique2", "_unique2", "searchsorted", "bucketize",
)  # fmt: skip
def read_out(trace: CouplingTrace, call: OperatorCall) -> None:
    """Values leave the tensor at their positions: floating axes are frozen."""
    for tensor in call.inputs:
        if tensor.is_floating_point():
            for axis in trace.axes(tensor):
                trace.freeze(axis, f"{call.name} reads its positions")
    for out in call.outputs:
        trace.assign_data(out)


@aten_rule("equal", "is_nonzero", "_is_all_true", "_assert_async", "resize", "set", "record_stream")
def bookkeeping(trace: CouplingTrace, call: OperatorCall) -> None:
    """Operators without an influence on values."""
    for out in call.outputs:
        trace.assign_data(out)
