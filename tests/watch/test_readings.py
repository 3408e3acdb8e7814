"""Which values go out, under which keys."""

import math

import pytest

from lightning_topo.watch.readings import Publisher, mangled_names


def test_names_are_mangled_and_kept_apart():
    names = mangled_names(["a.b", "a_b", "a b", "c/d-e", "<x>"])
    assert names == {"a.b": "a_b", "a_b": "a_b_2", "a b": "a_b_3", "c/d-e": "c/d-e", "<x>": "_x_"}


def test_extremes_are_kept_until_the_row_is_taken():
    publisher = Publisher(["g"])
    for r, a, b in ((0.1, 0.9, 1.1), (0.7, 0.5, 1.2), (0.2, 0.95, 1.05)):
        publisher.take("g", {"critical_ratio": r, "contraction": a, "expansion": b})
    row = publisher.row()
    assert row == {
        "topology/g/critical_ratio": 0.7,
        "topology/g/contraction": 0.5,
        "topology/g/expansion": 1.2,
        "topology/critical_ratio": 0.7,
    }
    publisher.take("g", {"critical_ratio": 0.3})
    assert publisher.row() == {"topology/g/critical_ratio": 0.3, "topology/critical_ratio": 0.3}
    assert publisher.row() == {}


def test_other_values_are_the_latest():
    publisher = Publisher(["g"])
    for value in (3.0, 1.0):
        publisher.take("g", {"betti_0": value, "total_expansion": value})
    assert publisher.row() == {"topology/g/betti_0": 1.0, "topology/g/total_expansion": 1.0}


def test_the_trainer_always_has_all_and_the_logger_the_worst():
    publisher = Publisher(["a", "b"])
    publisher.take("a", {"critical_ratio": 0.1, "contraction": 0.2, "betti_0": 5.0})
    publisher.take("b", {"critical_ratio": 0.4, "contraction": 0.9, "betti_0": 7.0})
    assert len(publisher.metrics()) == 7
    assert set(publisher.row()) == {
        "topology/critical_ratio",
        "topology/b/critical_ratio",
        "topology/a/contraction",
        "topology/b/betti_0",
    }


@pytest.mark.parametrize(
    ("log_groups", "logged"), [("worst", {"enc.1"}), ("all", {"enc.0", "enc.1", "dec"}), (["d*"], {"enc.1", "dec"})]
)
def test_groups_are_chosen(log_groups, logged):
    publisher = Publisher(["enc.0", "enc.1", "dec"], log_groups)
    for group, value in (("enc.0", 1.0), ("enc.1", 3.0), ("dec", 2.0)):
        publisher.take(group, {"betti_0": value})
    assert set(publisher.row()) == {f"topology/{g.replace('.', '_')}/betti_0" for g in logged}


def test_what_is_not_a_number_is_the_worst():
    publisher = Publisher(["a", "b"])
    publisher.take("a", {"betti_0": math.nan})
    publisher.take("b", {"betti_0": 9.0})
    assert set(publisher.row()) == {"topology/a/betti_0"}


def test_how_a_value_was_made_is_for_the_record_only():
    publisher = Publisher(["a"])
    publisher.take("", {"sharpness": 1.0, "residual": 0.1, "n_hvp": 4.0, "converged": 1.0})
    publisher.take("a", {"critical_i": 1.0, "critical_j": 2.0})
    assert set(publisher.metrics()) == {"topology/sharpness"}


def test_log_groups_are_checked():
    with pytest.raises(ValueError, match="worst"):
        Publisher([], "best")


def test_what_has_not_changed_is_not_made_anew_and_what_has_is():
    publisher = Publisher(["a", "b"])
    publisher.take("a", {"betti_0": 1.0})
    publisher.take("b", {"betti_0": 2.0})
    before = dict(publisher.metrics())
    publisher.take("b", {"betti_0": 3.0})
    after = publisher.metrics()
    assert after["topology/a/betti_0"] is before["topology/a/betti_0"]
    assert {key: float(value) for key, value in after.items()} == {"topology/a/betti_0": 1.0, "topology/b/betti_0": 3.0}
    assert float(before["topology/b/betti_0"]) == 2.0


def test_groups_that_only_a_probe_knows_are_published_too():
    publisher = Publisher(["a.b"])
    publisher.take("a_b", {"mine": 1.0})
    publisher.take("x y", {"mine": 2.0})
    assert publisher.row() == {"topology/x_y/mine": 2.0}
    assert set(publisher.keys) == set(publisher.metrics()) == {"topology/a_b_2/mine", "topology/x_y/mine"}
