"""The type checker of the tests: an int is a float, as Python's own typing rules have it.

jaxtyping binds every call's arguments anew to compare shapes between them, which takes nine tenths of the time of tests
that call small functions often. Where no annotation has a shape, beartype alone checks the same at a fraction of that.
"""

import dataclasses
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, ForwardRef, get_args

import jaxtyping
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException

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
    if inspect.isfunction(fn) and not any(map(_may_have_shape, fn.__annotations__.values())):
        try:
            return typechecker(fn)
        except BeartypeDecorHintException:
            pass
    return _with_shapes(fn, typechecker=typechecker)


def _may_have_shape(annotation: Any) -> bool:
    """Whether there is an array in it; of a name that need not be known here it is taken for granted."""
    if isinstance(annotation, str | ForwardRef):
        return True
    if inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return any(_may_have_shape(part) for part in get_args(annotation))
