"""Neurons of several networks in one stacked tensor: exchanged one by one, until a call uses their indices together."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_topo.neurons import find_neuron_groups
from tests.neurons.rules.models import Made, free_axes

ONES, WEIGHT = torch.ones(8, 2, 16, dtype=torch.long), torch.arange(6.0).double().view(3, 2, 1)
MIXED = {
    "each with each": lambda z: z @ z.transpose(1, 2),
    "each with each, in a sum": lambda z: torch.baddbmm(torch.ones(1).double(), z, z.transpose(1, 2)),
    "each with each, by hand": lambda z: (z[:, :, None] * z[:, None]).sum(-1),
    "each with each, not summed": lambda z: z[:, :, None] * z[:, None],
    "einsum": lambda z: torch.einsum("bkf,bjf,blf->bkjl", z, z, z),
    "distances": lambda z: torch.cdist(z, z),
    "attention": lambda z: F.scaled_dot_product_attention(z[:, None], z[:, None], z[:, None]),
    "sum": lambda z: z.sum(1),
    "variance": lambda z: z.var(1),
    "factorization machine": lambda z: (z.sum(1).square() - z.square().sum(1)).sum(-1),
    "softmax": lambda z: z.softmax(1),
    "cumulated": lambda z: z.cumsum(1),
    "sorted": lambda z: z.sort(1).values,
    "turned over": lambda z: z.flip(1) * z,
    "rolled": lambda z: torch.where(z > 0, z, z.roll(1, 1)),
    "by indices": lambda z: z[:, [1, 0]] * z,
    "gathered": lambda z: z.gather(1, ONES) * z,
    "differences": lambda z: z.diff(dim=1),
    "padded": lambda z: F.pad(z, (0, 0, 1, 0)).narrow(1, 0, 2) * z,
    "pooled": lambda z: F.avg_pool1d(z.transpose(1, 2), 2),
}


@pytest.mark.parametrize("mix", MIXED.values(), ids=MIXED)
def test_what_is_used_together_is_exchanged_together(mix) -> None:
    assert free_axes(lambda x, y: mix(torch.stack([x, y], 1)), (8, 16), (8, 16)) == [8, 16]


def test_channels_made_of_indices_are_mixed_and_their_positions_are_frozen() -> None:
    assert free_axes(lambda x, y: F.conv1d(torch.stack([x, y], 1), WEIGHT), (8, 16), (8, 16)) == [8]


APART = {
    "taken one by one": lambda z: [z[:, 0], z[:, 1]],
    "entry by entry": lambda z: (z * z + z.tanh()).unbind(1),
    "moved first": lambda z: z.permute(1, 0, 2).unbind(0),
}


@pytest.mark.parametrize("use", APART.values(), ids=APART)
def test_what_is_used_one_by_one_is_exchanged_so(use) -> None:
    assert free_axes(lambda x, y: tuple(use(torch.stack([x, y], 1))), (8, 16), (8, 16)) == [8, 8, 16, 16]


def test_a_penalty_on_all_hidden_states_at_once_ties_no_layers() -> None:
    def penalized(net, x):
        first = net.first(x).tanh()
        second = net.second(first).tanh()
        return net.last(second).sum() + torch.stack([first, second]).square().mean()

    layers = {"first": nn.Linear(5, 12), "second": nn.Linear(12, 12), "last": nn.Linear(12, 3)}
    groups = find_neuron_groups(Made(penalized, **layers), torch.randn(4, 5))
    assert [(group.name, group.status) for group in groups] == [("first", "verified"), ("second", "verified")]


class Recommender(nn.Module):
    """Bags of embeddings and dense features, each multiplied with each, as in DLRM (arXiv:1906.00091)."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(9, width, mode="sum") for _ in range(3))
        self.bottom = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, width))
        self.top = nn.Sequential(nn.Linear(width + 6, 7), nn.ReLU(), nn.Linear(7, 1))

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        z = torch.stack([self.bottom(x), *(table(ids) for table in self.tables)], 1)
        rows, columns = torch.tril_indices(4, 4, -1)
        products = (z @ z.transpose(1, 2))[:, rows, columns]
        return self.top(torch.cat([z[:, 0], products], 1))


def test_factors_of_a_recommender_are_one_group_over_its_tables() -> None:
    torch.manual_seed(0)
    groups = find_neuron_groups(Recommender(), (torch.randn(4, 5), torch.randint(9, (4, 3))))
    assert {group.status for group in groups} == {"verified"}
    assert sorted(group.n for group in groups) == [6, 7, 8]
    [factors] = [group for group in groups if group.n == 6]
    assert {f"tables.{k}.weight" for k in range(3)} | {"bottom.2.weight", "top.0.weight"} <= set(factors.params)
