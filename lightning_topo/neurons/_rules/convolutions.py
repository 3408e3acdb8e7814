"""Convolutions, pooling, resampling, padding, unfolding."""

import math

from lightning_topo.neurons._coupling import Atom, Axis, flat, new_axis, sum_axis, take
from lightning_topo.neurons._registry import aten_rule
from lightning_topo.neurons._trace import CouplingTrace, OperatorCall


def frozen_axes(sizes: tuple[int, ...]) -> list[Axis]:
    """New axes of positions."""
    return [new_axis(size, frozen=True) for size in sizes]


@aten_rule("convolution", "_convolution", "convolution_overrideable", "cudnn_convolution", "mkldnn_convolution")
def convolution(trace: CouplingTrace, call: OperatorCall) -> None:
    """A weight is (out, in / groups, *kernel), transposed (in, out / groups, *kernel)."""
    tensor, weight, bias = call["input"], call["weight"], call.get("bias")
    transposed, groups = call.get("transposed", False), call.get("groups", 1)
    axes, kernel = trace.axes(tensor), trace.axes(weight)
    channel = len(axes) - len(kernel) + 1
    for axis in [*kernel[2:], *axes[channel + 1 :]]:
        trace.freeze(axis, "positions in space")
    if groups == 1:
        outgoing, incoming = (kernel[0], kernel[1]) if transposed else (kernel[1], kernel[0])
    else:
        inner = list(flat(kernel[0]))
        lead = take(inner, groups)
        if lead is None:
            trace.freeze(kernel[0], "groups of a convolution")
            lead, inner = new_axis(groups, frozen=True), new_axis(weight.shape[0] // groups, frozen=True)
        trace.witness([lead])
        trace.witness([lead, kernel[1]] if transposed else [lead, inner])
        outgoing, incoming = (lead + inner, lead + kernel[1]) if transposed else (lead + kernel[1], lead + inner)
        trace.tag(lead, "groups")
    trace.unify(axes[channel], outgoing)
    trace.used(weight, outgoing, "outgoing")
    trace.used(weight, incoming, "incoming", "convolution")
    if bias is not None:
        trace.unify(incoming, trace.axes(bias)[0])
    trace.assign(call.out, [*axes[:channel], incoming, *frozen_axes(call.out.shape[channel + 1 :])])


@aten_rule(
    "max_pool1d", "max_pool2d", "max_pool2d_with_indices", "max_pool3d_with_indices", "mkldnn_max_pool2d",
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact2d",
    "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d",
    "_upsample_bilinear2d_aa",
)  # fmt: skip
def resample(trace: CouplingTrace, call: OperatorCall) -> None:
    """Positions are mixed, channels are not."""
    axes = trace.axes(call.inputs[0])
    spatial = next(n for n in (1, 2, 3) if f"{n}d" in call.name)
    for axis in axes[-spatial:]:
        trace.freeze(axis, "positions in space")
    for out in call.outputs:
        trace.assign(out, [*axes[:-spatial], *frozen_axes(out.shape[-spatial:])])


@aten_rule(
    "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
    "replication_pad2d", "replication_pad3d",
)  # fmt: skip
def pad(trace: CouplingTrace, call: OperatorCall) -> None:
    """A padded axis is a sum of the padding and what was there, unless entries are copied or cropped."""
    axes, amounts = trace.axes(call.inputs[0]), call.get("pad") or call["padding"]
    for i in range(len(amounts) // 2):
        dim, before, after = len(axes) - 1 - i, amounts[2 * i], amounts[2 * i + 1]
        if call.name == "constant_pad_nd" and before >= 0 and after >= 0:
            ends = [[Atom(size, frozen=True)] if size else None for size in (before, after)]
            parts = [ends[0], axes[dim] or [Atom(1, frozen=True)], ends[1]]
            if before or after:
                axes[dim] = sum_axis([part for part in parts if part])
        else:
            trace.freeze(axes[dim], "positions in space")
            axes[dim] = new_axis(call.out.shape[dim], frozen=True)
    trace.assign(call.out, axes)


@aten_rule("pixel_shuffle")
def pixel_shuffle(trace: CouplingTrace, call: OperatorCall) -> None:
    axes = trace.axes(call.inputs[0])
    remaining = flat(axes[-3])
    channels = take(remaining, call.out.shape[-3])
    for axis in [remaining, axes[-2], axes[-1]]:
        trace.freeze(axis, "positions in space")
    if channels is None:
        channels = new_axis(call.out.shape[-3], frozen=True)
    trace.assign(call.out, [*axes[:-3], channels, *frozen_axes(call.out.shape[-2:])])


@aten_rule("im2col")
def unfold(trace: CouplingTrace, call: OperatorCall) -> None:
    """(..., channels, *space) to (..., channels x kernel positions, blocks)."""
    *axes, channels, height, width = trace.axes(call.inputs[0])
    for axis in (height, width):
        trace.freeze(axis, "positions in space")
    kernel = new_axis(math.prod(call["kernel_size"]), frozen=True)
    trace.assign(call.out, [*axes, channels + kernel, new_axis(call.out.shape[-1], frozen=True)])


@aten_rule("col2im")
def fold(trace: CouplingTrace, call: OperatorCall) -> None:
    """(..., channels x kernel positions, blocks) to (..., channels, *space)."""
    *axes, columns, blocks = trace.axes(call.inputs[0])
    kernel = flat(columns)
    channels = take(kernel, call.out.shape[-3])
    trace.freeze(blocks, "positions in space")
    if channels is None:
        trace.freeze(columns, "channels that do not factor")
        channels, kernel = new_axis(call.out.shape[-3], frozen=True), []
    trace.freeze(kernel, "positions in space")
    trace.assign(call.out, [*axes, channels, *frozen_axes(call.out.shape[-2:])])
