"""Random numbers. A step's own are recorded, and permuted with the axes that these rules give them."""

from lightning_topo.neurons._coupling import new_axis
from lightning_topo.neurons._registry import aten_rule
from lightning_topo.neurons._trace import CouplingTrace, OperatorCall


@aten_rule(
    "bernoulli", "normal", "normal_functional", "uniform", "exponential", "cauchy", "log_normal", "geometric",
    "random", "poisson", "binomial", "_standard_gamma",
)  # fmt: skip
def by_entry(trace: CouplingTrace, call: OperatorCall) -> None:
    """Each entry is drawn by itself, with parameters of its own or alike for all."""
    if call.inputs:
        trace.broadcast(call.out, call.inputs)
    else:
        trace.assign_constant(call.out)


@aten_rule("_sample_dirichlet")
def shares(trace: CouplingTrace, call: OperatorCall) -> None:
    """Shares of a whole are as exchangeable as their concentrations."""
    trace.assign(call.out, trace.axes(call.inputs[0]))


@aten_rule("multinomial")
def positions(trace: CouplingTrace, call: OperatorCall) -> None:
    """Positions drawn along the last axis stay those of the step, so that it is fixed; each row has its own."""
    *rows, chosen = trace.axes(call.inputs[0])
    trace.freeze(chosen, "positions are drawn along it")
    trace.assign(call.out, [*rows, new_axis(call.out.shape[-1], frozen=True)])
