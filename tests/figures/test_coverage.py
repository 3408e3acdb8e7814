"""The states of steps, against a table of every step made by hand."""

import math

from hypothesis import given
from hypothesis import strategies as st

from lightning_topo._figures.coverage import Stretch, of_network, stretches, uncovered, weakest
from lightning_topo.measurement import Measurement, StepState
from lightning_topo.phases import Phase

COVERED = st.lists(
    st.builds(
        lambda first, length, state: Stretch(first, first + length, state),
        st.integers(1, 30), st.integers(0, 10), st.sampled_from(StepState),
    ),
    max_size=8,
)  # fmt: skip


def line(begins: float, ends: int, state: float, bound: float | None = None, group: str = "a") -> Measurement:
    values = {"from": begins, "state": float(state)} | ({} if bound is None else {"bound": bound})
    return Measurement(ends, 0, "coverage", group, values)


@given(COVERED)
def test_each_step_counts_as_its_weakest(covered: list[Stretch]) -> None:
    expected: dict[int, StepState] = {}
    for stretch in covered:
        for step in range(stretch.first, stretch.last + 1):
            expected[step] = min(stretch.state, expected.get(step, StepState.EXACT))
    found = weakest(covered)
    assert {step: s.state for s in found for step in range(s.first, s.last + 1)} == expected
    assert sum(s.last - s.first + 1 for s in found) == len(expected)


@given(COVERED)
def test_steps_of_no_line_are_open(covered: list[Stretch]) -> None:
    found = of_network({"a": covered}, since=0)
    if covered:
        steps = [step for s in found for step in range(s.first, s.last + 1)]
        assert steps == list(range(1, max(s.last for s in covered) + 1))
        named = {step for s in covered for step in range(s.first, s.last + 1)}
        assert all(s.state is StepState.OPEN for s in found for step in range(s.first, s.last + 1) if step not in named)


def test_lines_that_certify_nothing_are_open() -> None:
    lines = [
        line(0, 4, StepState.BOUNDED, 0.2),
        line(4, 5, StepState.BOUNDED, math.nan),
        line(5, 6, StepState.BOUNDED, 1.0),
        line(6, 7, 9.0),
        line(math.nan, 8, StepState.EXACT),
        line(8, 8, StepState.OPEN),
    ]
    states = [(s.first, s.last, s.state.name, s.bound) for s in stretches(lines)["a"]]
    opened = [(step, step, "OPEN", None) for step in (5, 6, 7, 8)]
    assert states == [(1, 4, "BOUNDED", 0.2), *opened]


def test_what_follows_an_open_step_is_preserved_from_where_it_is_certified() -> None:
    """A replay knows that only at the last step of the line that says so."""
    covered = {"a": (Stretch(1, 4, StepState.EXACT), Stretch(5, 5, StepState.OPEN), Stretch(6, 60, StepState.BOUNDED))}
    replayed = ((1, Phase.PRESERVED), (5, Phase.UNKNOWN), (60, Phase.PRESERVED))
    wanted = ((1, Phase.PRESERVED), (5, Phase.UNKNOWN), (6, Phase.PRESERVED))
    assert uncovered({"": replayed, "a": replayed}, covered) == {"": wanted, "a": wanted}
    # Where something else ends it, the phase stays unknown up to there.
    edged = ((1, Phase.PRESERVED), (5, Phase.UNKNOWN), (30, Phase.EDGE_OF_STABILITY), (60, Phase.PRESERVED))
    assert uncovered({"a": edged}, covered)["a"] == edged


def test_the_first_phase_begins_where_the_first_line_does_though_that_came_later() -> None:
    covered = {"a": (Stretch(1, 16, StepState.BOUNDED, 0.0), Stretch(17, 40, StepState.BOUNDED, 0.1))}
    assert uncovered({"a": ((16, Phase.PRESERVED),)}, covered)["a"] == ((1, Phase.PRESERVED),)
    assert uncovered({"a": ((16, Phase.BREAKDOWN),)}, covered)["a"] == ((16, Phase.BREAKDOWN),)
    covered = {"a": (Stretch(1, 9, StepState.OPEN), Stretch(10, 16, StepState.BOUNDED, 0.0))}
    assert uncovered({"a": ((16, Phase.PRESERVED),)}, covered)["a"] == ((10, Phase.PRESERVED),)


def test_no_phase_is_preserved_over_open_steps() -> None:
    covered = {"a": (Stretch(1, 9, StepState.BOUNDED, 0.1), Stretch(10, 14, StepState.OPEN))}
    covered["a"] += (Stretch(15, 20, StepState.EXACT), Stretch(21, 22, StepState.SPANNED))
    phases = {"": ((1, Phase.PRESERVED), (12, Phase.BREAKDOWN), (13, Phase.PRESERVED)), "a": ((1, Phase.PRESERVED),)}
    found = uncovered(phases, covered)
    assert found["a"] == (
        (1, Phase.PRESERVED), (10, Phase.UNKNOWN), (15, Phase.PRESERVED), (21, Phase.UNKNOWN), (23, Phase.PRESERVED),
    )  # fmt: skip
    assert found[""] == (
        (1, Phase.PRESERVED), (10, Phase.UNKNOWN), (12, Phase.BREAKDOWN), (13, Phase.UNKNOWN), (15, Phase.PRESERVED),
        (21, Phase.UNKNOWN), (23, Phase.PRESERVED),
    )  # fmt: skip
    assert uncovered(phases, {}) == phases
