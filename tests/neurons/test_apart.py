"""Subsets in which small groups are permuted apart, and exchanges of two neurons."""

from itertools import combinations

import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_topo.neurons import NeuronGroup
from lightning_topo.neurons._apart import block_exchange, subsets_apart

shapes = st.tuples(st.integers(1, 12), st.sampled_from([(), (2,), (3, 2)]))


def group(n: int, blocks: tuple[int, ...]) -> NeuronGroup:
    return NeuronGroup("g", "unit", n, blocks, ())


@given(st.lists(shapes, max_size=24))
def test_any_two_small_groups_of_one_size_are_apart_once(found) -> None:
    groups = {3 * i: group(*shape) for i, shape in enumerate(found)}
    subsets = subsets_apart(groups)
    small = [key for key, one in groups.items() if one.n <= 4 and one.n_blocks <= 2]
    assert set(small) <= {key for subset in subsets for key in subset}
    for a, b in combinations(small, 2):
        if groups[a].n == groups[b].n:
            assert any((a in subset) != (b in subset) for subset in subsets)
    assert len(subsets) <= len(groups).bit_length()
    assert all(len(set(subset)) == len(subset) for subset in subsets)


def test_groups_that_hardly_draw_the_same_derangement_need_not_be_apart() -> None:
    assert subsets_apart({0: group(9, ()), 1: group(9, ()), 2: group(4, (3, 2))}) == []
    assert subsets_apart({}) == []


@given(st.integers(2, 9), st.sampled_from([(), (2,), (3, 2)]), st.integers(0, 99))
def test_an_exchange_moves_two_neurons_of_each_block_and_keeps_them_in_it(n, blocks, seed) -> None:
    one = group(n, blocks)
    rows = block_exchange(one, torch.Generator().manual_seed(seed)).view(one.n_blocks, n)
    own = torch.arange(one.n_blocks * n).view(one.n_blocks, n)
    assert ((rows != own).sum(1) == 2).all()
    assert torch.equal(rows.sort(1).values, own)
