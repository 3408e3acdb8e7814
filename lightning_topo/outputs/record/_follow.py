"""A record read as it grows, in bounded memory: what was appended is read on, and thinned as it is read."""

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from lightning_topo._figures.coverage import stretches
from lightning_topo.measurement import GLOBAL, Measurement, StepState
from lightning_topo.outputs.record._about import read_about
from lightning_topo.outputs.record._bins import COVERAGE, Bins
from lightning_topo.outputs.record._jsonl import Line, decoded, find_lines
from lightning_topo.outputs.record._layout import EVENTS, HISTORY, MEASUREMENTS, read_header
from lightning_topo.outputs.record._limits import MOST_GROUPS, MOST_NAMES, MOST_SERIES, check
from lightning_topo.outputs.record._live import LiveLines, Stale, superseded
from lightning_topo.outputs.record._network import NetworkTally
from lightning_topo.outputs.record._number_set import Places
from lightning_topo.outputs.record._read import Digest, RunRecord, captured_steps, event_of, measurement_of
from lightning_topo.outputs.record._thin import PROBE, Thinned
from lightning_topo.phases import EventList, RecordReplayer, Replay, TopologyEvent, replay_record

MOST_KEPT = 1_500_000
"""So many values are kept of all measurements; of more, neighbours are merged."""
_LARGE_SHARE = 0.75
_MOST_IN_DETAIL = 128
_FEWEST_BINS = 8
_MOST_RESTARTS = 3


