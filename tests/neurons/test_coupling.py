"""Laws of the algebra of axes."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_topo.neurons._coupling import (
    Atom,
    axis_size,
    cut,
    flat,
    freeze,
    leaves,
    new_axis,
    slice_axis,
    sum_axis,
    summands,
    take,
    unify,
)


def test_one_axis_seen_as_two_products_is_refined_to_their_common_factors() -> None:
    axis = new_axis(24)
    as_heads = take(list(axis), 4)
    assert [atom.size for atom in flat(axis)] == [4, 6]
    unify(axis, [*new_axis(2), *new_axis(12)])
    assert [atom.size for atom in flat(axis)] == [2, 2, 6]
    assert [atom.size for atom in flat(as_heads or [])] == [2, 2]


def test_unified_axes_share_every_later_refinement() -> None:
    left, right = new_axis(12), new_axis(12)
    unify(left, right)
    take(list(left), 3)
    assert flat(left) == flat(right)
    assert [atom.size for atom in flat(right)] == [3, 4]


def test_freezing_reaches_what_was_tied_before_and_after() -> None:
    first, second, third = new_axis(6), new_axis(6), new_axis(6)
    unify(first, second)
    freeze(first, "data")
    unify(third, second)
    assert all(atom.frozen and atom.reason == "data" for axis in (first, second, third) for atom in flat(axis))


def test_lengths_that_do_not_factor_alike_are_frozen() -> None:
    left, right = [*new_axis(4), *new_axis(9)], [*new_axis(6), *new_axis(6)]
    unify(left, right)
    assert all(atom.frozen for atom in leaves(left) + leaves(right))


def test_a_sum_is_tied_part_by_part() -> None:
    parts = [new_axis(3), new_axis(5)]
    joined, whole = sum_axis(parts), new_axis(8)
    unify(whole, joined)
    assert [axis_size(term) for term in summands(whole)] == [3, 5]
    freeze(parts[0], "data")
    assert [atom.frozen for atom in leaves(whole)] == [True, False]


def test_parts_of_other_lengths_are_cut_further() -> None:
    left, right = sum_axis([new_axis(3), new_axis(5)]), sum_axis([new_axis(4), new_axis(4)])
    unify(left, right)
    assert [axis_size(term) for term in summands(left)] == [3, 1, 4]
    assert leaves(left) == leaves(right)


def test_a_cut_inside_an_inner_factor_is_refused() -> None:
    assert cut([*new_axis(2), *new_axis(3)], 4) is None
    axis = [*new_axis(2), *new_axis(3)]
    slice_axis(axis, 0, 4)
    assert all(atom.frozen for atom in leaves(axis))


def test_axes_of_length_one_couple_single_neurons() -> None:
    left, right = [Atom(1)], [Atom(1)]
    unify(left, right)
    assert flat(left) == flat(right)
    unify(left, [])
    assert take([*new_axis(3), Atom(1)], 3)


@given(st.lists(st.integers(2, 4), min_size=1, max_size=4), st.data())
def test_taking_keeps_the_product(sizes: list[int], data: st.DataObject) -> None:
    axis = new_axis(math.prod(sizes))
    count = data.draw(st.integers(0, len(sizes)))
    wanted = math.prod(sizes[:count])
    remaining = list(axis)
    taken = take(remaining, wanted)
    assert taken is not None
    assert (axis_size(taken), axis_size(remaining)) == (wanted, math.prod(sizes[count:]))
    assert flat(taken) + flat(remaining) == flat(axis)


@given(st.integers(2, 30), st.data())
def test_slices_of_an_axis_add_up_to_it(size: int, data: st.DataObject) -> None:
    axis = new_axis(size)
    bounds = sorted({0, size, *data.draw(st.lists(st.integers(0, size), max_size=4))})
    parts = [slice_axis(axis, start, stop) for start, stop in pairwise(bounds)]
    assert [axis_size(part) for part in parts] == [b - a for a, b in pairwise(bounds)]
    assert [leaf for part in parts for leaf in leaves(part)] == leaves(axis)


@pytest.mark.parametrize("size", [1, 7])
def test_a_new_axis_has_an_atom_unless_it_is_of_length_one(size: int) -> None:
    assert len(new_axis(size)) == (size > 1)
    assert axis_size(new_axis(size)) == size
