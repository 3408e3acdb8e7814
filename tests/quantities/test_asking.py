"""The table asked by name: families, and values of a user's own probes."""

from lightning_topo.quantities import QUANTITIES, RESERVED_PROBES, Direction, direction, is_published, quantity


def test_what_a_users_probe_measures_is_its_own():
    for name, row in QUANTITIES.items():
        assert quantity(name, "fit") is None
        assert is_published(name, "fit")
        assert direction(name, "fit") is Direction.NEUTRAL
        assert is_published(name, row.probe) == row.published


def test_families_have_a_dimension():
    assert quantity("betti_12") is quantity("betti_k")
    assert quantity("betti_") is None
    assert quantity("betti") is None
    assert quantity("sharpness_0") is None


def test_the_monitors_own_probes_publish_nothing_that_is_not_in_the_table():
    assert not any(is_published("anything", probe) for probe in RESERVED_PROBES)
