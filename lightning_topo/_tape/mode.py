"""The dispatch mode under which a step is recorded, and work that no mode is to see."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch.utils import _python_dispatch
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack, _pop_mode, _push_mode


class Observer(TorchDispatchMode):
    """Hands every operator to `observe`, which runs it.

    Operators on tensors of the classes in `opened` are left to these, and what they compute with is seen.
    """

    supports_higher_order_operators = True  # the step must not fail at one because of us

    def __init__(self, observe: Callable[..., Any], opened: tuple[type, ...] = ()) -> None:
        super().__init__()
        self.observe = observe
        self._opened = opened
        self._depth = 0

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let code that `compiled_reason` has missed compile as it would have."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._opened and any(issubclass(cls, self._opened) for cls in types):
            return NotImplemented
        return self.observe(func, args, kwargs or {})

    def leave(self) -> None:
        """Leave the mode, also from below modes that the step has left open, which stay as if it had not been there."""
        stack = _get_current_dispatch_mode_stack()
        if self not in stack:
            return
        self._depth = stack.index(self)
        if stack[-1] is self and self.old_dispatch_mode_flags and not any(map(_is_infrastructure, stack)):
            self.__exit__(None, None, None)
        else:
            _restack([mode for mode in stack if mode is not self])

    def come_back(self) -> None:
        """Enter the mode again, below the modes that were entered after it and are still open."""
        stack = _get_current_dispatch_mode_stack()
        if self in stack:
            return
        if len(stack) <= self._depth and not any(map(_is_infrastructure, stack)):
            self.__enter__()
        else:
            _restack([*stack[: self._depth], self, *stack[self._depth :]])


def _leave_all() -> None:
    """In a process that was forked in the middle of a step, as a loader's worker: nothing of it belongs to the step."""
    for mode in _get_current_dispatch_mode_stack():
        if isinstance(mode, Observer):
            mode.leave()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all)


_FLAGS: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("_is_in_torch_dispatch_mode", "old_dispatch_mode_flags", lambda mode: True),
    (
        "_is_in_non_infra_torch_dispatch_mode",
        "old_non_infra_dispatch_mode_flags",
        lambda mode: not mode.is_infra_mode(),
    ),
    (
        "_is_in_any_mode_without_ignore_compile_internals",
        "old_without_ignore_compile_internals_dispatch_mode_flags",
        lambda mode: not mode.ignore_compile_internals(),
    ),
)
"""What torch notes while modes are entered, where each mode keeps the note to which its exit returns, and for which
modes it holds. By these `torch.compile` decides whether to compile."""


def _is_infrastructure(mode: Any) -> bool:
    """Whether a mode is of torch's own (as a FakeTensorMode): it lies below all others, whenever it was entered."""
    return bool(getattr(mode, "is_infra_mode", bool)())


def _restack(modes: Sequence[Any]) -> None:
    """Let exactly these modes be entered, the lowest first, with all notes as if entered in this order."""
    before: list[Any] = [_pop_mode() for _ in _get_current_dispatch_mode_stack()][::-1]
    for mode in modes:
        _push_mode(mode)
    for flag, kept, counts in _FLAGS:
        if not hasattr(_python_dispatch, flag):
            continue  # a torch that does not have it yet
        # Each mode has noted what held when it was entered, and the first of them what holds outside all. One that was
        # pushed by hand has noted nothing, and counts for nothing.
        notes: dict[int, Any] = {id(mode): getattr(mode, kept, ()) for mode in (*before, *modes)}
        outside = all(notes[id(mode)][-1] for mode in before if notes[id(mode)])
        counted = {id(mode) for mode in modes if notes[id(mode)] or mode not in before}
        for mode in {id(mode): mode for mode in before}.values():
            for _ in range(min(before.count(mode), len(notes[id(mode)]))):
                notes[id(mode)].pop()
        for mode in sorted(modes, key=_is_infrastructure):
            if id(mode) in counted:
                notes[id(mode)].append(outside)
                outside = outside or counts(mode)
        setattr(_python_dispatch, flag, outside)
        if kept.startswith("old_without_ignore"):
            name = "set_is_in_mode_without_ignore_compile_internals"
            getattr(_python_dispatch, name, lambda value: None)(outside)


@contextmanager
def outside_modes() -> Iterator[None]:
    """Run the body outside all dispatch modes: ours takes time, and the user's own would count our work."""
    modes: list[Any] = [_pop_mode() for _ in _get_current_dispatch_mode_stack()]
    try:
        yield
    finally:
        for mode in reversed(modes):
            _push_mode(mode)
