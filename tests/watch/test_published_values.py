"""Which values go out, under which keys."""

import math

import pytest

from lightning_topo._watch.published_values import Readings, mangled_names
from lightning_topo.measurement import GLOBAL, Measurement


def take(readings, group, values, probe="distortion"):
    readings.take(Measurement(1, 0, probe, group, values))


def row(readings):
    return dict(readings.row(1, 0).values)


def test_names_are_mangled_and_kept_apart():
    names = mangled_names(["a.b", "a_b", "a b", "c/d-e", "<x>", "worst"])
    assert names == {
        "a.b": "a_b",
        "a_b": "a_b_2",
        "a b": "a_b_3",
        "c/d-e": "c/d-e",
        "<x>": "_x_",
        "worst": "worst_2",
    }


def test_extremes_are_kept_until_the_row_is_taken():
    readings = Readings(["g"])
    for r, a, b in ((0.1, 0.9, 1.1), (0.7, 0.5, 1.2), (0.2, 0.95, 1.05)):
        take(readings, "g", {"critical_ratio": r, "contraction": a, "expansion": b})
        readings.metrics()
    assert row(readings) == {
        "topology/g/critical_ratio": 0.7,
        "topology/g/contraction": 0.5,
        "topology/g/expansion": 1.2,
        "topology/worst/critical_ratio": 0.7,
        "topology/worst/contraction": 0.5,
        "topology/worst/expansion": 1.2,
        "topology/critical_ratio": 0.7,
    }
    take(readings, "g", {"critical_ratio": 0.3})
    assert set(row(readings).values()) == {0.3}
    assert row(readings) == {}


def test_other_values_are_the_latest():
    readings = Readings(["g"])
    for value in (3.0, 1.0):
        take(readings, "g", {"betti_0": value}, "persistence")
        take(readings, "g", {"total_expansion": value})
    assert set(row(readings).values()) == {1.0}


def test_the_metrics_always_hold_all_and_the_row_the_worst():
    readings = Readings(["a", "b"], "worst")
    take(readings, "a", {"critical_ratio": 0.1, "contraction": 0.2})
    take(readings, "b", {"critical_ratio": 0.4, "contraction": 0.9})
    assert len(readings.metrics()) == 5
    assert row(readings) == {
        "topology/critical_ratio": 0.4,
        "topology/worst/critical_ratio": 0.4,
        "topology/worst/contraction": 0.2,
    }


@pytest.mark.parametrize(
    ("log_groups", "logged"), [("worst", set()), ("all", {"enc.0", "enc.1", "dec"}), (["d*"], {"dec"})]
)
def test_groups_are_chosen(log_groups, logged):
    readings = Readings(["enc.0", "enc.1", "dec"], log_groups)
    for group, value in (("enc.0", 1.0), ("enc.1", 3.0), ("dec", 2.0)):
        take(readings, group, {"betti_0": value}, "persistence")
    found = row(readings)
    assert found.pop("topology/worst/betti_0") == 3.0
    assert set(found) == {f"topology/{g.replace('.', '_')}/betti_0" for g in logged}


@pytest.mark.parametrize(("n", "n_keys"), [(4, 5), (5, 1)])
def test_by_default_few_groups_all_go_out_and_of_many_the_worst(n, n_keys):
    readings = Readings([f"g{i}" for i in range(n)])
    for i in range(n):
        take(readings, f"g{i}", {"betti_0": float(i)}, "persistence")
    assert len(row(readings)) == n_keys


def test_only_what_is_new_competes_for_the_worst():
    """The row tells of the time since the last one: a group that was not measured again is not in it."""
    readings = Readings(["a", "b"], "worst")
    take(readings, "a", {"critical_ratio": 0.9})
    take(readings, "b", {"critical_ratio": 0.1})
    row(readings)
    take(readings, "b", {"critical_ratio": 0.2})
    assert row(readings) == {"topology/worst/critical_ratio": 0.2, "topology/critical_ratio": 0.2}


