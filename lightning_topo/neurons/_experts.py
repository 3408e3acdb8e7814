"""Whole experts as neurons: a guess from the structure of the model, kept only if permuting proves it.

A router that picks experts by position freezes their axis in the trace, although experts are exchangeable
together with their rows of the router. Candidates are lists of modules of one shape, and parameters stacked
over experts, beside a router whose axis of the same length was frozen by the choice.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping

from torch import nn

from lightning_topo._tape.names import clean_name
from lightning_topo.neurons._coupling import axis_size, leaves
from lightning_topo.neurons._group import NeuronGroup, ParamSlice, owner
from lightning_topo.neurons._one_run import named_state
from lightning_topo.neurons._trace import CouplingTrace

CHOICES = ("topk", "argmax", "sort", "argsort", "max")
CHOSEN = frozenset({*(f"{choice} along it" for choice in CHOICES), "the position of an extreme"})
PICKED = frozenset({"the expert of a token is data", "a single index is selected", "stacked", "an index of data"})


def guess_expert_groups(model: nn.Module, trace: CouplingTrace) -> list[NeuronGroup]:
    """Groups of whole experts that the structure suggests; each has yet to be proved."""
    trainable = {name: p.requires_grad for name, p in named_state(model)[0].items()}
    routers = list(_chosen_axes(trace, trainable))
    guesses = []
    lists = [(f"{path}.", path, n, slices) for path, n, slices in _module_lists(model, trainable)]
    stacks = [("", path, n, slices) for path, n, slices in _stacked_parameters(trace, trainable)]
    for own, path, n, slices in [*lists, *stacks]:
        around = path.rpartition(".")[0]
        inside = {piece.param for piece in slices}
        rows = [
            ParamSlice(name, (), (dim,), trainable[name], "incoming")
            for name, dim, size in routers
            # A router within one of the modules is the expert's own; stacked weights may lie beside theirs.
            if size == n and name not in inside and not (own and name.startswith(own)) and name.startswith(around)
        ]
        if rows:
            guesses.append(NeuronGroup(path, "expert", n, (), (*slices, *rows)))
    return guesses


def _module_lists(model: nn.Module, trainable: Mapping[str, bool]) -> Iterator[tuple[str, int, tuple[ParamSlice, ...]]]:
    """Lists of two or more modules whose parameters have the same names and shapes."""
    for path, module in model.named_modules():
        children = list(module.children())  # without places that hold None, which lists have, too
        if not isinstance(module, (nn.ModuleList, nn.Sequential)) or not 2 <= len(children) == len(module):
            continue
        shapes = [{name: p.shape for name, p in child.named_parameters()} for child in children]
        if not shapes[0] or any(other != shapes[0] for other in shapes):
            continue
        path = clean_name(f"{path}.").removesuffix(".")
        names = [clean_name(name) for name in shapes[0]]
        if all(f"{path}.{i}.{name}" in trainable for i in range(len(children)) for name in names):
            yield (
                path,
                len(children),
                tuple(ParamSlice(f"{path}.*.{name}", (), (0,), trainable[f"{path}.0.{name}"]) for name in names),
            )


def _stacked_parameters(
    trace: CouplingTrace, trainable: Mapping[str, bool]
) -> Iterator[tuple[str, int, tuple[ParamSlice, ...]]]:
    """Parameters of three or more axes, the first of which was indexed by the choice of an expert.

    With their biases, which the same index picks.
    """
    by_owner: defaultdict[tuple[str, int], list[ParamSlice]] = defaultdict(list)
    first = {name: leaves(pieces[0].axes[0]) for name, pieces in trace.pieces.items() if pieces[0].axes}
    picked = {
        name: len(pieces) > 1 or any(atom.frozen and atom.reason in PICKED | CHOSEN for atom in first.get(name, ()))
        for name, pieces in trace.pieces.items()
        if name in trainable
    }
    wide = {name for name in picked if len(trace.pieces[name]) > 1 or len(trace.pieces[name][0].axes) > 2}
    shared = {atom for name in wide if picked[name] for atom in first.get(name, ())}
    for name in (name for name, is_picked in picked.items() if is_picked):
        if name in wide or (len(trace.pieces[name][0].axes) == 2 and not shared.isdisjoint(first[name])):
            pieces = trace.pieces[name]
            size = len(pieces) if len(pieces) > 1 else axis_size(pieces[0].axes[0])
            by_owner[owner(name) if "." in name else "", size].append(ParamSlice(name, (), (0,), trainable[name]))
    for (_, n), slices in by_owner.items():
        yield owner(slices[0].param), n, tuple(slices)


def _chosen_axes(trace: CouplingTrace, trainable: Mapping[str, bool]) -> Iterator[tuple[str, int, int]]:
    """Axes of parameters that were frozen because the position of an extreme along them was used."""
    for name, pieces in trace.pieces.items():
        if name not in trainable or len(pieces) > 1:
            continue
        for dim, axis in enumerate(pieces[0].axes):
            atoms = leaves(axis)
            if len(atoms) == 1 and atoms[0].frozen and atoms[0].reason in CHOSEN:
                yield name, dim, axis_size(axis)
