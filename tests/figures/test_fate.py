"""What becomes of neurons, as lines over steps."""

import pytest

pytest.importorskip("matplotlib")

import math

from lightning_topo._figures.fate import fate_figure, fate_lines


def test_fates_are_lines_below_all_neurons():
    captures = {
        step: {
            "measured_neurons": 9.0,
            "vanishing_neurons": gone,
            "independent_neurons": 7.0,
            "largest_multiplicity": 1.0,
        }
        for step, gone in ((0, 0.0), (5, 2.0))
    }
    (axes,) = fate_figure(captures, "fate").axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert drawn["alive"] == [9.0, 7.0]
    assert drawn["independent"] == [7.0, 7.0]
    assert "directions of incoming weights" not in drawn
    assert axes.get_ylim()[1] > 9.0


def test_a_count_that_was_not_measured_is_no_point():
    captures = {
        1: {"measured_neurons": 9.0, "vanishing_neurons": math.nan, "aligned_clusters": 4.0},
        2: {"vanishing_neurons": 1.0, "aligned_clusters": math.inf},
        3: {"measured_neurons": 9.0, "vanishing_neurons": 1.0},
    }
    assert fate_lines(captures) == {"alive": [(3, 8.0)], "directions of incoming weights": [(1, 4.0)]}


def test_further_sets_of_equal_neurons_are_points_below_the_largest():
    merged = {"measured_neurons": 9.0, "largest_multiplicity": 4.0, "multiplicity_1": 4.0, "multiplicity_2": 2.0}
    (axes,) = fate_figure({0: {"measured_neurons": 9.0}, 5: merged, 9: merged | {"multiplicity_3": 2.0}}, "fate").axes
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    assert ([5, 9], [2.0, 2.0]) in drawn
    assert ([9], [2.0]) in drawn


def test_a_run_without_captures_is_an_empty_figure():
    (axes,) = fate_figure({}, "fate").axes
    assert axes.get_legend() is None
    assert axes.get_ylim()[1] > 0.0
