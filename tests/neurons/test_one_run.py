"""A user's function runs once, and the model is afterwards what it was."""

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_topo.neurons import find_neuron_groups
from lightning_topo.neurons._one_run import named_state, record_run, significant, untouched
from tests.neurons.networks import X, Y, loss, network


def test_nothing_in_the_model_changes() -> None:
    model = network()
    model.register_forward_hook(lambda *_: None)
    model[0].bias.requires_grad_(False)
    model.train()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    hooks = dict(model._forward_hooks)
    parameters = {name: id(p) for name, p in model.named_parameters()}
    state = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002 - what user code draws from
    find_neuron_groups(model, run=loss)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert dict(model._forward_hooks) == hooks
    assert {name: id(p) for name, p in model.named_parameters()} == parameters
    assert [p.requires_grad for p in model.parameters()] == [True, False, *[True] * 6]
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.random.get_state()[1].tolist() == state[1]  # noqa: NPY002 - as above


def test_attributes_that_the_step_changes_are_restored() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.calls, self.total, self.seen = network(), 0, torch.zeros(3), []

        def forward(self, x):
            self.calls += 1
            self.total += 1
            self.seen.append(self.calls)
            self.cache = x
            return self.net(x)

    model = Counting()
    find_neuron_groups(model, X)
    assert (model.calls, model.total.tolist(), model.seen, hasattr(model, "cache")) == (
        0,
        [0.0] * 3,
        [],
        False,
    )


def test_hooks_that_a_model_installs_when_it_first_runs_are_taken_back() -> None:
    class Collecting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))

        def forward(self, x):
            if not hasattr(self, "collected"):
                self.collected = []
                self.net[0].register_forward_hook(lambda module, args, out: self.collected.append(out))
            self.collected.clear()
            self.net(x)
            [hidden] = self.collected
            return self.net[2](torch.tanh(hidden))

    model = Collecting()
    assert [g.status for g in find_neuron_groups(model, X)] == ["verified"]
    assert not hasattr(model, "collected")
    assert len(model.net[0]._forward_hooks) == 0
    model(X)


def test_a_run_that_fails_leaves_the_model_as_it_was_and_no_mode() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    states = torch.get_rng_state(), random.getstate()

    def breaks(model: nn.Module) -> None:
        model[1].running_mean.fill_(7.0)
        model[0].bias.requires_grad_(False)
        model.train()
        torch.rand(3), random.random()
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        record_run(model, breaks)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert torch.utils._python_dispatch._get_current_dispatch_mode_stack() == []


def test_it_runs_in_evaluation_mode_and_without_fused_paths() -> None:
    model, seen = network(), []
    fused = torch.backends.mha.get_fastpath_enabled()
    with untouched(model):
        seen += [model.training, torch.backends.mha.get_fastpath_enabled()]
    assert seen == [False, False]
    assert torch.backends.mha.get_fastpath_enabled() == fused
    assert model.training


def test_a_run_whose_gradient_is_not_its_derivative_is_refused() -> None:
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient.flip(1)

    model = network()
    tape = record_run(model, lambda m: F.cross_entropy(m[6](m[5](Doubled.apply(m[:5](X)))), Y))
    assert tape.obstacle == ""
    assert "Doubled" in tape.gradient_obstacle
    assert record_run(model, loss).gradient_obstacle == ""


def test_a_run_that_uses_up_its_own_graph_is_recorded_all_the_same() -> None:
    def stepped(model: nn.Module) -> torch.Tensor:
        value = loss(model)
        value.backward()
        return value

    model = network()
    tape = record_run(model, stepped)
    assert (tape.obstacle, tape.gradient_obstacle) == ("", "")
    assert all(p.grad is None for p in model.parameters())


def test_of_an_output_the_loss_counts_then_the_logits_then_all() -> None:
    a, b, c = (torch.full((1,), float(k)) for k in range(3))
    assert significant({"loss": a, "logits": b}) == [a]
    assert significant({"logits": b, "hidden": c}) == [b]
    assert significant({"loss": 1.0, "hidden": [c, (a, None)]}) == [c, a]
    assert significant((a, {"x": b}, "text")) == [a, b]
    assert significant(None) == []


def test_what_is_shared_comes_once_under_its_first_clean_name() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "norm": nn.BatchNorm1d(2)})
    model["b"].weight = model["a"].weight
    model["a"] = torch.compile(model["a"], backend="eager")
    parameters, buffers = named_state(model)
    assert list(parameters) == ["a.weight", "a.bias", "b.bias", "norm.weight", "norm.bias"]
    assert list(buffers) == ["norm.running_mean", "norm.running_var", "norm.num_batches_tracked"]
