"""The learning rate of the next run: rounded down, and in words."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from lightning_topo._figures.rates import RateLimits

MARGIN = 0.8
"""Of the learning rate that would just have done, so much is recommended."""
FAILED = 0.2
"""Of a learning rate at which training diverged, or learned nothing, at most so much is recommended."""
HALF = 0.5
"""At most so much where training became unstable, and the loss has fallen all the same."""


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do next in one sentence, and why.

    `learning_rate` is the largest rate of the next run and `warmup_steps` its linear warm-up, None where they stay as
    they are.
    """

    decision: str
    reasons: tuple[str, ...] = ()
    learning_rate: float | None = None
    warmup_steps: int | None = None


def floor2(value: float) -> float:
    """The largest number of two significant digits that is not above a value.

    >>> floor2(0.2325), floor2(18.9), floor2(0.1)
    (0.23, 18.0, 0.1)
    """
    if value <= 0.0 or not math.isfinite(value):
        return value
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    if unit == 0.0:  # below what a float holds
        return value
    return float(f"{math.floor(value / unit * (1 + 1e-9)) * unit:.2g}")


@dataclass(frozen=True, slots=True)
class RateWords:
    """Learning rates as a person has them, or, where the record holds none, as factors of the present one.

    >>> RateWords(RateLimits(used=((1, 0.5),))).lower(0.1), RateWords(RateLimits()).lower(0.2)
    ('Lower the learning rate from 0.5 to 0.1.', 'Lower the learning rate to 0.2 times the present one.')
    """

    limits: RateLimits

    @property
    def is_known(self) -> bool:
        """Whether the record holds the learning rate."""
        return self.limits.largest is not None and self.limits.largest > 0.0

    @property
    def present(self) -> float:
        """The largest learning rate of the run; 1 where it is not known, so that others are factors of it."""
        return self.limits.largest if self.limits.largest is not None and self.limits.largest > 0.0 else 1.0

    def rate(self, rate: float) -> str:
        """A learning rate, to three digits."""
        return f"{rate:.3g}" if self.is_known else f"{rate:.2g} times the present one"

    @property
    def now(self) -> str:
        """The present learning rate behind a blank; empty where it is not known."""
        return f" {self.present:.3g}" if self.is_known else ""

    def lower(self, rate: float) -> str:
        """The decision for a lower rate."""
        return f"Lower the learning rate{f' from {self.present:.3g}' if self.is_known else ''} to {self.rate(rate)}."

    def advice(self, rate: float, reasons: Iterable[str]) -> Advice:
        """The advice to lower the rate, with its reasons."""
        return Advice(self.lower(rate), tuple(reasons), rate if self.is_known else None)
