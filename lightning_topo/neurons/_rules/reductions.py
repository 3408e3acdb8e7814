"""Sums and other reductions along axes, and operators along an axis whose order matters."""

from torch import Tensor

from lightning_topo.neurons._coupling import new_axis
from lightning_topo.neurons._registry import aten_rule
from lightning_topo.neurons._trace import CouplingTrace, OperatorCall


def chosen_dims(call: OperatorCall, tensor: Tensor, argument: str = "dim") -> set[int]:
    """The axes an operator works along: those named, or all."""
    dims = call.get(argument)
    if dims is None or (isinstance(dims, (list, tuple)) and not dims):
        return set(range(tensor.dim()))
    return {dim % max(tensor.dim(), 1) for dim in (dims if isinstance(dims, (list, tuple)) else [dims])}


WITH_POSITIONS = frozenset({"max", "min", "median", "nanmedian", "mode", "kthvalue", "argmax", "argmin"})


@aten_rule(
    "sum", "mean", "amax", "amin", "var", "std", "var_mean", "std_mean", "logsumexp", "norm",
    "linalg_vector_norm", "prod", "any", "all", "max", "min", "median", "nanmedian", "mode", "kthvalue", "nansum",
    "nanmean", "aminmax", "argmax", "argmin", "count_nonzero",
)  # fmt: skip
def reduce(trace: CouplingTrace, call: OperatorCall) -> None:
    """Symmetric functions of the entries along an axis; a position that is read as a number freezes the axis."""
    tensor = call.inputs[0]
    if call.overload == "other":
        trace.broadcast(call.out, call.inputs)
        return
    axes, dims = trace.axes(tensor), chosen_dims(call, tensor)
    for dim in dims:
        if len(dims) < tensor.dim():  # what is summed up to a single number are outputs, not neurons
            trace.reduce(tensor, axes[dim])
        if call.name in WITH_POSITIONS and not call.outputs[-1].is_floating_point():
            trace.point(call.outputs[-1], axes[dim], "the position of an extreme")
    for out in call.outputs:
        if out.dim() == len(axes):
            trace.assign(out, [[] if i in dims else axis for i, axis in enumerate(axes)])
        else:
            trace.assign(out, [axis for i, axis in enumerate(axes) if i not in dims])


@aten_rule(
    "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "soft_margin_loss", "kl_div",
    "binary_cross_entropy", "binary_cross_entropy_with_logits",
)  # fmt: skip
def pointwise_loss(trace: CouplingTrace, call: OperatorCall) -> None:
    """Predictions and targets are tied entry by entry."""
    first, *others = call.inputs
    axes = trace.axes(first)
    for other in others:
        offset = len(axes) - other.dim()
        for i, axis in enumerate(trace.axes(other)):
            if other.shape[i] == first.shape[offset + i]:
                trace.unify(axes[offset + i], axis)
    trace.assign(call.out, axes if call.out.shape == first.shape else [])


@aten_rule("nll_loss_forward", "nll_loss2d_forward", "nll_loss", "nll_loss_nd", "cross_entropy_loss")
def class_loss(trace: CouplingTrace, call: OperatorCall) -> None:
    axes = trace.axes(call.inputs[0])
    trace.freeze(axes[1 if len(axes) > 1 else 0], "classes")
    for out in call.outputs:
        trace.assign_data(out)


@aten_rule("_ctc_loss", "_cudnn_ctc_loss", "ctc_loss")
def alignment_loss(trace: CouplingTrace, call: OperatorCall) -> None:
    """Log-probabilities are (time, batch, classes)."""
    axes = trace.axes(call.inputs[0])
    trace.freeze(axes[0], "positions in time")
    trace.freeze(axes[-1], "classes")
    for out in call.outputs:
        trace.assign_data(out)


@aten_rule("sort", "topk", "argsort", "msort")
def ranked(trace: CouplingTrace, call: OperatorCall) -> None:
    """Values by rank are symmetric functions of the entries; positions by rank freeze the axis once they are read."""
    tensor, dim = call.inputs[0], call.get("dim", 0 if call.name == "msort" else -1)
    if not tensor.dim():
        for out in call.outputs:
            trace.assign(out, [])
        return
    axes, dim = trace.axes(tensor), dim % tensor.dim()
    trace.reduce(tensor, axes[dim])
    for out in call.outputs:
        ranks = [*axes[:dim], new_axis(out.shape[dim], frozen=True), *axes[dim + 1 :]]
        trace.assign(out, ranks)
        if out is call.outputs[-1] and call.name != "msort":
            trace.point(out, axes[dim], f"{call.name} along it")


@aten_rule("histc")
def histogram(trace: CouplingTrace, call: OperatorCall) -> None:
    """Counts of values: a symmetric function of all entries."""
    for axis in trace.axes(call.inputs[0]):
        trace.reduce(call.inputs[0], axis)
    trace.assign_data(call.out)


@aten_rule(
    "cumsum", "cumprod", "logcumsumexp", "cummax", "cummin", "flip", "roll", "tril", "triu",
)  # fmt: skip
def ordered(trace: CouplingTrace, call: OperatorCall) -> None:
    """The order along the axis matters, so it is frozen."""
    tensor = call.inputs[0]
    axes = trace.axes(tensor)
    if call.name in ("tril", "triu", "tril_", "triu_"):
        dims = {tensor.dim() - 1, tensor.dim() - 2}
    else:
        dims = chosen_dims(call, tensor, "dims" if "dims" in call.arguments else "dim")
    for dim in dims:
        trace.freeze(axes[dim], f"{call.name} along it")
    for out in call.outputs:
        if out.dim() == tensor.dim():
            same = [i not in dims or out.shape[i] == tensor.shape[i] for i in range(tensor.dim())]
            trace.assign(out, [axis if same[i] else new_axis(out.shape[i], frozen=True) for i, axis in enumerate(axes)])
        else:
            trace.assign(out, [axis for i, axis in enumerate(axes) if i not in dims])