class RecordFollower:
    """Reads a record again and again while it grows, in about 200 MB of memory however large it is.

    Each call of `read` reads what was appended since the last. Phases and events are computed from every line. Above
    `most_kept` values, neighbouring measurements of one probe and group are merged into one with their extremes; the
    groups with the largest critical ratios keep more detail. To read a record once and whole, use `read_record`.

    Args:
        dirpath: The run folder.
        most_kept: About how many values of measurements to keep.
    """

    def __init__(self, dirpath: Path, *, most_kept: int = MOST_KEPT) -> None:
        self._dirpath, self._most_kept = dirpath, most_kept
        self._measured: _Measured | None = None
        self._happened: _Happened | None = None
        self._before: tuple[tuple[Measurement, ...], tuple[TopologyEvent, ...], Replay] | None = None

    def read(self, *, whole: bool = True) -> RunRecord:
        """Read what was appended since the last call, and return the record so far, with totals in its `digest`.

        `whole=False` leaves a last line without its newline for the next call: the run may still be writing it.

        Raises `FileNotFoundError` if there is no record. Raises `ValueError` if its schema is unknown, if it is too
        large (see `read_record`), or if it is rewound again and again while it is read.
        """
        folder = self._dirpath
        if not (folder / MEASUREMENTS).is_file():
            raise FileNotFoundError(f"expected a run folder with {MEASUREMENTS}, found none in {folder}")
        header = read_header(folder / MEASUREMENTS)
        self._measured = measured = _up_to_date(
            self._measured, lambda tries: _Measured(folder / MEASUREMENTS, self._most_kept, tries), whole
        )
        self._happened = happened = _up_to_date(self._happened, lambda _: _Happened(folder / EVENTS), whole)
        kept, events = measured.measurements, tuple(happened.events)
        is_whole = measured.thinned is None
        replay = measured.replayer.result(events) if is_whole else replay_record(kept, events, complete=False)
        if self._before is None and header.parent is not None and kept:
            self._before = _before(folder / HISTORY, measured.first_step, self._most_kept // 4)
        history, history_events, history_replay = self._before or ((), (), None)
        digest = Digest(
            replay,
            history_replay,
            measured.n_measurements,
            measured.n_ratio_steps,
            happened.events.n_dropped + (measured.replayer.n_dropped if is_whole else 0),
            measured.network.whole(measured.first_step),
            MappingProxyType(measured.widths),
            MappingProxyType(dict(measured.last_below)),
        )
        return RunRecord(
            folder,
            header.run_id,
            kept,
            events,
            tuple(captured_steps(folder)),
            measured.lines.n_unreadable + happened.lines.n_unreadable,
            measured.thinned,
            header.parent,
            history,
            history_events,
            measured.lines.n_abandoned + happened.lines.n_abandoned,
            read_about(folder),
            digest,
        )


def _before(
    folder: Path, until: int, most_kept: int
) -> tuple[tuple[Measurement, ...], tuple[TopologyEvent, ...], Replay]:
    """The parent's history, of the steps before `until`."""
    measured = _up_to_date(None, lambda tries: _Measured(folder / MEASUREMENTS, most_kept, tries, until, 0), True)
    happened = _up_to_date(None, lambda _: _Happened(folder / EVENTS, 0), True)
    events = tuple(happened.events)
    return measured.measurements, events, measured.replayer.result(events)


_R = TypeVar("_R", "_Measured", "_Happened")


def _up_to_date(reading: _R | None, afresh: Callable[[int], _R], whole: bool) -> _R:
    """The reading read on, or begun again where that cannot be."""
    for tries in range(_MOST_RESTARTS):
        if reading is None or reading.lines.is_replaced:
            reading = afresh(tries)
        try:
            for found in reading.lines.read_on(whole=whole):
                reading.take(found)  # pyright: ignore[reportArgumentType]  # of the kind of its own lines
        except Stale:
            reading = None
        else:
            return reading
    raise ValueError("expected a record that is not rewound while it is read, got one that was rewound again and again")


class _Measured:
    """The measurements of one file, thinned as they are read; `tries` counts those before."""

    def __init__(self, path: Path, most_kept: int, tries: int, until: float = float("inf"), n_header: int = 1) -> None:
        self.lines = LiveLines(path, _measurement, n_header)
        self.thinned: Thinned | None = None
        self.network = NetworkTally()
        self.n_measurements = self.n_ratio_steps = 0
        self.first_step = 0
        self._most_kept, self._until = most_kept, until
        self._superseded = superseded(path) if tries else None
        self._may_go_back = tries > 0
        self.replayer = RecordReplayer(is_covered=_is_covered(path))
        self._series: dict[tuple[str, str], Bins] = {}
        self._peaks: dict[str, float] = {}
        self.last_below: dict[str, int] = {}
        self._broken: dict[str, int] = {}
        self._names: set[str] = set()
        self._n_kept_values = 0
        self._last_ratio_step = -1
        self._ratio_steps = Places()

    def take(self, m: Measurement) -> None:
        """Take in the next line; raises `Stale` where what came before must be read again."""
        if m.probe == PROBE:
            self.thinned = Thinned.of(m.values)
            return
        if m.probe == COVERAGE and not self.replayer.is_covered and self.lines.at >= self.lines.n_at_first - 1:
            raise Stale  # coverage lines decide by which rules the whole record is replayed
        if m.step < self._until and (self._superseded is None or self.lines.at not in self._superseded):
            self._take(m)

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """What is kept, in the order of steps."""
        return tuple(sorted((m for bins in self._series.values() for m in bins), key=lambda m: m.step))

    @property
    def widths(self) -> dict[str, int]:
        """In how many steps a measurement of the group's step map may stand for others."""
        found: dict[str, int] = {}
        for (_, group), bins in self._series.items():
            if bins.last.probe != COVERAGE:
                found[group] = max(found.get(group, 1), bins.width)
        return found

    def _take(self, m: Measurement) -> None:
        key = m.probe, m.group
        bins = self._series.get(key)
        if bins is not None and m.step < bins.last.step and not self._may_go_back:
            raise Stale  # measured again: the later lines stand, and the earlier are to be left out
        self.first_step = m.step if self.n_measurements == 0 else min(self.first_step, m.step)
        if m.probe == COVERAGE and m.group != GLOBAL:
            for stretch in stretches([m]).get(m.group, ()):
                self.network.add(stretch)
                if stretch.state is StepState.BOUNDED:
                    self._below(m.group, stretch.first, stretch.last)
        if not self._names.issuperset(m.values):
            self._names.update(m.values)
            check("names of values", MOST_NAMES, len(self._names))
        ratio = m.values.get("critical_ratio")
        if ratio is not None and ratio == ratio:
            if m.step > self._last_ratio_step:
                self.n_ratio_steps += 1
                self._last_ratio_step = m.step
            elif self._may_go_back and m.step not in self._ratio_steps:
                self.n_ratio_steps += 1
            if self._may_go_back:
                self._ratio_steps.add(m.step)
            if ratio > self._peaks.get(m.group, -1.0):
                self._peaks[m.group] = ratio
            if ratio < 1.0:
                self._below(m.group, m.step, m.step)
            else:
                self._broken.setdefault(m.group, m.step)
        self.replayer.take(m)
        if bins is None:
            self._peaks.setdefault(m.group, -1.0)
            check("groups of neurons", MOST_GROUPS, len(self._peaks) - (GLOBAL in self._peaks))
            self._series[key] = Bins(m)
            check("series of measurements", MOST_SERIES, len(self._series))
        elif m.step == bins.last.step:
            bins.last = m
            return
        else:
            bins.add(m)
        self.n_measurements += 1
        self._n_kept_values += _cost(m)
        if self._n_kept_values > self._most_kept:
            self._shrink()

    def _below(self, group: str, first: int, last: int) -> None:
        """Take in steps of a group that are known to be below 1."""
        broken = self._broken.get(group)
        if broken is None or first < broken:
            last = last if broken is None else min(last, broken - 1)
            self.last_below[group] = max(last, self.last_below.get(group, last))

    def _shrink(self) -> None:
        """Merge until half of what may be kept is left, most of it of the groups with the largest ratios."""
        ranked = sorted(self._peaks, key=lambda group: -self._peaks[group])
        detailed = {*ranked[:_MOST_IN_DETAIL], GLOBAL}
        large = [b for (_, group), b in self._series.items() if group in detailed]
        small = [b for (_, group), b in self._series.items() if group not in detailed]
        share = _LARGE_SHARE if small else 1.0
        for some, room in ((large, share), (small, 1.0 - share)):
            cost = sum(_cost(bins.last) for bins in some)
            for bins in some:
                # Its own place apart, a curve keeps two measurements a column.
                columns = int(self._most_kept * room / 2 / max(cost, 1)) - 2
                bins.shrink(max(_FEWEST_BINS, columns if bins.last.group != GLOBAL else columns // 2))
        self._n_kept_values = sum(len(bins) * _cost(bins.last) for bins in self._series.values())
        if self._n_kept_values > self._most_kept * 3 // 4:
            self._most_kept = 2 * self._n_kept_values  # the fewest possible for this many series


def _cost(m: Measurement) -> int:
    """About how much memory a measurement takes, in values."""
    return len(m.values) + 8


class _Happened:
    """The events of one file."""

    def __init__(self, path: Path, n_header: int = 1) -> None:
        self.lines = LiveLines(path, event_of, n_header)
        self.events = EventList()

    def take(self, event: TopologyEvent) -> None:
        """Take in the next line."""
        # An event that a resumed run has met again takes its place in the order again.
        self.events.add(event, repr(event))


def _is_covered(path: Path) -> bool:
    return any(decoded(text).get("probe") == COVERAGE for _, text in find_lines(path, b'"coverage"'))


def _measurement(line: Line) -> Measurement:
    m = measurement_of(line)
    if m.probe == PROBE:
        Thinned.of(m.values)  # raises where it is none
    return m


def follow_record(dirpath: Path) -> RunRecord:
    """Read a record once in bounded memory; see `RecordFollower`."""
    return RecordFollower(dirpath).read()
