"""Directions that exchange two neurons of a group."""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_topo.geometry._distances import Rows, squared_distance_matrix
from lightning_topo.geometry._precision import full_precision, real_dtype
from lightning_topo.neurons import NeuronGroup
from lightning_topo.probes._probe import blocks

MAX_NEURONS = 8192
"""Pairs are searched in blocks of at most this many neurons."""


def swap_directions(
    group: NeuronGroup, cloud: Float[Tensor, "rows d"], params: Mapping[str, Tensor], n_pairs: int
) -> Iterator[Float[Tensor, " p"]]:
    """u = (e_i - e_j) (x) (x_i - x_j) for the closest distinct pairs of each block.

    Flat over those of `params`, all the module's, that require a gradient; the others' entries are left out. Blocks
    of more than `MAX_NEURONS` neurons are passed over.
    """
    places = group.gather(_places(params))
    size = sum(p.numel() for p in params.values() if p.requires_grad)
    for b, points in enumerate(blocks(cloud, group)):
        if not 1 < len(points) <= MAX_NEURONS:
            continue
        for i, j in _closest(points, n_pairs):
            difference = (points[i] - points[j]).to(torch.promote_types(points.dtype, torch.float32))
            direction = difference.new_zeros(size)
            for row, sign in ((i, 1.0), (j, -1.0)):
                at = places[b * group.n + row]
                direction[at[at >= 0]] = sign * difference[at >= 0]
            if direction.any():
                yield direction


def _places(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Where each entry stands in the flat vector of the trainable parameters; -1 for nowhere."""
    first, places = 0, {}
    for name, p in params.items():
        if p.requires_grad:
            places[name] = torch.arange(first, first + p.numel(), device=p.device).view(p.shape)
            first += p.numel()
        else:
            places[name] = torch.full(p.shape, -1, device=p.device)
    return places


def _closest(points: Float[Tensor, "n d"], n_pairs: int) -> list[tuple[int, int]]:
    """The closest pairs of distinct points."""
    with full_precision(points.device):
        squares = squared_distance_matrix(Rows.around_mean(points), real_dtype(points))
    i, j = torch.triu_indices(len(points), len(points), 1, device=points.device)
    lengths = squares[i, j]
    apart = lengths > 0
    best = lengths[apart].topk(min(n_pairs, int(apart.sum())), largest=False).indices
    return list(zip(i[apart][best].tolist(), j[apart][best].tolist(), strict=True))
