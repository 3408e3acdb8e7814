"""Warnings to the person who trains."""

import warnings


def warn(message: str) -> None:
    """Issue a `UserWarning`. Only the first of several processes has outputs, so each comes once."""
    warnings.warn(message, UserWarning, stacklevel=3)
