"""Sums over a shared axis: their rules against the operators, and models around them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_topo.neurons import find_neuron_groups
from tests.neurons.rules.models import Between, Made, X, centres, check_exchangeable, free_axes

FREE = {
    "matrices": (torch.mm, [(3, 4), (4, 5)], [3, 4, 5]),
    "batches of matrices": (torch.bmm, [(2, 3, 4), (2, 4, 5)], [2, 3, 4, 5]),
    "matrix and vector": (torch.mv, [(3, 4), (4,)], [3, 4]),
    "two vectors": (torch.dot, [(4,), (4,)], [4]),
    "with a bias": (torch.addmm, [(5,), (3, 4), (4, 5)], [3, 4, 5]),
    "with a bias that is one number": (torch.addmm, [(1,), (3, 4), (4, 5)], [3, 4, 5]),
    "linear layer": (F.linear, [(2, 3), (5, 3), (5,)], [2, 3, 5]),
    "bilinear layer": (F.bilinear, [(2, 3), (2, 4), (5, 3, 4)], [2, 3, 4, 5]),
    "distances": (torch.cdist, [(3, 4), (5, 4)], [3, 4, 5]),
    "distances in batches": (torch.cdist, [(2, 3, 4), (2, 5, 4)], [2, 3, 4, 5]),
    "distances, one side alike in all batches": (torch.cdist, [(2, 3, 4), (5, 4)], [2, 3, 4, 5]),
    "embedding": (lambda w: F.embedding(torch.tensor([[0, 2], [5, 2]]), w), [(6, 4)], [4]),
    "embedding, in bags": (lambda w: F.embedding_bag(torch.tensor([[0, 2], [5, 2], [1, 1]]), w), [(6, 4)], [4]),
    "embedding, in bags with weights": (
        lambda w, scales: F.embedding_bag(
            torch.tensor([0, 2, 5]), w, torch.tensor([0, 2]), mode="sum", per_sample_weights=scales
        ),
        [(6, 4), (3,)],
        [4],
    ),
    "embedding, the largest of bags": (
        lambda w: F.embedding_bag(torch.tensor([[0, 2], [5, 2]]), w, mode="max"),
        [(6, 4)],
        [4],
    ),
    "attention": (F.scaled_dot_product_attention, [(2, 3, 4, 6), (2, 3, 5, 6), (2, 3, 5, 7)], [2, 3, 4, 5, 6, 7]),
    "attention with a bias": (
        lambda q, k, v, bias: F.scaled_dot_product_attention(q, k, v, bias),
        [(2, 3, 4, 6), (2, 3, 5, 6), (2, 3, 5, 7), (3, 4, 5)],
        [2, 3, 4, 5, 6, 7],
    ),
    "attention with a bias of data": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, torch.arange(20.0).double().view(4, 5)),
        [(2, 3, 4, 6), (2, 3, 5, 6), (2, 3, 5, 7)],
        [2, 3, 6, 7],
    ),
}


@pytest.mark.parametrize(("function", "shapes", "sizes"), FREE.values(), ids=FREE)
def test_what_a_rule_leaves_free_can_be_exchanged_and_all_of_it_is(function, shapes, sizes) -> None:
    assert free_axes(function, *shapes) == sizes


EXCHANGEABLE = {
    "matrix of tokens": lambda h: (h @ h.transpose(1, 2)).softmax(-1) @ h,
    "einsum": lambda h: torch.einsum("btd,bsd,bsd->btd", h, h, h),
}


@pytest.mark.parametrize("between", EXCHANGEABLE.values(), ids=EXCHANGEABLE.keys())
def test_neurons_stay_exchangeable(between) -> None:
    check_exchangeable(between)


SYMMETRIC = {
    "products of activations": lambda h: h @ h.transpose(1, 2),
}


@pytest.mark.parametrize("between", SYMMETRIC.values(), ids=SYMMETRIC.keys())
def test_neurons_that_are_read_symmetrically_have_no_outgoing_weights(between) -> None:
    """Whatever order the first layer's units have, the second sees the same."""
    model = Between(between, width=between(torch.zeros(2, 7, 12)).shape[-1])
    group = find_neuron_groups(model, X)[0]
    assert (group.name, group.n, group.status) == ("first", 12, "verified")
    assert group.params == ("first.weight", "first.bias")


@pytest.mark.parametrize(("is_causal", "wanted"), [(False, {5, 8}), (True, {8})])
def test_positions_under_a_causal_mask_are_no_neurons(is_causal: bool, wanted: set[int]) -> None:
    """A fused kernel is told of the mask by a flag alone."""
    net = Made(
        lambda m, x: m.out(m.read(F.scaled_dot_product_attention(m.z, m.z, m.z, is_causal=is_causal)).mT),
        z=centres(1, 1, 5, 8), read=nn.Linear(8, 3), out=nn.Linear(5, 2),
    )  # fmt: skip
    groups = find_neuron_groups(net, X)
    assert {group.n for group in groups if "z" in group.params} == wanted
    assert {group.status for group in groups} == {"verified"}


def test_bilinear_layers() -> None:
    model = Made(
        lambda m, x: m.last(m.both(m.left(x).tanh(), m.right(x).tanh()).tanh()),
        left=nn.Linear(5, 6), right=nn.Linear(5, 7), both=nn.Bilinear(6, 7, 8), last=nn.Linear(8, 3),
    )  # fmt: skip
    groups = find_neuron_groups(model, X)
    assert {(g.n, g.status, g.params) for g in groups} == {
        (6, "verified", ("left.weight", "left.bias", "both.weight")),
        (7, "verified", ("right.weight", "right.bias", "both.weight")),
        (8, "verified", ("both.weight", "both.bias", "last.weight")),
    }


UNITS_WITHOUT_A_LINEAR_LAYER = {
    "radial": lambda m, x: torch.exp(-(x.unsqueeze(-2) - m.centre).square().sum(-1) * m.width.exp()),
    "radial by cdist": lambda m, x: torch.exp(-torch.cdist(x.flatten(0, 1), m.centre) * m.width.exp()),
    "radial, Manhattan": lambda m, x: torch.exp(-torch.cdist(x, m.centre, p=1.0) * m.width.exp()),
    "cosine layer": lambda m, x: F.linear(F.normalize(x, dim=-1), F.normalize(m.centre, dim=-1)) * m.width,
    "cosine similarity": lambda m, x: F.cosine_similarity(x.unsqueeze(-2), m.centre, dim=-1) * m.width,
    "sum of products": lambda m, x: (x.unsqueeze(-2) * m.centre).sum(-1).tanh() + m.width,
}


@pytest.mark.parametrize("units", UNITS_WITHOUT_A_LINEAR_LAYER.values(), ids=UNITS_WITHOUT_A_LINEAR_LAYER.keys())
def test_units_of_other_kinds(units) -> None:
    model = Made(lambda m, x: m.last(units(m, x)), centre=centres(9, 5), width=centres(9), last=nn.Linear(9, 3))
    [group] = find_neuron_groups(model, X)
    assert (group.n, group.status, set(group.params)) == (9, "verified", {"centre", "width", "last.weight"})
