from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_topo.neurons import find_neuron_groups


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        layers += [nn.Linear(width_in, width_out), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def test_mlp_has_a_group_per_hidden_layer() -> None:
    torch.manual_seed(0)
    model = mlp(5, 8, 6, 3)
    groups = find_neuron_groups(model, torch.randn(4, 5))
    assert [(g.name, g.kind, g.n, g.block_shape, g.status) for g in groups] == [
        ("0", "unit", 8, (), "verified"),
        ("2", "unit", 6, (), "verified"),
    ]
    first = model[0], model[2]
    expected = torch.cat([first[0].weight, first[0].bias[:, None], first[1].weight.T], dim=1)
    assert torch.equal(groups[0].gather(dict(model.named_parameters())), expected)
    assert [piece.role for piece in groups[0].slices] == ["incoming", "elementwise", "outgoing"]


class Classifier(nn.Module):
    """As a LightningModule: what is trained is `training_step`, and `forward` is something else."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(5, 8, 3)
        self.auxiliary = mlp(8, 7, 3)

    def forward(self, x):
        return self.net(x).softmax(-1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        hidden = self.net[1](self.net[0](x))
        return F.cross_entropy(self.net[2](hidden), y) + F.cross_entropy(self.auxiliary(hidden), y)


def test_training_step_shows_what_forward_does_not() -> None:
    torch.manual_seed(0)
    model, batch = Classifier(), (torch.randn(6, 5), torch.randint(3, (6,)))
    [shown_by_forward] = find_neuron_groups(model, batch[0])
    groups = find_neuron_groups(model, run=lambda module: module.training_step(batch, 0))
    assert [(g.name, g.n, g.status) for g in groups] == [
        ("net.0", 8, "verified"),
        ("auxiliary.0", 7, "verified"),
    ]
    assert "auxiliary.0.weight" in groups[0].params
    assert "auxiliary.0.weight" not in shown_by_forward.params


@pytest.mark.parametrize("loss", [F.mse_loss, lambda p, y: ((p - y) ** 2).sum(1).mean()])
def test_outputs_are_no_neurons(loss) -> None:
    torch.manual_seed(0)
    model, x, y = mlp(5, 8, 3), torch.randn(6, 5), torch.randn(6, 3)
    assert [g.name for g in find_neuron_groups(model, run=lambda m: loss(m(x), y))] == ["0"]
    assert [g.name for g in find_neuron_groups(model, run=lambda m: m(x).sum())] == ["0"]


def test_a_single_hidden_unit_is_a_group_of_one() -> None:
    torch.manual_seed(0)
    model = mlp(5, 1, 3)
    [group] = find_neuron_groups(model, torch.randn(4, 5))
    assert (group.name, group.n, group.status) == ("0", 1, "verified")
    assert group.gather(dict(model.named_parameters())).shape == (1, 5 + 1 + 3)


def test_a_single_output_is_no_group() -> None:
    torch.manual_seed(0)
    model, x, y = mlp(5, 8, 1), torch.randn(6, 5), torch.randn(6)
    assert [g.n for g in find_neuron_groups(model, x)] == [8]
    assert [g.n for g in find_neuron_groups(model, run=lambda m: F.mse_loss(m(x).squeeze(-1), y))] == [8]


def test_no_hidden_neurons_is_an_empty_list() -> None:
    assert find_neuron_groups(nn.Linear(3, 2), torch.randn(4, 3)) == []
    assert find_neuron_groups(nn.Sequential(nn.Flatten()), torch.randn(4, 3)) == []


def test_inputs_are_guessed_from_the_first_layer() -> None:
    assert [g.name for g in find_neuron_groups(mlp(5, 8, 3))] == ["0"]


def test_without_inputs_single_layers_are_left() -> None:
    [group] = find_neuron_groups(nn.ModuleList([nn.GRU(3, 4), mlp(5, 8, 3)]))
    assert (group.status, group.name) == ("incoming_only", "1.0")


def test_inputs_by_position_and_by_name() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(5, 8, 3)

        def forward(self, a, *, b):
            return {"logits": self.net(a + b)}

    inputs = {"a": torch.randn(2, 5), "b": torch.randn(2, 5)}
    assert [g.name for g in find_neuron_groups(Two(), inputs)] == ["net.0"]
    assert [g.name for g in find_neuron_groups(mlp(5, 8, 3), (inputs["a"],))] == ["0"]


def test_lazy_parameters_are_refused_with_the_remedy() -> None:
    with pytest.raises(RuntimeError, match="run one batch through the model first"):
        find_neuron_groups(nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(2, 3))


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="expected kinds among"):
        find_neuron_groups(mlp(5, 8, 3), torch.randn(2, 5), kinds=["neuron"])
