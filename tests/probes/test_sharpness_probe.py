"""The sharpness probe on captures made by hand."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from lightning_topo.neurons import NeuronGroup, ParamSlice
from lightning_topo.probes import BatchLoss, Capture, Clouds, Sharpness
from lightning_topo.stability import flatten, hessian

GROUP = NeuronGroup(
    "hidden", "unit", 6, (), (ParamSlice("0.weight"), ParamSlice("0.bias"), ParamSlice("2.weight", dims=(1,)))
)


@pytest.fixture
def setting():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    batch = torch.randn(40, 4, dtype=torch.float64), torch.randn(40, 2, dtype=torch.float64)
    return module, batch


def mse(module, batch):
    return nn.functional.mse_loss(module(batch[0]), batch[1])


def capture(setting, optimizer, previous=None, before=None):
    module, batch = setting

    @contextmanager
    def training_loss(loss_fn):
        yield BatchLoss(lambda b: (loss_fn or mse)(module, b), batch)

    clouds = Clouds([GROUP], dict(module.named_parameters()))
    return Capture(
        1, 0, module, [GROUP], clouds, None, clouds, [optimizer], training_loss, previous, parameters_before=before
    )


def trained(setting, optimizer, steps=1):
    module, batch = setting
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    for _ in range(steps):
        optimizer.zero_grad()
        mse(module, batch).backward()
        optimizer.step()
    return before


def test_adam_has_a_ratio_only_after_its_first_step(setting):
    optimizer = torch.optim.Adam(setting[0].parameters(), lr=1e-3)
    first = Sharpness().measure(capture(setting, optimizer))
    assert first.again_after_step
    assert "sharpness_ratio" not in first.values[""]
    trained(setting, optimizer)
    second = Sharpness().measure(capture(setting, optimizer, first))
    assert not second.again_after_step
    assert second.values[""]["sharpness_ratio"] > 0
    third = Sharpness().measure(capture(setting, optimizer, second))
    assert third.values[""]["sharpness_ratio"] == pytest.approx(second.values[""]["sharpness_ratio"], rel=0.02)
    assert third.values[""]["n_hvp"] <= second.values[""]["n_hvp"]


def test_unknown_optimizers_have_the_directional_ratio_alone(setting):
    optimizer = torch.optim.Rprop(setting[0].parameters(), lr=1e-3)
    before = trained(setting, optimizer)
    values = Sharpness().measure(capture(setting, optimizer, before=before)).values[""]
    assert values.keys() == {"sharpness", "residual", "n_hvp", "converged", "directional_ratio"}


def test_the_directional_ratio_is_that_of_the_step_taken(setting):
    module, batch = setting
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    curvature = hessian(lambda: mse(module, batch), module.parameters())
    g = curvature.gradient
    truth = 0.01 * float(g @ (curvature @ g)) / (2 * float(g @ g))
    before = trained(setting, optimizer)
    values = Sharpness().measure(capture(setting, optimizer, before=before)).values[""]
    assert values["directional_ratio"] == pytest.approx(truth, rel=0.05)


def test_parts_find_what_the_whole_finds(setting):
    optimizer = torch.optim.SGD(setting[0].parameters(), lr=0.1)
    before = trained(setting, optimizer)
    made = capture(setting, optimizer, before=before)
    whole = Sharpness(tolerance=1e-6).measure(made).values[""]
    parts = Sharpness(tolerance=1e-6, micro_batch=7).measure(made).values[""]
    for name in ("sharpness", "sharpness_ratio", "eta_lambda", "directional_ratio"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-4)


def test_the_largest_eigenvalues_on_request(setting):
    module, batch = setting
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    curvature = hessian(lambda: mse(module, batch), module.parameters())
    n = curvature.gradient.numel()
    spectrum = torch.linalg.eigvalsh(torch.stack([curvature @ e for e in torch.eye(n, dtype=torch.float64)]))
    values = Sharpness(n_largest=3, tolerance=1e-7).measure(capture(setting, optimizer)).values[""]
    assert [values[k] for k in ("sharpness", "sharpness_2", "sharpness_3")] == pytest.approx(
        spectrum.flip(0)[:3].tolist(), rel=1e-5
    )


def test_batch_sharpness_is_the_mean_curvature_along_the_gradients_of_batches(setting):
    module, (x, y) = setting
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    values = Sharpness(batch_sharpness=10).measure(capture(setting, optimizer)).values[""]
    truth = 0.0
    for k in range(0, 40, 10):
        curvature = hessian(lambda k=k: mse(module, (x[k : k + 10], y[k : k + 10])), module.parameters())
        g = curvature.gradient
        truth += float(g @ (curvature @ g) / (g @ g)) / 4
    assert values["batch_sharpness"] == pytest.approx(truth)


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


def test_parts_need_a_batch_with_samples():
    assert [w for w, _ in BatchLoss(lambda b: b["x"].sum(), {"x": torch.ones(5), "n": 3}).parts(2)] == [0.4, 0.4, 0.2]
    labels = BatchLoss(lambda b: torch.tensor(float(len(b[1]))), (torch.ones(5, 2), ["a", "b", "c", "d", "e"]))
    assert [loss().item() for _, loss in labels.parts(3)] == [3.0, 2.0]
    with pytest.raises(ValueError, match="first dimension"):
        BatchLoss(lambda b: b, 3.0).parts(2)
    with pytest.raises(ValueError, match="at least 1"):
        BatchLoss(lambda b: b, torch.ones(3)).parts(0)
    for options in ({"n_largest": 0}, {"micro_batch": 0}, {"batch_sharpness": 0}, {"swap_pairs": -1}):
        with pytest.raises(ValueError, match="expected"):
            Sharpness(**options)
