"""How far a rate is lowered where training went wrong: never more than the evidence asks for."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_topo.measurement import Measurement
from lightning_topo.outputs.page import recommendation
from lightning_topo.outputs.page._next_rate import FAILED, MARGIN, floor2
from lightning_topo.outputs.record import RunRecord
from lightning_topo.phases import EventName, TopologyEvent
from tests.outputs.page.advised import advice_on, edge, loss, rate, ratio


def test_a_late_breakdown_asks_for_a_lower_rate_and_names_what_would_just_have_done() -> None:
    said = advice_on(rate(1, 0.5), *(ratio(k, 0.3) for k in range(1, 400, 9)), ratio(300, 2.15), ratio(301, 1.4))
    assert said.learning_rate == floor2(0.5 * MARGIN / 2.15) == 0.18
    assert said.decision == "Lower the learning rate from 0.5 to 0.18."
    assert "At most 0.23 would have kept every measured step" in said.reasons[0]
    assert "2.15, at step 300 in net.0" in said.reasons[0]
    assert "warm-up alone would not have" in said.reasons[1]


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


@given(st.floats(1e-6, 10.0), st.lists(st.floats(1e-3, 50.0), min_size=2, max_size=20))
def test_a_lower_rate_would_have_kept_every_measured_step(start: float, ratios: list[float]) -> None:
    said = advice_on(rate(1, start), *(ratio(100 + 100 * k, r) for k, r in enumerate(ratios)))
    if said.learning_rate is not None:
        assert max(ratios) >= 1.0
        assert said.learning_rate * max(ratios) / start < 1.0


@pytest.mark.parametrize(("outside", "largest"), [(3, 1e4), (None, 1e4), (9, 1e4), (3, 2.0)])
def test_where_something_else_makes_neurons_nearly_equal_the_rate_is_not_the_cause(outside, largest) -> None:
    measured = (rate(1, 0.1), *(ratio(step, largest if step == 8 else 0.1) for step in range(1, 11)))
    event = TopologyEvent(EventName.OUTSIDE_CHANGE, outside or 1, 0, message="Weights were clipped.", remedy="Look.")
    record = RunRecord(Path("run"), "id", measured, (event,) if outside is not None else ())
    said = recommendation(record)
    blames_else = said == "Keep the learning rate 0.1, and look at what moves parameters beside the optimizer."
    assert blames_else == ((outside, largest) == (3, 1e4))
    assert blames_else or "Lower the learning rate" in said or "Warm" in said
