"""Random numbers in a step: neurons that each meet their own stay exchangeable, positions that are drawn do not."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Beta, Categorical, Dirichlet, Gamma, OneHotCategoricalStraightThrough

from lightning_topo._tape import StepRecorder, replay
from lightning_topo.neurons import NeuronGroup, ParamSlice, find_neuron_groups
from tests.neurons.rules.models import Between, Made, X, check_exchangeable


def noise_like(hidden: Tensor, name: str, *parameters: float) -> Tensor:
    return getattr(torch.empty_like(hidden), name)(*parameters)


EXCHANGEABLE = {
    "normal_": lambda h: h * noise_like(h, "normal_"),
    "exponential_": lambda h: h * noise_like(h, "exponential_"),
    "cauchy_": lambda h: h * noise_like(h, "cauchy_"),
    "log_normal_": lambda h: h * noise_like(h, "log_normal_"),
    "geometric_": lambda h: h * noise_like(h, "geometric_", 0.5),
    "random_": lambda h: h * noise_like(h, "random_", 0, 5),
    "integers": lambda h: h * torch.randint(0, 4, h.shape),
    "integers alike": lambda h: h * torch.randint_like(h, 4),
    "normal of numbers": lambda h: h * torch.normal(0.0, 1.0, h.shape),
    "normal around each": lambda h: h + torch.normal(h.detach(), h.detach().abs()),
    "one number for each neuron": lambda h: h * torch.empty(12).exponential_(),
    "Gumbel softmax": F.gumbel_softmax,
    "Gumbel softmax, hard": lambda h: F.gumbel_softmax(h, hard=True) * h,
    "leaky by a random slope": lambda h: F.rrelu(h, training=True),
    "leaky by the mean slope": lambda h: F.rrelu(h, training=False),
    "leaky in place": lambda h: F.rrelu(h.clone(), training=True, inplace=True),
    "counts": lambda h: h * torch.poisson(h.abs()),
    "binomial counts": lambda h: h * torch.binomial(torch.full_like(h, 5.0), h.detach().sigmoid()),
    "gamma": lambda h: Gamma(h.exp(), 1.0).rsample(),
    "beta": lambda h: Beta(h.exp(), h.exp()).rsample(),
    "Dirichlet": lambda h: Dirichlet(h.exp()).rsample(),
}


@pytest.mark.parametrize("between", EXCHANGEABLE.values(), ids=EXCHANGEABLE)
def test_neurons_stay_exchangeable_with_the_numbers_that_they_met(between) -> None:
    check_exchangeable(between)


POSITIONS = {
    "sampled, written back": lambda h: h * torch.zeros_like(h[:, 0]).scatter(
        1, torch.multinomial(h[:, 0].softmax(-1), 3), 1.0
    )[:, None],
    "one of them sampled": lambda h: h * F.one_hot(Categorical(logits=h).sample(), 12),
    "its position as a number": lambda h: h * Categorical(logits=h).sample()[..., None],
    "a random order as numbers": lambda h: h * torch.randperm(12),
}  # fmt: skip


@pytest.mark.parametrize("between", POSITIONS.values(), ids=POSITIONS)
def test_positions_along_the_neurons_leave_no_group(between) -> None:
    assert [g for g in find_neuron_groups(Between(between), X) if g.status == "verified"] == []


def test_a_policy_that_samples_its_actions_has_hidden_neurons() -> None:
    def loss(m, x):
        actions = Categorical(logits=m.last(m.first(x).tanh()))
        sampled = actions.sample()
        return -(actions.log_prob(sampled) * (sampled + 1.0)).mean()

    model = Made(loss, first=nn.Linear(5, 12), last=nn.Linear(12, 3))
    [group] = find_neuron_groups(model, X)
    assert (group.name, group.n, group.status) == ("first", 12, "verified")
    assert group.params == ("first.weight", "first.bias", "last.weight")


def test_discrete_latents_are_exchanged_whole_and_their_classes_are_not() -> None:
    """As in Dreamer: each latent samples one of its classes, in rows of samples and latents."""

    def latents(h):
        return OneHotCategoricalStraightThrough(logits=h.unflatten(-1, (4, 3))).rsample().flatten(-2)

    [group] = find_neuron_groups(Between(latents), X)
    assert (group.n, group.block_shape, group.status) == (4, (), "verified")
    assert group.params == ("first.weight", "first.bias", "last.weight")


def test_what_is_drawn_moves_with_its_neurons_or_the_step_is_another() -> None:
    """By hand: units permuted with their noise give the output of the step; without it, another."""
    model, recorder = Between(F.gumbel_softmax).double(), StepRecorder()
    recorder.begin(model)
    recorder.outputs([model(X.double())])
    [tape] = recorder.end()
    [noise] = tape.draws
    params = ("first.weight", "first.bias")
    units = NeuronGroup("u", "unit", 12, (), (*map(ParamSlice, params), ParamSlice("last.weight", dims=(1,))))
    order = torch.randperm(12)
    moved = units.permute({name: tape.named_values[name] for name in units.params}, order)
    with torch.no_grad():
        [alone] = replay(tape, moved)
        [together] = replay(tape, {**moved, noise: tape.draws[noise][..., order]})
    torch.testing.assert_close(together, tape.recorded[0])
    assert (alone - tape.recorded[0]).abs().max() > 0.01
