"""What the page recommends: never more than the evidence allows, in the user's own terms."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_topo._figures.rates import rate_limits
from lightning_topo.measurement import Measurement, OpenCause
from lightning_topo.outputs.page._advice import FAILED, MARGIN, Advice, Evidence, advise, floor2, recommendation
from lightning_topo.outputs.page._outcome import history
from lightning_topo.outputs.record import RunRecord


def rate(step: int, value: float) -> Measurement:
    return Measurement(step, 0, "training", "", {"learning_rate": value})


def ratio(step: int, value: float, group: str = "net.0") -> Measurement:
    return Measurement(step, 0, "distortion", group, {"critical_ratio": value})


def edge(step: int, value: float) -> Measurement:
    return Measurement(step, 0, "sharpness", "", {"sharpness_ratio": value})


def loss(step: int, value: float) -> Measurement:
    return Measurement(step, 0, "training", "", {"loss": value})


def advice_on(*measurements: Measurement) -> Advice:
    record = RunRecord(Path("run"), "id", measurements)
    found = advise(history(record).outcome, Evidence.of(record.measurements))
    assert found is not None
    return found


def test_a_late_breakdown_asks_for_a_lower_rate_and_names_what_would_just_have_done() -> None:
    said = advice_on(rate(1, 0.5), *(ratio(k, 0.3) for k in range(1, 400, 9)), ratio(300, 2.15), ratio(301, 1.4))
    assert said.learning_rate == floor2(0.5 * MARGIN / 2.15) == 0.18
    assert said.decision == "Lower the learning rate from 0.5 to 0.18."
    assert "At most 0.23 would have kept every measured step" in said.reasons[0]
    assert "2.15, at step 300 in net.0" in said.reasons[0]
    assert "warm-up alone would not have" in said.reasons[1]


def test_of_several_learning_rates_at_once_none_is_named() -> None:
    """The record has that of the first parameter group: the neurons that broke down may have trained at another."""
    measured = (rate(1, 0.001), *(ratio(k, 0.3) for k in range(1, 400, 9)), ratio(300, 2.15))

    def decision(n_rates: int) -> str:
        record = RunRecord(Path("run"), "id", measured, about={"training": {"n_learning_rates": n_rates}})
        return recommendation(record)

    assert decision(1) == "Lower the learning rate from 0.001 to 0.00037."
    assert decision(2) == "Lower the learning rate to 0.37 times the present one."


def test_the_edge_that_advice_knows_of_is_that_which_decides() -> None:
    """By the sharpness of many samples the rate could be twenty times as large."""
    batches = [Measurement(k, 0, "step_edge", "", {"batch_sharpness_ratio": 0.8}) for k in range(1, 400, 20)]
    said = advice_on(rate(1, 0.1), *(ratio(k, 0.1) for k in range(1, 400, 9)), edge(9, 0.05), *batches)
    assert any(
        "The edge ratio was at most 0.8: the edge of stability is near 0.12" in reason for reason in said.reasons
    )


def test_a_breakdown_of_the_first_steps_alone_asks_for_a_warm_up() -> None:
    said = advice_on(rate(1, 0.01), ratio(1, 2.3), ratio(2, 1.5), *(ratio(k, 0.05) for k in range(10, 500, 10)))
    assert said.learning_rate is None
    assert said.warmup_steps is not None
    # r grows with the rate: at step s of k it would have been s / k of what it was.
    assert all(step * r / said.warmup_steps < 1.0 for step, r in ((1, 2.3), (2, 1.5)))
    assert said.decision == f"Warm the learning rate up to 0.01 over the first {said.warmup_steps} steps."


def test_a_warm_up_that_was_too_short_becomes_longer() -> None:
    rates = [rate(k, 0.1 * k) for k in range(1, 11)]
    said = advice_on(*rates, ratio(10, 2.0), *(ratio(k, 0.1) for k in range(30, 900, 30)))
    assert said.warmup_steps is not None
    assert said.warmup_steps >= 25


def test_without_a_recorded_rate_the_advice_is_a_factor() -> None:
    said = advice_on(ratio(1, 0.5), ratio(300, 4.0))
    assert said.decision == "Lower the learning rate to 0.2 times the present one."
    assert said.learning_rate is None


def test_a_divergence_leans_on_what_came_before_it() -> None:
    losses = [loss(1, 1.0), loss(2, 1.1), loss(3, 1.2), loss(4, 40.0), loss(9, math.nan)]
    ratios = [ratio(1, 0.5), ratio(2, 2.0), ratio(5, 133.0)]
    said = advice_on(rate(1, 1.0), *losses, *ratios, edge(2, 8.0), edge(5, 900.0))
    assert said.learning_rate == 0.1  # the edge ratio, 8, with the margin; 133 and 900 are the divergence itself
    assert not any("133" in reason or "900" in reason for reason in said.reasons)
    assert advice_on(rate(1, 1.0), loss(9, math.nan)).learning_rate == FAILED


def test_what_broke_and_learned_nothing_is_not_asked_to_warm_up() -> None:
    ratios = [ratio(2, 2.0), *(ratio(k, 0.01) for k in range(10, 200, 10))]
    losses = [loss(k, 2.3) for k in range(1, 200)]
    assert advice_on(rate(1, 0.5), *ratios, *losses).learning_rate == floor2(0.5 * FAILED)
    fallen = [loss(k, 2.3 / k) for k in range(1, 200)]
    assert advice_on(rate(1, 0.5), *ratios, *fallen).warmup_steps is not None


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


def test_a_loss_that_fell_and_came_back_asks_for_the_rate_at_which_it_was_lowest() -> None:
    rates = [rate(k, 0.01 * k) for k in range(1, 201)]
    losses = [loss(k, 2.3 - 0.02 * min(k, 80) if k <= 90 else 2.35) for k in range(1, 201)]
    opened = Measurement(90, 0, "coverage", "net.0", {"from": 80.0, "state": 0.0})
    said = advice_on(*rates, *losses, ratio(1, 0.2), opened)
    assert said.decision == "Lower the learning rate from 2 to 0.9."
    assert said.reasons[0] == (
        "The loss had fallen from 2.28 to 0.745 by step 90, and is 2.35 in the last steps: what was learned is lost."
    )
    assert any("is not known: neurons may have met" in reason for reason in said.reasons)
    assert advice_on(rate(1, 2.0), *losses, ratio(1, 0.2)).learning_rate == 1.0
    still = [loss(k, 2.3 - 0.02 * min(k, 80) if k <= 90 else 2.0) for k in range(1, 201)]
    assert advice_on(*rates, *still, ratio(1, 0.2)).decision.startswith("As far as r goes, keep")


def test_a_loss_that_came_back_asks_for_a_rate_below_the_edge_where_that_was_measured() -> None:
    losses = [loss(k, 2.3 - 0.02 * min(k, 80) if k <= 90 else 2.35) for k in range(1, 201)]
    said = advice_on(rate(1, 2.0), *losses, ratio(1, 0.2), *(edge(k, 1.01) for k in range(25, 201, 25)))
    assert said.learning_rate == floor2(2.0 * MARGIN / 1.01)
    assert said.reasons[1].startswith("At step 25 the edge ratio was 1.01: below the edge is at most 1.9,")
    assert not any("guess" in reason for reason in said.reasons)
    # Without a known rate in factors of the present one, and what the failure made of the curvature does not count.
    blown_up = [loss(k, 2.3 - 0.02 * min(k, 80) if k <= 90 else 9.0) for k in range(1, 201)]
    said = advice_on(*blown_up, ratio(1, 0.2), edge(80, 1.25), edge(120, 40.0))
    assert said.decision == "Lower the learning rate to 0.64 times the present one."
    below = advice_on(rate(1, 2.0), *losses, ratio(1, 0.2), *(edge(k, 0.8) for k in range(25, 201, 25)))
    assert below.learning_rate == 1.0
    assert any("is a guess" in reason for reason in below.reasons)


def test_equal_neurons_that_part_are_no_matter_of_the_rate() -> None:
    said = advice_on(rate(1, 0.1), ratio(1, 0.1), ratio(2, math.inf), ratio(3, 0.2))
    assert said.decision.startswith("Keep the learning rate 0.1: neurons that were equal have parted")
    assert advice_on(rate(1, 0.1), ratio(1, math.inf), ratio(300, 4.0)).learning_rate == floor2(0.1 * MARGIN / 4.0)


def test_where_nothing_was_measured_nothing_is_called_kept() -> None:
    assert advice_on(rate(1, 0.1), loss(3, 1.0)).decision.startswith("Measure")


def test_open_steps_are_to_be_measured() -> None:
    opened = Measurement(9, 0, "coverage", "net.0", {"from": 1.0, "state": 0.0})
    said = advice_on(rate(1, 0.1), ratio(1, 0.2), opened, *(loss(k, 2.3) for k in range(1, 60)))
    assert "Distortion(every_n_steps=1)" in said.decision
    assert any("The loss has not fallen" in reason for reason in said.reasons)
    assert said.learning_rate is None


@pytest.mark.parametrize(("last", "decision"), [(0.1, "Keep the learning rate 0.3"), (2.0, "Lower the learning rate")])
def test_at_the_edge_the_loss_decides(last: float, decision: str) -> None:
    edges = [edge(k, 1.2) for k in range(100, 200, 10)]
    losses = [loss(k, 1.0) for k in range(1, 125)] + [loss(k, last) for k in range(150, 201)]
    said = advice_on(rate(1, 0.3), *losses, *edges, ratio(200, 0.1))
    assert said.decision.startswith(decision)


@given(st.floats(1e-6, 10.0), st.lists(st.floats(1e-3, 50.0), min_size=2, max_size=20))
def test_a_lower_rate_would_have_kept_every_measured_step(start: float, ratios: list[float]) -> None:
    said = advice_on(rate(1, start), *(ratio(100 + 100 * k, r) for k, r in enumerate(ratios)))
    if said.learning_rate is not None:
        assert max(ratios) >= 1.0
        assert said.learning_rate * max(ratios) / start < 1.0


def test_limits_are_in_the_learning_rates_of_their_own_steps() -> None:
    found = rate_limits([rate(1, 0.1), rate(5, 0.2), ratio(2, 0.5), ratio(5, 0.5, "b"), ratio(5, 0.4), edge(6, 2.0)])
    assert found.critical == ((2, 0.2), (5, 0.4))
    assert found.edge == ((6, 0.1),)
    assert found.largest == 0.2


@given(st.floats(1e-9, 1e9))
def test_rounding_down_is_below_and_close(value: float) -> None:
    assert 0.89 * value <= floor2(value) <= value * (1 + 1e-8)


@pytest.mark.parametrize(
    ("cause", "decision"),
    [
        (OpenCause.NOT_MEASURED, "Keep the learning rate 0.3, and measure every step"),
        (None, "Keep the learning rate 0.3, and measure every step"),
        (OpenCause.MOVED, "As far as r goes, keep the learning rate 0.3"),
        (OpenCause.UNKNOWN_NEURONS, "As far as r goes, keep the learning rate 0.3"),
        (OpenCause.NOT_FINITE, "Lower the learning rate from 0.3 to"),
    ],
)
def test_more_measurements_are_asked_for_only_where_they_would_help(cause: OpenCause | None, decision: str) -> None:
    values = {"from": 4.0, "state": 0.0} | ({} if cause is None else {"cause": float(cause)})
    covered = Measurement(5, 0, "coverage", "net.0", values)
    losses = (loss(k, 2.0 / k) for k in range(1, 41))
    said = advice_on(rate(1, 0.3), ratio(1, 0.2), covered, *losses)
    assert said.decision.startswith(decision)
