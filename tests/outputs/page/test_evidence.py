"""What of a record is evidence for the next run's learning rate."""

import math
from pathlib import Path

from lightning_topo._figures.rates import RateLimits, rate_limits
from lightning_topo.outputs.page._advice import recommendation
from lightning_topo.outputs.page._evidence import Evidence
from lightning_topo.outputs.record import RunRecord
from tests.outputs.page.advised import edge, loss, rate, ratio


def test_of_several_learning_rates_at_once_none_is_named() -> None:
    """The record has that of the first parameter group: the neurons that broke down may have trained at another."""
    measured = (rate(1, 0.001), *(ratio(k, 0.3) for k in range(1, 400, 9)), ratio(300, 2.15))

    def decision(n_rates: int) -> str:
        record = RunRecord(Path("run"), "id", measured, about={"training": {"n_learning_rates": n_rates}})
        return recommendation(record)

    assert decision(1) == "Lower the learning rate from 0.001 to 0.00037."
    assert decision(2) == "Lower the learning rate to 0.37 times the present one."


def test_limits_are_in_the_learning_rates_of_their_own_steps() -> None:
    found = rate_limits([rate(1, 0.1), rate(5, 0.2), ratio(2, 0.5), ratio(5, 0.5, "b"), ratio(5, 0.4), edge(6, 2.0)])
    assert found.critical == ((2, 0.2), (5, 0.4))
    assert found.edge == ((6, 0.1),)
    assert found.largest == 0.2


def test_it_has_the_largest_of_all_groups_the_loss_and_the_rates_of_their_steps() -> None:
    measured = [rate(1, 0.1), ratio(2, 0.5), ratio(2, 0.7, "net.2"), edge(3, 2.0), *(loss(k, 4.0 / k) for k in (1, 2))]
    found = Evidence.of(measured)
    assert (dict(found.ratios), dict(found.edges)) == ({2: 0.7}, {3: 2.0})
    assert (found.loss.first, found.limits.largest) == (4.0, 0.1)


def test_a_damaged_number_of_rates_is_taken_for_one() -> None:
    def limits(about: dict[str, object]) -> RateLimits:
        return Evidence.of_record(RunRecord(Path("run"), "id", (rate(1, 0.1),), about=about)).limits

    assert [limits(about).largest for about in ({}, {"training": "?"}, {"training": {"n_learning_rates": "2"}})] == [
        0.1,
        0.1,
        0.1,
    ]
    assert limits({"training": {"n_learning_rates": 2}}) == RateLimits()


def test_a_run_of_which_nothing_is_known_gives_empty_evidence() -> None:
    found = Evidence.of([loss(1, math.nan)])
    assert (dict(found.ratios), dict(found.edges), found.limits) == ({}, {}, RateLimits())
