"""Operators that sum over an axis shared by two tensors: linear maps, attention."""

from torch import Tensor

from lightning_topo.neurons._coupling import Axis, axis_size, new_axis
from lightning_topo.neurons._registry import aten_rule
from lightning_topo.neurons._trace import CouplingTrace, OperatorCall


def contract(trace: CouplingTrace, left: Tensor, right: Tensor) -> list[Axis]:
    """The axes of (..., m, k) @ (..., k, n); ties k and the batch axes, and records what weights do."""
    a, b = trace.axes(left), trace.axes(right)
    rows, columns = a[-2:-1], b[-1:] if len(b) > 1 else []
    shared = b[-2] if len(b) > 1 else b[0]
    trace.unify(a[-1], shared)
    batch = a[:-2]
    for x, y in zip(batch, b[:-2], strict=True):
        trace.unify(x, y)
    trace.witness([*batch, *rows, a[-1]])
    trace.witness([*batch, shared, *columns])
    _record(trace, left, right, rows, columns, shared, batch)
    return [*batch, *rows, *columns]


def _record(
    trace: CouplingTrace,
    left: Tensor,
    right: Tensor,
    rows: list[Axis],
    columns: list[Axis],
    shared: Axis,
    batch: list[Axis],
) -> None:
    """Note which axes of a weight feed neurons and which read them."""
    if trace.is_weight(right):
        trace.used(right, shared, "outgoing")
        for axis in [*columns, *batch]:
            trace.used(right, axis, "incoming")
    if trace.is_weight(left):
        trace.used(left, shared, "incoming" if trace.is_weight(right) else "outgoing")
        for axis in [*rows, *batch]:
            trace.used(left, axis, "incoming")
    if trace.is_activation(left) and trace.is_activation(right):
        trace.reduce(left, shared)
    if trace.is_activation(left) and trace.is_activation(right) and batch:
        for axis in batch:
            trace.tag(axis, "head")
        trace.tag(shared, "query_key")
        trace.tag(columns[0], "value")


@aten_rule("mm", "bmm", "mv", "dot", "vdot")
def matmul(trace: CouplingTrace, call: OperatorCall) -> None:
    left, right = call.inputs[:2]
    trace.assign(call.out, contract(trace, left, right))


@aten_rule("addmm", "baddbmm", "addmv", "addbmm", "_sparse_addmm")
def add_matmul(trace: CouplingTrace, call: OperatorCall) -> None:
    bias, left, right = call.inputs[:3]
    trace.assign(call.out, contract(trace, left, right))
    trace.broadcast(call.out, [call.out, bias])


@aten_rule("_trilinear")
def trilinear(trace: CouplingTrace, call: OperatorCall) -> None:
    """A product of three tensors, each given axes of length 1 where it lacks some, summed over several axes."""
    tensors, summed = call.inputs[:3], set(call["sumdim"])
    each: list[list[Axis]] = []
    for tensor, missing in zip(tensors, (call["expand1"], call["expand2"], call["expand3"]), strict=True):
        axes = trace.axes(tensor)
        for dim in sorted(missing):
            axes.insert(dim, [])
        each.append(axes)
    axes: list[Axis] = []
    for versions in zip(*each, strict=True):
        present = [axis for axis in versions if axis]
        for axis in present[1:]:
            trace.unify(present[0], axis)
        axes.append(present[0] if present else [])
    for tensor, own in zip(tensors, each, strict=True):
        for dim, axis in enumerate(own):
            if axis:
                trace.used(tensor, axis, "outgoing" if dim in summed else "incoming")
    trace.witness(axes)
    kept = {dim: [] for dim in summed} if call.out.dim() == len(axes) else {}
    trace.assign(call.out, [kept.get(dim, axis) for dim, axis in enumerate(axes) if dim not in summed or kept])


@aten_rule("_cdist_forward", "_euclidean_dist", "cdist")
def distances(trace: CouplingTrace, call: OperatorCall) -> None:
    """Distances (..., p, r) between points (..., p, m) and (..., r, m), batch axes broadcast."""
    left, right = call.inputs[:2]
    a, b = trace.axes(left), trace.axes(right)
    trace.unify(a[-1], b[-1])
    batch: list[Axis] = [new_axis(size, constant=True) for size in call.out.shape[:-2]]
    for tensor, axes in ((left, a), (right, b)):
        for i, axis in enumerate(axes[:-2]):
            j = i - tensor.dim() + 2 + len(batch)
            if axis and axis_size(axis) == call.out.shape[j]:
                trace.unify(batch[j], axis)
                batch[j] = axis
        trace.used(tensor, axes[-2], "incoming")
        trace.used(tensor, axes[-1], "outgoing")
        trace.witness(axes)
    trace.reduce(left, a[-1])
    trace.reduce(right, b[-1])
    trace.assign(call.out, [*batch, a[-2], b[-2]])


