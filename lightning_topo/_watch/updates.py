"""Updates by optimizers: the call of `step` that is running, when its closure is over, and what it has done."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from types import FrameType
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Those of a call, by position and by keyword."""


@dataclass(frozen=True, slots=True)
class Update:
    """One update of one optimizer: the trained parameters that it owns, by name, before and after.

    `before` holds copies that are valid until the optimizer steps again; `after` holds the parameters themselves. Both
    are empty where parameters lie in shards. `is_first` where the optimizer kept no state before.
    """

    optimizer: Optimizer
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    is_first: bool = False
    learning_rate: float | None = None


class RunningStep:
    """The outermost call of `step` that has begun and not ended, if there is one.

    Optimizers wrap others, and a class that extends another calls `super().step()`: torch may call its hooks inside of
    a call, for the same optimizer too. So a call is known by the frame in which torch calls its hooks, and every method
    here is for such a hook to call. A call that has raised is none any more: its frame is no part of the stack.
    """

    __slots__ = ("_frame", "optimizer")

    def __init__(self) -> None:
        self.optimizer: Optimizer | None = None
        self._frame: FrameType | None = None

    def holds_another(self) -> bool:
        """Whether the call that begins is nested in the one that is running."""
        if self._frame is None or (own := _frame_of_hooks()) is None:
            return False
        outer = own.f_back
        while outer is not None and outer is not self._frame:
            outer = outer.f_back
        return outer is not None

    def begin(self, optimizer: Optimizer) -> None:
        """An outermost call begins."""
        self.optimizer, self._frame = optimizer, _frame_of_hooks()

    def end(self, optimizer: Optimizer) -> bool:
        """A call ends; returns whether it was the outermost one."""
        if optimizer is not self.optimizer or _frame_of_hooks() is not self._frame:
            return False
        self.forget()
        return True

    def forget(self) -> None:
        """No call is running."""
        self.optimizer, self._frame = None, None


def _frame_of_hooks() -> FrameType | None:
    """The innermost frame of torch's own code around `Optimizer.step`."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") != Optimizer.__module__:
        frame = frame.f_back
    return frame


def with_closure_followed(arguments: Arguments, then: Callable[[], None]) -> Arguments | None:
    """The arguments of `step` with a closure that calls `then` whenever it has returned; None if there is no closure.

    >>> seen = []
    >>> args, options = with_closure_followed((("an optimizer", lambda: 0.5), {}), lambda: seen.append("over"))
    >>> args[1](), seen
    (0.5, ['over'])
    """
    args, options = arguments
    for position, value in enumerate(args[1:], start=1):
        if callable(value):
            return (*args[:position], _followed(value, then), *args[position + 1 :]), options
    for name, value in options.items():
        if callable(value):
            return args, {**options, name: _followed(value, then)}
    return None


def _followed(closure: Callable[..., Any], then: Callable[[], None]) -> Callable[..., Any]:
    @wraps(closure)
    def followed(*args: Any, **options: Any) -> Any:
        result = closure(*args, **options)
        then()
        return result

    return followed
