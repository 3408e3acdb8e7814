"""What became of a parameter when the neurons were found: a record of its own, which a page reads without torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ParameterCoverage:
    """A trained parameter of `numel` entries: the names of its groups or, where there are none, the reason."""

    param: str
    numel: int
    groups: tuple[str, ...]
    reason: str = ""
