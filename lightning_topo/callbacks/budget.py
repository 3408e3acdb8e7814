"""The time that the monitor takes of a training, and the periods that keep it within its share."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from lightning_topo.callbacks.ranks import Ranks
from lightning_topo.outputs.clock import Clock
from lightning_topo.probes import Pacer
from lightning_topo.probes.pacing import FULL_STEPS


class Budget:
    """Counts the seconds spent in the monitor, and fits the adaptive periods to them.

    Each process has a clock; by rank 0's the periods are set, for all.
    """

    def __init__(self, pacer: Pacer, ranks: Ranks) -> None:
        self._pacer, self._ranks = pacer, ranks
        self._clock = Clock()
        self._spent = 0.0
        self._mark = (0.0, 0.0, 0)
        self._told = dict(pacer.every)

    @property
    def every(self) -> Mapping[str, int]:
        """The periods in force, by probe."""
        return self._pacer.every

    def go_on_with(self, every: Mapping[str, int]) -> None:
        """Take up the periods of an earlier session."""
        self._pacer.every |= {name: n for name, n in every.items() if name in self._pacer.every}
        self._told = dict(self._pacer.every)

    def due(self, name: str, unit: str, count: int) -> bool:
        """Whether a probe measures at the `count`-th step or epoch."""
        return self._pacer.due(name, unit, count)

    def seconds(self) -> float:
        """Since the beginning."""
        return self._clock.seconds()

    def share(self) -> float:
        """The fraction of them that the monitor has taken."""
        return self._spent / max(self.seconds(), 1e-9)

    @contextmanager
    def spending(self) -> Iterator[None]:
        """What is done inside is the monitor's."""
        began = self.seconds()
        try:
            yield
        finally:
            self._spent += self.seconds() - began

    def spent(self, name: str, seconds: float) -> None:
        """Note what one measurement of a probe took."""
        self._pacer.spent(name, seconds)

    def repace(self, step: int, epochs: int) -> Mapping[str, int]:
        """Fit the periods to what the steps since the last time took; all of them where one has changed, else none.

        `epochs` have begun so far. A collective from `FULL_STEPS` on.
        """
        now, (then, spent, since) = self.seconds(), self._mark
        if step < FULL_STEPS or step == since:
            return {}
        self._mark = (now, self._spent, step)
        of_a_step = max(now - then - (self._spent - spent), 0.0) / (step - since)
        self._pacer.repace(of_a_step, steps_per_epoch=step / epochs)
        every = self._ranks.first("periods", lambda: dict(self._pacer.every))
        self._pacer.every = every
        if every == self._told:
            return {}
        self._told = dict(every)
        return every
