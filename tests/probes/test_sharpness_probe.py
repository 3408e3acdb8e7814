"""The sharpness probe on captures made by hand."""

import itertools
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from lightning_topo._tape import StepRecorder, TapeLoss, accepted
from lightning_topo.neurons import NeuronGroup, ParamSlice
from lightning_topo.probes import BatchLoss, Capture, Clouds, Sharpness
from lightning_topo.probes import _approach as approach
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


def test_unknown_optimizers_have_no_ratio_here(setting):
    """`StepEdge` measures theirs, on the step's own batch."""
    optimizer = torch.optim.Rprop(setting[0].parameters(), lr=1e-3)
    before = trained(setting, optimizer)
    values = Sharpness().measure(capture(setting, optimizer, before=before)).values[""]
    assert values.keys() == {"sharpness", "residual", "n_hvp", "converged", "exact"}


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
    small, large = (values["batch_sharpness"] * 0.1 / 2 / (1 + sign * 0.9) for sign in (-1, 1))
    assert values["batch_sharpness_ratio"] == pytest.approx(noise * small + (1 - noise) * large)


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


def small_memory(limit, error=torch.OutOfMemoryError):
    """The mean squared error, of at most so many samples at a time."""
    sizes = []

    def loss_fn(module, batch):
        sizes.append(len(batch[0]))
        if sizes[-1] > limit:
            raise error("DefaultCPUAllocator: can't allocate memory: you tried to allocate 3 bytes.")
        return mse(module, batch)

    return loss_fn, sizes


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_a_batch_larger_than_memory_is_halved_until_it_fits_and_the_size_is_remembered(setting, error):
    optimizer = torch.optim.SGD(setting[0].parameters(), lr=0.1)
    truth = Sharpness(tolerance=1e-6).measure(capture(setting, optimizer)).values[""]
    loss_fn, sizes = small_memory(12, error=error)
    probe = Sharpness(loss_fn=loss_fn, tolerance=1e-6)
    with pytest.warns(UserWarning, match="10 samples at a time"):
        first = probe.measure(capture(setting, optimizer))
    assert [size for size in sizes if size > 12] == [40, 20]
    assert first.values[""]["micro_batch"] == 10.0
    assert first.values[""]["sharpness"] == pytest.approx(truth["sharpness"], rel=1e-4)
    assert "micro_batch" not in truth
    sizes.clear()
    second = probe.measure(capture(setting, optimizer, first))  # no warning, no vain attempt
    assert max(sizes) == 10
    assert second.values[""]["micro_batch"] == 10.0


def test_memory_that_ends_in_the_middle_of_the_products_is_met_too(setting):
    optimizer = torch.optim.SGD(setting[0].parameters(), lr=0.1)
    failing = iter([False] * 10 + [True])

    def loss_fn(module, batch):
        if next(failing, False):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return mse(module, batch)

    with pytest.warns(UserWarning, match="5 samples"):
        found = Sharpness(loss_fn=loss_fn, micro_batch=10).measure(capture(setting, optimizer))
    assert found.values[""]["converged"]


def recorded(setting, sizes):
    """The same loss as recorded steps of so many samples, in a capture."""
    module, (x, y) = setting
    tapes, recorder = [], StepRecorder()
    for part in zip(x.split(sizes), y.split(sizes), strict=True):
        recorder.begin(module)
        recorder.loss(mse(module, part))
        tapes += [accepted(tape) for tape in recorder.end()]
    loss = TapeLoss(module, tapes, precision=torch.float64)

    @contextmanager
    def training_loss(loss_fn):
        yield loss

    clouds = Clouds([GROUP], dict(module.named_parameters()))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    return Capture(1, 0, module, [GROUP], clouds, None, clouds, [optimizer], training_loss)


@pytest.mark.parametrize("micro_batch", [1, 10, 64])
def test_the_parts_of_recorded_steps_are_the_steps(setting, micro_batch):
    optimizer = torch.optim.SGD(setting[0].parameters(), lr=0.1)
    truth = Sharpness(tolerance=1e-6).measure(capture(setting, optimizer)).values[""]
    made = recorded(setting, [10, 10, 20])
    whole = Sharpness(tolerance=1e-6).measure(made).values[""]
    parts = Sharpness(tolerance=1e-6, micro_batch=micro_batch).measure(made).values[""]
    for name in ("sharpness", "sharpness_ratio", "eta_lambda"):
        assert whole[name] == pytest.approx(truth[name], rel=1e-4)
        assert parts[name] == pytest.approx(truth[name], rel=1e-4)
    assert "micro_batch" not in whole
    assert parts["micro_batch"] == 20.0  # what was really in memory, not what was asked for


