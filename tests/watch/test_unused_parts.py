"""When parts that the first step did not use are looked for."""

import pytest
from torch import nn

from lightning_topo._watch.steps import Steps
from lightning_topo._watch.unused_parts import LOOKS_APART, UnusedParts


class Moving(Steps):
    """Steps of a training in which those parameters move that the test names."""

    def __init__(self):
        self.names = set()

    def moving(self, parameters):
        return [name for name in parameters if name in self.names]


@pytest.fixture
def moving():
    return Moving()


@pytest.fixture
def parts(moving):
    parts = UnusedParts(moving)
    parts.follow(["a.weight", "b.weight", "gone"], nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}))
    return parts


def test_a_look_is_wanted_from_the_first_move_on_and_seldom_after_one(parts, moving):
    parts.see(1)
    assert (parts.is_moving, parts.wants_look(1)) == (False, False)
    moving.names = {"b.weight"}
    parts.see(2)
    assert (parts.is_moving, parts.wants_look(2)) == (True, True)
    moving.names = set()
    parts.see(3)
    assert (parts.is_moving, parts.wants_look(3)) == (False, True)
    assert parts.moved_since == {"b.weight": 2}
    parts.looked(3)
    assert [step for step in range(3, 20) if parts.wants_look(step)] == list(range(3 * LOOKS_APART, 20))


def test_what_has_been_found_is_followed_no_longer(parts, moving):
    moving.names = {"a.weight", "b.weight"}
    parts.see(5)
    module = nn.ModuleDict({"b": nn.Linear(2, 2)})
    parts.follow(["b.weight"], module)
    assert parts.moved_since == {"b.weight": 5}
    assert parts.wants_look(5)
    parts.follow([], module)
    parts.see(6)
    assert (parts.is_moving, parts.wants_look(6)) == (False, False)
