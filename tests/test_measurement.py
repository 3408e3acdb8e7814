"""A measurement: named values at one step."""

import pytest

from lightning_topo.measurement import GLOBAL, Measurement, StepState


def test_values_may_not_be_named_like_the_fields_of_a_line():
    for name in ("step", "epoch", "probe", "group", "reference_step", "n_merged", "schema", "run_id"):
        with pytest.raises(ValueError, match=rf"mine: {name} cannot be"):
            Measurement(1, 0, "mine", "", {"fine": 1.0, name: 2.0})


@pytest.mark.parametrize(("step", "epoch"), [(-1, 0), (0, -1)])
def test_steps_and_epochs_are_counts(step, epoch):
    with pytest.raises(ValueError, match="expected step >= 0 and epoch >= 0"):
        Measurement(step, epoch, "mine", GLOBAL, {})
    assert Measurement(0, 0, "mine") == Measurement(0, 0, "mine", "", {})


def test_only_measured_and_bounded_steps_are_certified_and_the_weakest_comes_first():
    assert sorted(StepState, reverse=True) == [StepState.EXACT, StepState.BOUNDED, StepState.SPANNED, StepState.OPEN]
    assert {state.word for state in StepState if state.certified} == {"exact", "bounded"}
