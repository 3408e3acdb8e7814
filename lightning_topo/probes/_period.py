"""How often a probe measures."""

from dataclasses import dataclass
from typing import Literal

from lightning_topo._keywords import explains_keywords


@explains_keywords
@dataclass(frozen=True, slots=True)
class Period:
    """How often a probe measures: every `every` optimizer steps or epochs.

    Args:
        every: The number of steps or epochs between two measurements, at least 1.
        unit: "step" for optimizer steps, or "epoch".
        adaptive: Whether the monitor may choose other times, to keep within its share `max_overhead` of the wall time.
            With `max_overhead=None` it keeps the period in any case.

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
        """Make a period from the parameter `every` of a probe, in the unit `unit`.

        A number gives a fixed period; "auto" gives an adaptive period of `default`. Raises `ValueError` for anything
        else, and for a number below 1.
        """
        if isinstance(every, bool) or not (every == "auto" or isinstance(every, int)):
            raise ValueError(f'expected every_n_{unit}s as a whole number or "auto", got {every!r}')
        return cls(default, unit, adaptive=True) if every == "auto" else cls(int(every), unit)
