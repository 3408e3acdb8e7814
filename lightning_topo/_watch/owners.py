"""Which parameters the updates behind each loss of a step move: a GAN's losses are of one network each."""

from collections.abc import Iterable, Sequence

from lightning_topo._tape import Tape


class Owners:
    """Counts the losses of one step, and notes what the updates behind them move.

    Several losses may belong to one update, whose gradient is their sum, and several updates to one loss.
    """

    def __init__(self) -> None:
        self._moved: list[set[str]] = []
        self._first = 0  # of the losses that the next update takes
        self._has_moved = False

    def loss(self) -> None:
        """Another loss is differentiated; an update before it has taken those before."""
        if self._has_moved:
            self._first, self._has_moved = len(self._moved), False
        self._moved.append(set())

    def moved(self, names: Iterable[str]) -> None:
        """An update has moved these parameters."""
        self._has_moved = True
        for moved in self._moved[self._first :]:
            moved.update(names)

    def noted(self, tapes: Sequence[Tape]) -> list[Tape]:
        """The tapes of these losses with what has moved behind them, where that is not the same for all.

        >>> from lightning_topo._tape.closing import empty_tape
        >>> owners = Owners()
        >>> owners.loss(), owners.moved(["a"]), owners.loss(), owners.loss(), owners.moved(["b"])
        (None, None, None, None, None)
        >>> [sorted(tape.owners) for tape in owners.noted([empty_tape("")] * 3)]
        [['a'], ['b'], ['b']]
        """
        if len({frozenset(moved) for moved in self._moved}) < 2:
            return list(tapes)
        return [tape.replaced(owners=frozenset(moved) or None) for tape, moved in zip(tapes, self._moved, strict=True)]
