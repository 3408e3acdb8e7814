"""The probe of neurons' fate on captures made by hand."""

import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

from lightning_topo.geometry import neuron_fate
from lightning_topo.neurons import NeuronGroup, ParamSlice, find_neuron_groups
from lightning_topo.probes import Capture, Clouds, Fate, ProbeResult
from lightning_topo.probes._fate import incoming_columns


def capture(groups, tensors, module=None) -> Capture:
    clouds = Clouds(groups, tensors)
    return Capture(1, 0, module or nn.Identity(), groups, clouds, None, clouds, [], nullcontext)


def test_values_are_those_of_the_group_and_clusters_those_of_its_incoming_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].weight[4:] = 2 * model[0].weight[:4]
    groups = find_neuron_groups(model, torch.randn(4, 3))
    result = Fate().measure(capture(groups, dict(model.named_parameters()), model))
    cloud = groups[0].gather(dict(model.named_parameters()))
    expected = neuron_fate(cloud, model[0].weight)
    assert expected.aligned_clusters <= 4
    assert result.values == {
        "0": {
            "independent_neurons": expected.independent_neurons,
            "vanishing_neurons": expected.vanishing_neurons,
            "aligned_clusters": expected.aligned_clusters,
            "effective_neurons": expected.effective_neurons,
            "largest_multiplicity": expected.largest_multiplicity,
            "merged_classes": 0,
            "merged_neurons": 0,
            "measured_neurons": 8,
            "vanishing_neurons_at_start": expected.vanishing_neurons,
            "aligned_clusters_at_start": expected.aligned_clusters,
        }
    }
    assert result.failures == {}


def test_the_first_capture_also_counts_the_neurons_as_they_were_when_training_began():
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    groups = find_neuron_groups(model, torch.randn(4, 3))
    now = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    began = now.clone()
    began[:5] = 0.0
    first = replace(capture(groups, dict(model.named_parameters()), model), neurons={"0": now}, reference={"0": began})
    values = Fate().measure(first).values["0"]
    assert (values["vanishing_neurons"], values["vanishing_neurons_at_start"]) == (0, 5)
    later = replace(first, previous=ProbeResult())
    assert "vanishing_neurons_at_start" not in Fate().measure(later).values["0"]
    thawed = replace(first, reference={"0": began[:, :4]})
    assert "vanishing_neurons_at_start" not in Fate().measure(thawed).values["0"]


def test_incoming_weights_of_blocks_and_of_frozen_parameters():
    """Only what is trained is in the cloud; the columns of the rest must not be counted."""
    slices = (
        ParamSlice("a", dims=(0, 1)),
        ParamSlice("frozen", dims=(0, 1), trainable=False),
        ParamSlice("b", dims=(0, 1), role="outgoing"),
    )
    module = nn.Module()
    module.a = nn.Parameter(torch.tensor([[[1.0, 0], [2, 0], [0, 1]], [[1, 0], [1, 0], [1, 0]]]))
    module.frozen = nn.Parameter(torch.randn(2, 3, 5), requires_grad=False)
    module.b = nn.Parameter(torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)))
    group = NeuronGroup("g", "head_dim", 3, (2,), slices)
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    values = Fate().measure(capture([group], trained, module)).values["g"]
    each = [neuron_fate(torch.cat([a, b], 1), a) for a, b in zip(module.a, module.b, strict=True)]
    assert [fate.aligned_clusters for fate in each] == [2, 1]
    assert values["aligned_clusters"] == 3
    assert values["independent_neurons"] == sum(fate.independent_neurons for fate in each)
    assert values["effective_neurons"] == pytest.approx(sum(fate.effective_neurons for fate in each))
    assert values["largest_multiplicity"] == max(fate.largest_multiplicity for fate in each)


def test_the_sizes_of_classes_of_equal_neurons_are_those_counted_by_hand():
    """Over two blocks: more classes than the record holds, and equal neurons of two blocks are none."""
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(20, 3, generator=generator)
    blocks = [[0] * 5 + [1] * 3 + [2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7], [0] + [8] * 9 + [9] * 4 + [1, 1, 10, 10, 11]]
    rows = torch.stack([points[torch.tensor(names)[torch.randperm(19, generator=generator)]] for names in blocks])
    module = nn.Module()
    module.a = nn.Parameter(rows)
    group = NeuronGroup("g", "head_dim", 19, (2,), (ParamSlice("a", dims=(0, 1)),))
    values = Fate().measure(capture([group], {"a": module.a}, module)).values["g"]
    equals = [sum(bool((x == y).all()) for y in block) for block in rows for x in block]
    sizes = [size for size in sorted(set(equals), reverse=True) if size > 1 for _ in range(equals.count(size) // size)]
    assert sizes == [9, 5, 4, 3, 2, 2, 2, 2, 2, 2, 2]
    assert [values[f"multiplicity_{k}"] for k in range(1, 9)] == sizes[:8]
    assert "multiplicity_9" not in values
    assert (values["merged_classes"], values["merged_neurons"]) == (11, 35)
    assert values["largest_multiplicity"] == 9


def test_what_no_optimizer_trains_is_no_part_of_the_cloud():
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    [group] = find_neuron_groups(model, torch.randn(4, 3))
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    assert incoming_columns(group, model, 4, [first]).tolist() == [0, 1, 2]
    assert incoming_columns(group, model, 6, [first]).tolist() == [0, 1, 2], "what requires gradients, then"
    assert incoming_columns(group, model, 5, [first]) is None


def test_without_incoming_weights_there_is_no_count_of_clusters():
    group = NeuronGroup("g", "unit", 4, (), (ParamSlice("w", role="outgoing"),))
    values = Fate().measure(capture([group], {"w": torch.randn(4, 3)})).values["g"]
    assert "aligned_clusters" not in values
    assert "independent_neurons" in values


def test_a_group_that_cannot_be_measured_does_not_hide_the_others():
    groups = [NeuronGroup(name, "unit", 4, (), (ParamSlice(name),)) for name in ("bad", "good")]
    result = Fate().measure(capture(groups, {"bad": torch.full((4, 2), math.nan), "good": torch.randn(4, 2)}))
    assert result.values.keys() == {"good"}
    assert "NaN or infinity in 4 of 4 rows" in result.failures["bad"]


def test_a_large_group_is_sampled_and_says_so():
    group = NeuronGroup("g", "unit", 40, (), (ParamSlice("w"),))
    probe = Fate(max_neurons=10)
    taken = [probe.measure(capture([group], {"w": torch.arange(80.0).view(40, 2)})).values["g"] for _ in range(2)]
    assert taken[0] == taken[1]
    assert taken[0]["measured_neurons"] == 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"independence": 0.0}, "0 < independence < 2"),
        ({"vanishing": 1.0}, "0 < vanishing < 1"),
        ({"alignment": 1.0}, "-1 < alignment < 1"),
        ({"max_neurons": 0}, "max_neurons >= 1"),
        ({"every_n_steps": 0}, "every_n_steps of at least 1"),
        ({"every_n_steps": 3, "every_n_epochs": 2}, "got both"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        Fate(**settings)
