"""How often a probe measures."""

from dataclasses import dataclass
from typing import Literal

from lightning_topo._keywords import explains_keywords


@explains_keywords
@dataclass(frozen=True, slots=True)
class Period:
    """A period: every `every` optimizer steps or epochs.

    An `adaptive` period is only where the probe starts: it is widened where the monitor's share of the wall time
    asks for it. A fixed one is kept.

    Raises `ValueError` unless `every` is at least 1.

    >>> Period.parse(10, default=25), Period.parse("auto", default=25)
    (Period(every=10, unit='step', adaptive=False), Period(every=25, unit='step', adaptive=True))
    """

    every: int
    unit: Literal["step", "epoch"] = "step"
    adaptive: bool = False

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"expected every_n_{self.unit}s of at least 1, got {self.every}")

    @classmethod
    def parse(cls, every: int | Literal["auto"], *, default: int, unit: Literal["step", "epoch"] = "step") -> "Period":
        """Read a period from a parameter that is a number or "auto"."""
        if isinstance(every, bool) or not (every == "auto" or isinstance(every, int)):
            raise ValueError(f'expected every_n_{unit}s as a whole number or "auto", got {every!r}')
        return cls(default, unit, adaptive=True) if every == "auto" else cls(int(every), unit)
