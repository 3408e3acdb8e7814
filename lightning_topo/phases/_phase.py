"""The phases that training passes through."""

from enum import IntEnum


class Phase(IntEnum):
    """The state of the neurons' topology: the highest phase that holds.

    The distance between two neurons cannot have closed in a step whose critical ratio r is below 1. The paper
    guarantees r < 1 in advance where eta * K < 1; past that point (`UNPROTECTED`) only the measured r decides.

    Source: Yang, Poggio, Chuang, Ziyin, arXiv:2510.02670; Cohen et al., arXiv:2103.00065.

    >>> Phase.BREAKDOWN > Phase.EDGE_OF_STABILITY, int(Phase.PRESERVED)
    (True, 0)
    """

    UNKNOWN = -1
    """Nothing measured yet, steps of which nothing is known, or a loss that is not finite."""
    PRESERVED = 0
    """r < 1 at every step since the last other phase, measured or bounded, and eta * K < 1 where it was measured."""
    UNPROTECTED = 1
    """eta * K >= 1: the sufficient condition cannot hold any more, though r < 1 as observed."""
    EDGE_OF_STABILITY = 2
    """The edge ratio has reached 1: the sharpness the optimizer's threshold, or the steps twice their minimum."""
    BREAKDOWN = 3
    """r >= 1 in some group: neurons may have torn apart or merged."""
