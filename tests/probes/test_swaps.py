"""Directions that exchange two neurons."""

import pytest
import torch
from torch import nn

from lightning_topo.neurons import NeuronGroup, ParamSlice
from lightning_topo.probes import Sharpness
from lightning_topo.probes import _swaps as swaps
from lightning_topo.probes._swaps import swap_directions
from lightning_topo.stability import flatten, hessian
from tests.probes.regression import GROUP, capture, mse, trained


def test_swaps_are_those_of_the_closest_pair(setting):
    module, batch = setting
    with torch.no_grad():
        module[0].weight[4] = module[0].weight[1] + 1e-3
        module[0].bias[4] = module[0].bias[1]
        module[2].weight[:, 4] = module[2].weight[:, 1]
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    found = Sharpness(swap_pairs=1).measure(capture(setting, optimizer)).values["hidden"]
    u = [torch.zeros_like(p) for p in module.parameters()]
    for p, v in zip((module[0].weight, module[0].bias, module[2].weight.T), (u[0], u[1], u[2].T), strict=True):
        v[1], v[4] = p.detach()[1] - p.detach()[4], p.detach()[4] - p.detach()[1]
    u = flatten(u)
    image = hessian(lambda: mse(module, batch), module.parameters()) @ u
    assert found["swap_curvature"] == pytest.approx(float(u @ image / (u @ u)), rel=1e-6)
    assert found["swap_ratio"] == pytest.approx(0.1 * float(image.norm() / u.norm()), rel=1e-6)
    # The three levels: the swap is felt far less than the curvature at large, and is what the step does.
    before = GROUP.gather(dict(module.named_parameters()))
    trained(setting, optimizer)
    moved = GROUP.gather(dict(module.named_parameters())) - before
    r = (moved[1] - moved[4]).norm() / (before[1] - before[4]).norm()
    assert found["swap_ratio"] == pytest.approx(r.item(), rel=0.05)


def test_frozen_parameters_have_no_part_in_a_swap(setting):
    module, _ = setting
    module[2].weight.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
    result = Sharpness(swap_pairs=2).measure(capture(setting, optimizer))
    assert result.values["hidden"]["swap_ratio"] > 0


def of_rows(points, n_pairs, **options):
    """The directions of a layer whose neurons are its rows, as matrices."""
    group = NeuronGroup(
        "g",
        "unit",
        options.pop("n", len(points)),
        options.pop("blocks", ()),
        (ParamSlice("w", dims=options.pop("dims", (0,))),),
    )
    params = {"w": nn.Parameter(points)}
    cloud = group.gather(params).detach()
    return [u.view(points.shape) for u in swap_directions(group, cloud, params, n_pairs)]


def test_the_closest_pairs_come_first_and_equal_neurons_are_none():
    points = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 1.0], [5.0, 0.0], [9.0, 9.0]])
    distances = torch.cdist(points, points)
    wanted = sorted(float(d) for d in distances[torch.triu(torch.ones(5, 5), 1).bool()] if d > 0)
    found = of_rows(points, 20)
    assert len(found) == 9  # of ten pairs one is of equal neurons
    lengths = [float(u.norm()) / 2**0.5 for u in found]
    assert lengths == pytest.approx(wanted)
    assert torch.equal(found[0], torch.tensor([[0.0, -1.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]))
    assert [float(u.norm()) for u in of_rows(points, 3)] == pytest.approx([2**0.5 * d for d in wanted[:3]])


def test_exchanging_along_a_direction_exchanges_the_neurons():
    points = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).double()
    for u in of_rows(points, 4):
        i, j = u.abs().sum(1).nonzero().flatten().tolist()
        order = list(range(6))
        order[i], order[j] = j, i
        torch.testing.assert_close(points - u, points[order])


def test_neurons_of_different_blocks_are_not_exchanged():
    points = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    points[1, 0] = points[0, 0] + 1e-4  # the closest of all, if it were a pair
    found = of_rows(points, 1, n=4, blocks=(2,), dims=(0, 1))
    assert [u.flatten(1).any(1).tolist() for u in found] == [[True, False], [False, True]]


def test_what_is_too_large_or_alone_has_no_direction(monkeypatch):
    points = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    assert of_rows(points[:1], 3) == []
    assert of_rows(torch.zeros(4, 2), 3) == []
    monkeypatch.setattr(swaps, "MAX_NEURONS", 5)
    assert of_rows(points, 3) == []
