"""Curvature whole or in parts, exactly or by differences: what memory and operators leave."""

import pytest
import torch
from torch import nn

from lightning_topo.probes import BatchLoss, Sharpness
from lightning_topo.probes import _approach as approach
from lightning_topo.probes._approach import Approach, adapted, parts_of
from lightning_topo.stability import hessian
from tests.probes.regression import TanhOnce, capture, mse, recorded, small_memory, trained


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


@pytest.mark.parametrize("micro_batch", [None, 7])
@pytest.mark.parametrize("obstacle", [None, "tanh"])
def test_every_way_has_the_hessian_of_the_whole_loss(setting, micro_batch, obstacle):
    module, batch = setting
    loss, params = BatchLoss(lambda b: mse(module, b), batch), list(module.parameters())
    whole = hessian(loss, params)
    vectors = torch.randn(4, whole.gradient.numel(), dtype=torch.float64)
    truth = [whole @ v for v in vectors]
    found = Approach(micro_batch, obstacle).curvature(loss, params)
    torch.testing.assert_close(found.gradient, whole.gradient)
    within = {"rtol": 1e-9, "atol": 1e-12} if obstacle is None else {"rtol": 1e-4, "atol": 1e-5}
    for v, image in zip(vectors, truth, strict=True):
        torch.testing.assert_close(found @ v, image, **within)


def test_halves_end_with_one_sample_and_a_loss_without_samples_cannot_be_halved():
    loss, way, sizes = BatchLoss(lambda b: b.mean(), torch.ones(11)), Approach(), []
    while way is not None:
        sizes.append(way.part_size(loss))
        way = way.smaller(loss)
    assert sizes == [None, 6, 3, 2, 1]
    assert Approach().smaller(BatchLoss(lambda b: torch.tensor(0.0), 3.0)) is None
    assert Approach().smaller(lambda: torch.tensor(0.0)) is None
    with pytest.raises(ValueError, match=r"expected a BatchLoss or a TapeLoss, .*got function"):
        parts_of(lambda: torch.tensor(0.0), 4)


def test_what_cannot_be_divided_any_more_raises_what_was_raised():
    loss = BatchLoss(lambda b: b.mean(), torch.ones(4))
    for error, n_tries in ((torch.OutOfMemoryError("no room"), 3), (ValueError("no number"), 1)):
        tries = []

        def measure(way, error=error, tries=tries):
            tries.append(way.micro_batch)
            raise error

        with pytest.raises(type(error), match=str(error)):
            adapted(Approach(), loss, measure)
        assert tries == [None, 2, 1][:n_tries]
