"""Rules of operators: each in a small model, found and proved."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_topo.neurons import _registry as registry
from lightning_topo.neurons import find_neuron_groups, register_rule
from lightning_topo.neurons._elementwise import is_elementwise


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
    "hardswish": F.hardswish,
    "hardswish in place": lambda h: F.hardswish(h.clone(), inplace=True),
    "log-sigmoid": F.logsigmoid,
    "the k largest kept, by a threshold": lambda h: h * (h >= h.topk(4, -1).values[..., -1:]),
    "the k largest kept, written back": lambda h: torch.zeros_like(h).scatter(-1, *h.topk(4, -1)[::-1]),
    "the k largest kept, by a mask": lambda h: h * torch.zeros_like(h).scatter_(-1, h.topk(4, -1).indices, 1.0),
    "a position that nobody reads": lambda h: (h.argmax(-1), h)[1],
    "one neuron, for its shape only": lambda h: h + torch.zeros(h[..., -1].shape).unsqueeze(-1),
    "the gradient of one position in time": lambda h: torch.ops.aten.select_backward(h[:, 2], [2, 7, 12], 1, 2),
    "the gradient of a part of time": lambda h: torch.ops.aten.slice_backward(h[:, 2:5], [2, 7, 12], 1, 2, 5, 1),
    "strides that are its own": lambda h: h.contiguous().as_strided((2, 7, 12), (84, 12, 1)),
    "divided by its quantile": lambda h: h / (1 + h.abs().quantile(0.9, -1, keepdim=True)),
    "axes added and removed in place": lambda h: h.clone().unsqueeze_(1).squeeze_(1).transpose_(1, 2).transpose_(1, 2),
    "transposed in place": lambda h: h.flatten(0, 1).clone().t_().t_().unflatten(0, (2, 7)),
    "diagonal matrix": lambda h: torch.diag_embed(h).sum(-1),
    "diagonal of products": lambda h: (h.unsqueeze(-1) * h.unsqueeze(-2)).diagonal(dim1=-2, dim2=-1),
    "matrix exponential": lambda h: torch.linalg.matrix_exp(0.1 * h.transpose(1, 2) @ h).matmul(h.mT).mT,
    "inverse": lambda h: torch.linalg.inv(torch.eye(12) + h.transpose(1, 2) @ h).matmul(h.mT).mT,
    "vmap": torch.func.vmap(torch.tanh),
    "complex and back": lambda h: torch.view_as_real(torch.complex(h, h.sin()).exp()).sum(-1),
    "Fourier transform over time": lambda h: torch.fft.irfft(torch.fft.rfft(h, dim=1), n=7, dim=1),
}


@pytest.mark.parametrize("between", EXCHANGEABLE.values(), ids=EXCHANGEABLE.keys())
def test_neurons_stay_exchangeable(between) -> None:
    [group] = find_neuron_groups(Between(between), X)
    assert (group.name, group.n, group.block_shape, group.status) == ("first", 12, (), "verified")
    assert group.params == ("first.weight", "first.bias", "last.weight")


SYMMETRIC = {
    "mean": lambda h: h.tanh().mean(-1, keepdim=True),
    "maximum": lambda h: h.max(-1, keepdim=True).values,
    "log-sum-exp": lambda h: h.logsumexp(-1, keepdim=True),
    "median": lambda h: h.median(-1, keepdim=True).values,
    "quantile": lambda h: h.quantile(0.3, -1, keepdim=True),
    "sorted": lambda h: h.sort(-1).values,
    "sorted by their own order": lambda h: h.gather(-1, h.argsort(-1)),
    "the k largest": lambda h: h.topk(3, -1).values,
    "the k-th": lambda h: h.kthvalue(2, -1, keepdim=True).values,
    "products of activations": lambda h: h @ h.transpose(1, 2),
}


@pytest.mark.parametrize("between", SYMMETRIC.values(), ids=SYMMETRIC.keys())
def test_neurons_that_are_read_symmetrically_have_no_outgoing_weights(between) -> None:
    """Whatever order the first layer's units have, the second sees the same."""
    model = Between(between, width=between(torch.zeros(2, 7, 12)).shape[-1])
    group = find_neuron_groups(model, X)[0]
    assert (group.name, group.n, group.status) == ("first", 12, "verified")
    assert group.params == ("first.weight", "first.bias")


