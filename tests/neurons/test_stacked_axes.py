"""Queries, keys and values that lie in one tensor, index by index: each keeps its own neurons."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_topo import find_neuron_groups

HEADS, WIDTH = 4, 16


def attend(q, k, v):
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Fused(nn.Module):
    """As timm has it: one layer, reshaped to (3, heads, dimension)."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        parts = self.qkv(x).reshape(*x.shape[:2], 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        return self.out(attend(*parts.unbind(0)))


class Torchs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x):
        return self.layer(x, x, x, need_weights=False)[0]


class Stacked(nn.Module):
    """Three layers whose outputs are stacked, and then reshaped to heads."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x):
        parts = torch.stack([self.q(x), self.k(x), self.v(x)]).unflatten(-1, (HEADS, -1)).transpose(2, 3)
        return self.out(attend(parts[0], parts[1], parts[2]))


class Twice(nn.Module):
    """One layer at two depths: its axes come up a second time when they are in parts already."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x)))


class Whole(Stacked):
    """The stack is also used as a whole: what stands at one index of it stands at all."""

    def forward(self, x):
        gain = torch.stack([self.q(x), self.k(x), self.v(x)]).unflatten(-1, (HEADS, -1))
        parts = (gain * torch.linspace(0.5, 2.0, WIDTH // HEADS)).transpose(2, 3)
        return self.out(attend(parts[0], parts[1], parts[2]))


@pytest.mark.parametrize("once", [Fused, Torchs, Stacked])
@pytest.mark.parametrize("times", [1, 2])
def test_queries_with_keys_and_values_are_groups_of_their_own(once, times):
    torch.manual_seed(0)
    model = once() if times == 1 else Twice(once())
    groups = {group.name.rpartition(".")[2]: group for group in find_neuron_groups(model, torch.randn(2, 5, WIDTH))}
    assert {group.status for group in groups.values()} == {"verified"}
    assert groups["heads"].block_shape == ()
    parameters, hd = dict(model.named_parameters()), WIDTH // HEADS
    # A query's and a key's dimension have their weights and biases; one of a value has its column in the output, too.
    assert [(groups[k].block_shape, groups[k].n, groups[k].dim(parameters)) for k in ("query_key", "value")] == [
        ((HEADS,), hd, 2 * (WIDTH + 1)),
        ((HEADS,), hd, WIDTH + 1 + WIDTH),
    ]


def test_a_stack_that_is_used_as_a_whole_is_not_taken_apart():
    """Every dimension of a head has a gain of its own here: only the heads can be exchanged."""
    torch.manual_seed(0)
    groups = find_neuron_groups(Whole(), torch.randn(2, 5, WIDTH))
    assert [(group.name, group.kind, group.status) for group in groups] == [("q.heads", "head", "verified")]
