"""What is left of a gradient when the optimizer takes it, against the factor that was really applied."""

import pytest
import torch
from torch import nn

from lightning_topo._tape.closing import empty_tape
from lightning_topo._watch.gradient_scales import GradientScales


@pytest.fixture
def setting():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    return model, torch.optim.SGD(model.parameters(), lr=0.1), torch.randn(8, 3)


def step(scales, model, optimizer, batches, *, factor=1.0, scaling=1.0, between=lambda: None):
    """One update over these batches: each loss is differentiated `scaling` times as large as it was shown."""
    optimizer.zero_grad()
    for x in batches:
        loss = factor * model(x).square().sum()
        scales.begin_batch()
        scales.loss(loss, factor, [optimizer])
        (scaling * loss).backward()
        scales.differentiated([optimizer])
    for p in model.parameters():
        p.grad /= scaling
    before = norm(model)
    between()
    after = norm(model)
    optimizer.step()
    scales.stepped(optimizer)
    return after / before if before else 1.0


def norm(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()


@pytest.mark.parametrize("scaling", [1.0, 1024.0])
def test_clipping_is_measured_and_the_loss_scale_of_mixed_precision_is_not(setting, scaling):
    model, optimizer, x = setting
    scales = GradientScales()
    scales.wanted = True
    assert scales.of([optimizer]) == (1.0,)
    step(scales, model, optimizer, [x], scaling=scaling)
    assert scales.of([optimizer]) == pytest.approx((1.0,), rel=1e-5)

    def by_norm():
        nn.utils.clip_grad_norm_(model.parameters(), 0.3)

    def by_value():
        nn.utils.clip_grad_value_(model.parameters(), 0.05)

    truth = step(scales, model, optimizer, [x], scaling=scaling, between=by_norm)
    assert truth < 0.9
    assert scales.of([optimizer]) == pytest.approx((truth,), rel=1e-5)
    assert step(scales, model, optimizer, [x], scaling=scaling, between=by_value) < 0.9
    assert scales.of([optimizer]) == (None,)  # entries by different factors
    step(scales, model, optimizer, [x], scaling=scaling)
    assert scales.of([optimizer]) == pytest.approx((1.0,), rel=1e-5)


def test_a_clipped_value_is_seen_where_the_largest_entry_is_nearly_the_norm():
    """One entry of 10 is clipped to 0.5, the others are far below: as a slope beside a valley."""
    theta = nn.Parameter(torch.tensor([0.0, 1e-2, 1e-2]))
    optimizer, scales = torch.optim.SGD([theta], lr=0.1), GradientScales()
    scales.wanted = True
    for clip, expected in ((nn.utils.clip_grad_value_, None), (nn.utils.clip_grad_norm_, 0.05)):
        scales.begin_batch()
        optimizer.zero_grad()
        loss = 10 * theta[0] + theta[1:].square().sum()
        scales.loss(loss, 1.0, [optimizer])
        loss.backward()
        scales.differentiated([optimizer])
        clip([theta], 0.5)
        optimizer.step()
        scales.stepped(optimizer)
        (found,) = scales.of([optimizer])
        assert found == (None if expected is None else pytest.approx(expected, rel=1e-3))


@pytest.mark.parametrize("k", [1, 3])
def test_batches_of_an_update_are_counted_as_they_are_differentiated(setting, k):
    model, optimizer, x = setting
    scales = GradientScales()
    scales.wanted = True
    assert scales.batches_per_update([optimizer]) is None  # nothing was seen
    for _ in range(2):
        step(scales, model, optimizer, [x] * k, factor=1 / k)
        assert scales.batches_per_update([optimizer]) == k
    step(scales, model, optimizer, [x, torch.zeros(8, 3)], factor=0.0)
    assert scales.batches_per_update([optimizer]) is None  # a gradient of 0


def test_of_several_losses_of_one_batch_nobody_knows_whether_they_are_parts_of_it(setting):
    model, optimizer, x = setting
    scales = GradientScales()
    scales.wanted = True
    scales.begin_batch()
    optimizer.zero_grad()
    for rows in (x[:4], x[4:]):
        loss = model(rows).square().sum()
        scales.loss(loss, 1.0, [optimizer])
        loss.backward()
        scales.differentiated([optimizer])
    optimizer.step()
    scales.stepped(optimizer)
    assert scales.batches_per_update([optimizer]) is None
    other = torch.optim.SGD(model[0].parameters(), lr=0.1)
    step(scales, model, optimizer, [x, x])
    assert scales.batches_per_update([optimizer, other]) == 2  # the other one has not stepped
    step(scales, model, other, [x])
    assert scales.batches_per_update([optimizer, other]) is None


@pytest.mark.parametrize(("factor", "truth"), [(0.25, 1.0), (1.0, 4.0)])
def test_accumulated_batches_count_once_where_their_loss_is_divided_and_each_where_it_is_not(setting, factor, truth):
    model, optimizer, x = setting
    scales = GradientScales()
    scales.wanted = True
    for _ in range(2):  # nothing is left over from the update before
        step(scales, model, optimizer, [x, x, x, x], factor=factor)
        assert scales.of([optimizer]) == pytest.approx((truth,), rel=1e-5)


def test_what_is_not_wanted_or_has_no_gradient_changes_nothing(setting):
    model, optimizer, x = setting
    scales = GradientScales()
    scales.wanted = True
    truth = step(scales, model, optimizer, [x], between=lambda: nn.utils.clip_grad_norm_(model.parameters(), 0.3))
    scales.wanted = False
    step(scales, model, optimizer, [x])
    assert scales.of([optimizer]) == pytest.approx((truth,), rel=1e-5)
    scales.wanted = True
    step(scales, model, optimizer, [torch.zeros(8, 3)], factor=0.0)
    assert scales.of([optimizer]) == (1.0,)  # 0 / 0 says nothing
    optimizer.zero_grad()
    scales.stepped(optimizer)
    assert scales.of([optimizer]) == (1.0,)


def test_losses_of_one_batch_are_one_function_their_sum(setting):
    """Half of the gradient from each: it is handed over as it is, and where one loss is divided, by their mean."""
    model, optimizer, x = setting
    scales = GradientScales()
    scales.wanted = True
    for factors, truth in (((1.0, 1.0), 1.0), ((0.5, 0.5), 0.5)):
        optimizer.zero_grad()
        scales.begin_batch()
        for factor in factors:
            loss = factor * model(x).square().sum()
            scales.loss(loss, factor, [optimizer])
            loss.backward()
            scales.differentiated([optimizer])
        optimizer.step()
        scales.stepped(optimizer)
        assert scales.of([optimizer]) == pytest.approx((truth,), rel=1e-5)


def test_a_loss_counts_for_the_optimizers_whose_gradient_it_changes(setting):
    model, _, x = setting
    first, last = (torch.optim.SGD(part.parameters(), lr=0.1) for part in (model[0], model[2]))
    scales = GradientScales()
    scales.wanted = True
    scales.begin_batch()
    for part in (model[0], model[2]):
        loss = model(x).square().sum()
        scales.loss(loss, 1.0, [first, last])
        loss.backward(inputs=list(part.parameters()))
        scales.differentiated([first, last])
    for optimizer in (first, last):
        optimizer.step()
        scales.stepped(optimizer)
    assert scales.of([first, last]) == pytest.approx((1.0, 1.0), rel=1e-5)


def test_a_gradient_that_was_cleared_counts_for_nothing(setting):
    model, optimizer, x = setting
    scales = GradientScales()
    scales.wanted = True
    scales.begin_batch()
    for to_none in (True, False):
        for _ in range(2):
            optimizer.zero_grad(set_to_none=to_none)
            loss = model(x).square().sum()
            scales.loss(loss, 1.0, [optimizer])
            loss.backward()
            scales.differentiated([optimizer])
        optimizer.step()
        scales.stepped(optimizer)
        assert scales.of([optimizer]) == pytest.approx((1.0,), rel=1e-5)


def of_hooks(factor, *owners):
    return empty_tape("").replaced(gradient_factor=factor, owners=frozenset(owners) if owners else None)


def test_the_factor_of_hooks_counts_for_the_optimizer_that_takes_the_loss():
    model = nn.ModuleDict({"g": nn.Linear(2, 2, bias=False), "d": nn.Linear(2, 2, bias=False)})
    g, d = (torch.optim.SGD(part.parameters(), lr=0.1) for part in model.values())
    parameters = dict(model.named_parameters())
    scales = GradientScales()
    scales.recorded([of_hooks(0.5, "g.weight"), of_hooks(2.0, "d.weight")], [g, d], parameters)
    assert scales.of([g, d]) == (0.5, 2.0)
    scales.recorded([of_hooks(None, "g.weight")], [g, d], parameters)  # a step that tells nothing
    scales.recorded([of_hooks(8.0).replaced(owners=frozenset())], [g, d], parameters)  # a loss that moves nothing
    assert scales.of([g, d]) == (0.5, 2.0)
    scales.recorded([of_hooks(0.25)], [g, d], parameters)  # nobody has seen whom it moves
    assert scales.of([g, d]) == (0.25, 0.25)
    scales.recorded([of_hooks(0.5, "g.weight"), of_hooks(0.25, "g.weight")], [g], parameters)
    assert scales.of([g, d]) == (1.0, 0.25)  # a sum of two losses with factors of their own is no multiple of theirs


def test_a_gradient_that_waits_for_its_turn_is_not_compared_with_a_later_one(setting):
    """An optimizer sits out the step in which that is measured; networks that take turns do."""
    model, optimizer, x = setting
    scales = GradientScales()
    scales.want(True)
    loss = model(x).square().sum()
    scales.begin_batch()
    scales.loss(loss, 1.0, [optimizer])
    loss.backward()
    scales.differentiated([optimizer])
    scales.want(False)
    optimizer.zero_grad()
    scales.begin_batch()
    (3.0 * model(x[:2])).abs().sum().backward()
    scales.stepping(optimizer)
    optimizer.step()
    scales.stepped(optimizer)
    assert scales.of([optimizer]) == (1.0,)


@pytest.mark.parametrize("name", ["AdamWScheduleFree", "SGDScheduleFree", "RAdamScheduleFree"])
def test_optimizers_that_write_over_their_gradients_take_what_was_there_before(setting, name):
    schedulefree = pytest.importorskip("schedulefree")
    model, _, x = setting
    optimizer = getattr(schedulefree, name)(model.parameters(), lr=1e-3, weight_decay=0.1)
    optimizer.train()
    scales = GradientScales()
    scales.want(True)
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(x).square().sum()
        scales.begin_batch()
        scales.loss(loss, 1.0, [optimizer])
        loss.backward()
        scales.differentiated([optimizer])
        nn.utils.clip_grad_norm_(model.parameters(), 0.5 * norm(model))
        scales.stepping(optimizer)
        optimizer.step()
        scales.stepped(optimizer)
    assert scales.of([optimizer]) == pytest.approx((0.5,), rel=1e-4)
