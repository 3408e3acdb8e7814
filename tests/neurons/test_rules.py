"""Rules of operators: each in a small model, found and proved."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_topo.neurons import find_neuron_groups, register_rule, registry


class Between(nn.Module):
    """Linear(5, 12), something between, Linear(12, 3)."""

    def __init__(self, between, width: int = 12) -> None:
        super().__init__()
        self.first, self.between, self.last = nn.Linear(5, 12), between, nn.Linear(width, 3)
        self.gain = nn.Parameter(torch.randn(12))

    def forward(self, x):
        return self.last(self.between(self.first(x)))


X = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


EXCHANGEABLE = {
    "pointwise": F.gelu,
    "prelu": lambda h: F.prelu(h.transpose(1, 2), torch.full((12,), 0.3)).transpose(1, 2) * 0 + F.elu(h),
    "softmax over neurons": lambda h: h.softmax(-1),
    "norm of each token": lambda h: h / h.norm(dim=-1, keepdim=True),
    "standardised": lambda h: (h - h.mean(-1, keepdim=True)) / h.std(-1, keepdim=True),
    "log-sum-exp": lambda h: h - h.logsumexp(-1, keepdim=True),
    "cumulative over time": lambda h: h.cumsum(1),
    "sorted over time": lambda h: h.sort(1).values,
    "pooled over time": lambda h: F.max_pool1d(h.transpose(1, 2), 3).transpose(1, 2),
    "padded in time": lambda h: F.pad(h, (0, 0, 1, 2)),
    "rolled in time": lambda h: h.roll(1, 1),
    "masked": lambda h: h.masked_fill(h > 1, 0.0),
    "clamped by a reduction": lambda h: torch.minimum(h, h.amax(-1, keepdim=True) - 0.1),
    "gathered over time": lambda h: h.gather(1, torch.zeros(2, 3, 12, dtype=torch.long)),
    "indexed by data": lambda h: h[:, torch.tensor([0, 2, 2])],
    "expanded and reduced": lambda h: h.unsqueeze(1).expand(-1, 4, -1, -1).mean(1),
    "repeated in time": lambda h: h.repeat(1, 2, 1),
    "written in place": lambda h: torch.zeros_like(h).copy_(h).mul_(2).add_(h),
    "scattered over time": lambda h: torch.zeros(2, 9, 12).index_add(1, torch.arange(7), h),
    "matrix of tokens": lambda h: (h @ h.transpose(1, 2)).softmax(-1) @ h,
    "einsum": lambda h: torch.einsum("btd,bsd,bsd->btd", h, h, h),
    "flattened over tokens": lambda h: h.flatten(0, 1).sin().view(2, 7, 12),
}


@pytest.mark.parametrize("between", EXCHANGEABLE.values(), ids=EXCHANGEABLE.keys())
def test_neurons_stay_exchangeable(between) -> None:
    [group] = find_neuron_groups(Between(between), X)
    assert (group.name, group.n, group.block_shape, group.status) == ("first", 12, (), "verified")
    assert group.params == ("first.weight", "first.bias", "last.weight")


ORDERED = {
    "cumulative over neurons": lambda h: h.cumsum(-1),
    "rolled": lambda h: h.roll(1, -1),
    "flipped and added": lambda h: h + h.flip(-1),
    "sorted": lambda h: h.sort(-1).values,
    "constant of its own per neuron": lambda h: h * torch.linspace(0, 1, 12),
    "every second": lambda h: h[..., ::2].repeat_interleave(2, -1),
    "convolved along": lambda h: F.avg_pool1d(h, 3, 1, 1),
    "lower triangle": lambda h: h[:, :, :, None].mul(h[:, :, None, :]).tril().sum(-1),
}


@pytest.mark.parametrize("between", ORDERED.values(), ids=ORDERED.keys())
def test_an_order_along_the_neurons_leaves_no_group(between) -> None:
    assert [g for g in find_neuron_groups(Between(between), X) if g.status == "verified"] == []


@pytest.mark.parametrize(
    ("between", "width", "expected"),
    [
        (lambda h: torch.cat([h, h.sin()], -1), 24, {(12, ())}),
        (lambda h: h.chunk(2, -1)[0] * h.chunk(2, -1)[1].sigmoid(), 6, {(6, ())}),
        (lambda h: torch.cat(h.split([4, 8], -1)[::-1], -1), 12, {(4, ()), (8, ())}),
        (lambda h: h.unflatten(-1, (3, 4)).softmax(-1).flatten(-2), 12, {(3, ()), (4, (3,))}),
        (lambda h: h.unflatten(-1, (3, 4)).sum(-1), 3, {(3, ())}),
        (lambda h: F.glu(h), 6, {(6, ())}),
        (lambda h: torch.stack([h[..., :6], h[..., 6:]], -1).amax(-1), 6, {(6, ())}),
    ],
    ids=["concatenated", "gated", "split and swapped", "groups of softmax", "sum pooled", "glu", "maxout"],
)
def test_axes_that_are_taken_apart(between, width: int, expected: set) -> None:
    groups = find_neuron_groups(Between(between, width), X)
    assert {(g.n, g.block_shape) for g in groups} == expected
    assert {g.status for g in groups} == {"verified"}


def test_an_operator_of_ones_own_is_taught(monkeypatch: pytest.MonkeyPatch) -> None:
    @torch.library.custom_op("topo_test::scale_rows", mutates_args=())
    def scale_rows(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        return x * gain / x.norm(dim=-1, keepdim=True)

    scale_rows.register_autograd(
        lambda ctx, g: (g * ctx.saved_tensors[0], None),
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[1]),
    )

    def rule(trace, call) -> None:
        *batch, features = trace.axes(call["x"])
        [gain] = trace.axes(call["gain"])
        trace.unify(features, gain)
        trace.assign(call.out, [*batch, features])

    class Scaled(Between):
        def forward(self, x):
            return self.last(scale_rows(self.first(x), self.gain))

    model = Scaled(None)
    [group] = find_neuron_groups(model, X)
    assert (group.status, group.params) == ("incoming_only", ("first.weight", "first.bias"))

    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))
    register_rule("topo_test::scale_rows", rule)
    [group] = find_neuron_groups(model, X)
    assert (group.n, group.status) == (12, "verified")
    assert "gain" in group.params


def test_a_name_without_a_namespace_is_refused() -> None:
    with pytest.raises(ValueError, match="expected an operator as 'namespace::name', got 'relu'"):
        register_rule("relu", lambda trace, call: None)
