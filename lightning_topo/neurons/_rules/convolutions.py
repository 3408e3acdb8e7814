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
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_linear1d", "upsample_bilinear2d",
    "upsample_trilinear3d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
)  # fmt: skip
def resample(trace: CouplingTrace, call: OperatorCall) -> None:
    """Positions are mixed, channels are not."""
    axes = trace.axes(call.inputs[0])
    spatial = next(n for n in (1, 2, 3) if f"{n}d" in call.name)
    for axis in axes[-spatial:]:
        trace.freeze(axis, "positions in space")
    for out in call.outputs:
        trace.assign(out, [*axes[:-spatial], *frozen_axes(out.shape[-spatial:])])


@aten_rule("fractional_max_pool2d", "fractional_max_pool3d")
def fractional_pool(trace: CouplingTrace, call: OperatorCall) -> None:
    """Each channel has random regions of its own, which go with it."""
    resample(trace, call)
    axes, regions = trace.axes(call.inputs[0]), trace.axes(call["random_samples"])
    spatial = len(call["output_size"])
    for axis, other in zip(axes[:-spatial], regions[-1 - len(axes[:-spatial]) : -1], strict=True):
        trace.unify(axis, other)
    trace.freeze(regions[-1], "positions in space")


@aten_rule("max_unpool2d", "max_unpool3d")
def unpool(trace: CouplingTrace, call: OperatorCall) -> None:
    """Values go back to where they were found, in a plane of their own; the indices hold places in that plane."""
    axes, places, spatial = trace.axes(call["self"]), trace.axes(call["indices"]), len(call["output_size"])
    for axis, other in zip(axes[:-spatial], places[:-spatial], strict=True):
        trace.unify(axis, other)
    for axis in [*axes[-spatial:], *places[-spatial:]]:
        trace.freeze(axis, "positions in space")
    trace.assign(call.out, [*axes[:-spatial], *frozen_axes(call.out.shape[-spatial:])])


@aten_rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d", "_grid_sampler_2d_cpu_fallback", "cudnn_grid_sampler")
def sample_at_points(trace: CouplingTrace, call: OperatorCall) -> None:
    """Each channel is read at points between positions; the points, (batch, *, coordinate), keep their own axes."""
    tensor, grid = call.inputs[:2]
    axes, points = trace.axes(tensor), trace.axes(grid)
    for axis in [*axes[2:], points[-1]]:
        trace.freeze(axis, "positions in space")
    trace.unify(axes[0], points[0])
    for axis in points[1:-1]:
        trace.used(grid, axis, "incoming")
    trace.assign(call.out, [*axes[:2], *points[1:-1]])


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


@aten_rule("pixel_unshuffle")
def pixel_unshuffle(trace: CouplingTrace, call: OperatorCall) -> None:
    """The pixels of a square become channels, after the channel that they are of."""
    *axes, channels, height, width = trace.axes(call.inputs[0])
    for axis in (height, width):
        trace.freeze(axis, "positions in space")
    pixels = new_axis(call["downscale_factor"] ** 2, frozen=True)
    trace.assign(call.out, [*axes, channels + pixels, *frozen_axes(call.out.shape[-2:])])


@aten_rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(trace: CouplingTrace, call: OperatorCall) -> None:
    """The channels of all groups in turn: the first of each, then the second of each."""
    axes = trace.axes(call.inputs[0])
    within = flat(axes[1])
    groups = take(within, call["groups"])
    if groups is None:
        trace.freeze(axes[1], "groups of channels")
        groups, within = new_axis(call.out.shape[1], frozen=True), []
    trace.assign(call.out, [axes[0], within + groups, *axes[2:]])


@aten_rule("unfold", "unfold_copy")
def windows(trace: CouplingTrace, call: OperatorCall) -> None:
    """Windows along an axis, with the positions inside of each as a new last axis."""
    axes, dim = trace.axes(call.inputs[0]), call["dimension"] % max(call.inputs[0].dim(), 1)
    trace.freeze(axes[dim], "windows along it")
    axes[dim] = new_axis(call.out.shape[dim], frozen=True)
    trace.assign(call.out, [*axes, new_axis(call.out.shape[-1], frozen=True)])


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
