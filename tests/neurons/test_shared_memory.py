"""What is written into a part of memory is exchangeable until the whole is read."""

import torch

from lightning_topo.neurons._coupling import flat, new_axis
from lightning_topo.neurons._shared_memory import SharedMemory


def views(memory: SharedMemory, *parts):
    base = torch.empty(10)
    found = [torch.empty(5) for _ in parts]
    for view, part in zip(found, parts, strict=True):
        memory.add(view, base, part)
    return base, found


def test_a_view_of_a_view_shows_the_same_memory():
    memory = SharedMemory()
    base, view, inner, other = (torch.empty(2) for _ in range(4))
    memory.add(view, base)
    memory.add(inner, view)
    memory.adopt(other, inner)
    assert [memory.base(tensor) is base for tensor in (view, inner, other)] == [True] * 3
    assert memory.base(base) is None


def test_only_views_that_may_overlap_are_seen_with_what_is_written():
    memory = SharedMemory()
    base, (first, second, anywhere) = views(memory, (0, 5), (5, 10), None)
    seen = [id(tensor) for tensor in memory.seen_with(first)]
    assert seen == [id(base), id(anywhere)]
    memory.forget_views(first)
    assert [id(tensor) for tensor in memory.seen_with(anywhere)] == [id(base), id(second)]


def test_what_is_owed_is_frozen_once_and_where_it_is_read():
    memory = SharedMemory()
    base, (first, second) = views(memory, (0, 5), (5, 10))
    axes = [new_axis(5), new_axis(5)]
    memory.write_part(base, first, axes[:1])
    assert memory.owes(base)
    assert not memory.is_untouched(base, (4, 6))
    assert memory.is_untouched(base, (5, 10))
    memory.write_part(base, second, axes[1:])
    assert not memory.is_untouched(base, (5, 10))
    assert not any(atom.frozen for axis in axes for atom in flat(axis))
    memory.settle(second)
    assert not any(atom.frozen for axis in axes for atom in flat(axis))
    memory.settle(base)
    assert [atom.reason for axis in axes for atom in flat(axis)] == ["written through a view"] * 2
    assert not memory.owes(base)
