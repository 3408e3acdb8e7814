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

    `name` is its name in the record (`betti_k` stands for `betti_0`, `betti_1`, ...), `probe` the name of its probe.
    `title` and `sentence` describe it; `unit` is empty for a plain number. If it is not `published`, it goes to the
    record alone, not to trackers and metrics. The classes `Scope`, `Direction` and `Keep` explain the other fields.
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
