"""A file of lines read on as it grows: what counts of it is parsed, once, and the rest is counted."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from lightning_topo.measurement import Measurement
from lightning_topo.outputs.record._branch import REWIND, rewind_floors
from lightning_topo.outputs.record._jsonl import Line, LineReader, decoded, find_lines
from lightning_topo.outputs.record._limits import MOST_LINES, MOST_UNREADABLE, check, check_size
from lightning_topo.outputs.record._number_set import Places
from lightning_topo.outputs.record._read import UNREADABLE, measurement_of
from lightning_topo.phases import EventName, TopologyEvent

_T = TypeVar("_T", Measurement, TopologyEvent)


class Stale(Exception):
    """Signals that earlier lines must be read again: a new line changes what they mean."""


class LiveLines(Generic[_T]):
    """The lines of a file, each as `parse` gives it, without those that a later rewind has abandoned.

    `parse` raises one of `UNREADABLE` where a line is nothing of its kind. The first `n_header` lines are left out.

    Raises `RecordTooLarge` where the file is larger than any training's.
    """

    def __init__(self, path: Path, parse: Callable[[Line], _T], n_header: int) -> None:
        check_size(path)
        self._reader, self._parse, self._n_header = LineReader(path), parse, n_header
        self.n_unreadable: int = 0
        self.n_abandoned: int = 0
        self.n_at_first: int = 0
        """How many lines the file had before any was read."""
        rewinds: list[tuple[int, int | None]] = []
        for i, text in find_lines(path, REWIND.encode()):
            if i >= n_header and text:
                rewinds.append((i, self._rewound_to(text)))
            self.n_at_first = i
        check(f"lines in {path.name}", MOST_LINES, self.n_at_first)
        self._floors = rewind_floors(rewinds)
        self._known = {i for i, step in rewinds if step is not None}
        self._n_passed = 0

    @property
    def at(self) -> int:
        """The number of the line that was read last."""
        return self._reader.n_read - 1

    @property
    def is_replaced(self) -> bool:
        """Whether another file has taken the place of the one that was read."""
        return self._reader.is_replaced

    def read_on(self, *, whole: bool) -> Iterator[_T]:
        """Read what was appended; with `whole` also a last line without its newline.

        Raises `Stale` at a rewind that was not there at first: it bears on lines that were read before.
        """
        for text in self._reader.read_on(whole=whole):
            if self.at < self._n_header:
                continue
            try:
                found = self._parse(decoded(text))
            except UNREADABLE:
                self.n_unreadable += 1
                check("lines that cannot be read", MOST_UNREADABLE, self.n_unreadable)
                continue
            if _is_rewind(found):
                if self.at not in self._known:
                    raise Stale
                if isinstance(found, Measurement):
                    continue  # only a mark: its event reports the rewind
            if self._is_abandoned(found.step):
                self.n_abandoned += 1
            else:
                yield found

    def _is_abandoned(self, step: int) -> bool:
        """Whether the present line, of `step`, is."""
        while self._n_passed < len(self._floors) and self._floors[self._n_passed][0] <= self.at:
            self._n_passed += 1
        return self._n_passed < len(self._floors) and step > self._floors[self._n_passed][1]

    def _rewound_to(self, text: bytes) -> int | None:
        try:
            found = self._parse(decoded(text))
        except UNREADABLE:
            return None
        return found.step if _is_rewind(found) else None


def _is_rewind(found: Measurement | TopologyEvent) -> bool:
    return found.probe == REWIND if isinstance(found, Measurement) else found.name is EventName.REWIND


def superseded(path: Path) -> Places:
    """The lines whose step was measured again later, without a rewind: a record of an older version."""
    last: dict[int, int] = {}
    places = Places()
    for i, text in enumerate(LineReader(path).read_on(whole=True)):
        try:
            m = measurement_of(decoded(text))
        except UNREADABLE:
            continue
        # The order of lines within a step's series decides, whatever the lines between.
        key = hash((m.step, m.probe, m.group))
        if (earlier := last.get(key)) is not None:
            places.add(earlier)
        last[key] = i
    return places
