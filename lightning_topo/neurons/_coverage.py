"""For every trained parameter its groups, or the reason why it is in none."""

from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.nn.parameter import is_lazy

from lightning_topo._parameter_coverage import NOT_TRAINED, UNUSED, ParameterCoverage
from lightning_topo._tape import Tape
from lightning_topo.neurons._coupling import leaves
from lightning_topo.neurons._group import NeuronGroup
from lightning_topo.neurons._trace import CouplingTrace

INPUT = "an axis of the data, its targets included, or of a constant"
"""Why what nothing has frozen by name is fixed: the data itself has that axis."""


def parameter_coverage(
    groups: Sequence[NeuronGroup], tapes: Sequence[Tape], trace: CouplingTrace | None, selected_out: Mapping[str, str]
) -> tuple[ParameterCoverage, ...]:
    """Coverage of every parameter that the tapes know as trained, in their order.

    `selected_out` are groups that were found but not wanted, by name, with the reason.
    """
    by_param = _groups_by_param(groups)
    reached = frozenset[str]().union(*(tape.params for tape in tapes)) if tapes else frozenset()
    found: dict[str, ParameterCoverage] = {}
    for tape in tapes:
        for slot, names in tape.names.items():
            name = names[0]
            if not tape.trainable.get(name, False):
                continue
            inside = tuple(by_param.get(name, ()))
            if inside:
                reason = ""
            elif name in selected_out:
                reason = selected_out[name]
            elif all(tape.obstacle for tape in tapes):
                reason = tapes[0].obstacle
            elif name not in reached:
                reason = UNUSED
            else:
                reason = _frozen(trace, name)
            found[name] = ParameterCoverage(name, tape.values[slot].numel(), inside, reason)
    return tuple(found.values())


def whole_coverage(
    known: Sequence[ParameterCoverage], groups: Sequence[NeuronGroup], parameters: Mapping[str, Tensor], otherwise: str
) -> tuple[ParameterCoverage, ...]:
    """Coverage of all parameters by the groups that are measured in the end, also of those that no tape knows.

    `known` gives the reasons, `otherwise` that of parameters which it lacks and which are trained.
    """
    by_param = _groups_by_param(groups)
    reasons = {one.param: one.reason or f"{', '.join(one.groups)} has a single neuron" for one in known}
    found = []
    for name, parameter in parameters.items():
        inside = tuple(by_param.get(name, ()))
        reason = "" if inside else reasons.get(name, otherwise if parameter.requires_grad else NOT_TRAINED)
        numel = 0 if is_lazy(parameter) else parameter.numel()
        found.append(ParameterCoverage(name, numel, inside, reason))
    return tuple(found)


def _groups_by_param(groups: Sequence[NeuronGroup]) -> dict[str, dict[str, None]]:
    found: dict[str, dict[str, None]] = {}
    for group in groups:
        for piece in group.slices:
            for name in piece.names(group.n):
                found.setdefault(name, {})[group.name] = None
    return found


def _frozen(trace: CouplingTrace | None, name: str) -> str:
    """Why the axes of a parameter hold no neurons."""
    if trace is None or name not in trace.pieces:
        return "the step could not be followed"
    reasons: dict[str, None] = {}
    for piece in trace.pieces[name]:
        for dim, axis in enumerate(piece.axes):
            for atom in leaves(axis):
                if atom.frozen:
                    reasons[f"axis {dim}: {atom.reason or INPUT}"] = None
                elif atom.size > 1:
                    reasons[f"axis {dim}: no weight feeds it and is read through it"] = None
    return "; ".join(reasons) or "it is a single number"
