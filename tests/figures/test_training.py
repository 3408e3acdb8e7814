"""Figures over steps hold the numbers they are drawn from."""

import math

import numpy as np
import pytest

from lightning_topo.phases import Phase

pytest.importorskip("matplotlib")

from lightning_topo._figures.style import COLOURS, pixels
from lightning_topo._figures.training import (
    PHASE_COLOURS,
    distortion_figure,
    phases_figure,
    ratio_figure,
    stability_figure,
)

RATIOS = {"net.0": [(1, 0.1), (2, 2.0), (3, math.inf), (4, 0.0)], "net.2": [(1, 0.01), (2, 0.02), (4, 0.03)]}


def test_ratios_are_lines_and_the_critical_point_is_marked():
    (axes,) = ratio_figure(RATIOS, "r").axes
    by_name = {line.get_label(): line for line in axes.lines}
    np.testing.assert_array_equal(by_name["net.2"].get_ydata(), [0.01, 0.02, 0.03])
    # Infinity and 0 have no place on a log axis.
    np.testing.assert_array_equal(by_name["net.0"].get_ydata(), [0.1, 2.0, np.nan, np.nan])
    assert by_name["net.0"].get_color() == COLOURS[0]
    assert [line for line in axes.lines if list(line.get_ydata()) == [1.0, 1.0]]
    assert axes.get_yscale() == "log"
    assert axes.get_ylim()[1] > 1.0


def test_of_many_groups_the_highest_have_names():
    many = {f"g{i}": [(1, 0.001 * (i + 1)), (2, 0.002 * (i + 1))] for i in range(20)}
    (axes,) = ratio_figure(many, "r").axes
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["g19", "g18", "g17", "g16", "g15", "g14", "14 other groups"]
    assert len(axes.lines) == 20 + 2


def test_phases_are_spans_of_their_colours():
    rows = {"network": [(0, Phase.PRESERVED), (10, Phase.BREAKDOWN)], "net.0": [(5, Phase.UNPROTECTED)], "net.2": []}
    (axes,) = phases_figure(rows, [10], 30, "phases").axes
    spans = [(round(p.get_x()), round(p.get_width()), p.get_y() + p.get_height() / 2) for p in axes.patches]
    assert spans == [(0, 10, 0), (10, 20, 0), (5, 25, 1)]
    from matplotlib.colors import to_rgba

    wanted = [Phase.PRESERVED, Phase.BREAKDOWN, Phase.UNPROTECTED]
    assert [patch.get_facecolor() for patch in axes.patches] == [to_rgba(PHASE_COLOURS[phase]) for phase in wanted]
    assert list(axes.lines[0].get_xdata()) == [10]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(rows)


def test_loss_and_sharpness_and_what_is_not_there():
    figure = stability_figure([(1, 2.0), (2, 0.01)], {"sharpness ratio": [(0, 0.5), (2, 1.1)]}, [], "stability")
    above, below = figure.axes
    assert above.get_yscale() == "log"
    np.testing.assert_array_equal(below.lines[0].get_ydata(), [0.5, 1.1])
    assert below.get_ylim()[1] > 1.0
    above, below = stability_figure([], {}, [], "stability").axes
    assert [axes.texts[0].get_text()[:3] for axes in (above, below)] == ["no ", "no "]


def test_a_band_reaches_from_contraction_to_expansion():
    low, high = [(1, 0.5), (2, 0.0), (4, 0.8)], [(1, 2.0), (2, math.inf), (4, 1.5)]
    figure = distortion_figure((low, high), ([], []), "band")
    lines = figure.axes[1].lines
    np.testing.assert_array_equal(lines[0].get_ydata(), [0.5, np.nan, 0.8])
    np.testing.assert_array_equal(lines[1].get_ydata(), [2.0, np.nan, 1.5])
    assert pixels(figure).shape[2] == 4


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["$x^{$", "层.注意力", "a\nb\x00", "\u202e" + "n" * 300, "100 % _ \\frac"])
def test_names_of_any_kind_are_drawn_without_a_warning(name):
    spans = [(0, Phase.PRESERVED)]
    for figure in (
        ratio_figure({name: [(1, 0.5), (2, 0.6)]}, name),
        phases_figure({name: spans, "b": spans}, [], 3, name),
        distortion_figure(([(1, 0.5)], [(1, 2.0)]), ([(1, 0.5)], [(1, 2.0)]), name),
    ):
        assert pixels(figure).shape[2] == 4
