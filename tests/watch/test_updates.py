"""The call of an optimizer's `step` that is running, and closures that are followed."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from lightning_topo._watch.updates import RunningStep, with_closure_followed


@pytest.fixture
def calls():
    """What hooks of all optimizers see: whether a call is nested as it begins, and the outermost as it ends."""
    running, seen = RunningStep(), []

    def before(optimizer, args, options):
        seen.append(("begins", nested := running.holds_another()))
        if not nested:
            running.begin(optimizer)

    handles = [
        register_optimizer_step_pre_hook(before),
        register_optimizer_step_post_hook(lambda optimizer, *_: seen.append(("ends", running.end(optimizer)))),
    ]
    yield seen
    for handle in handles:
        handle.remove()


class Twice(torch.optim.SGD):
    """Steps twice in one step."""

    def step(self, closure=None):
        super().step()
        return super().step()


def test_calls_within_a_call_of_the_same_optimizer_are_nested(calls):
    parameters = list(nn.Linear(2, 1).parameters())
    torch.optim.SGD(parameters, lr=1.0)  # so that torch calls the hooks in `super().step()`
    twice = Twice(parameters, lr=1.0)
    for _ in range(2):
        calls.clear()
        twice.step()
        assert calls == [
            ("begins", False), ("begins", True), ("ends", False), ("begins", True), ("ends", False), ("ends", True)
        ]  # fmt: skip


def test_a_call_that_raised_holds_no_other(calls):
    class Raising(torch.optim.SGD):
        def step(self, closure=None):
            raise ArithmeticError

    parameters = list(nn.Linear(2, 1).parameters())
    with pytest.raises(ArithmeticError):
        Raising(parameters, lr=1.0).step()
    torch.optim.SGD(parameters, lr=1.0).step()
    assert calls == [("begins", False), ("begins", False), ("ends", True)]


def test_without_torchs_hooks_around_it_a_call_stands_alone():
    optimizer, running = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0), RunningStep()
    running.begin(optimizer)
    assert (running.optimizer, running.holds_another()) == (optimizer, False)
    assert running.end(optimizer)
    assert running.optimizer is None


@pytest.mark.parametrize("at", ["position", "keyword", "later"])
def test_a_closure_is_followed_wherever_it_stands(at):
    seen = []

    def closure(factor=1):
        """Has words of its own."""
        seen.append("closure")
        return 2 * factor

    arguments = {
        "position": (("optimizer", closure), {}),
        "keyword": (("optimizer",), {"closure": closure, "flag": True}),
        "later": (("optimizer", None, closure), {"flag": True}),
    }[at]
    args, options = with_closure_followed(arguments, partial(seen.append, "over"))
    followed = options["closure"] if at == "keyword" else args[-1]
    assert followed(factor=3) == 6
    assert seen == ["closure", "over"]
    assert followed.__doc__ == closure.__doc__
    assert ("flag" in options) is (at != "position")


def test_a_closure_that_raises_is_not_over():
    seen = []
    args, _ = with_closure_followed((("optimizer", lambda: 1 / 0), {}), lambda: seen.append("over"))
    with pytest.raises(ZeroDivisionError):
        args[1]()
    assert seen == []


def test_without_a_closure_arguments_stay_as_they_are():
    assert with_closure_followed((("optimizer", None), {"loss": 1.0}), lambda: None) is None