class Made(nn.Module):
    """Modules and parameters by name, and a function of them and the input."""

    def __init__(self, function, **parts) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


def centres(*shape: int, dtype: torch.dtype | None = None) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype))


def test_bilinear_layers() -> None:
    model = Made(
        lambda m, x: m.last(m.both(m.left(x).tanh(), m.right(x).tanh()).tanh()),
        left=nn.Linear(5, 6), right=nn.Linear(5, 7), both=nn.Bilinear(6, 7, 8), last=nn.Linear(8, 3),
    )  # fmt: skip
    groups = find_neuron_groups(model, X)
    assert {(g.n, g.status, g.params) for g in groups} == {
        (6, "verified", ("left.weight", "left.bias", "both.weight")),
        (7, "verified", ("right.weight", "right.bias", "both.weight")),
        (8, "verified", ("both.weight", "both.bias", "last.weight")),
    }


UNITS_WITHOUT_A_LINEAR_LAYER = {
    "radial": lambda m, x: torch.exp(-(x.unsqueeze(-2) - m.centre).square().sum(-1) * m.width.exp()),
    "radial by cdist": lambda m, x: torch.exp(-torch.cdist(x.flatten(0, 1), m.centre) * m.width.exp()),
    "radial, Manhattan": lambda m, x: torch.exp(-torch.cdist(x, m.centre, p=1.0) * m.width.exp()),
    "cosine layer": lambda m, x: F.linear(F.normalize(x, dim=-1), F.normalize(m.centre, dim=-1)) * m.width,
    "cosine similarity": lambda m, x: F.cosine_similarity(x.unsqueeze(-2), m.centre, dim=-1) * m.width,
    "sum of products": lambda m, x: (x.unsqueeze(-2) * m.centre).sum(-1).tanh() + m.width,
}


@pytest.mark.parametrize("units", UNITS_WITHOUT_A_LINEAR_LAYER.values(), ids=UNITS_WITHOUT_A_LINEAR_LAYER.keys())
def test_units_of_other_kinds(units) -> None:
    model = Made(lambda m, x: m.last(units(m, x)), centre=centres(9, 5), width=centres(9), last=nn.Linear(9, 3))
    [group] = find_neuron_groups(model, X)
    assert (group.n, group.status, set(group.params)) == (9, "verified", {"centre", "width", "last.weight"})


def test_channels_pass_through_unfold_and_fold() -> None:
    images = torch.randn(2, 3, 8, 8)
    model = Made(
        lambda m, x: m.last(F.fold(F.unfold(m.first(x), 3).tanh(), (8, 8), 3)),
        first=nn.Conv2d(3, 6, 1), last=nn.Conv2d(6, 2, 1),
    )  # fmt: skip
    [group] = find_neuron_groups(model, images)
    assert (group.n, group.status, group.params) == (6, "verified", ("first.weight", "first.bias", "last.weight"))


def test_the_loss_of_alignment_freezes_its_classes_only() -> None:
    targets, lengths = torch.tensor([[1, 2], [2, 1]]), (torch.tensor([7, 7]), torch.tensor([2, 2]))
    model = Made(
        lambda m, x: F.ctc_loss(m.last(m.first(x).tanh()).log_softmax(-1).transpose(0, 1), targets, *lengths),
        first=nn.Linear(5, 12), last=nn.Linear(12, 4),
    )  # fmt: skip
    [group] = find_neuron_groups(model, X)
    assert (group.name, group.status) == ("first", "verified")


