"""The benchmarks' clock, by a clock of the test's own."""

import pytest

from benchmarks.stopwatch import Laps


def test_laps_hold_all_of_the_time_from_the_first_step_on_and_what_was_spent_in_each():
    time = 100.0  # of the machine, long before the training

    def later(seconds):
        nonlocal time
        time += seconds

    laps = Laps(lambda: time)
    before, after = laps.around()

    def watched(hook, seconds):
        getattr(before, hook)()
        later(seconds)
        getattr(after, hook)()

    for first, step, last in ((3.0, 1.0, 4.0), (0.0, 1.0, 1.0)):
        watched("on_train_batch_start", first)
        later(step)
        watched("on_train_batch_end", last)
    watched("on_train_epoch_end", 2.0)
    assert laps.marks == [100.0, 108.0, 110.0]
    assert laps.spent == [7.0, 1.0, 2.0]
    assert laps.share() == pytest.approx(10.0 / 12.0)  # all but the two steps themselves
    assert laps.share(1) == pytest.approx(3.0 / 4.0)
