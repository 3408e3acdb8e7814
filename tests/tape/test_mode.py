"""The mode among those that the user enters: below them, left from below them, and torch's notes of them all."""

import os
from collections.abc import Callable

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _python_dispatch
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from lightning_topo._tape import StepRecorder
from tests.tape.steps import mlp


class Passing(TorchDispatchMode):
    """A mode of the user's, which lets everything pass."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def flags() -> list[bool | None]:
    """What torch notes of the modes that are entered; by this it decides whether to compile."""
    names = (
        "_is_in_torch_dispatch_mode",
        "_is_in_non_infra_torch_dispatch_mode",
        "_is_in_any_mode_without_ignore_compile_internals",
    )
    return [getattr(_python_dispatch, name, None) for name in names]


def notes(steps: Callable[[Callable[[], None]], None]) -> list[list[bool | None]]:
    """The flags wherever `steps` asks for them, and in the end."""
    seen: list[list[bool | None]] = []
    steps(lambda: seen.append(flags()))
    return [*seen, flags()]


def test_modes_of_torchs_own_and_modes_without_a_history_are_passed_by() -> None:
    fake, bare, recorder = FakeTensorMode(), Passing(), StepRecorder()
    recorder.begin(mlp(5, 8, 3))
    fake.__enter__()  # below ours, although it was entered later
    recorder.end()
    fake.__exit__(None, None, None)
    assert not any(flags())
    recorder.begin(mlp(5, 8, 3))
    _python_dispatch._push_mode(bare)  # nothing was noted at its entering
    recorder.end()
    assert _get_current_dispatch_mode_stack() == [bare]
    _python_dispatch._pop_mode()
    assert not any(flags())


def test_a_mode_that_the_step_leaves_open_stays_open() -> None:
    theirs, recorder = Passing(), StepRecorder()
    recorder.begin(mlp(5, 8, 3))
    theirs.__enter__()
    recorder.end()
    assert _get_current_dispatch_mode_stack() == [theirs]
    theirs.__exit__(None, None, None)


def test_modes_left_open_and_closed_later_leave_torch_as_it_was() -> None:
    # a mode below ours, one that the step opens before its loss and closes after the batch, and one between
    def run(recorder: StepRecorder | None, look: Callable[[], None]) -> None:
        net, below, above, twice = mlp(5, 8, 3), Passing(), Passing(), Passing()
        below.__enter__()
        if recorder is not None:
            recorder.begin(net)
        above.__enter__()
        twice.__enter__()
        twice.__enter__()
        loss = net(torch.ones(2, 5)).sum()
        if recorder is not None:
            recorder.loss(loss)
            recorder.leave()
        look()
        loss.backward()
        twice.__exit__(None, None, None)
        if recorder is not None:
            recorder.resume()
            recorder.end()
        look()
        for mode in (twice, above, below):
            mode.__exit__(None, None, None)
            look()

    with_ours = notes(lambda look: run(StepRecorder(), look))
    assert with_ours == notes(lambda look: run(None, look))
    assert with_ours[-1] == flags()
    assert not any(with_ours[-1])


def test_a_backward_pass_runs_outside_the_mode_and_the_next_loss_is_recorded_below_the_users() -> None:
    net, recorder, theirs = mlp(5, 8, 3), StepRecorder(), Passing()
    inside: list[int] = []
    net[0].weight.register_hook(lambda grad: inside.append(len(_get_current_dispatch_mode_stack())))
    recorder.begin(net)
    with theirs:
        for _ in range(2):
            loss = net(torch.ones(2, 5)).square().sum()
            recorder.loss(loss)
            recorder.leave()
            loss.backward()
            recorder.resume()
            stack = _get_current_dispatch_mode_stack()
            assert stack[1:] == [theirs]
    one, two = recorder.end()
    assert [call.name for call in one.calls] == [call.name for call in two.calls] != []
    assert inside == [1, 1]
    assert _get_current_dispatch_mode_stack() == []
    assert not any(flags())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_process_that_is_forked_in_a_step_is_not_recorded() -> None:
    """A loader's worker, or a pool's; a mode of the user's own goes on in it."""
    layer, recorder = torch.nn.Linear(3, 2), StepRecorder()
    recorder.begin(layer)
    with Passing():
        layer(torch.ones(4, 3))
        n_before = len(recorder._log.calls)
        assert n_before > 0
        if (child := os.fork()) == 0:
            layer(torch.ones(4, 3))
            modes = [type(mode) for mode in _get_current_dispatch_mode_stack()]
            os._exit(0 if modes == [Passing] and len(recorder._log.calls) == n_before else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        loss = layer(torch.ones(4, 3)).sum()
    recorder.loss(loss)
    [tape] = recorder.end()
    assert not tape.obstacle
    assert len(tape.calls) >= n_before
