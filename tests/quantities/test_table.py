"""The table of quantities: whole, consistent, and asked by name."""

import re

import pytest

from lightning_topo.outputs._gates import SEEN_BY
from lightning_topo.quantities import OUR_PROBES, QUANTITIES, RESERVED_VALUES, Direction, Keep, Scope, quantity

# The keys of the contract: `k` stands for a dimension.
GLOBAL_KEYS = (
    "phase",
    "critical_ratio",
    "critical_ratio_bound",
    "sharpness",
    "sharpness_ratio",
    "eta_lambda",
    "overhead",
    "coverage",
    "coverage_span",
    "batch_sharpness_ratio",
    "critical_sharpness",
    "directional_ratio",
)
GROUP_KEYS = (
    "critical_ratio",
    "contraction",
    "expansion",
    "log_distortion",
    "span_ratio",
    "span_contraction",
    "span_expansion",
    "total_contraction",
    "total_expansion",
    "total_log_distortion",
    "betti_0",
    "betti_1",
    "total_persistence_0",
    "entropy_1",
    "max_persistence_2",
    "log_bottleneck_0",
    "log_bottleneck_bound",
    "distinct_neurons",
    "independent_neurons",
    "vanishing_neurons",
    "aligned_clusters",
    "effective_neurons",
    "largest_multiplicity",
)


@pytest.mark.parametrize("name", GLOBAL_KEYS + GROUP_KEYS)
def test_every_key_of_the_contract_has_a_row(name):
    row = quantity(name)
    assert row is not None
    assert row.published
    scopes = {Scope.BOTH, Scope.NETWORK if name in GLOBAL_KEYS else Scope.GROUP}
    assert row.scope in scopes or name in set(GLOBAL_KEYS) & set(GROUP_KEYS)


def test_every_row_says_what_it_is():
    assert len({row.title for row in QUANTITIES.values()}) == len(QUANTITIES)
    for name, row in QUANTITIES.items():
        assert name == row.name
        assert re.fullmatch(r"[a-z][a-z_]*", name)
        assert name not in RESERVED_VALUES
        assert row.title[0].isupper() or row.title.startswith("eta")
        assert row.sentence.endswith(".")
        assert row.probe in OUR_PROBES
        # An extreme that is kept is the bad end.
        assert row.keep is not Keep.MAX or row.direction is Direction.HIGH_IS_BAD
        assert row.keep is not Keep.MIN or row.direction is Direction.LOW_IS_BAD


def test_the_detector_is_fed_by_every_probe_that_makes_an_event():
    """A probe that the table does not know counts as a user's own, and makes no events."""
    assert {probe for probes in SEEN_BY.values() for probe in probes} <= OUR_PROBES
