"""Incoming weights of single layers, for models that cannot be followed."""

import pytest
import torch
from torch import nn

from lightning_topo.neurons._fallback import incoming_groups


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(3, 5, 2)
        self.up = nn.ConvTranspose1d(5, 4, 2)
        self.grouped = nn.ConvTranspose1d(4, 4, 2, groups=2)
        self.linear = nn.Linear(4, 6, bias=False)
        self.head = nn.Linear(6, 2)


def test_a_group_for_each_layer_without_the_last_and_grouped_ones():
    model = Odd()
    groups = incoming_groups(model, "no trace")
    assert [(group.name, group.kind, group.n) for group in groups] == [
        ("conv", "channel", 5),
        ("up", "channel", 4),
        ("linear", "unit", 6),
    ]
    assert {(group.status, group.reason) for group in groups} == {("incoming_only", "no trace")}
    parameters = dict(model.named_parameters())
    assert torch.equal(groups[1].gather(parameters)[:, :-1], model.up.weight.transpose(0, 1).flatten(1))


def test_transformers_conv1d_is_a_linear_layer_whose_weight_lies_across():
    transformers = pytest.importorskip("transformers")
    model = transformers.GPT2Model(transformers.GPT2Config(n_embd=8, n_head=2, n_layer=1, vocab_size=11, n_positions=5))
    groups = {group.name: group for group in incoming_groups(model, "compiled")}
    assert {name: group.n for name, group in groups.items()} == {
        "h.0.attn.c_attn": 24,
        "h.0.attn.c_proj": 8,
        "h.0.mlp.c_fc": 32,
    }
    layer = model.h[0].mlp.c_fc
    wanted = torch.cat([layer.weight.T, layer.bias[:, None]], 1)
    assert torch.equal(groups["h.0.mlp.c_fc"].gather(dict(model.named_parameters())), wanted)
