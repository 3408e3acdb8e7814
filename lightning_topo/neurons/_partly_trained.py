"""Groups of which a part is trained and the rest is frozen, as the layers under LoRA."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from jaxtyping import Shaped
from torch import Tensor, nn

from lightning_topo._parameter_coverage import ParameterCoverage
from lightning_topo.geometry._coincidence import equal_rows
from lightning_topo.neurons._group import NeuronGroup
from lightning_topo.neurons._one_run import named_state

REASON = (
    "its neurons begin with equal trained weights and differ in frozen ones only: r of the trained part alone says "
    "nothing about them"
)


def told_apart_by_frozen(group: NeuronGroup, values: Mapping[str, Tensor]) -> bool:
    """Whether neurons coincide in what is trained of them at these values, and not in the whole.

    A neuron under LoRA is its frozen weights and its row of B, which begins at 0: rows that part there tear nothing.

    >>> import torch
    >>> from lightning_topo.neurons._group import ParamSlice
    >>> group = NeuronGroup("net", "unit", 2, (), (ParamSlice("w", trainable=False), ParamSlice("b")))
    >>> told_apart_by_frozen(group, {"w": torch.eye(2), "b": torch.zeros(2)})
    True
    >>> told_apart_by_frozen(group, {"w": torch.ones(2, 2), "b": torch.zeros(2)})
    False
    """
    trained = _named(group, values, frozen=False)
    whole = trained | _named(group, values, frozen=True)
    return len(trained) < len(whole) and len(trained) > 0 and _coincide(group, trained) and not _coincide(group, whole)


def frozen_part(group: NeuronGroup, module: nn.Module, trained: Collection[str]) -> Shaped[Tensor, "rows d"] | None:
    """The columns of a group's neurons that are frozen; None where none are, or cannot be read.

    They keep neurons apart: r of the trained part alone is at least that of the whole.

    >>> import torch
    >>> from lightning_topo.neurons._group import ParamSlice
    >>> group = NeuronGroup("net", "unit", 2, (), (ParamSlice("weight"), ParamSlice("bias", role="elementwise")))
    >>> frozen_part(group, nn.Linear(3, 2), {"bias"}).shape, frozen_part(group, nn.Linear(3, 2), {"weight", "bias"})
    (torch.Size([2, 3]), None)
    """
    parameters = named_state(module)[0]
    names = [name for name in group.parameter_names if name not in trained and name in parameters]
    frozen = {name: parameters[name].detach() for name in names if parameters[name].is_floating_point()}
    if not frozen or len(frozen) == len(group.parameter_names):
        return None
    try:
        return group.gather(frozen)
    except ValueError:  # as where weights are quantised
        return None


def with_reason(
    coverage: Sequence[ParameterCoverage], left_out: Sequence[NeuronGroup]
) -> tuple[ParameterCoverage, ...]:
    """The coverage without the groups that are left out for this reason."""
    names = {group.name for group in left_out}
    return tuple(
        replace(one, groups=(), reason=REASON) if one.groups and names.issuperset(one.groups) else one
        for one in coverage
    )


def _named(group: NeuronGroup, values: Mapping[str, Tensor], *, frozen: bool) -> dict[str, Tensor]:
    """The trained or the frozen parameters that a group has entries in."""
    pieces = [piece for piece in group.slices if piece.trainable is not frozen and piece.role != "buffer"]
    return {name: values[name] for piece in pieces for name in piece.names(group.n) if name in values}


def _coincide(group: NeuronGroup, tensors: Mapping[str, Tensor]) -> bool:
    """Whether two neurons of a block are equal in these parameters."""
    return any(equal_rows(block) for block in group.gather(tensors).unflatten(0, (group.n_blocks, group.n)))
