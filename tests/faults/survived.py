"""What a case of the fault suite came to."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Survived:
    """How many faults a case has injected, how many training outlived, and the lines lost without a report."""

    n_faults: int
    n_survived: int
    n_lost: int
