"""What became of a parameter when the neurons were found: a record of its own, which a page reads without torch."""

from dataclasses import dataclass

UNUSED = "the recorded step does not use it, though others may"
"""The reason of a parameter that no loss of the recorded step descends from."""

NOT_MET = "the recorded losses of the step did not meet it"
"""The reason of a parameter that the record of the step does not know."""

NOT_TRAINED = "it is not trained"


@dataclass(frozen=True, slots=True)
class ParameterCoverage:
    """A trained parameter with its number of entries, `numel`, and the names of its groups.

    If it is in no group, `reason` says why.
    """

    param: str
    numel: int
    groups: tuple[str, ...]
    reason: str = ""
