"""The common style: light figures of one look, whatever the user's own style is."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from hypothesis import given
from hypothesis import strategies as st

from lightning_topo._figures.persistence import diagram_figure
from lightning_topo._figures.style import abbreviated, drawable, new_figure, own_style, pixels, plain_numbers

H0 = np.array([[0.0, 0.5], [0.0, 0.7], [0.0, np.inf]])
H1 = np.array([[0.8, 1.1]])


def test_figures_are_light_and_the_same_whatever_style_is_in_use():
    import matplotlib

    plain = pixels(diagram_figure((H0, H1), "net.0"))
    dark = {"axes.facecolor": "black", "text.color": "white", "font.size": 30.0, "axes.labelcolor": "white"}
    with matplotlib.rc_context(dark):
        other = pixels(diagram_figure((H0, H1), "net.0"))
    np.testing.assert_array_equal(plain, other)
    assert tuple(plain[2, 2]) == (255, 255, 255, 255)
    assert (plain[..., :3].mean(axis=2) < 128).mean() < 0.2


@given(st.text("abc.", max_size=60), st.integers(3, 40))
def test_a_name_is_cut_in_its_middle_to_what_fits(name, most):
    shown = abbreviated(name, most)
    assert len(shown) == min(len(name), most)
    at = shown.index("\u2026") if len(name) > most else most
    assert name.startswith(shown[:at])
    assert name.endswith(shown[at + 1 :])


def test_the_users_style_is_theirs_again_afterwards():
    import matplotlib

    with matplotlib.rc_context({"font.size": 31.0, "backend_fallback": False}):
        with own_style():
            assert matplotlib.rcParams["font.size"] == matplotlib.rcParamsDefault["font.size"]
            assert not matplotlib.rcParams["backend_fallback"]  # only the looks of a figure are set back
        assert matplotlib.rcParams["font.size"] == 31.0


def test_panels_stand_one_below_the_other():
    figure, panels = new_figure(3, "three", width=4.0, height=2.0, share_x=True)
    below = [axes.get_subplotspec().rowspan.start for axes in panels]
    assert below == [0, 1, 2]
    panels[0].set_xlim(2.0, 5.0)
    assert panels[2].get_xlim() == (2.0, 5.0)
    assert pixels(figure).shape[1] == 440


@pytest.mark.parametrize(("low", "high", "is_plain"), [(0.02, 0.05, True), (0.02, 0.9, True), (0.001, 0.9, False)])
def test_less_than_two_decades_have_plain_numbers(low, high, is_plain):
    figure, (axes,) = new_figure(1, "numbers")
    axes.set(yscale="log", ylim=(low, high))
    plain_numbers(axes.yaxis, low, high)
    pixels(figure)
    labels = [
        text.get_text() for text, at in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True) if low <= at <= high
    ]
    assert len(labels) >= 2
    if is_plain:
        assert [float(label) for label in labels] == pytest.approx(
            [at for at in axes.get_yticks() if low <= at <= high]
        )
    else:
        assert all(label.startswith("$") for label in labels)


def test_what_the_font_does_not_have_is_a_box():
    assert drawable("net.0 \u03bb") == "net.0 \u03bb"
    assert drawable("层.0\x00\n") == "\u25a1.0\u25a1\u25a1"
