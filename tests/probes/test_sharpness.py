"""The sharpness probe on captures made by hand."""

import itertools
import statistics
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import nn

from lightning_topo.neurons import NeuronGroup, ParamSlice
from lightning_topo.probes import BatchLoss, Capture, Clouds, Sharpness, StepEdge
from lightning_topo.stability import hessian
from tests.probes.captures import by_hand, cloud
from tests.probes.regression import capture, mse, recorded, trained


def test_adam_has_a_ratio_only_after_its_first_step(setting):
    optimizer = torch.optim.Adam(setting[0].parameters(), lr=1e-3)
    first = Sharpness().measure(capture(setting, optimizer))
    assert first.again_after_step
    assert not first.notes  # its second moments come with the first step
    assert "sharpness_ratio" not in first.values[""]
    trained(setting, optimizer)
    second = Sharpness().measure(capture(setting, optimizer, first))
    assert not second.again_after_step
    assert second.values[""]["sharpness_ratio"] > 0
    third = Sharpness().measure(capture(setting, optimizer, second))
    assert third.values[""]["sharpness_ratio"] == pytest.approx(second.values[""]["sharpness_ratio"], rel=0.02)
    assert third.values[""]["n_hvp"] <= second.values[""]["n_hvp"]


def test_unknown_optimizers_have_no_ratio_here(setting):
    """`StepEdge` measures theirs, on the step's own batch."""
    optimizer = torch.optim.Rprop(setting[0].parameters(), lr=1e-3)
    before = trained(setting, optimizer)
    measured = Sharpness().measure(capture(setting, optimizer, before=before))
    assert measured.values[""].keys() == {"sharpness", "residual", "n_hvp", "converged", "exact"}
    [note] = measured.notes
    assert note.startswith("There is no sharpness_ratio and no eta_lambda: Rprop: its step follows the signs")


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


def test_the_batch_ratio_lies_between_the_plateaus_by_the_noise_of_the_parts(setting):
    optimizer = torch.optim.SGD(setting[0].parameters(), lr=0.1, momentum=0.9)
    values = Sharpness(batch_sharpness=10).measure(capture(setting, optimizer)).values[""]
    module, (x, y) = setting
    parts = [
        hessian(lambda k=k: mse(module, (x[k : k + 10], y[k : k + 10])), module.parameters()) for k in range(0, 40, 10)
    ]
    elsewhere = [
        float((here.gradient @ (before @ here.gradient)) / (here.gradient @ (here @ here.gradient)))
        for before, here in itertools.pairwise(parts)
    ]
    noise = 1 - sum(elsewhere) / 3
    assert values["batch_noise"] == pytest.approx(noise)
    weight = min(1.0, noise * (1.0 + noise))
    own = statistics.median(
        float((one.gradient @ (one @ one.gradient)) / (one.gradient @ one.gradient)) for one in parts
    )
    small, large = (own * 0.1 / 2 / (1 + sign * 0.9) for sign in (-1, 1))
    assert values["batch_sharpness_ratio"] == pytest.approx(weight * small + (1 - weight) * large)
    assert 0.2 < noise < 1.0


def test_both_probes_mean_the_same_by_the_batch_ratio(setting):
    """On the same two recorded batches; the noise of one pair is one share here and the mean of two there."""
    optimizer = torch.optim.SGD(setting[0].parameters(), lr=0.1, momentum=0.9)
    taken = replace(recorded(setting, [20, 20]), optimizers=(optimizer,))
    mine, theirs = (probe.measure(taken).values[""] for probe in (Sharpness(batch_sharpness=20), StepEdge()))
    weights = [min(1.0, n * (1.0 + n)) for n in (mine["batch_noise"], theirs["batch_noise"])]
    per_large = [weight * (1.9 / 0.1) + 1.0 - weight for weight in weights]
    assert mine["batch_sharpness_ratio"] / per_large[0] == pytest.approx(
        theirs["batch_sharpness_ratio"] / per_large[1], rel=1e-4
    )


