"""Reductions, ranks and operators along an axis: their rules against the operators, and models around them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_topo.neurons import find_neuron_groups
from tests.neurons.rules.models import Between, Made, X, check_exchangeable, free_axes

FREE = {
    "sum": (lambda x: x.sum(1), [(2, 3)], [2, 3]),
    "sum of all": (lambda x: x.sum(), [(2, 3)], [2, 3]),
    "mean kept as an axis": (lambda x: x - x.mean(1, keepdim=True), [(2, 3)], [2, 3]),
    "variance and mean": (lambda x: torch.var_mean(x, dim=1), [(2, 3)], [2, 3]),
    "largest": (lambda x: x.max(1).values, [(2, 3)], [2, 3]),
    "larger of two": (torch.max, [(2, 3), (3,)], [2, 3]),
    "position of the largest": (lambda x: x.argmax(1), [(2, 3)], [2]),
    "value and position": (lambda x: tuple(x.max(1)), [(2, 3)], [2]),
    "sorted": (lambda x: x.sort(1).values, [(2, 3)], [2, 3]),
    "sorted, with its order": (lambda x: tuple(x.sort(1)), [(2, 3)], [2]),
    "norm": (lambda x: x.norm(dim=1), [(2, 3)], [2, 3]),
    "count of bins": (lambda x: torch.histc(x, 4), [(2, 3)], [2, 3]),
    "sums so far": (lambda x: x.cumsum(1), [(2, 3)], [2]),
    "flipped": (lambda x: x.flip(1), [(2, 3)], [2]),
    "rolled": (lambda x: x.roll(1, 1), [(2, 3)], [2]),
    "lower triangle": (torch.tril, [(2, 3, 3)], [2]),
    "loss by entry": (lambda x, y: F.mse_loss(x, y, reduction="none"), [(2, 3), (2, 3)], [2, 3]),
    "mean loss": (F.l1_loss, [(2, 3), (2, 3)], [2, 3]),
    "loss against data": (lambda x: F.mse_loss(x, torch.arange(3.0).double().expand(2, 3)), [(2, 3)], [2]),
}


@pytest.mark.parametrize(("function", "shapes", "sizes"), FREE.values(), ids=FREE)
def test_what_a_rule_leaves_free_can_be_exchanged_and_all_of_it_is(function, shapes, sizes) -> None:
    assert free_axes(function, *shapes) == sizes


EXCHANGEABLE = {
    "norm of each token": lambda h: h / h.norm(dim=-1, keepdim=True),
    "standardised": lambda h: (h - h.mean(-1, keepdim=True)) / h.std(-1, keepdim=True),
    "log-sum-exp": lambda h: h - h.logsumexp(-1, keepdim=True),
    "cumulative over time": lambda h: h.cumsum(1),
    "sorted over time": lambda h: h.sort(1).values,
    "rolled in time": lambda h: h.roll(1, 1),
    "the k largest kept, by a threshold": lambda h: h * (h >= h.topk(4, -1).values[..., -1:]),
    "a position that nobody reads": lambda h: (h.argmax(-1), h)[1],
    "divided by its quantile": lambda h: h / (1 + h.abs().quantile(0.9, -1, keepdim=True)),
}


@pytest.mark.parametrize("between", EXCHANGEABLE.values(), ids=EXCHANGEABLE.keys())
def test_neurons_stay_exchangeable(between) -> None:
    check_exchangeable(between)


SYMMETRIC = {
    "mean": lambda h: h.tanh().mean(-1, keepdim=True),
    "maximum": lambda h: h.max(-1, keepdim=True).values,
    "log-sum-exp": lambda h: h.logsumexp(-1, keepdim=True),
    "median": lambda h: h.median(-1, keepdim=True).values,
    "quantile": lambda h: h.quantile(0.3, -1, keepdim=True),
    "sorted": lambda h: h.sort(-1).values,
    "sorted by their own order": lambda h: h.gather(-1, h.argsort(-1)),
    "the k largest": lambda h: h.topk(3, -1).values,
    "the k-th": lambda h: h.kthvalue(2, -1, keepdim=True).values,
}


@pytest.mark.parametrize("between", SYMMETRIC.values(), ids=SYMMETRIC.keys())
def test_neurons_that_are_read_symmetrically_have_no_outgoing_weights(between) -> None:
    """Whatever order the first layer's units have, the second sees the same."""
    model = Between(between, width=between(torch.zeros(2, 7, 12)).shape[-1])
    group = find_neuron_groups(model, X)[0]
    assert (group.name, group.n, group.status) == ("first", 12, "verified")
    assert group.params == ("first.weight", "first.bias")


ORDERED = {
    "cumulative over neurons": lambda h: h.cumsum(-1),
    "rolled": lambda h: h.roll(1, -1),
    "flipped and added": lambda h: h + h.flip(-1),
    "multiplied by its rank": lambda h: h * h.argsort(-1),
    "multiplied by the position of its maximum": lambda h: h * h.argmax(-1, keepdim=True),
    "compared with a position": lambda h: h * (torch.arange(12) == h.argmax(-1, keepdim=True)),
    "lower triangle": lambda h: h[:, :, :, None].mul(h[:, :, None, :]).tril().sum(-1),
}


@pytest.mark.parametrize("between", ORDERED.values(), ids=ORDERED.keys())
def test_an_order_along_the_neurons_leaves_no_group(between) -> None:
    assert [g for g in find_neuron_groups(Between(between), X) if g.status == "verified"] == []


@pytest.mark.parametrize("shown", [lambda h: h.argmax(-1), lambda h: h.topk(3)[1]])
def test_what_the_model_returns_is_read(shown) -> None:
    """A neuron that is shown, or its position, is not like the others, though no operator takes it up."""
    model = Made(
        lambda m, x: (m.last(m.first(x).tanh()), shown(m.first(x))), first=nn.Linear(5, 12), last=nn.Linear(12, 3)
    )
    assert find_neuron_groups(model, X) == []


def test_the_loss_of_alignment_freezes_its_classes_only() -> None:
    targets, lengths = torch.tensor([[1, 2], [2, 1]]), (torch.tensor([7, 7]), torch.tensor([2, 2]))
    model = Made(
        lambda m, x: F.ctc_loss(m.last(m.first(x).tanh()).log_softmax(-1).transpose(0, 1), targets, *lengths),
        first=nn.Linear(5, 12), last=nn.Linear(12, 4),
    )  # fmt: skip
    [group] = find_neuron_groups(model, X)
    assert (group.name, group.status) == ("first", "verified")
