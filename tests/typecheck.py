"""The type checker of the tests: an int is a float, as Python's own typing rules have it.

jaxtyping binds every call's arguments anew to compare shapes between them, which takes nine tenths of the time of tests
that call small functions often. Where no annotation has a shape, beartype alone checks the same at a fraction of that.
Where one has, a call is looked at anew only if its arguments or its result differ in kind or shape from those of every
call that has passed: the outcome depends on nothing else.
"""

import dataclasses
import inspect
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence, Set
from functools import partial, wraps
from typing import Any, ForwardRef, Literal, get_args, get_origin

import jaxtyping
import numpy as np
import torch
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException

ALWAYS, OFTEN = 256, 16
"""Of each function so many calls in a process are looked at, and one in so many of the rest."""

check = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=jaxtyping.TypeCheckError))
_with_shapes = jaxtyping.jaxtyped


def install(package: str) -> None:
    """Check every annotated function and dataclass of a package that is imported from now on."""
    jaxtyping.jaxtyped = _jaxtyped
    jaxtyping.install_import_hook(package, f"{__name__}.check")


def _jaxtyped(fn: Any = None, *, typechecker: Callable[..., Any]) -> Any:
    """As jaxtyping's own decorator, which comes in only where there is a shape."""
    if fn is None:
        return partial(_jaxtyped, typechecker=typechecker)
    if inspect.isclass(fn):
        if dataclasses.is_dataclass(fn) and "__init__" in vars(fn) and not getattr(fn, "__no_type_check__", False):
            fn.__init__ = _jaxtyped(fn.__init__, typechecker=typechecker)
        return fn
    if not inspect.isfunction(fn):
        return _with_shapes(fn, typechecker=typechecker)
    if not any(map(_may_have_shape, fn.__annotations__.values())):
        try:
            return _sometimes(fn, typechecker(fn))
        except BeartypeDecorHintException:
            pass
    if any(word in str(each) for each in fn.__annotations__.values() for word in ("{", "Literal")):
        return _with_shapes(fn, typechecker=typechecker)  # which look at values
    return _sometimes(fn, _remembering(fn, typechecker))


def _sometimes(fn: Callable[..., Any], checked: Callable[..., Any]) -> Callable[..., Any]:
    """The function, checked at first, and now and then when many calls have passed."""
    n_calls = 0

    @wraps(fn)
    def called(*args: Any, **kwargs: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls <= ALWAYS or n_calls % OFTEN == 0:
            return checked(*args, **kwargs)
        return fn(*args, **kwargs)

    return called


def _remembering(fn: Callable[..., Any], typechecker: Callable[..., Any]) -> Callable[..., Any]:
    """The function, checked; for arguments of kinds that have passed its result alone, and that only if it is new."""
    passed: dict[Hashable, set[Hashable]] = {}
    result = threading.local()
    checked = _with_shapes(fn, typechecker=typechecker)
    checked_result = _with_shapes(wraps(fn)(lambda *_, **__: result.value), typechecker=typechecker)

    @wraps(fn)
    def called(*args: Any, **kwargs: Any) -> Any:
        kinds = _kind((args, kwargs))
        arguments = None if kinds is None else (kinds, *kwargs)
        known = None if arguments is None else passed.get(arguments)
        if known is None:
            found = checked(*args, **kwargs)
            if arguments is not None:
                passed[arguments] = {_kind(found)}
            return found
        found = fn(*args, **kwargs)
        kind = _kind(found)
        if kind is None or kind not in known:
            result.value = found
            try:
                checked_result(*args, **kwargs)
            finally:
                del result.value
            known.add(kind)
        return found

    return called


def _kind(value: Any) -> Hashable:
    """All that a check can see of a value; None where that is not told by a few types and shapes."""
    cls = type(value)
    if cls in (torch.Tensor, torch.nn.Parameter, np.ndarray):
        return cls, value.dtype, tuple(value.shape)
    if cls in (tuple, list, dict):
        items = (*value, *value.values()) if cls is dict else value
        kinds = (cls, *map(_kind, items)) if len(items) <= 16 else (None,)
        return None if None in kinds else kinds
    if isinstance(value, str | bytes):
        return cls
    return None if isinstance(value, torch.Tensor | Mapping | Sequence | Set) else cls


def _may_have_shape(annotation: Any) -> bool:
    """Whether there is an array in it; of a name that need not be known here it is taken for granted."""
    if isinstance(annotation, str | ForwardRef):
        return True
    if get_origin(annotation) is Literal:
        return False
    if inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return any(_may_have_shape(part) for part in get_args(annotation))
