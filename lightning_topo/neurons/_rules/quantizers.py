"""Rounding to a few levels in training, with observers of the range."""

from torch import Tensor

from lightning_topo.neurons._registry import aten_rule
from lightning_topo.neurons._trace import CouplingTrace, OperatorCall

STATISTICS = ("running_min", "running_max", "scale", "zero_point")


@aten_rule("_fused_moving_avg_obs_fq_helper")
def observed(trace: CouplingTrace, call: OperatorCall) -> None:
    """Each entry is rounded by itself, within the range of all, or of its channel, with which the statistics go."""
    tensor = call.inputs[0]
    axes = trace.axes(tensor)
    if call["per_row_fake_quant"]:
        channel = call["ch_axis"] % tensor.dim()
        for name in STATISTICS:
            if isinstance(call.get(name), Tensor) and call[name].shape == tensor.shape[channel : channel + 1]:
                trace.unify(trace.axes(call[name])[0], axes[channel])
    for out in call.outputs:
        trace.assign(out, axes)
