"""Answer an unknown keyword with those that there are: Python names it, and leaves its user to guess."""

from collections.abc import Callable
from difflib import get_close_matches
from functools import wraps
from inspect import Parameter, signature
from typing import Any, TypeVar, get_args

_C = TypeVar("_C", bound=type)
_PERIODS = ("every_n_steps", "every_n_epochs")


def explains_keywords(cls: _C) -> _C:
    """A class whose constructor answers an unknown keyword by the nearest that it knows, or by all; raises `TypeError`.

    >>> @explains_keywords
    ... class Probe:
    ...     def __init__(self, max_pairs: int = 3) -> None: ...
    >>> Probe(max_pair=2)
    Traceback (most recent call last):
    ...
    TypeError: Probe: expected a keyword among max_pairs, got max_pair: did you mean max_pairs?
    """
    init: Callable[..., None] = cls.__init__
    known = [name for each in list(signature(init).parameters.values())[1:] for name in _names(each)]

    @wraps(init)
    def explained(self: Any, *args: Any, **keywords: Any) -> None:
        for name in keywords:
            if name not in known:
                raise TypeError(
                    f"{cls.__name__}: expected a keyword among {', '.join(known)}, got {name}{_hint(name, known)}"
                )
        init(self, *args, **keywords)

    cls.__init__ = explained
    return cls


def _names(parameter: Parameter) -> tuple[str, ...]:
    """The keywords that a parameter takes: `**options: Unpack[Options]` takes those of a TypedDict."""
    if parameter.kind is Parameter.VAR_KEYWORD:
        return tuple(name for options in get_args(parameter.annotation) for name in options.__annotations__)
    return (parameter.name,)


def _hint(name: str, known: list[str]) -> str:
    if name in _PERIODS:
        return f": a period is a probe's own, as in Distortion({name}=10)"
    near = get_close_matches(name, known, n=1)
    return f": did you mean {near[0]}?" if near else ""
