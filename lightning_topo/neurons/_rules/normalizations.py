"""Normalisations, softmax, and reparametrised weights."""

from torch import Tensor

from lightning_topo.neurons._coupling import flat, new_axis, take
from lightning_topo.neurons._registry import aten_rule
from lightning_topo.neurons._trace import CouplingTrace, OperatorCall


@aten_rule("softmax", "_softmax", "_log_softmax", "_safe_softmax", "log_softmax")
def softmax(trace: CouplingTrace, call: OperatorCall) -> None:
    """Entries stay exchangeable; the hidden normaliser lacks the summed axis."""
    axes = trace.axes(call.inputs[0])
    trace.assign(call.out, axes)
    trace.witness([axis for i, axis in enumerate(axes) if i != call["dim"] % max(len(axes), 1)])


@aten_rule(
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
    "_native_batch_norm_legit_functional", "_batch_norm_with_update", "_batch_norm_no_update",
    "cudnn_batch_norm", "miopen_batch_norm", "batch_norm",
)  # fmt: skip
def batch_norm(trace: CouplingTrace, call: OperatorCall) -> None:
    """Scale, shift and running statistics belong to the channel."""
    tensor = call.inputs[0]
    axes = trace.axes(tensor)
    for other in call.inputs[1:]:
        if other.shape == tensor.shape[1:2]:
            trace.unify(trace.axes(other)[0], axes[1])
    trace.assign(call.out, axes)
    for statistics in call.outputs[1:]:
        if statistics.shape == tensor.shape[1:2]:
            trace.assign(statistics, [axes[1]])
        else:
            trace.assign_data(statistics)


@aten_rule("native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm")
def layer_norm(trace: CouplingTrace, call: OperatorCall) -> None:
    axes, count = trace.axes(call.inputs[0]), len(call["normalized_shape"])
    for name in ("weight", "bias"):
        if isinstance(call.get(name), Tensor):
            for axis, other in zip(axes[-count:], trace.axes(call[name]), strict=True):
                trace.unify(axis, other)
    trace.assign(call.out, axes)
    for statistics in call.outputs[1:]:
        if statistics.dim() == len(axes):
            trace.assign(statistics, [*axes[:-count], *[[] for _ in range(count)]])
        else:
            trace.assign_data(statistics)


@aten_rule("native_group_norm", "group_norm")
def group_norm(trace: CouplingTrace, call: OperatorCall) -> None:
    """Channels are exchangeable within a group, and groups with one another."""
    tensor, groups = call.inputs[0], call.get("group", call.get("num_groups"))
    axes = trace.axes(tensor)
    if take(flat(axes[1]), groups) is None:
        trace.freeze(axes[1], "groups of a normalisation")
    for name in ("weight", "bias"):
        if isinstance(call.get(name), Tensor):
            trace.unify(axes[1], trace.axes(call[name])[0])
    trace.assign(call.out, axes)
    lead = take(flat(axes[1]), groups)
    for statistics in call.outputs[1:]:
        if lead is not None and tuple(statistics.shape) == (tensor.shape[0], groups):
            trace.assign(statistics, [axes[0], lead])
        else:
            trace.assign_data(statistics)
    trace.tag(lead or new_axis(groups), "groups")


@aten_rule("_weight_norm_interface", "_weight_norm")
def weight_norm(trace: CouplingTrace, call: OperatorCall) -> None:
    """Magnitude g and direction v share the axis that g has."""
    direction = trace.axes(call["v"])
    trace.broadcast(call.out, [call["v"], call["g"]])
    for norms in call.outputs[1:]:
        trace.assign(norms, [axis if norms.shape[i] > 1 else [] for i, axis in enumerate(direction)])
