"""Persistence on captures made by hand: summaries of the diagram, and its change with its bound."""

import math

import pytest
import torch

from lightning_topo.geometry import step_distortion
from lightning_topo.homology import persistence
from lightning_topo.probes import Persistence
from tests.probes.captures import by_hand, cloud, one_group


def test_persistence_summarises_the_diagram():
    angles = torch.linspace(0, 2 * math.pi, 25)[:-1]
    circle = torch.stack([angles.cos(), angles.sin()], 1)
    result = Persistence(betti_scale=0.25).measure(by_hand(circle))
    values, diagram = result.values["g"], result.diagrams["g"]
    assert (values["betti_0"], values["betti_1"]) == (1.0, 1.0)
    assert values["max_persistence_1"] == pytest.approx(float((diagram[1].deaths - diagram[1].births).max()))
    assert "log_bottleneck_0" not in values
    assert diagram[0].deaths.shape == (24,)


def test_a_second_capture_is_compared_with_the_first_and_keeps_its_bound():
    first, second = cloud(0, 12, 3), cloud(0, 12, 3) + 0.01 * cloud(1, 12, 3)
    probe = Persistence()
    before = probe.measure(by_hand(first))
    values = probe.measure(by_hand(second, previous=before)).values["g"]
    step = step_distortion(first, second)
    assert values["log_bottleneck_bound"] == pytest.approx(max(math.log(step.expansion), -math.log(step.contraction)))
    assert 0.0 < values["log_bottleneck_0"] <= values["log_bottleneck_bound"] * (1 + 1e-6)
    assert 0.0 <= values["log_bottleneck_1"] <= values["log_bottleneck_bound"] * (1 + 1e-6)


@pytest.mark.parametrize("now", [(8, 3), (16, 3), (12, 2)])
def test_of_other_neurons_there_is_no_change_and_the_next_capture_has_one(now):
    probe = Persistence()
    before = probe.measure(by_hand(cloud(0, 12, 3)))
    other = cloud(1, *now)
    changed = probe.measure(by_hand(other, groups=[one_group(n=now[0])], previous=before))
    assert changed.failures == {}
    assert "betti_0" in changed.values["g"]
    assert not any(name.startswith("log_bottleneck") for name in changed.values["g"])
    later = probe.measure(by_hand(1.01 * other, groups=[one_group(n=now[0])], previous=changed))
    assert later.values["g"]["log_bottleneck_0"] == pytest.approx(math.log(1.01), rel=1e-4)


def test_landmarks_bring_no_bound():
    probe = Persistence(max_landmarks=6)
    before = probe.measure(by_hand(cloud(0, 12, 3)))
    result = probe.measure(by_hand(cloud(1, 12, 3), previous=before))
    assert not result.diagrams["g"].exact
    assert "log_bottleneck_bound" not in result.values["g"]
    assert "log_bottleneck_0" in result.values["g"]


def test_blocks_have_a_diagram_each_and_their_betti_numbers_add_up():
    points = torch.stack([cloud(0, 5, 2), 10 * cloud(1, 5, 2)])
    result = Persistence().measure(by_hand(points, groups=[one_group(n=5, blocks=(2,))]))
    assert list(result.diagrams) == ["g[0]", "g[1]"]
    total = sum(float((persistence(p, 0)[0].deaths).isinf().sum()) for p in points)
    assert result.values["g"]["betti_0"] >= total


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_dim": -1}, "max_dim between 0 and 3"),
        ({"max_dim": 4}, "max_dim between 0 and 3"),
        ({"betti_scale": 0.0}, "betti_scale > 0"),
        ({"engine": "none"}, "engine among"),
        ({"lag": -1}, "lag >= 0"),
        ({"timeout": float("nan")}, "timeout > 0"),
        ({"every_n_steps": 3, "every_n_epochs": 2}, "got both"),
    ],
)
def test_parameters_are_checked(options, match):
    with pytest.raises(ValueError, match=match):
        Persistence(**options)
