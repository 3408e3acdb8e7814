"""The mode's life: entered once, left whatever happens, and blind where it should be."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from lightning_topo._tape import CannotReplay, StepRecorder, replay, tape_loss
from tests.tape.recording import recorded
from tests.tape.steps import batch, mlp


def test_no_loss_leaves_no_tape() -> None:
    recorder = StepRecorder()
    recorder.begin(mlp(5, 8, 3))
    assert recorder.is_active
    assert recorder.end() == ()
    assert recorder.end() == ()
    assert _get_current_dispatch_mode_stack() == []


def test_an_error_in_the_step_passes_and_the_mode_is_left() -> None:
    net, recorder = mlp(5, 8, 3), StepRecorder()
    recorder.begin(net)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        net(torch.ones(2, 4))
    recorder.loss(net(torch.ones(2, 5)).sum())
    [tape] = recorder.end()
    assert tape.obstacle == ""
    assert _get_current_dispatch_mode_stack() == []


def test_the_loss_may_be_told_from_inside_of_the_users_contexts() -> None:
    net, recorder = mlp(5, 8, 3), StepRecorder()
    recorder.begin(net)
    with torch.no_grad():
        recorder.loss(net(torch.ones(2, 5)).sum())
    net(torch.ones(2, 5)).sum().backward()
    [tape] = recorder.end()
    assert len(tape.calls) > 0
    assert not tape.obstacle


def test_the_backward_pass_is_not_recorded() -> None:
    net, recorder, x = mlp(5, 8, 3), StepRecorder(), batch(0, 4, 5)
    recorder.begin(net)
    first = net(x).square().mean()
    recorder.loss(first)
    first.backward()
    recorder.resume()
    recorder.loss(net(x).square().mean())
    one, two = recorder.end()
    assert [call.name for call in one.calls] == [call.name for call in two.calls]


def test_a_thousand_steps_of_recurrence_are_given_up_with_the_reason() -> None:
    net, x, plain = nn.Linear(4, 4), batch(0, 2, 4), None
    for cap in (None, 500):
        recorder = StepRecorder(max_calls=cap or 10)
        if cap is not None:
            recorder.begin(net)
        hidden = x
        for _ in range(1000):
            hidden = torch.tanh(net(hidden))
        loss = hidden.sum()
        if cap is None:
            plain = loss
        else:
            recorder.loss(loss)
            [tape] = recorder.end()
            assert torch.equal(loss, plain)
            assert "more than 500 operators" in tape.obstacle
            with pytest.raises(CannotReplay, match="more than 500 operators"):
                replay(tape, {})


def test_a_higher_order_operator_passes_and_the_tape_is_given_up() -> None:
    net, recorder, x = mlp(5, 8, 3), StepRecorder(), batch(0, 4, 5)

    def loss() -> Tensor:
        hidden = net(x)
        return torch._higher_order_ops.wrap.wrap(lambda h: h.square().mean(), hidden)

    plain = loss()
    recorder.begin(net)
    value = loss()
    recorder.loss(value)
    [tape] = recorder.end()
    assert torch.equal(plain, value)
    assert tape.obstacle == "" or "higher-order" in tape.obstacle


def test_constants_are_the_tapes_own() -> None:
    net, x = mlp(5, 8, 3), batch(0, 6, 5)
    tape = recorded(net, lambda: net(x).square().mean())
    x.zero_()
    assert torch.equal(tape_loss(tape, {}), tape.recorded[0])
