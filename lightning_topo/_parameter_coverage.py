"""What became of a parameter when the neurons were found: a record of its own, which a page reads without torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ParameterCoverage:
    """A trained parameter with its number of entries, `numel`, and the names of its groups.

    If it is in no group, `reason` says why.
    """

    param: str
    numel: int
    groups: tuple[str, ...]
    reason: str = ""
