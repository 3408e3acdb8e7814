"""The result of a sweep: what follows from its curves."""

import math

import pytest

from lightning_topo import LRSweep


def test_suggestions_of_known_curves():
    lrs, nan = (1.0, 2.0, 3.0, 4.0), math.nan

    def sweep(r, first=(0.1,) * 4, eta=(nan,) * 4):
        return LRSweep(lrs, (1.0,) * 4, r, first, eta, (nan,) * 4)

    assert sweep((0.2, 0.5, 1.0, 0.3)).suggestion_by_ratio == 2.0
    assert sweep((0.2, nan, 0.5, math.inf)).suggestion_by_ratio == 3.0
    assert sweep((0.2, 0.3, 0.4, 0.5)).suggestion_by_ratio is None
    assert "everywhere (at most 0.5)" in str(sweep((0.2, 0.3, 0.4, 0.5)))
    assert sweep((1.2, 0.3, 0.4, 0.5)).suggestion_by_ratio is None
    assert sweep((0.2, 0.3, 0.4, 0.5), first=(0.5, 1.0, 1.5, 2.0)).suggestion_by_ratio == 1.0
    # One peak is a peak; two are the critical point.
    assert sweep((nan,) * 4, (nan,) * 4, (0.1, 9.0, 0.3, 0.4)).suggestion is None
    assert sweep((nan,) * 4, (nan,) * 4, (0.1, 9.0, 9.0, 1.5)).suggestion == 1.0
    # Adam's first steps; r has no such excuse.
    assert sweep((nan,) * 4, (nan,) * 4, (9.0, 0.1, 0.2, 1.5)).suggestion == 3.0
    assert sweep((9.0, 0.1, 0.2, 1.5)).suggestion is None


@pytest.mark.parametrize(
    ("r", "eta", "words"),
    [
        ((1.2, 0.3, 0.4, 0.5), (0.1,) * 4, "r is at least 1 in the beginning, and below 1 from 2 on;"),
        ((1.2, 0.3, 0.4, 1.5), (0.1,) * 4, "r is at least 1 at the smallest learning rate, 1;"),
        ((1.2, 1.3, 1.4, 1.5), (0.1,) * 4, "r is nowhere below 1 (at least 1.2);"),
        ((0.1,) * 4, (2.0, 0.5, 0.6, 0.7), "eta_lambda is at least 1 in the beginning, and below 1 from 2 on."),
        ((0.1,) * 4, (0.1, 2.0, 0.1, 0.2), "eta_lambda stays below 1 everywhere (at most 0.2), but for single peaks."),
        ((0.1,) * 4, (0.1, 2.0, 0.1, 1.2), "eta_lambda stays below 1 up to 2, but for single peaks."),
        ((0.1,) * 4, (0.1, 0.2, 3.0, 2.0), "eta_lambda stays below 1 up to 2."),
    ],
)
def test_the_sentence_says_what_the_suggestion_stands_on(r, eta, words):
    """The medians of eta_lambda, and the larger r of both kinds."""
    assert words in str(LRSweep((1.0, 2.0, 3.0, 4.0), (1.0,) * 4, r, r, eta, (math.nan,) * 4))


def test_a_first_step_that_breaks_down_is_in_the_sentence():
    sweep = LRSweep((1.0, 2.0), (1.0,) * 2, (0.1, 0.2), (1.5, 3.0), (math.nan,) * 2, (math.nan,) * 2)
    assert "r is nowhere below 1 (at least 1.5)" in str(sweep)


def test_the_smaller_suggestion_is_the_suggestion_and_both_are_said():
    lrs, nan = (0.1, 0.2, 0.4, 0.8), (math.nan,) * 4
    sweep = LRSweep(lrs, (1.0,) * 4, (0.1, 0.2, 0.3, 1.5), nan, (0.1, 0.5, 1.5, 3.0), nan, diverged=True)
    assert (sweep.suggestion_by_ratio, sweep.suggestion_by_curvature, sweep.suggestion) == (0.4, 0.2, 0.2)
    for words in (
        "from 0.1 to 0.8",
        "r stays below 1 up to 0.4",
        "eta_lambda stays below 1 up to 0.2",
        "diverged at 0.8",
    ):
        assert words in str(sweep)
    unknown = LRSweep(lrs, (1.0,) * 4, nan, nan, nan, nan)
    assert unknown.suggestion is None
    assert "eta_lambda is not known" in str(unknown)
    assert "diverged" not in str(unknown)


def test_curves_of_other_lengths_have_no_suggestion():
    with pytest.raises(ValueError, match=r"shorter|longer"):
        _ = LRSweep((0.1, 0.2), (1.0, 1.0), (0.1,), (0.1, 0.2), (0.1, 0.2), (0.1, 0.2)).suggestion
