"""Neurons that are equal in everything, so that no equivariant rule of learning can tell them apart."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_topo.geometry import distinct_neurons, equal_rows
from lightning_topo.neurons import NeuronGroup, gather_state
from lightning_topo.probes._probe import blocks

Twins = tuple[Int[Tensor, " k"], ...]
"""Sets of two or more equal neurons, as rows of their group's cloud."""


def find_twins(group: NeuronGroup, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> Twins:
    """The neurons that are now exactly equal in parameters and optimizer state, block by block."""
    return equal_neurons(group, gather_state(group, module, optimizers, state="params+moments"))


def equal_neurons(group: NeuronGroup, cloud: Float[Tensor, "rows d"]) -> Twins:
    """The exactly equal rows of a group's cloud, block by block."""
    return tuple(b * group.n + rows for b, block in enumerate(blocks(cloud, group)) for rows in equal_rows(block))


def n_split(twins: Twins, after: Float[Tensor, "rows d"]) -> int:
    """Count the neurons that have parted from the others of their set by more than rounding.

    An equivariant rule keeps every set whole, at any step size and over any number of steps.

    Source: Yang et al., arXiv:2510.02670, lemma 1.

    >>> n_split((torch.tensor([0, 2]),), torch.tensor([[1.0], [3.0], [1.5]]))
    1
    """
    return sum(distinct_neurons(after[rows]) - 1 for rows in twins)
