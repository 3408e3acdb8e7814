"""The step that a rule tells from an optimizer's state, against the step that torch's own optimizer takes."""

import pytest
import torch

from lightning_topo.stability import _optimizer_thresholds as rules
from lightning_topo.stability._displacements import agreement, displacement

KINDS = [
    (torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.1}, rules.SGD),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}, rules.SGD),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, rules.SGD),
    (torch.optim.SGD, {"lr": 0.1, "maximize": True}, rules.SGD),
    (torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1}, rules.ADAM),
    (torch.optim.Adam, {"lr": 0.01, "amsgrad": True}, rules.ADAM),
    (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}, rules.ADAM),
    (torch.optim.Adamax, {"lr": 0.01}, rules.ADAMAX),
    (torch.optim.NAdam, {"lr": 0.01}, rules.NADAM),
]


@pytest.mark.parametrize(("kind", "options", "rule"), KINDS)
def test_it_is_the_step_that_was_taken(kind, options, rule):
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(5, 3, generator=generator))
    optimizer = kind([parameter], **options)
    for _ in range(4):
        before = parameter.detach().clone()
        parameter.grad = torch.randn(5, 3, generator=generator)
        optimizer.step()
        expected = displacement(rule, optimizer.param_groups[0], optimizer.state[parameter], before, parameter.grad)
        moved = parameter.detach() - before
        torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-6)
        apart, length, _ = agreement(moved, expected, parameter.detach()).sqrt().tolist()
        assert apart < 1e-3 * length
        half = agreement(0.5 * moved, expected, parameter.detach()).sqrt()
        assert float(half[0]) == pytest.approx(0.5 * length, rel=1e-2)


def test_where_the_state_does_not_tell_it_there_is_none():
    group = {"lr": 0.1, "momentum": 0.9}
    assert displacement(rules.SGD, group, {}, torch.ones(2), torch.ones(2)) is None
    adam = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))]).param_groups[0]
    assert displacement(rules.ADAM, adam, {}, torch.ones(2), torch.ones(2)) is None
