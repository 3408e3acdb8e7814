"""Permutations tried at perturbed parameters: what is a symmetry passes, and whatever is not is named."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lightning_topo._tape import StepRecorder, Tape
from lightning_topo.neurons import NeuronGroup, ParamSlice, find_neuron_groups, verify_groups
from lightning_topo.neurons._bench import Bench, perturbed
from lightning_topo.neurons._trial import Attempt
from tests.neurons.networks import X, loss, network
from tests.tape.steps import batch, mlp


@pytest.mark.parametrize("index", range(7))
def test_a_group_that_lacks_a_slice_is_rejected(index: int) -> None:
    model = network()
    group = find_neuron_groups(model, run=loss)[0]
    assert len(group.slices) == 7  # weight, bias, batch norm's two and its two statistics, outgoing weight
    broken = replace(group, slices=group.slices[:index] + group.slices[index + 1 :])
    [verdict] = verify_groups(model, [broken], loss)
    assert verdict.status == "incoming_only"
    assert "not complete" in verdict.reason
    assert all(piece.role in ("incoming", "elementwise") for piece in verdict.slices)


def test_a_slice_along_the_wrong_axis_is_rejected() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    [group] = find_neuron_groups(model, torch.randn(4, 6))
    wrong = replace(group.slices[2], dims=(0,))
    [verdict] = verify_groups(
        model, [replace(group, slices=(*group.slices[:2], wrong))], lambda m: m(X[:, :1].expand(7, 6))
    )
    assert verdict.status == "incoming_only"


def test_one_bad_group_does_not_condemn_the_others() -> None:
    model = network()
    first, second = find_neuron_groups(model, run=loss)
    bad = replace(first, slices=first.slices[:-1])
    assert [g.status for g in verify_groups(model, [bad, second], loss)] == ["incoming_only", "verified"]


def test_neurons_without_influence_are_inert() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()
            self.aside = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))

        def forward(self, x):
            return self.net(x) + 0 * self.aside(x)

    groups = find_neuron_groups(Unused(), X)
    assert {g.name: g.status for g in groups} == {
        "net.0": "verified",
        "net.4": "verified",
        "aside.0": "inert",
    }


def test_a_rule_that_treats_neurons_unequally_is_rejected_by_its_gradient() -> None:
    class Biased(torch.autograd.Function):
        """The identity, whose gradient reaches the first neuron alone."""

        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return torch.cat([gradient[:, :1], 0 * gradient[:, 1:]], dim=1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.fc2(Biased.apply(torch.tanh(self.fc1(x))))

    torch.manual_seed(0)
    [group] = find_neuron_groups(Net(), run=loss)
    assert group.status == "incoming_only"
    assert "gradient of the loss" in group.reason


def test_a_model_without_gradients_is_judged_by_its_output() -> None:
    class Detached(nn.Sequential):
        def forward(self, x):
            return super().forward(x).detach()

    [group] = find_neuron_groups(Detached(*mlp(5, 8, 3)), X)
    assert (group.status, group.reason) == ("verified", "by the output alone")


UNITS = NeuronGroup(
    "0", "unit", 8, (), (ParamSlice("0.weight"), ParamSlice("0.bias"), ParamSlice("2.weight", (), (1,)))
)


def tape_of(net: nn.Module) -> Tape:
    recorder = StepRecorder()
    recorder.begin(net)
    recorder.loss(net(batch(0, 6, 5)).square().mean())
    [tape] = recorder.end()
    return tape


@pytest.mark.parametrize(
    "attempt",
    [Attempt(), Attempt(float64=False), Attempt(gradients=False), Attempt(spread=0.0), Attempt(choices=False)],
)
def test_in_every_way_of_trying_a_symmetry_passes_and_half_of_one_does_not(attempt) -> None:
    torch.manual_seed(0)
    half = replace(UNITS, name="half", slices=UNITS.slices[:2])
    good, bad = Bench([tape_of(mlp(5, 8, 3))], [UNITS, half], 0, attempt).judge([UNITS, half])
    assert (good.status, bad.status) == ("verified", "incoming_only")
    notes = [] if attempt.gradients else ["by the output alone"]
    notes += [] if attempt.choices else ["with the choices of the step, on which shapes depend, as constants"]
    assert good.reason == "; ".join(notes)


def test_after_a_judgement_the_tensors_are_where_they_were_but_for_the_last_trial() -> None:
    torch.manual_seed(0)
    bench = Bench([tape_of(mlp(5, 8, 3))], [UNITS], 0, Attempt())
    before = {name: tensor.clone() for name, tensor in bench.tensors.items()}
    bench.judge([UNITS, UNITS])
    bench._restore()
    assert all(torch.equal(before[name], tensor) for name, tensor in bench.tensors.items())


def test_a_single_neuron_has_nothing_to_prove_and_what_was_given_up_stays_so() -> None:
    torch.manual_seed(0)
    one = NeuronGroup("one", "unit", 1, (), (ParamSlice("0.weight", (("narrow", 0, 0, 1),)),))
    lost = UNITS.incoming_only("no")
    found = Bench([tape_of(mlp(5, 8, 3))], [one, lost], 0, Attempt()).judge([one, lost])
    assert (found[0].status, found[1]) == ("verified", lost)


def test_permuting_may_not_change_what_the_loss_is_made_of() -> None:
    """Two losses: what is a symmetry of one and not of the other is none."""
    torch.manual_seed(0)
    net, recorder = mlp(5, 8, 3), StepRecorder()
    recorder.begin(net)
    recorder.loss(net(batch(0, 6, 5)).square().mean())
    recorder.resume()
    recorder.loss((net[0](batch(1, 6, 5)) * torch.arange(8.0)).square().mean())
    both = recorder.end()
    for tapes, status in ((both[:1], "verified"), (both, "incoming_only")):
        assert Bench(tapes, [UNITS], 0, Attempt()).judge([UNITS])[0].status == status


def test_outputs_without_a_number_prove_nothing() -> None:
    tape = tape_of(mlp(5, 8, 3))
    with pytest.raises(RuntimeError, match="floating tensor, got none"):
        Bench([tape.replaced(outputs=(), recorded=())], [UNITS], 0, Attempt(gradients=False))
    overflowing = tape_of(nn.Sequential(*mlp(5, 8, 3), Overflow()))
    with pytest.raises(RuntimeError, match="finite outputs"):
        Bench([overflowing], [UNITS], 0, Attempt())


class Overflow(nn.Module):
    def forward(self, x):
        return x / torch.zeros(())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
def test_a_perturbed_tensor_is_a_copy_some_way_off(dtype) -> None:
    tensor = (3 * torch.randn(400, generator=torch.Generator().manual_seed(0))).to(dtype)
    copy = perturbed(tensor, torch.Generator().manual_seed(0), 1.0, float64=False)
    assert copy.dtype is dtype
    assert copy.data_ptr() != tensor.data_ptr()
    off = (copy - tensor).abs().double()
    assert 1.0 < float(off.mean()) < 4.0
    again = perturbed(tensor, torch.Generator().manual_seed(0), 1.0, float64=False)
    assert torch.equal(copy, again)


@pytest.mark.parametrize("shape", [(70, 1000), (65_539, 3), (2, 65_537), (40, 50, 6, 6)])
def test_rows_and_columns_of_a_large_tensor_get_different_noise(shape) -> None:
    zeros = torch.zeros(shape)
    zeros = zeros.to(memory_format=torch.channels_last) if len(shape) == 4 else zeros
    moved = perturbed(zeros, torch.Generator().manual_seed(0), 1.0, float64=True)
    assert float(moved.std()) == pytest.approx(0.15, rel=0.15)
    assert abs(float(moved.mean())) < 0.01
    for cloud in (moved.flatten(1), moved.transpose(0, 1).flatten(1)):
        assert len(cloud.unique(dim=0)) == len(cloud)


def test_what_is_constant_is_moved_and_what_is_not_finite_replaced_and_what_is_no_number_left() -> None:
    generator = torch.Generator().manual_seed(0)
    ones = perturbed(torch.ones(400), generator, 1.0, float64=True)
    assert ones.dtype is torch.float64
    assert 0.1 < float(ones.std()) < 0.2
    broken = perturbed(torch.full((400,), torch.nan), generator, 1.0, float64=True)
    assert bool(broken.isfinite().all())
    assert bool(broken.any())
    whole = torch.arange(4)
    assert torch.equal(perturbed(whole, generator, 1.0, float64=True), whole)
    assert torch.equal(perturbed(torch.ones(3), generator, 0.0, float64=False), torch.ones(3))


def deep(depth: int, *, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(16, 16), *([nn.BatchNorm1d(16)] if norm else []), nn.ReLU() if norm else nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(16, 3))


@pytest.mark.parametrize("norm", [False, True])
def test_first_layers_of_a_deep_network_are_proved_by_their_own_gradient(norm: bool) -> None:
    groups = find_neuron_groups(deep(80, norm=norm), torch.randn(8, 16))
    assert [group.status for group in groups] == ["verified"] * 80
    assert groups[0].reason.startswith("by its own gradient: the output hardly depends on it (control")
    assert groups[-1].reason == ""


@pytest.mark.parametrize("missing", range(3))
def test_a_group_of_a_first_layer_that_lacks_a_slice_is_not_proved_by_its_own_gradient(missing: int) -> None:
    net, x = deep(120), torch.randn(8, 16)
    group = find_neuron_groups(net, x)[0]
    broken = replace(group, slices=group.slices[:missing] + group.slices[missing + 1 :], status="unverified")
    [verdict] = verify_groups(net, [broken], lambda m: m(x))
    assert verdict.status != "verified"


def test_neurons_that_matter_to_nothing_are_inert() -> None:
    torch.manual_seed(0)
    dead = nn.Sequential(nn.Linear(6, 12), nn.Threshold(1e9, 0.0), nn.Linear(12, 3))
    assert [group.status for group in find_neuron_groups(dead, torch.randn(8, 6))] == ["inert"]
