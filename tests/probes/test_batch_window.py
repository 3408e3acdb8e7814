"""The curvature of the training's own batches, over the last few."""

from functools import partial

import pytest
import torch
from torch import nn

from lightning_topo.demo import digits
from lightning_topo.probes._batch_window import BatchWindow, SeenBatch, see_batches
from lightning_topo.stability import curvature_batch_sharpness, curvature_elsewhere, hessian, parameter_thresholds
from lightning_topo.stability._effects import rule_and_effects

X, Y = digits(64).tensors


def test_the_ratio_of_the_last_batches_is_that_of_their_curvature():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 10)).double()
    params = list(net.parameters())
    sgd = torch.optim.SGD(params, lr=0.1, momentum=0.9)

    def loss(k):
        rows = slice(8 * k, 8 * k + 8)
        return 0.5 * ((net(X[rows].double()) - Y[rows]) ** 2).sum(1).mean()

    one, other = (hessian(lambda k=k: loss(k), params) for k in (0, 1))
    g = one.gradient
    assert curvature_elsewhere(one, other) == pytest.approx(float(g @ (other @ g) / (g @ (one @ g))))
    thresholds = parameter_thresholds([sgd], params).parameters
    assert curvature_elsewhere(one, other, thresholds) == pytest.approx(curvature_elsewhere(one, other))
    assert curvature_elsewhere(one, one) == pytest.approx(1.0)
    found = curvature_batch_sharpness(one, thresholds)
    seen = [SeenBatch(found.value, found.small, found.large, share) for share in (0.25, 0.75)]
    window = BatchWindow().followed_by(seen)
    assert window.noise == pytest.approx(0.5)
    assert window.ratio == pytest.approx(0.75 * found.small + 0.25 * found.large)
    assert BatchWindow().followed_by(seen * 20).count == 40
    assert len(BatchWindow().followed_by(seen * 20).batches) < 20


def seen(value, elsewhere, small=3.0, large=1.0):
    return SeenBatch(value, small, large, elsewhere)


def test_the_last_twelve_batches_decide():
    window = BatchWindow().followed_by([seen(100.0, 0.0)] * 5)
    for k in range(12):
        window = window.followed_by([seen(float(k), 1.0)])
    assert window.count == 17
    assert window.values() == {"batch_sharpness": 5.5, "batch_noise": 0.0, "batch_sharpness_ratio": 1.0}


@pytest.mark.parametrize(
    ("elsewhere", "noise", "ratio"), [(1.4, 0.0, 1.0), (0.9, 0.1, 1.22), (0.2, 0.8, 3.0), (-0.5, 1.0, 3.0)]
)
def test_noise_is_a_share_and_weighs_the_plateaus(elsewhere, noise, ratio):
    """1 + 2 w with w = n (1 + n), never more than 1: the plateaus are 3 and 1."""
    window = BatchWindow().followed_by([seen(1.0, elsewhere)] * 3)
    assert window.noise == pytest.approx(noise)
    assert window.ratio == pytest.approx(ratio)


def test_batches_are_measured_each_with_the_one_before_it():
    """Quadratics of curvature 1, 2 and 6 in one direction: another batch has 6, 1/2 and 1/3 times as much."""
    weight = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    sgd = torch.optim.SGD([weight], lr=0.1)
    losses = [lambda h=h: 0.5 * h * weight.square().sum() for h in (1.0, 2.0, 6.0)]

    def thresholds(_):
        return parameter_thresholds([sgd], [weight]).parameters

    found = see_batches(losses, partial(hessian, params=[weight]), thresholds)
    assert [each.value for each in found] == pytest.approx([1.0, 2.0, 6.0])
    assert [each.elsewhere for each in found] == pytest.approx([6.0, 1 / 2, 1 / 3])
    assert [each.large for each in found] == pytest.approx([0.05, 0.1, 0.3])
    assert see_batches(losses[:1], partial(hessian, params=[weight]), thresholds) == ()
    assert see_batches(losses, partial(hessian, params=[weight]), lambda _: None) == ()
    flat = [lambda: 0.0 * weight.sum(), *losses[1:]]
    assert [each.value for each in see_batches(flat, partial(hessian, params=[weight]), thresholds)] == pytest.approx(
        [2.0, 6.0]
    )