def test_complex_parameters_are_pairs_of_reals() -> None:
    model = Made(
        lambda m, x: m.last((m.first(x).to(m.weight.dtype) @ m.weight).abs()),
        first=nn.Linear(5, 12), weight=centres(12, 6, dtype=torch.complex64), last=nn.Linear(6, 4),
    )  # fmt: skip
    groups = {group.n: group for group in find_neuron_groups(model, X)}
    assert {group.status for group in groups.values()} == {"verified"}
    parameters = dict(model.named_parameters())
    cloud = groups[6].gather(parameters)
    assert cloud.dtype == torch.float32
    assert cloud.shape == (6, 2 * 12 + 4)
    order = torch.tensor([1, 2, 3, 4, 5, 0])
    moved = groups[6].permute(parameters, order)
    assert torch.equal(groups[6].gather(moved), cloud[order])
    assert torch.equal(moved["weight"], model.weight[:, order])


def test_one_position_written_out_in_the_code_is_a_slice() -> None:
    """As Falcon picks keys and values from its fused projection."""

    def attention(h):
        parts = h.unflatten(-1, (6, 2))
        query, key, value = parts[..., :-2, :], parts[..., [-2], :], parts[..., [-1], :]
        scores = (query.transpose(1, 2) @ key.transpose(1, 2).mT).softmax(-1)
        return (scores @ value.transpose(1, 2)).transpose(1, 2).flatten(-2)

    groups = find_neuron_groups(Between(attention, width=8), X)
    assert ("head", 4, "verified") in {(g.kind, g.n, g.status) for g in groups}


@pytest.mark.parametrize(
    ("overload", "arguments", "expected"),
    [
        (torch.ops.aten.hardswish.default, {"self": torch.zeros(2, 7)}, True),
        (torch.ops.aten.hardswish_.default, {"self": torch.zeros(2, 7)}, True),
        (torch.ops.aten.hardswish_backward.default, {"grad_output": torch.zeros(9), "self": torch.zeros(9)}, True),
        (torch.ops.aten.log_sigmoid_forward.default, {"self": torch.zeros(3, 3)}, True),
        (torch.ops.aten.mul.Tensor, {"self": torch.zeros(2, 7), "other": torch.zeros(7)}, True),
        (torch.ops.aten.cumsum.default, {"self": torch.zeros(2, 7), "dim": 1}, False),
        (torch.ops.aten.flip.default, {"self": torch.zeros(2, 7), "dims": [1]}, False),
        (torch.ops.aten.tril.default, {"self": torch.zeros(7, 7)}, False),
        (torch.ops.aten.sort.default, {"self": torch.zeros(2, 7)}, False),
        (torch.ops.aten.softmax.int, {"self": torch.zeros(2, 7), "dim": 1}, False),
        (torch.ops.aten.renorm.default, {"self": torch.zeros(2, 7), "p": 2, "dim": 0, "maxnorm": 1.0}, False),
        (torch.ops.aten.bernoulli.default, {"self": torch.zeros(2, 7)}, False),
        (torch.ops.aten.mm.default, {"self": torch.zeros(7, 7), "mat2": torch.zeros(7, 7)}, False),
    ],
)  # fmt: skip
def test_operators_that_work_entry_by_entry_are_told_by_trial(overload, arguments, expected: bool) -> None:
    given = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
    outputs = overload(**given)
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else [t for t in outputs if t.numel()]
    before = {name: value.clone() for name, value in given.items() if isinstance(value, torch.Tensor)}
    assert is_elementwise(overload, given, outputs) is expected
    assert all(torch.equal(given[name], value) for name, value in before.items())


def test_an_operator_of_ones_own_that_works_entry_by_entry_needs_no_rule() -> None:
    @torch.library.custom_op("topo_test::softened", mutates_args=())
    def softened(x: torch.Tensor) -> torch.Tensor:
        return x * torch.tanh(F.softplus(x))

    softened.register_autograd(
        lambda ctx, g: g * torch.sigmoid(ctx.saved_tensors[0]),
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
    )
    [group] = find_neuron_groups(Between(softened), X)
    assert (group.n, group.status) == (12, "verified")


