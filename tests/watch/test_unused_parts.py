"""When parts that the first step did not use are looked for."""

import torch
from torch import nn

from lightning_topo._watch.unused_parts import LOOKS_APART, UnusedParts


def moving():
    module = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    parts = UnusedParts()
    parts.follow(["a.weight", "b.weight", "gone"], module)
    return module, parts


def test_a_look_is_wanted_from_the_first_move_on_and_seldom_after_one():
    module, parts = moving()
    assert not parts.wants_look(1)
    with torch.no_grad():
        module["b"].weight.add_(1.0)
    assert parts.wants_look(2)
    assert parts.moved_since == {"b.weight": 2}
    parts.looked(3)
    assert [step for step in range(3, 20) if parts.wants_look(step)] == list(range(3 * LOOKS_APART, 20))


def test_what_has_been_found_is_followed_no_longer():
    module, parts = moving()
    with torch.no_grad():
        module["a"].weight.add_(1.0)
        module["b"].weight.add_(1.0)
    assert parts.wants_look(5)
    parts.follow(["b.weight"], module)
    assert parts.moved_since == {"b.weight": 5}
    parts.follow([], module)
    assert not parts.wants_look(6)
