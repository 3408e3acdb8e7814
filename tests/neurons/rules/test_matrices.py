"""Functions of matrices: their rules against the operators, and models around them."""

import pytest
import torch

from lightning_topo.neurons import find_neuron_groups
from tests.neurons.rules.models import Between, X, check_exchangeable, free_axes

FREE = {
    "inverse": (torch.linalg.inv, [(4, 4)], [4, 4]),
    "exponential": (torch.linalg.matrix_exp, [(2, 3, 3)], [2, 3]),
    "third power": (lambda a: torch.linalg.matrix_power(a, 3), [(3, 3)], [3]),
    "a system of equations": (torch.linalg.solve, [(3, 3), (3, 2)], [2, 3, 3]),
    "determinant": (torch.linalg.det, [(2, 3, 3)], [2, 3]),
    "diagonal matrix": (torch.diag_embed, [(2, 3)], [2, 3]),
    "off the diagonal": (lambda x: torch.diag_embed(x, offset=1), [(2, 3)], [2]),
    "diagonal": (lambda a: a.diagonal(dim1=1, dim2=2), [(2, 3, 3)], [2, 3]),
    "a diagonal beside the main one": (lambda a: a.diagonal(1, dim1=1, dim2=2), [(2, 3, 3)], [2]),
    "trace": (torch.trace, [(3, 3)], [3]),
    "identity": (lambda a: torch.eye(4, dtype=torch.float64) + a, [(4, 4)], [4]),
    "singular values": (torch.linalg.svdvals, [(3, 4)], [3, 4]),
    "eigenvalues": (lambda a: torch.linalg.eigvalsh(a + a.mT), [(3, 3)], [3]),
}


@pytest.mark.parametrize(("function", "shapes", "sizes"), FREE.values(), ids=FREE)
def test_what_a_rule_leaves_free_can_be_exchanged_and_all_of_it_is(function, shapes, sizes) -> None:
    assert free_axes(function, *shapes) == sizes


EXCHANGEABLE = {
    "diagonal matrix": lambda h: torch.diag_embed(h).sum(-1),
    "diagonal of products": lambda h: (h.unsqueeze(-1) * h.unsqueeze(-2)).diagonal(dim1=-2, dim2=-1),
    "matrix exponential": lambda h: torch.linalg.matrix_exp(0.1 * h.transpose(1, 2) @ h).matmul(h.mT).mT,
    "inverse": lambda h: torch.linalg.inv(torch.eye(12) + h.transpose(1, 2) @ h).matmul(h.mT).mT,
}


@pytest.mark.parametrize("between", EXCHANGEABLE.values(), ids=EXCHANGEABLE.keys())
def test_neurons_stay_exchangeable(between) -> None:
    check_exchangeable(between)


ORDERED = {
    "Cholesky of its products": lambda h: torch.linalg.cholesky(torch.eye(12) + h.transpose(1, 2) @ h).mean(1, True),
}


@pytest.mark.parametrize("between", ORDERED.values(), ids=ORDERED.keys())
def test_an_order_along_the_neurons_leaves_no_group(between) -> None:
    assert [g for g in find_neuron_groups(Between(between), X) if g.status == "verified"] == []
