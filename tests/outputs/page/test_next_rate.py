"""A learning rate that is recommended: rounded down, and in the words of who trains."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_topo._figures.rates import RateLimits
from lightning_topo.outputs.page._next_rate import Advice, RateWords, floor2

KNOWN, UNKNOWN = RateWords(RateLimits(used=((1, 0.1), (5, 0.3)))), RateWords(RateLimits())


@given(st.floats(1e-9, 1e9))
def test_rounding_down_is_below_and_close(value: float) -> None:
    assert 0.89 * value <= floor2(value) <= value * (1 + 1e-8)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, 5e-324])
def test_what_cannot_be_rounded_stays(value: float) -> None:
    assert floor2(value) == value


def test_a_known_rate_is_named_and_of_an_unknown_one_a_part() -> None:
    assert (KNOWN.present, KNOWN.now, KNOWN.rate(0.12345)) == (0.3, " 0.3", "0.123")
    assert (UNKNOWN.present, UNKNOWN.now, UNKNOWN.rate(0.12345)) == (1.0, "", "0.12 times the present one")


@pytest.mark.parametrize("used", [(), ((1, 0.0),)])
def test_a_rate_of_zero_is_none_of_which_others_are_parts(used: tuple[tuple[int, float], ...]) -> None:
    words = RateWords(RateLimits(used=used))
    assert (words.is_known, words.present) == (False, 1.0)


def test_advice_holds_a_rate_only_where_the_present_one_is_known() -> None:
    assert KNOWN.advice(0.1, ["so"]) == Advice("Lower the learning rate from 0.3 to 0.1.", ("so",), 0.1)
    assert UNKNOWN.advice(0.1, ["so"]) == Advice("Lower the learning rate to 0.1 times the present one.", ("so",))
