"""What one probe has found: of all processes together, and of two updates in one batch."""

import pytest

from lightning_topo._watch.outcome import Failure, FailureKind, Outcome, joined, united

ORDER = {"a": 0, "b": 1}


def outcome(values=None, **options):
    return Outcome("distortion", 3, 0, {} if values is None else values, **options)


def test_a_divided_probe_s_groups_are_put_together_in_their_order():
    together = united([outcome({"b": {"x": 2.0}}), outcome({"a": {"x": 1.0}}, problems={"c": "no"})], True, ORDER)
    assert list(together.values) == ["a", "b"]
    assert together.problems == {"c": "no"}
    assert together.failure is None


def test_of_any_other_probe_rank_0_counts():
    every = [outcome({"": {"x": 1.0}}, seconds=1.0), outcome({"": {"x": 9.0}}, seconds=2.0)]
    together = united(every, False, ORDER)
    assert together.values == {"": {"x": 1.0}}
    assert together.seconds == 2.0


@pytest.mark.parametrize("divided", [True, False])
def test_a_failure_on_one_process_is_named_and_leaves_the_others_groups(divided):
    every = [outcome({"a": {"x": 1.0}}), outcome(failure=Failure("no", "try again"))]
    together = united(every, divided, ORDER)
    assert together.failure == Failure("on process 1: no", "try again")
    assert together.values == ({"a": {"x": 1.0}} if divided else {})


def test_the_same_failure_everywhere_is_said_once_and_the_worst_kind_counts():
    same = [outcome(failure=Failure("no"))] * 3
    assert united(same, True, ORDER).failure.message == "no"
    kinds = [FailureKind.FAILED, FailureKind.UNAVAILABLE]
    mixed = [outcome(failure=Failure(kind.value, kind=kind)) for kind in kinds]
    assert united(mixed, False, ORDER).failure.kind is FailureKind.UNAVAILABLE


def test_of_two_updates_in_a_batch_each_quantity_keeps_its_worst():
    first = outcome({"a": {"critical_ratio": 0.3, "contraction": 0.9, "distinct_neurons": 8.0}}, seconds=1.0)
    second = outcome({"a": {"critical_ratio": 0.2, "contraction": 0.95, "distinct_neurons": 7.0}, "b": {}}, seconds=2.0)
    both = joined(first, second)
    assert both.values == {"a": {"critical_ratio": 0.3, "contraction": 0.9, "distinct_neurons": 7.0}, "b": {}}
    assert both.seconds == 3.0


def test_a_user_s_own_values_keep_the_last():
    first, second = (Outcome("mine", 3, 0, {"": {"critical_ratio": r}}) for r in (0.3, 0.2))
    assert joined(first, second).values == {"": {"critical_ratio": 0.2}}


def test_a_failure_of_either_update_is_one_of_both():
    failed = outcome(failure=Failure("no"))
    assert joined(failed, outcome()).failure == joined(outcome(), failed).failure == Failure("no")
