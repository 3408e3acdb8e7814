import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_topo.neurons import declare_neurons, find_neuron_groups, rows, verify_groups


class Attention(nn.Module):
    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        batch, time, width = x.shape
        qkv = self.qkv(x).reshape(batch, time, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(*qkv.unbind(0))
        return self.proj(out.transpose(1, 2).reshape(batch, time, width))


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"fc": nn.Linear(16, 24), "out": nn.Linear(24, 16), "attn": Attention()}) for _ in range(2)
        )

    def forward(self, x):
        for block in self.blocks:
            x = x + block["attn"](x)
            x = x + block["out"](torch.tanh(block["fc"](x)))
        return x


X = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
HEADS = {
    "blocks.*.attn.qkv.weight": (0, "3 [h] d"),
    "blocks.*.attn.qkv.bias": (0, "3 [h] d"),
    "blocks.*.attn.proj.weight": (1, "[h] d"),
}
VALUES = {
    "blocks.*.attn.qkv.weight": (0, "(h) [d]", (32, 48)),
    "blocks.*.attn.qkv.bias": (0, "(h) [d]", (32, 48)),
    "blocks.*.attn.proj.weight": (1, "(h) [d]"),
}


@pytest.fixture
def model() -> Blocks:
    torch.manual_seed(0)
    return Blocks()


def run(model: nn.Module):
    return model(X)


def test_a_star_declares_a_group_per_block(model: Blocks) -> None:
    axes = {"blocks.*.fc.weight": 0, "blocks.*.fc.bias": 0, "blocks.*.out.weight": 1}
    groups = declare_neurons(model, "mlp.*", axes)
    assert [(g.name, g.n, g.status) for g in groups] == [("mlp.0", 24, "declared"), ("mlp.1", 24, "declared")]
    assert [p.role for p in groups[0].slices] == ["incoming", "elementwise", "outgoing"]
    assert [g.status for g in verify_groups(model, groups, run)] == ["verified"] * 2


def test_heads_of_a_fused_projection(model: Blocks) -> None:
    groups = declare_neurons(model, "attn.*", HEADS, kind="head", sizes={"h": 4})
    assert [(g.n, g.block_shape) for g in groups] == [(4, ()), (4, ())]
    assert [g.status for g in verify_groups(model, groups, run)] == ["verified"] * 2


def test_value_dimensions_inside_heads(model: Blocks) -> None:
    groups = declare_neurons(model, "value.*", VALUES, kind="head_dim", sizes={"h": 4})
    assert [(g.n, g.block_shape) for g in groups] == [(4, (4,)), (4, (4,))]
    assert [g.status for g in verify_groups(model, groups, run)] == ["verified"] * 2


def test_a_false_declaration_is_not_verified(model: Blocks) -> None:
    groups = declare_neurons(model, "attn.*", HEADS, kind="head", sizes={"h": 8})
    assert {g.status for g in verify_groups(model, groups, run)} == {"incoming_only"}


def test_declared_groups_join_those_found(model: Blocks) -> None:
    axes = {"blocks.0.fc.weight": 0, "blocks.0.fc.bias": 0, "blocks.0.out.weight": 1}
    declared = declare_neurons(model, "mine", axes)
    groups = find_neuron_groups(model, X, kinds=["unit"], declared=declared)
    assert [(g.name, g.status) for g in groups] == [("blocks.1.fc", "verified"), ("mine", "verified")]


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"nowhere.weight": 0}, "expected a parameter that matches 'nowhere.weight'"),
        (
            {"blocks.0.fc.weight": 0, "blocks.0.out.weight": 0},
            "'blocks.0.out.weight', axis 0: expected size 24 as in 'blocks.0.fc.weight', found size 16",
        ),
        ({"blocks.0.fc.bias": 1}, r"parameter 'blocks.0.fc.bias', axis 1: expected an axis below 1.*\(24,\)"),
        (
            {"blocks.0.attn.qkv.weight": (0, "5 [h]")},
            r"axis 0: expected size a multiple of 5 \('5 \[h\]'\), found 48",
        ),
        ({"blocks.0.attn.qkv.weight": (0, "3 [h] d")}, "expected sizes for all but one of h, d"),
        ({"blocks.0.attn.qkv.weight": (0, "3 h")}, "expected one name in square brackets, found '3 h'"),
        ({"blocks.0.attn.qkv.weight": (0, "[h]", (40, 60))}, r"expected a part of 0..48, found \(40, 60\)"),
        ({}, "expected at least one pattern"),
    ],
)
def test_what_does_not_fit_is_named(model: Blocks, axes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        declare_neurons(model, "group", axes)


def test_groups_are_selected_by_name_and_kind(model: Blocks) -> None:
    names = {g.name for g in find_neuron_groups(model, X)}
    assert names == {
        f"blocks.{i}.{part}" for i in (0, 1) for part in ("fc", "attn.heads", "attn.qkv.query_key", "attn.value")
    }
    chosen = find_neuron_groups(model, X, include=["blocks.0.*"], exclude=["*.attn.*"])
    assert [g.name for g in chosen] == ["blocks.0.fc"]
    assert {g.kind for g in find_neuron_groups(model, X, kinds=["head", "head_dim"])} == {"head", "head_dim"}


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(30, 6), nn.Embedding(8, 6)
        self.head = nn.Linear(6, 4)
        self.scale = nn.Parameter(torch.tensor(1.0))


def test_rows_of_an_embedding_are_a_cloud() -> None:
    model = Embedded()
    [group] = rows("token.weight").resolve(model)
    assert (group.name, group.kind, group.n, group.block_shape, group.status) == (
        "token.rows", "unit", 30, (), "declared",
    )  # fmt: skip
    assert torch.equal(group.gather(dict(model.named_parameters())), model.token.weight)


def test_a_pattern_gives_a_group_for_each_parameter() -> None:
    groups = rows("*.weight").resolve(Embedded())
    assert [(g.name, g.n) for g in groups] == [("token.rows", 30), ("position.rows", 8), ("head.rows", 4)]
    assert [g.name for g in rows("head.*").resolve(Embedded())] == ["head.weight.rows", "head.bias.rows"]


def test_rows_know_what_is_trained_and_can_be_kept() -> None:
    model = Embedded()
    model.token.weight.requires_grad_(False)
    declaration = pickle.loads(pickle.dumps(rows("token.weight")))
    assert declaration == rows("token.weight")
    assert not declaration.resolve(model)[0].slices[0].trainable


def test_rows_that_are_not_there_name_what_is() -> None:
    with pytest.raises(ValueError, match=r"matches 'tok_emb.weight', got only scale, token.weight, position.weight"):
        rows("tok_emb.weight").resolve(Embedded())
    with pytest.raises(ValueError, match="got the scalar 'scale'"):
        rows("scale").resolve(Embedded())
    with pytest.raises(ValueError, match="got an empty string"):
        rows("")


def test_the_first_pattern_feeds_the_neurons_with_and_without_stars() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(24))
            self.blocks = Blocks().blocks

    for axes, role in (
        ({"blocks.*.fc.weight": 0, "gain": 0, "blocks.*.fc.bias": 0}, "incoming"),
        ({"gain": 0, "blocks.*.fc.weight": 0}, "elementwise"),
    ):
        group, _ = declare_neurons(Gated(), "mlp.*", axes)
        assert [piece.param.replace("0", "*") for piece in group.slices] == list(axes)
        assert group.slices[0].role == role
