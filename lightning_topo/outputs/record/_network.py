"""What is known of the whole network's steps, added up line by line in bounded memory."""

from lightning_topo._figures.coverage import Stretch, unrecorded, weakest
from lightning_topo.measurement import StepState

_MOST_WAITING = 20_000
_MOST_PIECES = 50_000


class NetworkTally:
    """The weakest state of each step over all groups, from lines of coverage in any order.

    Where there are very many changes of state, neighbours are joined in the weaker one: less is then claimed than is
    known, never more.
    """

    def __init__(self) -> None:
        self._pieces: list[Stretch] = []
        self._waiting: list[Stretch] = []
        self.last: int | None = None

    def add(self, stretch: Stretch) -> None:
        """Take in one line of one group."""
        self._waiting.append(stretch)
        self.last = stretch.last if self.last is None else max(self.last, stretch.last)
        if len(self._waiting) > _MOST_WAITING:
            self._sweep()

    def whole(self, first_step: int) -> tuple[Stretch, ...]:
        """The weakest state of each step after `first_step`, open for one without a line; empty without any line."""
        self._sweep()
        if not self._pieces:
            return ()
        since = min(first_step, self._pieces[0].first - 1)
        return weakest([*self._pieces, *unrecorded(self._pieces, since)])

    def _sweep(self) -> None:
        if not self._waiting:
            return
        self._pieces = list(weakest([*self._pieces, *self._waiting]))
        self._waiting = []
        while len(self._pieces) > _MOST_PIECES:
            self._pieces = _in_pairs(self._pieces)


def _in_pairs(pieces: list[Stretch]) -> list[Stretch]:
    found = [_weaker(a, b) for a, b in zip(pieces[::2], pieces[1::2], strict=False)]
    return found if len(pieces) % 2 == 0 else [*found, pieces[-1]]


def _weaker(a: Stretch, b: Stretch) -> Stretch:
    # Steps between the two belong to no line.
    state = min(a.state, b.state) if b.first == a.last + 1 else StepState.OPEN
    return Stretch(a.first, b.last, state)
