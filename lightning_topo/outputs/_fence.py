"""Keep errors of the monitor away from the training."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal


@contextmanager
def fenced(
    who: str, what: str, on_error: Literal["warn", "raise"] = "warn", *, is_first_rank: bool = True
) -> Iterator[None]:
    """Turn an error in this context into a warning on the first rank; raise it if `on_error` is "raise".

    >>> with fenced("TopologyWatch", "could not look at a loss", "raise"):
    ...     raise ValueError("three")
    Traceback (most recent call last):
    ...
    ValueError: three
    """
    try:
        yield
    except Exception as error:
        if on_error == "raise":
            raise
        if is_first_rank:
            message = f"{who} {what} ({type(error).__name__}: {error}). Training goes on."
            warnings.warn(message, UserWarning, stacklevel=4)
