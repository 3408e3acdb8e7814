"""What is advised where no step has broken a limit: no more than what was measured allows."""

import math

import pytest

from lightning_topo.measurement import Measurement, OpenCause
from tests.outputs.page.advised import advice_on, edge, loss, rate, ratio


def test_a_loss_that_never_fell_asks_for_another_rate_though_no_limit_was_met() -> None:
    stalled = [rate(1, 0.1), *(loss(k, 2.3) for k in range(1, 160))]
    said = advice_on(*stalled, *(ratio(k, 0.1) for k in range(1, 60)))
    assert said.decision == "Lower the learning rate from 0.1 to 0.02: the loss has not fallen."
    assert said.reasons[0].startswith("It was 2.3 at first and 2.3 in the last steps")
    assert any("The edge of stability was not measured" in reason for reason in said.reasons)
    assert said.learning_rate == 0.02
    measured = advice_on(*stalled, ratio(3, 0.1), edge(20, 0.05))
    assert not any("edge of stability" in reason for reason in measured.reasons)  # from a collapsed net, it is none
    risen = [rate(1, 0.1), loss(1, 2.0), *(loss(k, 3.3) for k in range(2, 160))]
    assert advice_on(*risen, ratio(3, 0.01)).learning_rate == 0.02


def test_a_rate_that_may_be_too_low_is_not_lowered() -> None:
    stalled = [rate(1, 0.1), *(loss(k, 2.3) for k in range(1, 160)), *(ratio(k, 1e-3) for k in range(1, 60))]
    said = advice_on(*stalled)
    assert said.decision.startswith("Sweep the learning rate")
    assert said.learning_rate is None


def test_a_loss_that_has_hardly_fallen_asks_to_lower_the_rate_only_where_it_rose_in_between() -> None:
    """A transformer without a warm-up: chance after 188 steps is a little lower than the first batch's loss."""
    little = [rate(1, 0.01), ratio(1, 0.25), loss(1, 2.37), *(loss(k, 2.33) for k in range(2, 189))]
    assert advice_on(*little).decision.endswith("sharpness=None): the loss has hardly fallen.")
    spike = [*little, *(loss(k, 2.9) for k in range(2, 30))]
    assert advice_on(*spike).decision == "Lower the learning rate from 0.01 to 0.002: the loss has hardly fallen."


def test_at_the_edge_a_loss_that_fell_and_stands_is_kept() -> None:
    losses = [*(loss(k, 2.3 - 0.02 * k) for k in range(1, 90)), *(loss(k, 0.5) for k in range(90, 150))]
    edges = [edge(k, 0.99) for k in range(100, 190, 10)]
    said = advice_on(rate(1, 0.1), *losses, *(loss(k, 0.503) for k in range(150, 200)), *edges)
    assert said.decision.startswith("Keep the learning rate 0.1")
    assert said.reasons[0].startswith("The loss stayed about the same there")


def test_an_edge_that_was_seen_by_forward_passes_was_measured() -> None:
    flat = [rate(1, 0.1), ratio(3, 0.2), *(loss(k, 2.3) for k in range(1, 160))]
    seen = Measurement(9, 0, "step_edge", "", {"critical_sharpness": 0.4})
    assert not any("not measured" in reason for reason in advice_on(*flat, seen).reasons)
    assert any("not measured" in reason for reason in advice_on(*flat).reasons)
    assert advice_on(rate(1, 0.1), seen).decision.endswith("r was not measured.")


def test_a_first_batch_that_was_easy_is_no_rise() -> None:
    stands = [rate(1, 0.1), ratio(3, 1e-3), loss(1, 1.0), *(loss(k, 1.06) for k in range(2, 160))]
    assert advice_on(*stands).decision.startswith("Sweep the learning rate")


def test_of_a_few_steps_the_loss_is_named_and_nothing_asked() -> None:
    few = [rate(1, 0.1), *(loss(k, 2.3) for k in range(1, 60)), *(ratio(k, 0.2) for k in range(1, 60))]
    said = advice_on(*few)
    assert said.decision.startswith("As far as r goes, keep the learning rate 0.1")
    assert "The loss has not fallen" in said.reasons[0]


