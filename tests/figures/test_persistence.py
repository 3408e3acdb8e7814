"""Figures hold the numbers they are drawn from."""

import numpy as np
import pytest

from lightning_topo._figures.captures import betti_curve, crocker

pytest.importorskip("matplotlib")

from lightning_topo._figures.persistence import betti_figure, crocker_figure, diagram_figure
from lightning_topo._figures.style import pixels

H0 = np.array([[0.0, 0.5], [0.0, 0.7], [0.0, np.inf]])
H1 = np.array([[0.8, 1.1]])
CAPTURES = {step: (H0 * np.array([1.0, 1.0 + step / 100]), H1 + step / 1000) for step in (0, 10, 20, 50)}


def test_a_diagram_shows_every_bar_and_the_immortal_at_the_top():
    figure = diagram_figure((H0, H1), "net.0 at step 7")
    (axes,) = figure.axes
    of_h0, of_h1 = axes.collections
    np.testing.assert_allclose(of_h0.get_offsets()[:2], H0[:2])
    assert of_h0.get_offsets()[2][1] > 1.1
    assert of_h0.get_offsets()[2][1] == axes.lines[1].get_ydata()[0]
    np.testing.assert_allclose(of_h1.get_offsets(), H1)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["$H_0$: 3 bars", "$H_1$: 1 bar"]
    assert axes.get_xlabel()
    assert axes.get_ylabel()
    assert figure.get_suptitle() == "net.0 at step 7"


@pytest.mark.parametrize("pairs", [(np.zeros((0, 2)),), (np.array([[0.0, np.inf]]),), (np.zeros((4, 2)), H1[:0])])
def test_a_diagram_of_hardly_anything(pairs):
    assert pixels(diagram_figure(pairs, "x" * 500)).shape[2] == 4


def test_betti_curves_are_those_of_the_bars():
    figure = betti_figure(CAPTURES, "net.0")
    for k, axes in enumerate(figure.axes):
        assert [line.get_label() for line in axes.lines] == ["step 0", "step 10", "step 20", "step 50"]
        for step, line in zip(CAPTURES, axes.lines, strict=True):
            scales, betti = line.get_data()
            np.testing.assert_array_equal(betti, betti_curve(CAPTURES[step][k], scales))
    assert betti_figure({0: (np.zeros((3, 2)),)}, "points that coincide") is None


def test_a_crocker_plot_is_the_table_of_betti_numbers():
    table = crocker(CAPTURES, 40)
    figure = crocker_figure(table, "net.0")
    for axes, betti in zip(figure.axes, table.betti, strict=False):
        (mesh,) = axes.collections
        np.testing.assert_array_equal(mesh.get_array().filled(0.0), betti.T)
        assert axes.get_xlim() == (0.0, 50.0)
        assert axes.get_yscale() == "log"
