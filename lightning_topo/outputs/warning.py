"""What the person who trains should know now."""

import warnings


def warn(message: str) -> None:
    """Say it as a `UserWarning`. Only the first of several processes has outputs, so each is said once."""
    warnings.warn(message, UserWarning, stacklevel=3)
