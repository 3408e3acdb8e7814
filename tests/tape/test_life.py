"""The mode's life: entered once, left whatever happens, and blind where it should be."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from lightning_topo._tape import CannotReplay, StepRecorder, accepted, replay, tape_loss
from lightning_topo._tape.formulas import RECURRENT
from lightning_topo._tape.program import Call
from lightning_topo.neurons import groups_from_tapes
from lightning_topo.neurons._tape_coupling import couple
from tests.tape.steps import CountedCalls, batch, labels, mlp


def recorded(module: nn.Module, loss) -> tuple:
    recorder = StepRecorder()
    recorder.begin(module)
    value = loss()
    recorder.loss(value)
    value.backward()
    [tape] = recorder.end()
    return accepted(tape, {name: p.grad for name, p in module.named_parameters()})


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


def test_a_mode_that_the_step_leaves_open_stays_open() -> None:
    class Theirs(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    theirs, recorder = Theirs(), StepRecorder()
    recorder.begin(mlp(5, 8, 3))
    theirs.__enter__()
    recorder.end()
    assert _get_current_dispatch_mode_stack() == [theirs]
    theirs.__exit__(None, None, None)


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


def test_layers_that_are_lazy_until_the_step() -> None:
    torch.manual_seed(0)
    net, x, y = nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(3)), batch(0, 6, 5), labels(0, 6)

    def loss() -> Tensor:
        value = F.cross_entropy(net(x), y)
        assert all(p.detach().norm() > 0 for p in net.parameters())  # what else is read of them is not the parameter
        return value

    tape = recorded(net, loss)
    assert (tape.obstacle, tape.gradient_obstacle) == ("", "")
    assert sorted(tape.params) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.5)
    assert torch.allclose(tape_loss(tape, dict(net.named_parameters())), F.cross_entropy(net(x), y))


def test_parameters_that_are_made_in_the_step() -> None:
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(5, 8)

        def forward(self, x: Tensor) -> Tensor:
            if not hasattr(self, "second"):
                self.second = nn.Linear(8, 3)
            return self.second(torch.tanh(self.first(x)))

    net, x, y = Growing(), batch(0, 6, 5), labels(0, 6)
    tape = recorded(net, lambda: F.cross_entropy(net(x), y))
    assert (tape.obstacle, tape.gradient_obstacle) == ("", "")
    assert "second.weight" in tape.params


class Round(torch.autograd.Function):
    """Rounds, and lets the gradient through as if it did not."""

    @staticmethod
    def forward(ctx, x):
        return (4 * x).round() / 4

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Cube(torch.autograd.Function):
    """A fused kernel of the user's, with the derivative of what it computes."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x * x

    @staticmethod
    def backward(ctx, gradient):
        [x] = ctx.saved_tensors
        return 3 * x * x * gradient


def test_a_function_with_its_own_derivative_is_replayed() -> None:
    net, x = mlp(5, 8, 3), batch(0, 6, 5)
    tape = recorded(net, lambda: net[2](Cube.apply(net[0](x))).square().mean())
    assert list(tape.functions.values()) == ["Cube"]
    assert (tape.obstacle, tape.gradient_obstacle) == ("", "")


def test_a_straight_through_estimator_is_refused_below_it_alone() -> None:
    net, x = mlp(5, 8, 3), batch(0, 6, 5)
    tape = recorded(net, lambda: net[2](Round.apply(net[0](x))).square().mean())
    assert tape.obstacle == ""
    assert "Round defines a gradient other than its derivative" in tape.gradient_obstacle
    assert tape.unlike == {"0.weight", "0.bias"}
    with pytest.raises(CannotReplay, match="Round"):
        tape_loss(tape, {})


def test_a_straight_through_estimator_of_plain_operators_is_replayed() -> None:
    net, x = mlp(5, 8, 3), batch(0, 6, 5)

    def loss() -> Tensor:
        hidden = net[0](x)
        return net[2](hidden + (hidden.round() - hidden).detach()).square().mean()

    tape = recorded(net, loss)
    assert (tape.obstacle, tape.gradient_obstacle) == ("", "")


def test_a_wrong_gradient_is_noticed() -> None:
    net, x, recorder = mlp(5, 8, 3), batch(0, 6, 5), StepRecorder()
    recorder.begin(net)
    loss = net(x).square().mean()
    recorder.loss(loss)
    loss.backward()
    [tape] = recorder.end()
    gradients = {name: p.grad for name, p in net.named_parameters()}
    assert accepted(tape, {name: 8 * g for name, g in gradients.items()}).gradient_obstacle == ""
    wrong = {**gradients, "0.bias": gradients["0.bias"] + 0.1 * gradients["0.bias"].norm()}
    assert accepted(tape, wrong).unlike == {"0.bias"}


def test_constants_are_the_tapes_own() -> None:
    net, x = mlp(5, 8, 3), batch(0, 6, 5)
    tape = recorded(net, lambda: net(x).square().mean())
    x.zero_()
    assert torch.equal(tape_loss(tape, {}), tape.recorded[0])


@pytest.mark.parametrize("kind", [torch.nn.LSTMCell, torch.nn.GRUCell])
def test_the_formula_of_a_fused_cell_is_the_cell(kind) -> None:
    """The kernels themselves are a GPU's; what they compute is what the cell computes here."""
    torch.manual_seed(0)
    cell, x, hidden, state = kind(3, 5).double(), *(torch.randn(4, n).double() for n in (3, 5, 5))
    gates = {
        "input_gates": x @ cell.weight_ih.T,
        "hidden_gates": hidden @ cell.weight_hh.T,
        "input_bias": cell.bias_ih,
        "hidden_bias": cell.bias_hh,
        "hx": hidden,
        "cx": state,
    }
    lstm = kind is torch.nn.LSTMCell
    name = "aten::_thnn_fused_lstm_cell" if lstm else "aten::_thnn_fused_gru_cell"
    found = RECURRENT[name](Call(getattr(torch.ops.aten, name[6:]).default, (), {}, ()), gates)
    wanted = cell(x, (hidden, state)) if lstm else (cell(x, hidden),)
    for one, other in zip(found, wanted, strict=False):
        torch.testing.assert_close(one, other)


def test_a_fused_recurrent_layer_is_coupled_as_fast_over_many_times_as_over_few() -> None:
    def n_followed(times: int) -> tuple[int, list[str]]:
        torch.manual_seed(0)
        net, x, recorder = nn.LSTM(5, 8, bidirectional=True), torch.randn(times, 4, 5), StepRecorder()
        recorder.begin(net)
        recorder.loss(net(x)[0].square().mean())
        [tape] = recorder.end()
        counted = CountedCalls()
        with counted:
            couple([tape])
        return counted.calls.total(), [group.status for group in groups_from_tapes([tape]).groups]

    few, many = n_followed(3), n_followed(60)
    assert few[1] == many[1] == ["verified", "verified"]
    assert many[0] < 2 * few[0]
