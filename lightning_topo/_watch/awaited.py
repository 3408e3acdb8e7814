"""Measurements that are made elsewhere, until they are taken in."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from lightning_topo.probes import Pending, Probe


@dataclass(frozen=True, slots=True)
class Awaited:
    """A capture that was handed over at `step`, which took `seconds`."""

    probe: Probe
    step: int
    epoch: int
    pending: Pending
    seconds: float


@dataclass(slots=True)
class AwaitedResults:
    """Pending results in the order of their captures; each is taken in once the steps of its lag are done."""

    _captures: list[Awaited] = field(default_factory=list)

    def add(self, awaited: Awaited) -> None:
        """Wait for one more."""
        self._captures.append(awaited)

    def due(self, step: int | None = None) -> Iterator[Awaited]:
        """Remove and return the captures due after this step (None: all)."""
        for awaited in tuple(self._captures):
            if step is None or awaited.step + awaited.pending.lag <= step:
                self._captures.remove(awaited)
                yield awaited

    @property
    def steps(self) -> dict[str, tuple[int, ...]]:
        """The steps of the captures that are waited for, by probe."""
        names = dict.fromkeys(awaited.probe.name for awaited in self._captures)
        return {name: tuple(a.step for a in self._captures if a.probe.name == name) for name in names}
