"""Buffers whose entries are equal put no condition on their axis and move with the neurons; others are fixed."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_topo._tape import StepRecorder, accepted
from lightning_topo.neurons import find_neuron_groups, groups_from_tapes

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


class Shifted(nn.Module):
    """Units with a buffer added to them, which a step may update."""

    def __init__(self, shift: Tensor, *, persistent: bool = True, updates: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.updates = nn.Linear(5, 12), nn.Linear(12, 3), updates
        self.register_buffer("shift", shift, persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        hidden = (self.first(x) + self.shift).tanh()
        if self.updates:
            self.shift.lerp_(hidden.detach().mean(0), 0.1)
        return self.last(hidden + self.shift)


def largest_change(model: nn.Module, x: Tensor) -> dict[str, float]:
    """For each verified group, how far a random permutation of its neurons in the model moves the model's output."""
    changes = {}
    for group in find_neuron_groups(model, x):
        assert group.status == "verified", (group.name, group.reason)
        moved = copy.deepcopy(model)
        state = {**dict(moved.named_parameters()), **dict(moved.named_buffers())}
        permuted = group.permute(state, torch.randperm(group.n, generator=torch.Generator().manual_seed(1)))
        with torch.no_grad():
            for name, tensor in state.items():
                tensor.copy_(permuted[name])
            changes[group.name] = float((moved(x) - model(x)).abs().max() / model(x).abs().max())
    return changes


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_entries_move_with_the_units(value: float, persistent: bool) -> None:
    model = Shifted(torch.full((12,), value), persistent=persistent).eval()
    [group] = find_neuron_groups(model, X)
    assert (group.n, group.status) == (12, "verified")
    assert set(group.params) == {"first.weight", "first.bias", "shift", "last.weight"}
    assert [piece.role for piece in group.slices if piece.param == "shift"] == ["buffer"]
    assert largest_change(model, X)["first"] < 1e-6
    model.shift.copy_(torch.randn(12))  # the group stays right when they are filled
    moved = copy.deepcopy(model)
    state = {**dict(moved.named_parameters()), **dict(moved.named_buffers())}
    permuted = group.permute(state, torch.randperm(12))
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(permuted[name])
        torch.testing.assert_close(moved(X), model(X))


@pytest.mark.parametrize("different", [0, 11])
def test_one_entry_that_differs_fixes_them_all(different: int) -> None:
    shift = torch.zeros(12)
    shift[different] = 1.0
    assert find_neuron_groups(Shifted(shift), X) == []


def test_entries_are_compared_along_each_axis() -> None:
    """A row for each sample, alike for all units; and a row for all samples, other for each unit."""
    alike, other = torch.arange(4.0)[:, None].expand(4, 12).clone(), torch.arange(12.0).expand(4, 12).clone()
    assert [group.n for group in find_neuron_groups(Shifted(alike), X)] == [12]
    assert find_neuron_groups(Shifted(other), X) == []


def test_an_input_that_is_constant_stays_data() -> None:
    """Positions are told apart by other inputs, though not by this one."""

    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place, self.first = nn.Parameter(torch.randn(5)), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x + self.place)

    assert find_neuron_groups(Placed(), torch.zeros(4, 5)) == []


def test_what_a_step_writes_is_fixed_as_before() -> None:
    model, recorder = Shifted(torch.zeros(12), updates=True), StepRecorder()
    recorder.begin(model)
    recorder.loss(model(X).square().mean())
    found = groups_from_tapes([accepted(tape) for tape in recorder.end()])
    assert [group for group in found.groups if group.status == "verified"] == []


class Fused(nn.Module):
    """Attention with one projection for queries, keys and values, whose bias is zero for keys, as in BEiT and EVA."""

    def __init__(self, key_bias: Tensor | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.last = nn.Parameter(torch.randn(48, 16) / 4), nn.Linear(16, 16)
        self.q_bias, self.v_bias = nn.Parameter(torch.randn(16)), nn.Parameter(torch.randn(16))
        self.register_buffer("k_bias", key_bias, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        key_bias = torch.zeros_like(self.v_bias) if self.k_bias is None else self.k_bias
        fused = F.linear(x, self.weight, torch.cat((self.q_bias, key_bias, self.v_bias)))
        query, key, value = fused.unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        return self.last(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(-2))


@pytest.mark.parametrize("key_bias", [torch.zeros(16), None], ids=["a buffer", "made in the step"])
def test_heads_whose_keys_have_no_bias(key_bias: Tensor | None) -> None:
    model, x = Fused(key_bias), torch.randn(2, 6, 16)
    assert {(g.kind, *g.block_shape, g.n) for g in find_neuron_groups(model, x)} == {
        ("head", 4), ("head_dim", 4, 4)
    }  # fmt: skip
    changes = largest_change(model, x)
    assert len(changes) == 3
    assert max(changes.values()) < 1e-6


def test_heads_whose_keys_have_a_fixed_bias() -> None:
    groups = find_neuron_groups(Fused(torch.randn(16)), torch.randn(2, 6, 16))
    assert {group.kind for group in groups if group.status == "verified"} == {"head_dim"}
    assert [group for group in groups if "k_bias" in group.params] == []


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "beit_base_patch16_224"])
def test_heads_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    size = {"embed_dim": 48, "num_heads": 4} if name.startswith("beit") else {}
    model = timm.create_model(name, num_classes=5, depth=1, **size).eval()
    x = torch.randn(2, 3, 224, 224)
    kinds = {group.kind for group in find_neuron_groups(model, x)}
    assert kinds == {"head", "head_dim", "unit"}
    assert max(largest_change(model, x).values()) < 1e-5