def test_the_batch_sharpness_of_recorded_steps_is_that_of_their_batches(setting):
    module, (x, y) = setting
    found = Sharpness(batch_sharpness=7).measure(recorded(setting, [10, 10, 20])).values[""]
    truth = 0.0
    for k, part in enumerate(zip(x.split([10, 10, 20]), y.split([10, 10, 20]), strict=True)):
        curvature = hessian(lambda p=part: mse(module, p), module.parameters())
        g = curvature.gradient
        truth += (0.25, 0.25, 0.5)[k] * float(g @ (curvature @ g) / (g @ g))
    assert found["batch_sharpness"] == pytest.approx(truth, rel=1e-4)


def test_recorded_steps_larger_than_memory_together_are_measured_one_by_one(setting, monkeypatch):
    attempts = []

    def small(loss_fn, params):
        attempts.append(loss_fn)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    truth = Sharpness(tolerance=1e-6).measure(recorded(setting, [10, 30])).values[""]
    monkeypatch.setattr(approach, "hessian", small)
    with pytest.warns(UserWarning, match="30 samples at a time"):
        found = Sharpness(tolerance=1e-6).measure(recorded(setting, [10, 30])).values[""]
    assert len(attempts) == 1
    assert found["micro_batch"] == 30.0
    assert found["sharpness"] == pytest.approx(truth["sharpness"], rel=1e-4)
    with pytest.raises(torch.OutOfMemoryError):  # one step alone cannot be divided
        Sharpness().measure(recorded(setting, [40]))


def test_where_not_even_one_sample_fits_the_error_is_the_allocator_s(setting):
    optimizer = torch.optim.SGD(setting[0].parameters(), lr=0.1)
    loss_fn, sizes = small_memory(0)
    with pytest.raises(torch.OutOfMemoryError, match="can't allocate"):
        Sharpness(loss_fn=loss_fn).measure(capture(setting, optimizer))
    assert sizes == [40, 20, 10, 5, 3, 2, 1]


def test_other_errors_are_not_taken_for_a_lack_of_memory(setting):
    optimizer = torch.optim.SGD(setting[0].parameters(), lr=0.1)
    calls = []

    def loss_fn(module, batch):
        calls.append(None)
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        Sharpness(loss_fn=loss_fn).measure(capture(setting, optimizer))
    assert len(calls) == 1


class TanhOnce(torch.autograd.Function):
    """tanh, with a backward pass that autograd cannot look into."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.tanh())
        return x.tanh()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return grad * (1 - ctx.saved_tensors[0] ** 2)


def test_an_operator_without_double_backward_is_told_once_and_marked(setting):
    module, _ = setting

    def loss_fn(module, batch):
        return nn.functional.mse_loss(module[2](TanhOnce.apply(module[0](batch[0]))), batch[1])

    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    before = trained(setting, optimizer)
    options = {"tolerance": 1e-4, "swap_pairs": 2, "batch_sharpness": 10, "n_largest": 2}
    truth = Sharpness(**options).measure(capture(setting, optimizer, before=before)).values
    probe = Sharpness(loss_fn=loss_fn, **options)
    with pytest.warns(UserWarning, match=r"TanhOnce has no second derivative"):
        first = probe.measure(capture(setting, optimizer, before=before))
    for group, values in truth.items():
        for name in values.keys() - {"residual", "ratio_residual", "n_hvp", "exact"}:
            assert first.values[group][name] == pytest.approx(values[name], rel=1e-3)
    assert (truth[""]["exact"], first.values[""]["exact"]) == (1.0, 0.0)
    second = probe.measure(capture(setting, optimizer, first, before=before))  # no warning
    assert second.values[""]["exact"] == 0.0


def test_parts_and_finite_differences_go_together(setting):
    optimizer = torch.optim.SGD(setting[0].parameters(), lr=0.1)
    truth = Sharpness(tolerance=1e-4).measure(capture(setting, optimizer)).values[""]
    limited, _ = small_memory(25)

    def loss_fn(module, batch):
        limited(module, batch)
        return nn.functional.mse_loss(module[2](TanhOnce.apply(module[0](batch[0]))), batch[1])

    with pytest.warns(UserWarning, match=r"TanhOnce.*20 samples"):
        found = Sharpness(loss_fn=loss_fn, tolerance=1e-4).measure(capture(setting, optimizer)).values[""]
    assert (found["exact"], found["micro_batch"]) == (0.0, 20.0)
    assert found["sharpness_ratio"] == pytest.approx(truth["sharpness_ratio"], rel=1e-3)


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
