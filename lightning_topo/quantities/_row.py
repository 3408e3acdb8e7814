"""A row of the table: what a quantity is, which end is bad, and what is kept of it."""

from dataclasses import dataclass
from enum import Enum


class Scope(Enum):
    """Whether a quantity belongs to a group, to the network, or to both."""

    GROUP = "group"
    NETWORK = "network"
    BOTH = "both"
    """Of a group; the worst of all groups is the network's."""


class Direction(Enum):
    """Which end of a quantity's range is bad."""

    HIGH_IS_BAD = "high"
    LOW_IS_BAD = "low"
    NEUTRAL = "neutral"


class Keep(Enum):
    """Which value is published, of several that have come since the last log."""

    LAST = "last"
    MAX = "max"
    MIN = "min"


@dataclass(frozen=True, slots=True)
class Quantity:
    """One quantity: `name` as recorded (`betti_k` stands for `betti_0`, `betti_1`, ...), and how to treat it.

    `probe` is the one that measures it. A quantity that is not `published` goes to the record alone.
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
