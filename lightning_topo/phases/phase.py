"""The phases that training passes through."""

from enum import IntEnum


class Phase(IntEnum):
    """What can be said of the neurons' topology now; the highest phase that holds.

    The distance between two neurons cannot have closed in a step whose critical ratio r is below 1. The paper
    guarantees r < 1 in advance where eta * K < 1; past that point (`UNPROTECTED`) only the measured r tells.

    Source: Yang, Poggio, Chuang, Ziyin, arXiv:2510.02670; Cohen et al., arXiv:2103.00065.

    >>> Phase.BREAKDOWN > Phase.EDGE_OF_STABILITY, int(Phase.PRESERVED)
    (True, 0)
    """

    UNKNOWN = -1
    """Nothing measured yet."""
    PRESERVED = 0
    """r < 1 at every measured step, and eta * K < 1 where it was measured."""
    UNPROTECTED = 1
    """eta * K >= 1: the sufficient condition cannot hold any more, though r < 1 as observed."""
    EDGE_OF_STABILITY = 2
    """The sharpness has reached the optimizer's stability threshold."""
    BREAKDOWN = 3
    """r >= 1 in some group: neurons may have torn apart or merged."""
