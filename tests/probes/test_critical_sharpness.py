"""The probe of critical sharpness on captures made by hand."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from lightning_topo.probes import BatchLoss, Capture, Probe
from lightning_topo.probes._critical_sharpness import StepSharpness
from lightning_topo.stability import directional_ratio, hessian


@pytest.fixture
def setting():
    torch.manual_seed(0)
    module = nn.Linear(4, 3)
    batch = torch.randn(41, 4), torch.randn(41, 3)
    return module, batch


def mse(module, batch):
    return nn.functional.mse_loss(module(batch[0]), batch[1])


def capture(module, batch, optimizer, before, previous=None, loss=mse):
    @contextmanager
    def training_loss(loss_fn):
        yield BatchLoss(lambda b: (loss_fn or loss)(module, b), batch)

    return Capture(1, 0, module, [], {}, None, {}, [optimizer], training_loss, previous, parameters_before=before)


def stepped(module, batch, optimizer):
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    optimizer.zero_grad()
    mse(module, batch).backward()
    optimizer.step()
    return before


@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, lr=0.5), lambda p: torch.optim.Rprop(p, lr=0.01)])
def test_on_a_quadratic_it_is_the_directional_ratio_and_changes_nothing(setting, make):
    module, batch = setting
    optimizer = make(list(module.parameters()))
    before = stepped(module, batch, optimizer)
    after = [p.detach().clone() for p in module.parameters()]
    state = torch.get_rng_state()
    probe = StepSharpness(tolerance=0.01, max_forwards=40)
    assert isinstance(probe, Probe)
    result = probe.measure(capture(module, batch, optimizer, before))
    assert all(torch.equal(a, b) for a, b in zip(after, module.parameters(), strict=True))
    assert torch.equal(state, torch.get_rng_state())
    step = torch.cat([(p.detach() - before[n]).flatten() for n, p in module.named_parameters()])
    truth = directional_ratio(hessian(lambda: mse(module, batch), module.parameters()), step)
    values = result.values[""]
    assert values["critical_sharpness"] == pytest.approx(truth, rel=0.01)
    assert values["critical_converged"] == 1.0
    assert 0.0 < values["critical_noise"] < truth
    again = StepSharpness(noise=False).measure(capture(module, batch, optimizer, before, result))
    assert again.values[""]["n_forwards"] <= 6.0
    assert "critical_noise" not in again.values[""]


def test_a_search_that_ran_out_of_forwards_is_taken_up_by_the_next(setting):
    module, batch = setting
    optimizer = torch.optim.SGD(module.parameters(), lr=2e-3)
    before = stepped(module, batch, optimizer)
    probe, result, found = StepSharpness(noise=False, max_forwards=8), None, []
    for _ in range(6):
        result = probe.measure(capture(module, batch, optimizer, before, result))
        found.append(result.values[""])
    step = torch.cat([(p.detach() - before[n]).flatten() for n, p in module.named_parameters()])
    truth = directional_ratio(hessian(lambda: mse(module, batch), module.parameters()), step)
    assert [each["critical_converged"] for each in (found[0], found[-1])] == [0.0, 1.0]
    assert found[-1]["critical_sharpness"] == pytest.approx(truth, rel=0.06)


def test_dropout_draws_the_same_mask_at_every_multiple(setting):
    module, batch = setting
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3)
    before = stepped(module, batch, optimizer)

    def noisy(module, batch):
        return mse(module, (nn.functional.dropout(batch[0], 0.5), batch[1]))

    results = [
        StepSharpness(noise=False).measure(capture(module, batch, optimizer, before, loss=noisy)).values[""]
        for _ in range(2)
    ]
    assert results[0] == results[1]


def test_without_a_step_or_a_finite_loss_nothing_is_measured(setting):
    module, batch = setting
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    assert StepSharpness().measure(capture(module, batch, optimizer, None)).values == {}
    before = stepped(module, batch, optimizer)
    assert StepSharpness().measure(capture(module, batch, optimizer, before)).values == {}, "it did not move"
    optimizer.param_groups[0]["lr"] = 0.1
    before = stepped(module, batch, optimizer)
    after = [p.detach().clone() for p in module.parameters()]
    broken = capture(module, batch, optimizer, before, loss=lambda m, b: mse(m, b) * float("nan"))
    assert StepSharpness().measure(broken).values == {}
    assert all(torch.equal(a, b) for a, b in zip(after, module.parameters(), strict=True))
    with pytest.raises(ValueError, match="max_forwards"):
        StepSharpness(max_forwards=1)