@pytest.mark.parametrize(
    ("old", "new", "factor"),
    [
        ((0.1, 0.2), (0.01, 0.02), 0.1),
        ((0.1,), (0.0,), 1.0),
        ((0.1, 0.2), (0.1, 0.02), 1.0),
        ((0.1,), (0.1, 0.1), 1.0),
        ((0.0,), (0.1,), 1.0),
        ((), (0.1,), 1.0),
        ((0.1,), (float("nan"),), 1.0),
    ],
)
def test_ratios_go_with_rates_that_change_by_one_factor(old, new, factor):
    window = BatchWindow(rates=old).followed_by([seen(5.0, 0.5)] * 3)
    later = window.at(new)
    assert later.ratio == pytest.approx(factor * window.ratio)
    assert later.values()["batch_sharpness"] == 5.0
    assert later.noise == window.noise
    assert later.count == 3
    assert later.rates == pytest.approx(new if any(new) else old, nan_ok=True)
    assert BatchWindow.load(window.save(), 3, old) == window


def test_a_rate_of_0_between_two_others_takes_nothing_from_the_window():
    window = BatchWindow(rates=(0.1,)).followed_by([seen(5.0, 0.5)] * 3)
    assert window.at((0.0,)).at((0.05,)).ratio == pytest.approx(window.ratio / 2)


def test_a_window_at_another_rate_is_what_would_have_been_measured_there():
    """Adam's too: its preconditioner does not depend on the rate."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 10)).double()
    params = list(net.parameters())
    for make in (partial(torch.optim.SGD, momentum=0.9, nesterov=True), torch.optim.Adam, torch.optim.RMSprop):
        optimizer = make(params, lr=0.01)
        losses = [
            lambda k=k: 0.5 * ((net(X[8 * k : 8 * k + 8].double()) - Y[8 * k : 8 * k + 8]) ** 2).sum(1).mean()
            for k in (0, 1)
        ]
        losses[0]().backward()
        optimizer.step()

        def at(rate, optimizer=optimizer, losses=losses):
            optimizer.param_groups[0]["lr"] = rate
            found = see_batches(
                losses, partial(hessian, params=params), lambda _: parameter_thresholds([optimizer], params).parameters
            )
            return BatchWindow(rates=(rate,)).followed_by(found)

        assert at(0.01).at([0.002]).ratio == pytest.approx(at(0.002).ratio)


def test_a_window_follows_a_change_of_momentum_and_begins_anew_with_another_rule():
    theta = torch.zeros(2, requires_grad=True)
    sgd = torch.optim.SGD([theta], lr=0.1, momentum=0.9)
    adam = torch.optim.Adam([theta], lr=0.1)

    def at(window, optimizer):
        return window.under(*rule_and_effects([optimizer])).at([0.1])

    def batch(optimizer):
        (found,) = parameter_thresholds([optimizer], [theta]).parameters
        return SeenBatch(2.0, found.total, 2.0 * found.stability, 0.5)

    window = at(BatchWindow(), sgd).followed_by([batch(sgd)])
    for change in ({"momentum": 0.0}, {"momentum": 0.5, "nesterov": True}, {"nesterov": False, "dampening": 0.2}):
        sgd.param_groups[0].update(change)
        window = at(window, sgd)
        (expected,) = [batch(sgd)]
        (found,) = window.batches
        assert (found.small, found.large) == pytest.approx((expected.small, expected.large))
    same = BatchWindow.load(window.save(), window.count, window.rates, window.rule, window.effects)
    assert same == window
    assert at(window, adam).batches == ()
    theta.grad = torch.ones(2)
    adam.step()
    window = at(BatchWindow(), adam).followed_by([seen(1.0, 0.5)])
    adam.param_groups[0]["betas"] = (0.5, 0.999)
    (found,) = at(window, adam).batches
    assert (found.small, found.large) == pytest.approx((3.0, 19.0 / 3.0))
    adam.param_groups[0]["eps"] = 1.0
    assert at(window, adam).batches == ()
