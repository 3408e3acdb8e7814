"""A tape at other parameters and in other precision is the module there, and nothing it is given is written."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_topo._tape import CannotReplay, StepRecorder, Tape, replay
from tests.tape.steps import Recurrent, batch, labels, mlp


def tape_of(net: nn.Module, loss: Callable[[], Tensor]) -> Tape:
    recorder = StepRecorder()
    recorder.begin(net)
    recorder.loss(loss())
    [tape] = recorder.end()
    assert tape.obstacle == ""
    return tape


def elsewhere(net: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(p.shape, generator=generator).to(p) for name, p in net.named_parameters()}


def test_at_other_parameters_it_is_the_module_there_with_its_gradient() -> None:
    torch.manual_seed(0)
    net, x, y = mlp(5, 8, 3), batch(0, 6, 5), labels(0, 6)
    tape = tape_of(net, lambda: F.cross_entropy(net(x), y))
    named = {name: tensor.requires_grad_() for name, tensor in elsewhere(net).items()}
    wanted = F.cross_entropy(torch.func.functional_call(net, named, x), y)
    [found] = replay(tape, named)
    assert torch.equal(found, wanted)
    ours, theirs = (torch.autograd.grad(loss, list(named.values())) for loss in (found, wanted))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    with torch.no_grad():
        assert not replay(tape, named)[0].requires_grad


def test_what_is_not_given_is_as_it_was_recorded() -> None:
    torch.manual_seed(0)
    net, x = mlp(5, 8, 3), batch(0, 6, 5)
    tape = tape_of(net, lambda: net(x).square().mean())
    there = {"0.bias": torch.ones(8)}
    wanted = torch.func.functional_call(net, there, x).square().mean()
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    assert torch.equal(replay(tape, there)[0], wanted)


def test_half_precision_and_fused_kernels_are_computed_in_double_where_that_is_wanted() -> None:
    torch.manual_seed(0)
    net, x = Recurrent(4), batch(0, 4, 6, 5)

    def loss() -> Tensor:
        return net(x).bfloat16().square().mean()

    tape = tape_of(net, loss)
    [low] = replay(tape, {})
    [high] = replay(tape, {}, precision=torch.float64)
    assert (low.dtype, high.dtype) == (torch.bfloat16, torch.float64)
    exact: Tensor = net.double()(x.double()).square().mean()
    torch.testing.assert_close(high, exact, rtol=1e-12, atol=0)


def test_buffers_and_generators_are_left_alone_and_masks_are_those_of_the_step() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    x = batch(0, 16, 5)
    tape = tape_of(net, lambda: net(x).square().mean())
    named: dict[str, Tensor] = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    before = {name: tensor.clone() for name, tensor in named.items()}
    state = torch.get_rng_state()
    assert torch.equal(replay(tape, named)[0], replay(tape, named)[0])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in named.items())
    # Another mask can be given by its name: where it keeps nothing only the last bias is left.
    [draw] = tape.draws
    [loss] = replay(tape, {draw: torch.zeros_like(tape.draws[draw])})
    torch.testing.assert_close(loss, net.get_parameter("3.bias").square().mean())


def test_an_autocast_around_the_replay_adds_no_casts() -> None:
    torch.manual_seed(0)
    net, x = mlp(5, 8, 3), batch(0, 6, 5)
    tape = tape_of(net, lambda: net(x).square().mean())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(replay(tape, {})[0], tape.recorded[0])
        assert torch.is_autocast_enabled("cpu")


def test_an_operator_that_fails_is_named() -> None:
    net, x = mlp(5, 8, 3), batch(0, 6, 5)
    tape = tape_of(net, lambda: net(x).square().mean())
    with pytest.raises(CannotReplay, match=r"aten::\w+ fails in the replay \(RuntimeError: "):
        replay(tape, {"2.weight": torch.ones(3, 7)})
    with pytest.raises(CannotReplay, match="because"):
        replay(tape.replaced(obstacle="because"), {})
    with pytest.raises(CannotReplay, match="no value is given for 0"):
        replay(tape.without_values(), {"2.weight": torch.ones(3, 8)})


def test_choices_that_depend_on_values_are_made_anew_and_shapes_that_no_longer_fit_are_refused() -> None:
    net = nn.Linear(4, 6, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.arange(24.0).reshape(6, 4) - 11.5)

    def kept() -> Tensor:
        rows = net.weight.sum(1)
        return rows[rows > 0].sum()

    tape = tape_of(net, kept)
    turned = {"weight": -2 * net.weight.detach()}
    assert torch.equal(replay(tape, turned)[0], -2 * net.weight.sum(1)[net.weight.sum(1) < 0].sum())

    def fixed() -> Tensor:
        rows = net.weight.sum(1)
        return (rows[rows > 0] * torch.tensor([1.0, 2.0, 3.0])).sum()

    with pytest.raises(CannotReplay, match=r"aten::mul fails in the replay"):
        replay(tape_of(net, fixed), {"weight": net.weight.detach() + 100})
