"""A sweep's figure holds the numbers that it is drawn from."""

import math

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from lightning_topo._figures.lr_sweep import Curve, Mark, lr_figure

LRS = (0.01, 0.1, 1.0)


def test_what_is_not_known_is_a_gap_and_a_curve_of_nothing_is_no_line():
    curves = [Curve("r", (0.1, math.inf, 2.0)), Curve("edge", (math.nan,) * 3), Curve("eta", (0.2, 0.4, math.nan))]
    above, below = lr_figure(LRS, (3.0, math.nan, 1.0), curves, []).axes
    np.testing.assert_array_equal(above.lines[0].get_ydata(), [3.0, np.nan, 1.0])
    drawn = {line.get_label(): line.get_ydata() for line in below.lines if line.get_label() in {"r", "edge", "eta"}}
    assert set(drawn) == {"r", "eta"}
    np.testing.assert_array_equal(drawn["r"], [0.1, np.nan, 2.0])
    assert [1.0, 1.0] in [list(line.get_ydata()) for line in below.lines]


@pytest.mark.parametrize(("losses", "scale"), [((3.0, 2.0, 1.0), "log"), ((3.0, 0.0, -1.0), "linear")])
def test_a_loss_that_is_not_positive_has_a_linear_axis(losses, scale):
    above, below = lr_figure(LRS, losses, [Curve("r", (0.1, 0.2, 0.3))], []).axes
    assert (above.get_yscale(), below.get_yscale(), above.get_xscale()) == (scale, "log", "log")
    np.testing.assert_array_equal(above.lines[0].get_ydata(), losses)


def test_marks_stand_at_their_rates_in_both_panels_and_are_named_once():
    above, below = lr_figure(LRS, (3.0, 2.0, 1.0), [Curve("r", (0.1, 0.2, 0.3))], [Mark("b", 0.5), Mark("a", 0.2)]).axes
    for axes in (above, below):
        assert [0.2, 0.2] in [list(line.get_xdata()) for line in axes.lines]
        assert [0.5, 0.5] in [list(line.get_xdata()) for line in axes.lines]
    assert [(text.get_text(), text.xy[0]) for text in above.texts] == [("a", 0.2), ("b", 0.5)]
    assert not below.texts


def test_the_smallest_ratio_is_above_the_legend():
    _, below = lr_figure(LRS, (3.0, 2.0, 1.0), [Curve("r", (0.01, 0.1, 1.5)), Curve("0", (0.0, 0.0, 0.5))], []).axes
    low, high = below.get_ylim()
    assert 0.0 < low <= 0.01 / 10
    assert high >= 1.5
