"""Small groups are permuted apart, each block in its own way, by exchanges along the cycle that it was drawn."""

from itertools import combinations

import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_topo.neurons import NeuronGroup
from lightning_topo.neurons._apart import exchanges_apart
from lightning_topo.neurons._group import block_derangement

shapes = st.tuples(st.integers(1, 10), st.sampled_from([(), (2,), (3, 2)]))


def group(n: int, blocks: tuple[int, ...]) -> NeuronGroup:
    return NeuronGroup("g", "unit", n, blocks, ())


def drawn(groups, seed):
    generator = torch.Generator().manual_seed(seed)
    return {key: block_derangement(one, generator) for key, one in groups.items()}


def moves(trial, key, groups):
    """What a trial does to each block of a group, within the block."""
    one = groups[key]
    rows = trial.get(key, torch.arange(one.n_blocks * one.n)).view(one.n_blocks, one.n)
    return [tuple((block - at * one.n).tolist()) for at, block in enumerate(rows)]


@given(st.lists(shapes, max_size=24), st.integers(0, 99))
def test_any_two_blocks_of_as_many_neurons_are_apart_once(found, seed) -> None:
    groups = {3 * i: group(*shape) for i, shape in enumerate(found)}
    trials = exchanges_apart(groups, drawn(groups, seed))
    by_n = {}
    for key, one in groups.items():
        if 1 < one.n <= 8:
            histories = zip(*(moves(trial, key, groups) for trial in trials), strict=True)
            by_n.setdefault(one.n, []).extend(histories)
    for n, histories in by_n.items():
        assert all(any(move != tuple(range(n)) for move in history) for history in histories)
        if n == 2:  # of more neurons the cycles differ, too
            assert all(a != b for a, b in combinations(histories, 2))
    n_blocks = sum(one.n_blocks for one in groups.values())
    assert len(trials) <= n_blocks.bit_length()


@given(st.integers(3, 8), st.sampled_from([(), (2,), (3, 2)]), st.integers(0, 99))
def test_equal_cycles_are_told_apart_by_their_exchanges(n, blocks, seed) -> None:
    one = group(n, blocks)
    cycle = drawn({0: one}, seed)[0]
    trials = exchanges_apart({0: one, 1: one}, {0: cycle, 1: cycle})
    assert any(moves(trial, 0, {0: one}) != moves(trial, 1, {1: one}) for trial in trials)


def closure(generators):
    """All permutations that these make up."""
    found, ahead = set(), [tuple(range(len(generators[0])))]
    while ahead:
        here = ahead.pop()
        if here not in found:
            found.add(here)
            ahead += [tuple(here[i] for i in g) for g in generators]
    return found


@given(st.integers(2, 6), st.integers(0, 99))
def test_the_cycle_and_the_exchange_make_up_every_permutation(n, seed) -> None:
    groups = {0: group(n, ())}
    cycles = drawn(groups, seed)
    [trial] = exchanges_apart(groups, cycles)
    assert len(closure([tuple(cycles[0].tolist()), tuple(trial[0].tolist())])) == torch.arange(1, n + 1).prod()


def test_of_many_neurons_none_are_exchanged() -> None:
    many = {0: group(9, ()), 1: group(64, (3, 2)), 2: group(1, ())}
    assert exchanges_apart(many, drawn(many, 0)) == []
    assert exchanges_apart({}, {}) == []
