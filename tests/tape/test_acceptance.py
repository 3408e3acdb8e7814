"""A tape is taken for the step only if its replay gives the step's own loss and gradient."""

import pytest
import torch
from torch import Tensor

from lightning_topo._tape import CannotReplay, StepRecorder, Tape, accepted, replayed_gradient, tape_loss
from lightning_topo._tape.acceptance import combined, gradient_errors
from tests.tape.recording import recorded
from tests.tape.steps import TRAININGS, batch, mlp


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
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    assert accepted(tape, {name: 8 * g for name, g in gradients.items()}).gradient_obstacle == ""
    wrong = {**gradients, "0.bias": gradients["0.bias"] + 0.1 * gradients["0.bias"].norm()}
    assert accepted(tape, wrong).unlike == {"0.bias"}


def plain_step() -> tuple[Tape, dict[str, Tensor]]:
    """A step's tape, not yet accepted, and its gradients."""
    torch.manual_seed(0)
    net, x, recorder = mlp(5, 8, 3), batch(0, 6, 5), StepRecorder()
    recorder.begin(net)
    loss = net(x).square().mean()
    recorder.loss(loss)
    loss.backward()
    [tape] = recorder.end()
    return tape, {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def test_another_loss_than_the_recorded_is_refused() -> None:
    tape, gradients = plain_step()
    [loss] = tape.recorded
    assert accepted(tape.replaced(recorded=(loss * (1 + 1e-6),)), gradients).obstacle == ""
    refused = accepted(tape.replaced(recorded=(loss * 1.01,)), gradients)
    assert "the replay's loss differs from the step's (by 9.9e-03 of it)" in refused.obstacle
    # A loss that was no number is the same where the replay gives no number either, and another where it does.
    nan = torch.full((), torch.nan)
    assert "loss differs" in accepted(tape.replaced(recorded=(nan,)), gradients).obstacle
    [slot] = [slot for slot, names in tape.names.items() if names == ("0.bias",)]
    broken = tape.replaced(values={**tape.values, slot: torch.full((8,), torch.nan)}, recorded=(nan,))
    assert accepted(broken).obstacle == ""


def test_the_replayed_gradient_is_that_of_the_step() -> None:
    tape, gradients = plain_step()
    found = replayed_gradient(tape)
    assert found.keys() == gradients.keys()
    assert all(torch.allclose(found[name], gradients[name], rtol=1e-5, atol=1e-7) for name in found)


def test_a_gradient_that_processes_average_is_compared_after_the_average() -> None:
    tape, gradients = plain_step()
    others = {name: torch.ones_like(g) for name, g in gradients.items()}
    mean = {name: (g + others[name]) / 2 for name, g in gradients.items()}
    assert accepted(tape, mean).unlike
    together = accepted(tape, mean, average=lambda mine: {name: (g + others[name]) / 2 for name, g in mine.items()})
    assert (together.obstacle, together.gradient_obstacle, together.unlike) == ("", "", frozenset())


def test_gradient_errors_are_parts_of_the_largest_entry_after_the_common_factor() -> None:
    big, small = torch.tensor([3.0, -4.0]), torch.tensor([0.5])
    assert gradient_errors({"a": big, "b": small}, {"a": 8 * big, "b": 8 * small}) == ({"a": 0.0, "b": 0.0}, 8.0)
    # The factor that most of the gradient agrees on is 8; b is off by 4, of a largest entry of 32.
    off = gradient_errors({"a": big, "b": small}, {"a": 8 * big, "b": 8 * small + 4.0})
    assert off == ({"a": 0.0, "b": pytest.approx(4 / 32)}, 8.0)
    # What the replay has no gradient of counts whole; what is turned round is no positive factor.
    assert gradient_errors({"a": big}, {"a": big, "b": small}) == ({"a": 0.0, "b": pytest.approx(0.5 / 4)}, 1.0)
    assert gradient_errors({"a": big}, {"a": -big}) == ({"a": 1.0}, 0.0)
    assert gradient_errors({"a": big}, {"a": torch.zeros(2), "b": None}) == ({"a": 0.0}, None)


def test_a_factor_of_all_parameters_is_known_where_that_of_the_loss_is() -> None:
    tape, gradients = plain_step()
    scaled = {name: 4 * g for name, g in gradients.items()}
    assert accepted(tape, scaled).gradient_factor is None
    assert accepted(tape, scaled, multiple=4.0).gradient_factor == 1.0
    assert accepted(tape, scaled, multiple=8.0).gradient_factor == pytest.approx(0.5, rel=1e-5)
    assert accepted(tape, scaled, multiple=0.0).gradient_factor is None
    in_part = {**gradients, "2.weight": 0.5 * gradients["2.weight"]}
    refused = accepted(tape, in_part, multiple=1.0)
    assert refused.unlike
    assert refused.gradient_factor is None
    nothing = {name: torch.zeros_like(g) for name, g in gradients.items()}
    assert accepted(tape, nothing, multiple=1.0).gradient_factor is None


class Square(torch.autograd.Function):
    """Leaves the factor 2x of its derivative out: of a single number that is a common factor of all parameters."""

    @staticmethod
    def forward(ctx, x):
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_checkpointing_may_hide_a_function_and_is_believed_only_by_its_gradient() -> None:
    made, recorder = TRAININGS["reentrant_checkpointing"](), StepRecorder()
    recorder.begin(made.module)
    made.step(recorder, 0)
    [tape] = recorder.end()
    assert "CheckpointFunction may define a gradient" in accepted(tape).gradient_obstacle
    gradients = {name: p.grad for name, p in made.module.named_parameters()}
    assert not accepted(tape, gradients).gradient_obstacle


def test_a_factor_that_a_function_may_have_made_is_no_factor_of_hooks() -> None:
    net, x, recorder = mlp(5, 8, 3), batch(0, 6, 5), StepRecorder()
    recorder.begin(net)
    loss = Square.apply(net(x).square().mean())
    recorder.loss(loss)
    loss.backward()
    [tape] = recorder.end()
    gradients = {name: p.grad for name, p in net.named_parameters()}
    refused = accepted(tape, gradients, multiple=1.0)
    assert refused.gradient_factor is None
    assert "times the replay's: the autograd function Square may define a gradient other" in refused.gradient_obstacle
    assert refused.unlike == frozenset()
    true = recorded(net, lambda: net[2](Cube.apply(net[0](x))).square().mean())
    assert accepted(true, gradients=None, multiple=1.0).gradient_factor is None


def test_one_loss_is_differentiated_itself_and_several_outputs_all_together() -> None:
    loss = torch.tensor([2.0], requires_grad=True)
    assert combined([loss * 3]).item() == 6.0
    pair = torch.tensor([1.0, 2.0], requires_grad=True)
    wave = torch.tensor([1.0 + 2.0j], requires_grad=True)
    combined([pair, wave]).backward()
    assert pair.grad is not None
    assert wave.grad is not None
    assert pair.grad.all()
    assert wave.grad.real.all()
    assert wave.grad.imag.all()
    assert combined([torch.ones(2), torch.ones(3)]).item() == 0.0  # nothing to differentiate
