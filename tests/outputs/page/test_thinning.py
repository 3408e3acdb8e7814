import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_topo._figures.captures import spread
from lightning_topo.outputs.page._thinning import StepTable, bin_starts, envelope, step_table

steps = st.lists(st.integers(0, 10_000), min_size=1, max_size=200)
values = st.floats(allow_nan=True, allow_infinity=True)


@given(steps, st.integers(1, 50))
def test_bins_are_few_sorted_and_cover_every_step(steps: list[int], max_bins: int) -> None:
    starts = bin_starts(steps, max_bins)
    assert len(starts) <= max_bins
    assert list(starts) == sorted(set(starts))
    assert starts[0] == min(steps)


@given(steps, st.integers(50, 200))
def test_few_steps_keep_their_own_columns(steps: list[int], max_bins: int) -> None:
    distinct = tuple(sorted(set(steps)))[:50]
    assert bin_starts(distinct, max_bins) == distinct


@given(st.lists(values, min_size=1, max_size=300), st.integers(1, 40))
def test_no_peak_is_lost(numbers: list[float], max_bins: int) -> None:
    table = step_table({"r": list(enumerate(numbers))}, lambda _: max, max_bins)
    kept = [value for value in table.columns["r"] if value is not None]
    seen = [value for value in numbers if not math.isnan(value)]
    assert max(kept, default=None) == max(seen, default=None)
    assert len(table.steps) <= max_bins


@given(st.lists(values, min_size=1, max_size=300), st.integers(2, 40))
def test_an_envelope_keeps_both_extremes_and_the_order_of_steps(numbers: list[float], max_points: int) -> None:
    table = envelope("loss", list(enumerate(numbers)), max_points)
    kept = [value for value in table.columns["loss"] if value is not None]
    seen = [value for value in numbers if not math.isnan(value)]
    assert max(kept, default=None) == max(seen, default=None)
    assert min(kept, default=None) == min(seen, default=None)
    assert list(table.steps) == sorted(table.steps)
    assert len(table.steps) <= max(len(numbers) if len(numbers) <= max_points else 0, max_points)


def test_groups_measured_at_different_steps_share_columns() -> None:
    table = step_table({"a": [(0, 1.0), (4, 2.0)], "b": [(4, 3.0), (6, math.nan)]}, lambda _: max, 10)
    assert table == StepTable((0, 4, 6), {"a": (1.0, 2.0, None), "b": (None, 3.0, None)}, 1)


def test_a_gap_has_no_columns_of_its_own() -> None:
    numbers = [(step, 1.0) for step in (*range(100), *range(900, 1000))]
    assert not [step for step in step_table({"r": numbers}, lambda _: max, 20).steps if 100 <= step < 900]


@given(st.integers(0, 300), st.integers(2, 40))
def test_spread_keeps_the_ends(n: int, most: int) -> None:
    kept = spread(range(n), most)
    assert len(kept) == len(set(kept)) == min(n, most)
    if n:
        assert (kept[0], kept[-1]) == (0, n - 1)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="max_bins >= 1"):
        bin_starts([1], 0)
    with pytest.raises(ValueError, match="columns of 2 values"):
        StepTable((0, 1), {"r": (1.0,)})
