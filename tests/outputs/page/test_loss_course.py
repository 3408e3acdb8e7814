"""Until when the loss of a run was sound."""

import math

import pytest

from lightning_topo.outputs.page._loss_course import LossCourse


@pytest.mark.parametrize(
    ("losses", "until"),
    [
        ([1.0, 1.4, 1.5, 1.6, 0.1], 4),
        ([1.0, 0.5, math.nan], 3),
        ([1.0, 0.5, 0.2], math.inf),
        ([-1.0, 2.0, 100.0], math.inf),  # of one that may be negative no multiple says anything
        ([-1.0, 2.0, math.inf, math.nan], 4),
        ([], math.inf),
    ],
)
def test_it_blows_up_at_half_as_much_again_as_at_first_or_where_it_is_no_number(losses, until):
    assert LossCourse(dict(enumerate(losses, 1))).sound_until == until


def test_a_loss_has_stalled_after_enough_steps_and_has_risen_where_its_level_did() -> None:
    flat = dict.fromkeys(range(1, 151), 2.3)
    assert LossCourse(flat).has_stalled
    assert LossCourse(flat | dict.fromkeys(range(2, 151), 2.25)).has_stalled  # 2 %
    assert not LossCourse(flat | dict.fromkeys(range(2, 151), 2.1)).has_stalled
    assert not LossCourse(flat).has_risen
    assert not LossCourse(dict.fromkeys(range(1, 99), 2.3)).has_stalled
    assert not LossCourse({step: 2.3 / step for step in range(1, 151)}).has_stalled
    assert not LossCourse(flat | {40: 4.0}).has_risen  # one peak of a small batch
    assert LossCourse(flat | dict.fromkeys(range(40, 60), 2.9)).has_risen
    assert not LossCourse(flat | {40: math.inf, 50: math.nan}).has_risen  # steps that a gradient scaler skips


def test_a_loss_that_was_no_number_once_hides_nothing_that_was_lost() -> None:
    course = {step: 2.3 if step < 20 or step > 120 else 0.5 for step in range(1, 201)}
    assert LossCourse(course | {10: math.nan}).lost == LossCourse(course).lost