def test_what_is_not_a_number_is_the_worst():
    readings = Readings(["a", "b"], "worst")
    take(readings, "a", {"betti_0": math.nan}, "persistence")
    take(readings, "b", {"betti_0": 9.0}, "persistence")
    assert math.isnan(row(readings)["topology/worst/betti_0"])


def test_how_a_value_was_made_is_for_the_record_only_unless_the_probe_is_a_users():
    values = {"sharpness": 1.0, "residual": 0.1, "n_hvp": 4.0, "converged": 1.0, "exact": 1.0}
    ours, theirs = Readings(["a"]), Readings(["a"])
    take(ours, GLOBAL, values, "sharpness")
    take(ours, "a", {"critical_i": 1.0, "critical_j": 2.0})
    assert set(ours.metrics()) == {"topology/sharpness"}
    take(theirs, GLOBAL, values, "fit")
    assert set(theirs.metrics()) == {f"topology/{name}" for name in values}


def test_of_a_users_own_value_the_last_is_kept_whatever_its_name():
    readings = Readings([])
    for value in (1.0, 3.0, 2.0):
        take(readings, GLOBAL, {"expansion": value, "critical_ratio": value}, "fit")
    assert row(readings) == {"topology/expansion": 2.0, "topology/critical_ratio": 2.0}


@pytest.mark.parametrize("ours_first", [True, False])
def test_a_users_value_never_takes_the_key_of_another_probe(ours_first):
    readings = Readings([])
    found = [(1.5, "sharpness"), (7.0, "fit")]
    for value, probe in found if ours_first else found[::-1]:
        take(readings, GLOBAL, {"sharpness_ratio": value}, probe)
    take(readings, GLOBAL, {"sharpness_ratio": 8.0}, "fit")
    expected = {"topology/sharpness_ratio": 1.5, "topology/fit/sharpness_ratio": 8.0}
    assert row(readings) == expected
    assert {key: float(value) for key, value in readings.metrics().items()} == expected


def test_what_the_monitor_notes_of_the_training_is_not_published():
    readings = Readings(["g"])
    take(readings, GLOBAL, {"loss": 2.0}, "training")
    take(readings, GLOBAL, {"distortion_every": 5.0}, "schedule")
    take(readings, "g", {"from": 1.0, "state": 2.0, "bound": 0.5}, "coverage")
    take(readings, GLOBAL, {"coverage": 0.9, "coverage_span": 1.0}, "coverage")
    take(readings, GLOBAL, {"stopped": 1.0, "quiet_captures": 3.0}, "gate")
    take(readings, GLOBAL, {"phase": 2.0, "overhead": 0.01}, "phase")
    assert set(readings.metrics()) == {
        f"topology/{name}" for name in ("coverage", "coverage_span", "stopped", "phase", "overhead")
    }


def test_log_groups_are_checked():
    with pytest.raises(ValueError, match="worst"):
        Readings([], "best")


def test_what_has_not_changed_is_not_made_anew_and_what_has_is():
    readings = Readings(["a", "b"])
    take(readings, "a", {"betti_0": 1.0}, "persistence")
    take(readings, "b", {"betti_0": 2.0}, "persistence")
    before = dict(readings.metrics())
    take(readings, "b", {"betti_0": 3.0}, "persistence")
    after = readings.metrics()
    assert after["topology/a/betti_0"] is before["topology/a/betti_0"]
    assert {key: float(value) for key, value in after.items()} == {"topology/a/betti_0": 1.0, "topology/b/betti_0": 3.0}
    assert float(before["topology/b/betti_0"]) == 2.0


def test_groups_that_only_a_probe_knows_are_published_too():
    readings = Readings(["a.b"])
    take(readings, "a_b", {"mine": 1.0}, "own")
    take(readings, "x y", {"mine": 2.0}, "own")
    assert row(readings) == {"topology/a_b_2/mine": 1.0, "topology/x_y/mine": 2.0, "topology/worst/mine": 2.0}
    assert set(readings.keys) == {*readings.metrics(), "topology/worst/mine"}
