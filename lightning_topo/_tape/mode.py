"""The dispatch mode under which a step is recorded, and work that no mode is to see."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack, _pop_mode, _push_mode


class Observer(TorchDispatchMode):
    """Hands every operator to `observe`, which runs it."""

    supports_higher_order_operators = True  # the step must not fail at one because of us

    def __init__(self, observe: Callable[..., Any]) -> None:
        super().__init__()
        self.observe = observe

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let code that `compiled_reason` has missed compile as it would have."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.observe(func, args, kwargs or {})

    def leave(self) -> None:
        """Leave the mode, also from below modes that the step has left open, which stay."""
        stack = _get_current_dispatch_mode_stack()
        if self not in stack:
            return
        above: list[Any] = [_pop_mode() for _ in stack[stack.index(self) + 1 :]]
        self.__exit__(None, None, None)
        for other in reversed(above):
            _push_mode(other)


@contextmanager
def outside_modes() -> Iterator[None]:
    """Run the body outside all dispatch modes: ours takes time, and the user's own would count our work."""
    modes: list[Any] = [_pop_mode() for _ in _get_current_dispatch_mode_stack()]
    try:
        yield
    finally:
        for mode in reversed(modes):
            _push_mode(mode)