def test_what_was_not_measured_is_no_limit_that_was_not_met() -> None:
    fallen = [rate(1, 0.1), *(loss(k, 2.3 / k) for k in range(1, 60))]
    assert advice_on(*fallen, ratio(3, 0.1)).decision.endswith("the edge of stability was not measured.")
    assert advice_on(*fallen, edge(3, 0.1)).decision.endswith("r was not measured.")
    assert advice_on(*fallen, ratio(3, 0.1), edge(3, 0.1)).decision.endswith("no limit was met.")


def test_a_peak_where_the_edge_was_met_is_no_level_from_which_the_loss_fell() -> None:
    """A transformer without a warm-up: 2.29 at first, a peak, and 2.34 to the end."""
    losses = [loss(1, 2.29), *(loss(k, 2.9) for k in range(2, 30)), *(loss(k, 2.34) for k in range(30, 200))]
    edges = [edge(k, 3.5) for k in range(2, 40)]
    said = advice_on(rate(1, 0.01), ratio(1, 0.2), *losses, *edges)
    assert said.decision == "Lower the learning rate from 0.01 to 0.0022."
    assert "The loss has not fallen at the edge: 2.29 before" in said.reasons[0]


@pytest.mark.parametrize(("last", "decision"), [(0.1, "Keep the learning rate 0.3"), (2.0, "Lower the learning rate")])
def test_at_the_edge_the_loss_decides(last: float, decision: str) -> None:
    edges = [edge(k, 1.2) for k in range(100, 200, 10)]
    losses = [loss(k, 1.0) for k in range(1, 125)] + [loss(k, last) for k in range(150, 201)]
    said = advice_on(rate(1, 0.3), *losses, *edges, ratio(200, 0.1))
    assert said.decision.startswith(decision)


def test_open_steps_are_to_be_measured() -> None:
    opened = Measurement(9, 0, "coverage", "net.0", {"from": 1.0, "state": 0.0})
    said = advice_on(rate(1, 0.1), ratio(1, 0.2), opened, *(loss(k, 2.3) for k in range(1, 60)))
    assert "Distortion(every_n_steps=1)" in said.decision
    assert any("The loss has not fallen" in reason for reason in said.reasons)
    assert said.learning_rate is None


def test_where_nothing_was_measured_nothing_is_called_kept() -> None:
    assert advice_on(rate(1, 0.1), loss(3, 1.0)).decision.startswith("Measure")


def test_the_edge_that_advice_knows_of_is_that_which_decides() -> None:
    """By the sharpness of many samples the rate could be twenty times as large."""
    batches = [Measurement(k, 0, "step_edge", "", {"batch_sharpness_ratio": 0.8}) for k in range(1, 400, 20)]
    said = advice_on(rate(1, 0.1), *(ratio(k, 0.1) for k in range(1, 400, 9)), edge(9, 0.05), *batches)
    assert any(
        "The edge ratio was at most 0.8: the edge of stability is near 0.12" in reason for reason in said.reasons
    )


def test_one_bad_batch_asks_for_a_look_at_it_and_for_no_other_rate() -> None:
    sound = [rate(1, 0.1), ratio(3, 0.2), *(loss(k, 2.0 / k) for k in range(1, 60) if k != 20)]
    said = advice_on(*sound, loss(20, math.nan))
    assert said.decision == "Look at the data of step 20: the loss was not finite there, and later it was."
    assert said.reasons[0] == advice_on(*sound).decision
    assert said.learning_rate is None
    # It is no excuse for weights that are lost, or for what else became unstable.
    lost = Measurement(30, 0, "coverage", "a", {"from": 29.0, "state": 0.0, "cause": float(OpenCause.NOT_FINITE)})
    assert advice_on(*sound, loss(20, math.nan), lost).decision.startswith("Lower the learning rate")
    exploded = [loss(k, 1e6 * 4.0**k) for k in range(60, 90)]
    assert advice_on(*sound, loss(20, math.nan), *exploded).decision.startswith("Lower the learning rate")
