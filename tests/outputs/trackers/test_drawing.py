"""Which figures are drawn of a run: of the worst group and of those asked for, of few enough captures."""

import math

import pytest
import torch

pytest.importorskip("matplotlib")

from lightning_topo.homology import persistence
from lightning_topo.measurement import Measurement
from lightning_topo.outputs.trackers._drawing import MOST_GROUPS, Drawings

GROUPS = ("net.0", "net.3", "head")
CLOUD = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
KINDS = ("diagram", "betti_curves", "crocker")


def ratio(step, group, value):
    return Measurement(step, 0, "distortion", group, {"critical_ratio": value})


def fate(step, group, **values):
    return Measurement(step, 0, "fate", group, {"measured_neurons": 6.0, "vanishing_neurons": 0.0} | values)


def captured(drawings, steps, groups=GROUPS):
    for step in steps:
        drawings.captured(step, {group: persistence((1 + step / 100) * CLOUD, 0) for group in groups})
    return drawings


def keys(drawings):
    return [key.removeprefix("topology/") for key, _ in drawings.draw()]


@pytest.mark.parametrize(
    ("log_groups", "places"),
    [
        ("worst", [""]),
        ("auto", [""]),
        (["net.*"], ["", "net_3/", "net_0/"]),
        ("all", ["", "net_3/", "head/", "net_0/"]),
        (["nothing"], [""]),
    ],
)
def test_the_worst_group_is_drawn_always_and_others_worst_first_where_they_are_asked_for(
    small_figures, log_groups, places
):
    drawings = captured(Drawings(GROUPS, log_groups), (0, 10))
    for group, value in (("net.0", 0.1), ("net.3", 0.9), ("head", 0.5), ("net.0", math.nan), ("", 7.0), ("other", 8.0)):
        drawings.measured(ratio(1, group, value))
    assert keys(drawings) == [f"{place}{kind}" for place in places for kind in KINDS]


def test_of_very_many_groups_twelve_are_drawn(small_figures):
    many = tuple(f"g{k}" for k in range(30))
    assert len(keys(captured(Drawings(many, "all"), (0, 1), many))) == (1 + MOST_GROUPS) * len(KINDS)


def test_one_capture_is_nothing_to_compare_and_the_same_is_not_drawn_twice(small_figures):
    drawings = captured(Drawings(GROUPS, "worst"), (0,))
    assert not drawings.are_new
    captured(drawings, (10,))
    assert drawings.are_new
    assert keys(drawings) == list(KINDS)
    assert not drawings.are_new
    drawings.measured(fate(10, "head"))
    assert drawings.are_new


def test_the_fate_of_neurons_is_drawn_without_any_diagram():
    drawings = Drawings(GROUPS, ["head"])
    for step, vanishing in ((0, 0.0), (5, 2.0)):
        drawings.measured(fate(step, "head", vanishing_neurons=vanishing))
        drawings.measured(fate(step, "a stranger's"))
    drawings.measured(ratio(5, "net.0", 0.5))
    [(key, figure)] = drawings.draw()
    assert key == "topology/head/fate"
    (axes,) = figure.axes
    assert next(list(line.get_ydata()) for line in axes.lines if line.get_label() == "alive") == [6.0, 4.0]


def test_captures_without_end_are_few_and_reach_from_the_beginning_to_the_last():
    drawings = captured(Drawings(("net.0",), "worst"), range(400), ("net.0",))
    figures = dict(drawings.draw())
    (axes, _) = figures["topology/crocker"].axes
    (mesh,) = axes.collections
    assert 32 <= mesh.get_array().shape[1] <= 64
    assert axes.get_xlim()[1] == 399.0
    assert axes.get_xlim()[0] <= 20.0
    assert figures["topology/diagram"].get_suptitle() == "net.0: persistence diagram at step 399"


def test_loops_of_landmarks_are_drawn_with_their_error():
    drawings = Drawings(("net.0",), "worst")
    points = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    for step in (0, 1):
        drawings.captured(step, {"net.0": persistence(points, 1, max_landmarks=6)})
    (axes,) = dict(drawings.draw())["topology/diagram"].axes
    error = persistence(points, 1, max_landmarks=6).landmark_error
    assert [text.get_text() for text in axes.texts if f"{error:.2g}" in text.get_text()]
