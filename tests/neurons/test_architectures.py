"""Every architecture that the documentation's table lists, found and proved."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.architecture_table import INTRODUCTION, PAGE, row
from benchmarks.architectures import ARCHITECTURES, Architecture, Built, built
from lightning_topo.neurons import NeuronGroup, find_neuron_groups, verify_groups
from lightning_topo.neurons._group import KINDS


@pytest.fixture(params=ARCHITECTURES, ids=[entry.name for entry in ARCHITECTURES])
def entry(request: pytest.FixtureRequest) -> Architecture:
    if request.param.requires:
        pytest.importorskip(request.param.requires)
    return request.param


def test_the_documented_table_is_what_the_command_makes() -> None:
    """But for models of other packages, whose parameters are named by their version."""
    documented = PAGE.read_text(encoding="utf-8")
    assert documented.startswith(INTRODUCTION)
    assert all(f"| {entry.name} |" in documented for entry in ARCHITECTURES)
    assert [row(entry) for entry in ARCHITECTURES if not entry.requires and row(entry) not in documented] == []


def run_of(example: Built):
    if isinstance(example.inputs, dict):
        return lambda model: model(**example.inputs)
    return lambda model: model(*example.inputs)


def test_groups_are_those_expected_and_verified(entry: Architecture) -> None:
    example = built(entry)
    groups = find_neuron_groups(example.model, example.inputs, kinds=KINDS)
    assert Counter(group.kind for group in groups) == Counter(dict(entry.expected))
    assert {group.name: group.status for group in groups if group.status != "verified"} == {}
    assert len({group.name for group in groups}) == len(groups)
    parameters = dict(example.model.named_parameters())
    for group in groups:
        assert group.gather(parameters).shape == (group.n_blocks * group.n, group.dim(parameters))


def test_the_residual_stream_is_off_by_default(entry: Architecture) -> None:
    example = built(entry)
    groups = find_neuron_groups(example.model, example.inputs, verify=False)
    assert "residual" not in {group.kind for group in groups}


def test_a_missing_slice_is_noticed(entry: Architecture) -> None:
    """Of each group one slice is dropped; only what the output does not depend on may pass, as key biases."""
    example = built(entry)
    groups = find_neuron_groups(example.model, example.inputs)
    broken = []
    for i, group in enumerate(groups):
        if len(group.slices) > 1:
            dropped = i % len(group.slices)
            broken.append(replace(group, slices=group.slices[:dropped] + group.slices[dropped + 1 :]))
    passed = [g for g in verify_groups(example.model, broken, run_of(example)) if g.status == "verified"]
    missing = [set(full.slices) - set(g.slices) for g in passed for full in groups if full.name == g.name]
    assert all(_without_influence(example, slices.pop(), groups) for slices in missing)


def _without_influence(example: Built, piece, groups: list[NeuronGroup]) -> bool:
    """Whether the output and its gradient ignore the slice's parameter."""
    [group] = [group for group in groups if piece in group.slices]
    alone = replace(group, slices=(piece,), status="unverified")
    return verify_groups(example.model, [alone], run_of(example))[0].status in ("verified", "inert")


def test_every_group_is_equivariant_in_exact_arithmetic() -> None:
    """An independent proof on one model: a gradient step commutes with exchanging neurons."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    x = torch.randn(9, 4, dtype=torch.float64)
    for group in find_neuron_groups(model, x):
        order = torch.randperm(group.n)
        start = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
        swapped = {name: p.requires_grad_() for name, p in group.permute(start, order).items()}
        ends = []
        for state in (start, swapped):
            loss = torch.func.functional_call(model, state, (x,)).square().mean()
            gradient = torch.autograd.grad(loss, list(state.values()))
            ends.append({name: p - 0.1 * g for (name, p), g in zip(state.items(), gradient, strict=True)})
        for name, tensor in group.permute(ends[0], order).items():
            assert torch.allclose(tensor, ends[1][name], rtol=0, atol=1e-14)
