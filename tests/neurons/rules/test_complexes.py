"""Complex numbers and Fourier transforms: their rules against the operators, and models around them."""

import pytest
import torch
from torch import nn

from lightning_topo.neurons import find_neuron_groups
from tests.neurons.rules.models import Between, Made, X, centres, check_exchangeable, free_axes

FREE = {
    "pairs of reals": (lambda x, y: torch.view_as_real(torch.complex(x, y).exp()), [(2, 3), (2, 3)], [2, 3]),
    "complex numbers from pairs": (lambda x: torch.view_as_complex(x).abs(), [(4, 3, 2)], [3, 4]),
    "conjugates": (lambda x, y: torch.complex(x, y).conj().resolve_conj().imag, [(2, 3), (2, 3)], [2, 3]),
    "Fourier transform": (lambda x: torch.fft.rfft(x, dim=1).abs(), [(2, 5)], [2]),
    "there and back": (lambda x: torch.fft.irfft(torch.fft.rfft(x, dim=1), n=5, dim=1), [(2, 5)], [2]),
}


@pytest.mark.parametrize(("function", "shapes", "sizes"), FREE.values(), ids=FREE)
def test_what_a_rule_leaves_free_can_be_exchanged_and_all_of_it_is(function, shapes, sizes) -> None:
    assert free_axes(function, *shapes) == sizes


EXCHANGEABLE = {
    "complex and back": lambda h: torch.view_as_real(torch.complex(h, h.sin()).exp()).sum(-1),
    "Fourier transform over time": lambda h: torch.fft.irfft(torch.fft.rfft(h, dim=1), n=7, dim=1),
}


@pytest.mark.parametrize("between", EXCHANGEABLE.values(), ids=EXCHANGEABLE.keys())
def test_neurons_stay_exchangeable(between) -> None:
    check_exchangeable(between)


ORDERED = {
    "transformed along": lambda h: torch.fft.fft(h, dim=-1).real,
}


@pytest.mark.parametrize("between", ORDERED.values(), ids=ORDERED.keys())
def test_an_order_along_the_neurons_leaves_no_group(between) -> None:
    assert [g for g in find_neuron_groups(Between(between), X) if g.status == "verified"] == []


def test_complex_parameters_are_pairs_of_reals() -> None:
    model = Made(
        lambda m, x: m.last((m.first(x).to(m.weight.dtype) @ m.weight).abs()),
        first=nn.Linear(5, 12), weight=centres(12, 6, dtype=torch.complex64), last=nn.Linear(6, 4),
    )  # fmt: skip
    groups = {group.n: group for group in find_neuron_groups(model, X)}
    assert {group.status for group in groups.values()} == {"verified"}
    parameters = dict(model.named_parameters())
    cloud = groups[6].gather(parameters)
    assert cloud.dtype == torch.float32
    assert cloud.shape == (6, 2 * 12 + 4)
    order = torch.tensor([1, 2, 3, 4, 5, 0])
    moved = groups[6].permute(parameters, order)
    assert torch.equal(groups[6].gather(moved), cloud[order])
    assert torch.equal(moved["weight"], model.weight[:, order])