@aten_rule("linear")
def linear(trace: CouplingTrace, call: OperatorCall) -> None:
    tensor, weight, bias = call["input"], call["weight"], call.get("bias")
    axes, (rows, columns) = trace.axes(tensor), trace.axes(weight)
    trace.unify(axes[-1], columns)
    trace.witness(axes[:-1])
    trace.witness([rows])
    trace.used(weight, rows, "incoming")
    trace.used(weight, columns, "outgoing")
    trace.assign(call.out, [*axes[:-1], rows])
    if bias is not None:
        trace.unify(rows, trace.axes(bias)[0])


@aten_rule("_grouped_mm")
def grouped_mm(trace: CouplingTrace, call: OperatorCall) -> None:
    """(tokens, k) @ (experts, k, n), the expert of each token given by offsets, which are data."""
    left, right = call.inputs[:2]
    a, b = trace.axes(left), trace.axes(right)
    if len(a) != 2 or len(b) != 3:
        for axis in [*a, *b]:
            trace.freeze(axis, "a grouped product of this shape")
        trace.assign_data(call.out)
        return
    trace.unify(a[1], b[1])
    trace.freeze(a[0], "tokens")
    trace.freeze(b[0], "the expert of a token is data")
    trace.imply(a[0], b[0])
    trace.used(right, b[1], "outgoing")
    trace.used(right, b[2], "incoming")
    trace.assign(call.out, [a[0], b[2]])


def _look_up(trace: CouplingTrace, call: OperatorCall, vocabulary: Axis) -> None:
    """Rows that are picked by positions found along an axis go with that axis; those of a vocabulary stay."""
    if not trace.pointed(call["indices"]):
        trace.freeze(vocabulary, "a vocabulary")
    elif trace.address(vocabulary, call["indices"]):
        trace.used(call["weight"], vocabulary, "outgoing")


@aten_rule("embedding")
def embedding(trace: CouplingTrace, call: OperatorCall) -> None:
    vocabulary, features = trace.axes(call["weight"])
    _look_up(trace, call, vocabulary)
    trace.used(call["weight"], features, "incoming")
    trace.assign(call.out, [*trace.axes(call["indices"]), features])


@aten_rule("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(trace: CouplingTrace, call: OperatorCall) -> None:
    """Sums, means or maxima over the rows of each bag; where one begins is data."""
    vocabulary, features = trace.axes(call["weight"])
    _look_up(trace, call, vocabulary)
    trace.used(call["weight"], features, "incoming")
    for places in (call["indices"], call.get("per_sample_weights")):
        if places is not None:
            trace.freeze(trace.axes(places)[0], "places in bags")
    trace.assign_data(call.out)
    bags = trace.axes(call.out)[0]
    trace.assign(call.out, [bags, features])
    for statistics in call.outputs[1:]:
        trace.assign_data(statistics)


@aten_rule(
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_attention_math", "scaled_dot_product_attention",
    "_scaled_dot_product_fused_attention_overrideable", "_scaled_dot_product_attention_math_for_mps",
)  # fmt: skip
def attention(trace: CouplingTrace, call: OperatorCall) -> None:
    query, key, value = (trace.axes(call[name]) for name in ("query", "key", "value"))
    for q, k, v in zip(query[:-2], key[:-2], value[:-2], strict=True):
        trace.unify(q, k)
        trace.unify(q, v)
    trace.unify(query[-1], key[-1])
    trace.unify(key[-2], value[-2])
    scores = [*query[:-1], key[-2]]
    trace.witness(scores)
    for axis in query[1:-2]:
        trace.tag(axis, "head")
    trace.tag(query[-1], "query_key")
    trace.tag(value[-1], "value")
    if call.get("is_causal"):  # a mask by position
        for axis in (query[-2], key[-2]):
            trace.freeze(axis, "a causal mask")
    mask = call.get("attn_mask")
    mask = call.get("attn_bias") if mask is None else mask
    if mask is not None:
        for i, axis in enumerate(reversed(trace.axes(mask)), start=1):
            if mask.shape[-i] > 1:
                trace.unify(axis, scores[-i])
    trace.assign(call.out, [*query[:-1], value[-1]])
    for statistics in call.outputs[1:]:
        trace.assign_data(statistics)
