import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_topo._figures.captures import bars, betti_curve, crocker
from lightning_topo.homology import betti_number, persistence
from lightning_topo.outputs.page._slides import slides
from tests.outputs.page.synthetic import ring_diagram

lengths = st.floats(0.0, 10.0)


def test_betti_curves_are_those_of_the_homology(rng: torch.Generator) -> None:
    diagram = persistence(torch.randn(30, 3, generator=rng))
    scales = np.linspace(0.0, 4.0, 50)
    for k, pairs in enumerate(bars([diagram.to_numpy()])):
        assert betti_curve(pairs, scales).tolist() == [betti_number(diagram, k, float(scale)) for scale in scales]


@given(st.lists(st.tuples(lengths, lengths), max_size=20), st.lists(lengths, min_size=1, max_size=10))
def test_a_betti_curve_counts_the_bars_alive(ends: list[tuple[float, float]], scales: list[float]) -> None:
    pairs = np.sort(np.array(ends).reshape(-1, 2), axis=1)
    expected = [sum(birth <= scale < death for birth, death in pairs) for scale in scales]
    assert betti_curve(pairs, np.array(scales)).tolist() == expected


def test_blocks_are_counted_together() -> None:
    one, two = ring_diagram(8, 1.0, 0.2, 0, 2), ring_diagram(5, 2.0, 0.2, 1, 3)
    h0, h1 = bars([one.to_numpy(), two.to_numpy()])
    assert (len(h0), len(h1)) == (13, 5)


def test_crocker_holds_the_counts_of_every_capture() -> None:
    captures = {step: bars([ring_diagram(20, 1.0 + step / 10, 0.2, step, 4).to_numpy()]) for step in (0, 5, 9)}
    plot = crocker(captures, 16)
    assert plot is not None
    assert plot.steps == (0, 5, 9)
    for i, step in enumerate(plot.steps):
        for k in (0, 1):
            expected = betti_curve(captures[step][k], np.array(plot.scales))
            np.testing.assert_array_equal(plot.betti[k][i], expected)
    assert plot.betti[0][:, 0].tolist() == [20, 20, 20]
    assert plot.betti[0][:, -1].tolist() == [1, 1, 1]


@pytest.mark.parametrize("merge_pixels", [False, True])
def test_marks_are_the_bars_to_a_pixel(merge_pixels: bool) -> None:
    captures = {step: bars([ring_diagram(300, 1.0, 0.4, step, 9).to_numpy()]) for step in (0, 1)}
    shown = slides(captures, merge_pixels)
    assert shown is not None
    pixel = shown.unit * 65_000 / 500
    for k, marks in enumerate(shown.marks):
        for i, step in enumerate(shown.steps):
            here = slice(marks.offsets[i], marks.offsets[i + 1])
            pairs = captures[step][k]
            finite = pairs[np.isfinite(pairs[:, 1])]
            kept = marks.deaths[here] < 65_535
            assert kept.all() == np.isfinite(pairs).all()
            deaths = marks.deaths[here][kept] * shown.unit
            births = np.zeros(len(deaths)) if marks.births is None else marks.births[here][kept] * shown.unit
            away = np.abs(finite[:, None] - np.stack([births, deaths], axis=1)).max(axis=2)
            assert away.min(axis=1).max() <= (pixel if merge_pixels else 0.51 * shown.unit)
            assert away.min(axis=0).max() <= 0.51 * shown.unit
            assert marks.n_bars[i] == len(pairs)
            assert merge_pixels or len(deaths) == len(finite)


@pytest.mark.parametrize("deaths", [[], [0.0, 0.0, np.inf]])
def test_a_cloud_of_one_place_has_no_plot_but_a_diagram(deaths: list[float]) -> None:
    pairs = np.array([[0.0, death] for death in deaths]).reshape(-1, 2)
    assert crocker({0: (pairs,)}, 8) is None
    shown = slides({0: (pairs,)})
    assert shown is not None
    assert shown.marks[0].n_bars == (len(deaths),)


def test_without_captures_there_is_nothing() -> None:
    assert crocker({}, 8) is None
    assert slides({}) is None


def test_dimensions_may_come_and_go() -> None:
    one = np.array([[0.0, 1.0]])
    plot = crocker({0: (one,), 1: (one, np.array([[0.5, 2.0]]))}, 8)
    shown = slides({0: (one,), 1: (one, np.array([[0.5, 2.0]]))})
    assert plot is not None
    assert shown is not None
    assert plot.betti[1][0].tolist() == [0] * 8
    assert shown.marks[1].offsets == (0, 0, 1)


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)