def test_a_rule_that_fails_bars_only_what_it_touches(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    def broken(trace, call) -> None:
        raise KeyError("no such axis")

    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))
    register_rule("aten::tanh", broken)
    model = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3))
    with caplog.at_level("WARNING"):
        first, second = find_neuron_groups(model, X)
    assert (first.name, first.status) == ("0", "incoming_only")
    assert "the rule failed of aten.tanh.default (KeyError: 'no such axis')" in first.reason
    assert "the rule of aten.tanh.default failed" in caplog.text
    assert (second.name, second.n, second.status) == ("2", 6, "verified")


ORDERED = {
    "cumulative over neurons": lambda h: h.cumsum(-1),
    "rolled": lambda h: h.roll(1, -1),
    "flipped and added": lambda h: h + h.flip(-1),
    "multiplied by its rank": lambda h: h * h.argsort(-1),
    "multiplied by the position of its maximum": lambda h: h * h.argmax(-1, keepdim=True),
    "compared with a position": lambda h: h * (torch.arange(12) == h.argmax(-1, keepdim=True)),
    "scaled by one neuron": lambda h: h * h[..., 3:4].squeeze(-1).unsqueeze(-1) + h * h[..., 3].unsqueeze(-1),
    "strides of another shape": lambda h: h.contiguous().as_strided((2, 7, 12), (84, 1, 7)),
    "unfolded along": lambda h: h.unfold(-1, 3, 1).mean(-1).repeat(1, 1, 2)[..., :12],
    "transformed along": lambda h: torch.fft.fft(h, dim=-1).real,
    "Cholesky of its products": lambda h: torch.linalg.cholesky(torch.eye(12) + h.transpose(1, 2) @ h).mean(1, True),
    "constant of its own per neuron": lambda h: h * torch.linspace(0, 1, 12),
    "every second": lambda h: h[..., ::2].repeat_interleave(2, -1),
    "convolved along": lambda h: F.avg_pool1d(h, 3, 1, 1),
    "lower triangle": lambda h: h[:, :, :, None].mul(h[:, :, None, :]).tril().sum(-1),
}


@pytest.mark.parametrize("between", ORDERED.values(), ids=ORDERED.keys())
def test_an_order_along_the_neurons_leaves_no_group(between) -> None:
    assert [g for g in find_neuron_groups(Between(between), X) if g.status == "verified"] == []


@pytest.mark.parametrize(
    "shown", [lambda h: h[:, :, 3], lambda h: h[:, :, 3].unsqueeze(0), lambda h: h.argmax(-1), lambda h: h.topk(3)[1]]
)
def test_what_the_model_returns_is_read(shown) -> None:
    """A neuron that is shown, or its position, is not like the others, though no operator takes it up."""
    model = Made(
        lambda m, x: (m.last(m.first(x).tanh()), shown(m.first(x))), first=nn.Linear(5, 12), last=nn.Linear(12, 3)
    )
    assert find_neuron_groups(model, X) == []


@pytest.mark.parametrize(
    ("between", "width", "expected"),
    [
        (lambda h: torch.cat([h, h.sin()], -1), 24, {(12, ())}),
        (lambda h: h.chunk(2, -1)[0] * h.chunk(2, -1)[1].sigmoid(), 6, {(6, ())}),
        (lambda h: torch.cat(h.split([4, 8], -1)[::-1], -1), 12, {(4, ()), (8, ())}),
        (lambda h: h.unflatten(-1, (3, 4)).softmax(-1).flatten(-2), 12, {(3, ()), (4, (3,))}),
        (lambda h: h.tanh().unflatten(-1, (3, 4)).sum(-1), 3, {(3, ()), (4, (3,))}),
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
