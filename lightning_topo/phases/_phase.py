"""The phases that training passes through."""

from enum import IntEnum


class Phase(IntEnum):
    """The state of the neurons' topology in training; if several phases hold, the highest counts.

    The phases are defined by two numbers and the edge of stability. A step moves neuron i from x_i to x_i + Δ_i; its
    critical ratio is r = max |Δ_i - Δ_j| / |x_i - x_j| over pairs of neurons. If r < 1, no two distinct neurons merged
    in the step. eta * K is the learning rate times a bound on the curvature; `eta_lambda` estimates it. If eta * K < 1,
    arXiv:2510.02670 guarantees r < 1 in advance.

    Source: Yang, Poggio, Chuang, Ziyin, arXiv:2510.02670; Cohen et al., arXiv:2103.00065.

    >>> Phase.BREAKDOWN > Phase.EDGE_OF_STABILITY, int(Phase.PRESERVED)
    (True, 0)
    """

    UNKNOWN = -1
    """Nothing is measured yet, the last steps are neither measured nor bounded, or the loss is not finite."""
    PRESERVED = 0
    """r of the last steps is below 1, measured or bounded, and `eta_lambda` has not passed 1 where it is measured."""
    UNPROTECTED = 1
    """`eta_lambda` has passed 1: nothing guarantees r < 1 in advance any more, and r has to be measured."""
    EDGE_OF_STABILITY = 2
    """An edge ratio (`EdgeSource`) has reached its band, near 1: the curvature is at the limit of stable steps."""
    BREAKDOWN = 3
    """A measured step of some group had r >= 1, with too few below 1 since: neurons may have merged or torn apart."""
