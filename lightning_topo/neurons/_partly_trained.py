"""Groups of which a part is trained and the rest is frozen, as the layers under LoRA."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b

import torch
from torch import Tensor, nn

from lightning_topo._parameter_coverage import ParameterCoverage
from lightning_topo.geometry._coincidence import equal_rows
from lightning_topo.neurons._group import NeuronGroup
from lightning_topo.neurons._one_run import named_state

MOST_WHOLE = 1 << 27
"""Neurons of which a part is frozen are watched as a whole where those of a group take up to this many bytes."""

REASON = (
    "its neurons begin with equal trained weights and differ in frozen ones only, which are too large, or cannot be "
    "read: r of the trained part alone says nothing about them"
)

Beside = Mapping[str, Mapping[str, Tensor]]
"""By group, parameters that its neurons have besides those that are trained."""


def frozen_beside(groups: Sequence[NeuronGroup], module: nn.Module, trained: Mapping[str, Tensor]) -> Beside:
    """The frozen parameters of each group of which a part is `trained`: they are parts of its neurons, too.

    They keep neurons apart: r of the trained part alone is at least that of the whole. If the neurons of a group take
    more than `MOST_WHOLE` bytes, only frozen members of a stack are named of which other members are trained (experts
    have parameters of their own). What cannot be read is left out, as where it is quantised, or not finite; and so is
    what the steps write, as a target's or a teacher's weights: it follows the neurons, and does not hold them apart.

    >>> from lightning_topo.neurons._group import ParamSlice
    >>> group = NeuronGroup("net", "unit", 2, (), (ParamSlice("weight"), ParamSlice("bias", role="elementwise")))
    >>> {name: list(found) for name, found in frozen_beside([group], nn.Linear(3, 2), {"bias": torch.ones(2)}).items()}
    {'net': ['weight']}
    """
    partly = [g for g in groups if 0 < sum(name in trained for name in g.parameter_names) < len(g.parameter_names)]
    parameters = named_state(module)[0] if partly else {}
    found = {group.name: _frozen(group, parameters, trained) for group in partly}
    return {name: frozen for name, frozen in found.items() if frozen}


def told_apart_by_frozen(group: NeuronGroup, values: Mapping[str, Tensor], known: Collection[str] = ()) -> bool:
    """Whether neurons coincide in what is trained of them at these values, and not in the whole.

    A neuron under LoRA is its frozen weights and its row of B, which begins at 0: rows that part there tear nothing.
    Frozen parameters that are `known` count as trained ones do.

    >>> from lightning_topo.neurons._group import ParamSlice
    >>> group = NeuronGroup("net", "unit", 2, (), (ParamSlice("w", trainable=False), ParamSlice("b")))
    >>> told_apart_by_frozen(group, {"w": torch.eye(2), "b": torch.zeros(2)})
    True
    >>> told_apart_by_frozen(group, {"w": torch.ones(2, 2), "b": torch.zeros(2)})
    False
    """
    frozen = {name: values[name] for name in _names(group, trainable=False) if name in values}
    trained = trained_of(group, values) | {name: value for name, value in frozen.items() if name in known}
    whole = trained | frozen
    return len(trained) < len(whole) and len(trained) > 0 and _coincide(group, trained) and not _coincide(group, whole)


def trained_of(group: NeuronGroup, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of these values that belong to parameters of the group which were trained when it was found."""
    return {name: values[name] for name in _names(group, trainable=True) if name in values}


def trained_columns(group: NeuronGroup, tensors: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> Tensor:
    """Which columns of `group.gather(tensors)` are of slices that are not `frozen` as a whole: a flag for each.

    >>> from lightning_topo.neurons._group import ParamSlice
    >>> group = NeuronGroup("net", "unit", 2, (), (ParamSlice("w"), ParamSlice("b")))
    >>> trained_columns(group, {"w": torch.eye(2), "b": torch.zeros(2)}, {"w": torch.eye(2)})
    tensor([False, False,  True])
    """
    flags = [(not frozen.keys() >= set(piece.names(group.n)), width) for piece, width in group.widths(tensors)]
    return torch.cat([torch.full((width,), flag) for flag, width in flags])


def name_of_trained_part(group: NeuronGroup, trained: Collection[str]) -> str:
    """A name for what is trained of a group: the group's own where that is all of it.

    >>> from lightning_topo.neurons._group import ParamSlice
    >>> group = NeuronGroup("net", "unit", 2, (), (ParamSlice("w"), ParamSlice("b")))
    >>> name_of_trained_part(group, {"w", "b"}), name_of_trained_part(group, {"b"})
    ('net', 'net, fd9d3f51')
    """
    own = [name for name in group.parameter_names if name in trained]
    if len(own) == len(group.parameter_names):
        return group.name
    return f"{group.name}, {blake2b(','.join(own).encode(), digest_size=4).hexdigest()}"


def with_reason(
    coverage: Sequence[ParameterCoverage], left_out: Sequence[NeuronGroup]
) -> tuple[ParameterCoverage, ...]:
    """The coverage without the groups that are left out for this reason."""
    names = {group.name for group in left_out}
    return tuple(
        replace(one, groups=(), reason=REASON) if one.groups and names.issuperset(one.groups) else one
        for one in coverage
    )


def stacked_with(group: NeuronGroup, trained: Collection[str], frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those `frozen` parameters that lie in a stack with a trained one: a stack is a slice as a whole."""
    stacks = (piece.names(group.n) for piece in group.slices)
    return {
        name: frozen[name]
        for stack in stacks
        if any(member in trained for member in stack)
        for name in stack
        if name in frozen and name not in trained
    }


def _frozen(
    group: NeuronGroup, parameters: Mapping[str, Tensor], trained: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    own = {name: trained[name] for name in group.parameter_names if name in trained}
    device = next(iter(own.values())).device
    names = [name for name in group.own_parameter_names if name in parameters and name not in own]
    frozen = {name: p for name in names if _is_plain(p := parameters[name]) and p.device == device}
    try:
        widths = group.widths(own | frozen)
    except ValueError:  # as where weights are quantised
        return {}
    size = max(p.element_size() for p in (own | frozen).values())
    n_bytes = group.n_blocks * group.n * sum(width for _, width in widths) * size
    chosen = frozen if n_bytes <= MOST_WHOLE else stacked_with(group, own, frozen)
    return {name: p for name, p in chosen.items() if _is_finite(p)}


def _is_plain(parameter: Tensor) -> bool:
    return parameter.is_floating_point() and parameter.layout is torch.strided


def _is_finite(parameter: Tensor) -> bool:
    """Whether a cloud can hold a parameter; a mask of infinities cannot be compared."""
    return parameter.numel() == 0 or all(math.isfinite(extreme) for extreme in parameter.detach().aminmax())


def _names(group: NeuronGroup, *, trainable: bool) -> list[str]:
    """The trained or the frozen parameters that a group has entries in."""
    pieces = [piece for piece in group.slices if piece.trainable is trainable and piece.role != "buffer"]
    return [name for piece in pieces for name in piece.names(group.n)]


def _coincide(group: NeuronGroup, tensors: Mapping[str, Tensor]) -> bool:
    """Whether two neurons of a block are equal in these parameters."""
    return any(equal_rows(block) for block in group.gather(tensors).unflatten(0, (group.n_blocks, group.n)))
