"""How far each neuron of many groups moved, from the parameters as they lie: no cloud is gathered."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from lightning_topo.geometry import upper_norms
from lightning_topo.geometry.precision import worst_case_work
from lightning_topo.neurons.group import NeuronGroup

_kernels: Any = torch  # its type stubs leave the kernels over lists out


@dataclass(frozen=True, slots=True, eq=False)
class DisplacementMeter:
    """Measures the lengths |Δ_i| of all neurons of several groups between two states of the parameters.

    Each parameter is subtracted and squared once, in a buffer of its own, and summed along the axes that are features
    of a neuron in each group: a few passes over the parameters and one small kernel per slice, without waiting for
    the device. The values are those of `displacement_lengths` of the gathered clouds: upper bounds, rounding included.

    >>> from lightning_topo.neurons.group import ParamSlice
    >>> group = NeuronGroup("net.0", "unit", 2, (), (ParamSlice("w"), ParamSlice("b")))
    >>> start = {"w": torch.zeros(2, 3), "b": torch.zeros(2)}
    >>> meter = DisplacementMeter.of([group], start)
    >>> meter.lengths(start, {"w": torch.ones(2, 3), "b": torch.ones(2)}).round(decimals=3)
    tensor([2., 2.], dtype=torch.float64)
    """

    groups: tuple[NeuronGroup, ...]
    buffers: Mapping[str, Tensor]  # by parameter name, a stack's one by one
    views: tuple[tuple[Tensor, ...], ...]
    longest: int

    @staticmethod
    def of(groups: Sequence[NeuronGroup], tensors: Mapping[str, Tensor]) -> "DisplacementMeter":
        """A meter for these groups of tensors with these names and shapes; half precision is widened.

        Raises:
            ValueError: no key fits a group, or a tensor has another shape than the group's parameter.
        """
        longest = max((group.dim(tensors) for group in groups), default=0)
        work = torch.float32
        for tensor in tensors.values():
            work = worst_case_work(torch.promote_types(work, tensor.dtype), tensor.device, longest)
        buffers: dict[str, Tensor] = {}
        wholes: dict[str, Tensor] = {}
        views: list[tuple[Tensor, ...]] = []
        for group in groups:
            own = [piece for piece in group.slices if all(name in tensors for name in piece.names(group.n))]
            if not own:
                raise ValueError(
                    f"expected tensors keyed by parameter name, at least one of {list(group.params)}, "
                    f"got keys {list(tensors)[:5]}"
                )
            for piece in own:
                if piece.param not in wholes:
                    names = piece.names(group.n)
                    # The parameters of a stack lie one after the other.
                    parts = tensors[names[0]].new_empty((len(names), *tensors[names[0]].shape), dtype=work)
                    buffers |= dict(zip(names, parts, strict=True))
                    wholes[piece.param] = parts if "*" in piece.param else parts[0]
            views.append(tuple(piece.view(wholes[piece.param]) for piece in own))
        return DisplacementMeter(tuple(groups), buffers, tuple(views), longest)

    @torch.no_grad()
    def lengths(
        self, before: Mapping[str, Tensor], after: Mapping[str, Tensor], *, centre: bool = False
    ) -> Float[Tensor, " rows"]:
        """Upper bounds of |Δ_i|, or with `centre` of |Δ_i - mean Δ| over the block: group by group, block by block.

        A common shift changes no distance, and `centre` takes it out, at twice the cost.

        Raises:
            KeyError, RuntimeError: a tensor is missing, or has another shape than at first.
        """
        if not self.groups:
            return torch.empty(0)
        moved = list(self.buffers.values())
        work = moved[0].dtype
        _kernels._foreach_copy_(moved, [after[name] for name in self.buffers])
        _kernels._foreach_sub_(moved, [before[name].to(work) for name in self.buffers])
        if centre:
            both = zip(self.groups, self.views, strict=True)
            return torch.cat([_centred_lengths(group, views, self.longest) for group, views in both])
        _kernels._foreach_mul_(moved, moved)
        sums = [_row_sums(group, views) for group, views in zip(self.groups, self.views, strict=True)]
        return upper_norms(torch.cat(sums), self.longest, work)


def gather_rows(group: NeuronGroup, tensors: Mapping[str, Tensor], rows: Int[Tensor, "..."]) -> Shaped[Tensor, "... d"]:
    """Some rows of `group.gather(tensors)`, without the others: for the `pairs` of a `Snapshot`.

    Raises:
        ValueError: as `NeuronGroup.gather`.
    """
    n_leading = len(group.block_shape) + 1
    index = torch.unravel_index(rows.flatten(), (*group.block_shape, group.n))
    parts = [view[index].reshape(rows.numel(), math.prod(view.shape[n_leading:])) for view in group._views(tensors)]
    return torch.cat(parts, dim=1).unflatten(0, rows.shape)


def _centred_lengths(group: NeuronGroup, views: Sequence[Tensor], longest: int) -> Float[Tensor, " rows"]:
    """|Δ_i - mean Δ|, with the rounding of the differences, which is in proportion to |Δ_i|."""
    axis, work = len(group.block_shape), views[0].dtype
    means = [view.mean(dim=axis, keepdim=True) for view in views]
    centred = [(view - mean).square_() for view, mean in zip(views, means, strict=True)]
    lengths = upper_norms(_row_sums(group, centred), longest, work)
    shifts = [mean.square().expand_as(view) for view, mean in zip(views, means, strict=True)]
    return lengths + torch.finfo(work).eps * (lengths + upper_norms(_row_sums(group, shifts), longest, work))


def _row_sums(group: NeuronGroup, views: Sequence[Tensor]) -> Float[Tensor, " rows"]:
    """Each neuron's sum over its features in all slices."""
    n_leading = len(group.block_shape) + 1
    parts = [view.sum(dim=tuple(range(n_leading, view.dim()))) if view.dim() > n_leading else view for view in views]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total.reshape(-1)
