"""A row of the table: what a quantity is, which end is bad, and what is kept of it."""

from dataclasses import dataclass
from enum import Enum


class Scope(Enum):
    """Whether a quantity is measured for each group of neurons, for the whole network, or for both."""

    GROUP = "group"
    NETWORK = "network"
    BOTH = "both"
    """It is measured for each group, and the network's value is that of the worst group."""


class Direction(Enum):
    """Which end of a quantity's range is bad, and so which of several groups is the worst."""

    HIGH_IS_BAD = "high"
    LOW_IS_BAD = "low"
    NEUTRAL = "neutral"


class Keep(Enum):
    """Which value is published if several were measured since the last log: the last, the largest or the smallest."""

    LAST = "last"
    MAX = "max"
    MIN = "min"


@dataclass(frozen=True, slots=True)
class Quantity:
    """Describes one measured quantity, and how its values are compared, kept and published.

    The function `quantity` returns it by name.

    Attributes:
        name: The name of the values in the record; `betti_k` stands for `betti_0`, `betti_1`, ...
        probe: The name of the probe that measures it.
        scope: Whether it is measured for each group of neurons, for the whole network, or for both.
        direction: Which end of its range is bad.
        title: A short title, for figures and tables.
        sentence: What it is, in one sentence.
        unit: The unit; empty for a plain number.
        keep: Which value is published if several were measured since the last log.
        published: Whether it goes to trackers and metrics; if not, it goes to the record alone.
    """

    name: str
    probe: str
    scope: Scope
    direction: Direction
    title: str
    sentence: str
    unit: str = ""
    keep: Keep = Keep.LAST
    published: bool = True
