"""A diagram as a record keeps it says the same as the diagram itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_topo._figures.captures import CapturedDiagram, bars, block_of, by_blocks

lengths = st.floats(0.0, 10.0)
dimension = st.lists(st.tuples(lengths, st.one_of(lengths, st.just(np.inf))), max_size=8).map(
    lambda ends: np.sort(np.array(ends, dtype=float).reshape(-1, 2), axis=1)
)


@given(st.lists(dimension, min_size=1, max_size=3), st.integers(1, 9), lengths, lengths, st.booleans())
def test_it_is_the_diagram(pairs, n_points, diameter, radius, exact):
    captured = CapturedDiagram(tuple(pairs), n_points, diameter, radius, "gph", exact)
    diagram = captured.diagram()
    assert all(map(np.array_equal, diagram.to_numpy(), pairs))
    assert (diagram.n_points, diagram.diameter, diagram.engine) == (n_points, diameter, "gph")
    assert (diagram.covering_radius, diagram.exact, diagram.max_dim) == (radius, exact, captured.max_dim)
    assert diagram.landmark_error == captured.landmark_error
    assert [diagram.is_vacuous(k) for k in range(len(pairs))] == [captured.is_vacuous(k) for k in range(len(pairs))]


def test_blocks_of_a_group_come_together_by_dimension():
    names = ["heads[0]", "heads[1]", "mlp", "odd[3]", "stranger"]
    assert [block_of(name, names) for name in names] == [
        ("heads", 0),
        ("heads", 1),
        ("mlp", 0),
        ("odd[3]", 0),
        ("stranger", 0),
    ]
    captures = {name: [np.full((i + 1, 2), float(i))] for i, name in enumerate(names)}
    found = by_blocks(captures, ("heads", "mlp", "odd[3]"))
    assert {group: [len(block[0]) for block in blocks] for group, blocks in found.items()} == {
        "heads": [1, 2],
        "mlp": [3],
        "odd[3]": [4],
    }
    (joined,) = bars(found["heads"])
    assert joined == pytest.approx(np.array([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]))
    assert joined.dtype == np.float64
    assert bars([]) == ()