def test_the_batch_sharpness_of_recorded_steps_is_that_of_their_batches(setting):
    module, (x, y) = setting
    found = Sharpness(batch_sharpness=7).measure(recorded(setting, [10, 10, 20])).values[""]
    truth = 0.0
    for k, part in enumerate(zip(x.split([10, 10, 20]), y.split([10, 10, 20]), strict=True)):
        curvature = hessian(lambda p=part: mse(module, p), module.parameters())
        g = curvature.gradient
        truth += (0.25, 0.25, 0.5)[k] * float(g @ (curvature @ g) / (g @ g))
    assert found["batch_sharpness"] == pytest.approx(truth, rel=1e-4)


def test_an_eigenvector_that_is_overtaken_is_left_after_some_measurements():
    """Curvatures 4 and 1, then 4 and 9: a start on the first axis is invariant and would stay there for ever."""
    module = nn.Linear(2, 1, bias=False).double()
    curvatures = torch.tensor([4.0, 1.0], dtype=torch.float64)

    def loss(module, batch):
        return 0.5 * (curvatures * module.weight[0] ** 2).sum()

    group = NeuronGroup("all", "unit", 1, (), (ParamSlice("weight"),))
    batch = (torch.zeros(1, 2, dtype=torch.float64),)

    @contextmanager
    def training_loss(loss_fn):
        yield BatchLoss(lambda b: loss(module, b), batch)

    clouds = Clouds([group], dict(module.named_parameters()))
    optimizer, result, found = torch.optim.SGD(module.parameters(), lr=0.1), None, []
    for k in range(20):
        if k == 2:
            curvatures[1] = 9.0
        made = Capture(1, 0, module, [group], clouds, None, clouds, [optimizer], training_loss, result)
        result = Sharpness().measure(made)
        found.append(round(result.values[""]["sharpness"], 6))
    assert found[:2] == [4.0, 4.0]
    assert 9.0 in found[:11]
    assert set(found[11:]) == {9.0}


def test_sharpness_hands_its_vector_on():
    module = nn.Linear(3, 1)
    x = cloud(0, 20, 3)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)

    @contextmanager
    def training_loss(loss_fn):
        yield lambda: (loss_fn or (lambda m, b: m(b).square().mean()))(module, x)

    options = {"module": module, "optimizers": [optimizer], "training_loss": training_loss}
    first = Sharpness().measure(by_hand(cloud(0, 4, 2), **options))
    second = Sharpness().measure(by_hand(cloud(0, 4, 2), previous=first, **options))
    assert second.values[""]["sharpness"] == pytest.approx(first.values[""]["sharpness"], rel=0.02)
    assert first.values[""]["sharpness_ratio"] == pytest.approx(0.05 * first.values[""]["sharpness"])
    assert first.values[""]["converged"] == 1.0
    other = Sharpness(loss_fn=lambda m, b: 4 * m(b).square().mean()).measure(by_hand(cloud(0, 4, 2), **options))
    assert other.values[""]["sharpness"] == pytest.approx(4 * first.values[""]["sharpness"], rel=0.04)


def test_an_unknown_optimizer_has_no_ratio():
    module = nn.Linear(3, 1)

    @contextmanager
    def training_loss(loss_fn):
        yield lambda: module(torch.ones(2, 3)).square().mean()

    optimizer = torch.optim.Rprop(module.parameters())
    made = by_hand(cloud(0, 4, 2), module=module, optimizers=[optimizer], training_loss=training_loss)
    assert set(Sharpness().measure(made).values[""]) == {"sharpness", "residual", "n_hvp", "converged", "exact"}


@pytest.mark.parametrize(
    "options", [{"tolerance": 1.0}, {"n_largest": 0}, {"micro_batch": 0}, {"batch_sharpness": 0}, {"swap_pairs": -1}]
)
def test_parameters_are_checked(options):
    with pytest.raises(ValueError, match="expected"):
        Sharpness(**options)
