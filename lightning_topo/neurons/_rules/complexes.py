"""Complex numbers as pairs of real ones, and Fourier transforms."""

from lightning_topo.neurons._coupling import new_axis
from lightning_topo.neurons._registry import aten_rule
from lightning_topo.neurons._trace import CouplingTrace, OperatorCall


@aten_rule("view_as_real", "view_as_real_copy")
def as_pairs(trace: CouplingTrace, call: OperatorCall) -> None:
    """Real and imaginary parts stand in a new last axis."""
    trace.assign(call.out, [*trace.axes(call.inputs[0]), new_axis(2, frozen=True)])


@aten_rule("view_as_complex", "view_as_complex_copy")
def from_pairs(trace: CouplingTrace, call: OperatorCall) -> None:
    *axes, parts = trace.axes(call.inputs[0])
    trace.freeze(parts, "real and imaginary parts")
    trace.assign(call.out, axes)


@aten_rule("_conj", "_conj_physical", "conj_physical", "resolve_conj", "resolve_neg", "_neg_view", "real", "imag")
def alike(trace: CouplingTrace, call: OperatorCall) -> None:
    """Each entry by itself."""
    trace.assign(call.out, trace.axes(call.inputs[0]))


@aten_rule("_fft_r2c", "_fft_c2c", "_fft_c2r")
def fourier(trace: CouplingTrace, call: OperatorCall) -> None:
    """The transformed axes are positions and frequencies; the others pass."""
    tensor = call.inputs[0]
    axes = trace.axes(tensor)
    for dim in call["dim"]:
        trace.freeze(axes[dim], "a Fourier transform along it")
        axes[dim] = new_axis(call.out.shape[dim], frozen=True)
    trace.assign(call.out, axes)
