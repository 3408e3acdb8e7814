"""Read a record back, without executing or trusting anything in it."""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from lightning_topo._figures.captures import CapturedDiagram
from lightning_topo._figures.coverage import Stretch
from lightning_topo._notebook import RecordViews
from lightning_topo.measurement import GLOBAL, Measurement, OpenCause, StepState
from lightning_topo.outputs.record._about import read_about
from lightning_topo.outputs.record._archive import read_arrays
from lightning_topo.outputs.record._branch import REWIND, rewind_floors
from lightning_topo.outputs.record._jsonl import Line, find_lines, read_objects
from lightning_topo.outputs.record._layout import (
    EVENTS,
    HISTORY,
    MEASUREMENTS,
    Parent,
    diagram_path,
    diagram_steps,
    read_header,
)
from lightning_topo.outputs.record._limits import (
    LONGEST_NAME,
    LONGEST_TEXT,
    MOST_CAPTURE_BYTES,
    MOST_CAPTURES,
    MOST_GROUPS,
    MOST_LINES,
    MOST_UNREADABLE,
    MOST_VALUES,
    RecordTooLarge,
    check,
    check_size,
)
from lightning_topo.outputs.record._parameters import ParameterTable, read_parameters
from lightning_topo.outputs.record._thin import N_MERGED, PROBE, Thinned
from lightning_topo.phases import EventName, Replay, Severity, TopologyEvent

if TYPE_CHECKING:
    from lightning_topo.homology import PersistenceDiagram

LINE_KEYS = ("step", "epoch", "probe", "group", "reference_step", N_MERGED)
_PLACE = frozenset(LINE_KEYS)
_LARGEST_STEP = 1 << 53
_WORDS: Mapping[str, Mapping[str, int]] = {
    "state": {state.word: state for state in StepState},
    "cause": {cause.word: cause for cause in OpenCause},
}

_T = TypeVar("_T")
_Stepped = TypeVar("_Stepped", Measurement, TopologyEvent)


@dataclass(frozen=True, slots=True)
class Digest:
    """Totals of a record that was read in bounded memory, so that not all of its lines are kept.

    - `replay` and `history_replay` hold phases and events, from every line.
    - `widths` gives for each group how many steps one kept measurement stands for, counted from a multiple of that
      width.
    - `network` holds the state of every step of the whole network, as stretches of equal state.
    - `last_below` gives for each group the last step known to have r < 1 before its first step with r >= 1.
    """

    replay: Replay
    history_replay: Replay | None
    n_measurements: int
    n_ratio_steps: int
    n_dropped_events: int
    network: tuple[Stretch, ...]
    widths: Mapping[str, int]
    last_below: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class RunRecord(RecordViews):
    """A record read back from its folder; methods such as `measurements_frame` and `plot_phases` show its contents.

    - `measurements` and `events` hold the lines that count, in order. If a resumed run measured a step again, the later
      measurement replaces the earlier one.
    - `diagram_steps` are the steps at which persistence diagrams were captured.
    - `n_unreadable` counts lines that are no measurement or event; a killed process can leave one at the end.
    - `n_abandoned` counts lines discarded because the run was rewound to an earlier step.
    - `thinned` describes what was dropped to keep the size limit; None if nothing was.
    - `parent` is the run whose checkpoint this run began from; `history` and `history_events` hold what that run
      recorded up to the checkpoint.
    - `about` holds settings, hyperparameters, versions, start and duration, from `run.json`; empty if it is missing.
    - `digest` is set if the record was read in bounded memory (`RecordFollower`): lines were then merged, and `digest`
      keeps totals that cannot be recomputed from them.
    """

    dirpath: Path
    run_id: str
    measurements: tuple[Measurement, ...] = ()
    events: tuple[TopologyEvent, ...] = ()
    diagram_steps: tuple[int, ...] = ()
    n_unreadable: int = 0
    thinned: Thinned | None = None
    parent: Parent | None = None
    history: tuple[Measurement, ...] = ()
    history_events: tuple[TopologyEvent, ...] = ()
    n_abandoned: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)
    digest: Digest | None = None

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of the measured groups, in the order of their first measurement."""
        return tuple(dict.fromkeys(m.group for m in self.measurements if m.group != GLOBAL))

    @property
    def parameters(self) -> ParameterTable | None:
        """A table of every parameter with its groups, or the reason why it is in none; None if the record has none."""
        return read_parameters(self.dirpath)

    def diagrams(self, step: int) -> dict[str, "PersistenceDiagram"]:
        """Return the persistence diagrams captured at a step, by group; a block of a group is `"group[k]"`.

        Raises `FileNotFoundError` if `step` is not among `diagram_steps`, and `ValueError` if the file is damaged.
        """
        return {group: captured.diagram() for group, captured in self.captured(step).items()}

    def captured(self, step: int) -> dict[str, CapturedDiagram]:
        """Return the diagrams captured at a step as NumPy arrays, by group, so that they can be drawn without torch.

        Raises `FileNotFoundError` if `step` is not among `diagram_steps`, and `ValueError` if the file is damaged.
        """
        return _read_diagrams(diagram_path(self.dirpath, step))


def read_record(dirpath: str | os.PathLike[str]) -> RunRecord:
    """Read the record in a run folder, also while the run is still writing it.

    Raises `FileNotFoundError` if there is no record. Raises `ValueError` if its schema is unknown or it is too large:
    the limits are 4 GiB and 5 million lines a file, and 10,000 groups.
    """
    folder = Path(dirpath)
    if not (folder / MEASUREMENTS).is_file():
        raise FileNotFoundError(f"expected a run folder with {MEASUREMENTS}, found none in {folder}")
    header = read_header(folder / MEASUREMENTS)
    for path in (place / name for place in (folder, folder / HISTORY) for name in (MEASUREMENTS, EVENTS)):
        check_size(path)
        for n_lines, _ in find_lines(path):
            check(f"lines in {path.name}", MOST_LINES, n_lines)
    measured = _measurements(islice(read_objects(folder / MEASUREMENTS), 1, None))
    happened = _events(islice(read_objects(folder / EVENTS), 1, None))
    # A copy of what another run has recorded: its own rewinds were left out as it was made.
    older = _measurements(read_objects(folder / HISTORY / MEASUREMENTS))
    older_events = _events(read_objects(folder / HISTORY / EVENTS))
    return RunRecord(
        folder,
        header.run_id,
        measured.found,
        happened.found,
        tuple(captured_steps(folder)),
        measured.n_unreadable + happened.n_unreadable,
        measured.thinned,
        header.parent,
        older.found,
        older_events.found,
        measured.n_abandoned + happened.n_abandoned,
        read_about(folder),
    )


def captured_steps(folder: Path) -> list[int]:
    """The steps of a folder's captures; raises `ValueError` where there are too many."""
    steps = diagram_steps(folder)
    check("captured diagrams", MOST_CAPTURES, len(steps))
    return steps


@dataclass(frozen=True, slots=True)
class _Lines(Generic[_T]):
    """The parsed lines of one file."""

    found: tuple[_T, ...]
    n_unreadable: int
    n_abandoned: int
    thinned: Thinned | None = None


def _measurements(lines: Iterable[Line]) -> _Lines[Measurement]:
    kept: dict[tuple[int, str, str], tuple[int, Measurement]] = {}
    rewinds: list[tuple[int, int | None]] = []
    n_unreadable, gone = 0, None
    groups: set[str] = set()
    for i, line in enumerate(lines):
        try:
            m = measurement_of(line)
            groups.add(m.group)
            check("groups of neurons", MOST_GROUPS, len(groups))
            if m.probe == PROBE:
                gone = Thinned.of(m.values)
            elif m.probe == REWIND:
                rewinds.append((i, m.step))
            else:
                # Popped first, so that a step measured again also takes its place in the order again.
                kept.pop((m.step, m.probe, m.group), None)
                kept[m.step, m.probe, m.group] = i, m
        except RecordTooLarge:
            raise
        except UNREADABLE:
            n_unreadable += 1
            check("lines that cannot be read", MOST_UNREADABLE, n_unreadable)
    found, n_abandoned = _live(list(kept.values()), rewinds)
    return _Lines(found, n_unreadable, n_abandoned, gone)


def _events(lines: Iterable[Line]) -> _Lines[TopologyEvent]:
    kept: dict[str, tuple[int, TopologyEvent]] = {}
    rewinds: list[tuple[int, int | None]] = []
    n_unreadable = 0
    for i, line in enumerate(lines):
        try:
            event = event_of(line)
            if event.name is EventName.REWIND:
                rewinds.append((i, event.step))
            # An event that a resumed run has met again takes its place in the order again.
            kept.pop(repr(event), None)
            kept[repr(event)] = i, event
        except UNREADABLE:
            n_unreadable += 1
    found, n_abandoned = _live(list(kept.values()), rewinds)
    return _Lines(found, n_unreadable, n_abandoned)


def _live(
    kept: Sequence[tuple[int, _Stepped]], rewinds: Sequence[tuple[int, int | None]]
) -> tuple[tuple[_Stepped, ...], int]:
    """Without what a later rewind has abandoned, in the order of lines; how many are left out."""
    floors = rewind_floors(rewinds)
    live, at = [], 0
    for i, thing in kept:
        while at < len(floors) and floors[at][0] <= i:
            at += 1
        if at == len(floors) or thing.step <= floors[at][1]:
            live.append(thing)
    return tuple(live), len(kept) - len(live)


UNREADABLE = (KeyError, TypeError, ValueError, OverflowError)
"""What reading a line raises that is no measurement, or no event."""


def measurement_of(line: Line) -> Measurement:
    """A line as a measurement; raises one of `UNREADABLE` where it is none."""
    step, epoch, probe, group = line["step"], line["epoch"], line["probe"], line["group"]
    if not (
        type(step) is int
        and type(epoch) is int
        and type(probe) is str
        and type(group) is str
        and 0 <= step <= _LARGEST_STEP
        and 0 <= epoch <= _LARGEST_STEP
        and len(probe) <= LONGEST_NAME
        and len(group) <= LONGEST_NAME
    ):
        raise TypeError("expected a step, an epoch, a probe and a group")
    values = {
        name: value if type(value := line[name]) is float else _number(name, value)
        for name in _value_names(tuple(line))
    }
    # Most lines name the same few things: each is kept in memory once.
    return Measurement(step, epoch, sys.intern(probe), sys.intern(group), values)


@lru_cache(maxsize=64)  # a stranger's lines may each name others, of a megabyte
def _value_names(fields: tuple[str, ...]) -> tuple[str, ...]:
    """The fields of a line that are values; raises `ValueError` where they are no probe's."""
    if len(fields) > MOST_VALUES or max(map(len, fields)) > LONGEST_NAME:
        raise ValueError("more values, or longer names, than a probe has")
    return tuple(sys.intern(name) for name in fields if name not in _PLACE)


def _number(name: str, value: Any) -> float:
    words = _WORDS.get(name)
    return float(words[value] if words is not None and isinstance(value, str) and value in words else value)


def event_of(line: Line) -> TopologyEvent:
    """A line as an event; raises one of `UNREADABLE` where it is none."""
    # A message and a remedy may be missing, as they were in older records.
    words = _checked({"message": "", "remedy": "", **line}, step=int, epoch=int, group=str, message=str, remedy=str)
    value, threshold = (None if line[name] is None else float(line[name]) for name in ("value", "threshold"))
    name, severity = EventName(line["name"]), Severity(line["severity"])
    return TopologyEvent(name, severity=severity, value=value, threshold=threshold, **words)


def _checked(line: Mapping[str, Any], **kinds: type) -> dict[str, Any]:
    """These fields, each of its type; a count must be one that a float holds exactly."""
    for name, kind in kinds.items():
        value = line[name]
        if type(value) is not kind or (kind is int and not 0 <= value <= _LARGEST_STEP):
            raise TypeError(f"expected {name} of type {kind.__name__}, got {value!r}")
        most = LONGEST_TEXT if name in ("message", "remedy") else LONGEST_NAME
        if kind is str and len(value) > most:
            raise ValueError(f"expected {name} of at most {most:,} characters, got {len(value):,}")
    return {name: line[name] for name in kinds}


def _read_diagrams(path: Path) -> dict[str, CapturedDiagram]:
    stored = read_arrays(path, most_bytes=MOST_CAPTURE_BYTES)
    try:
        meta = json.loads(str(stored["meta"]))
        return {str(group): _diagram(stored, group, fields) for group, fields in meta.items()}
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"expected diagrams with their meta data in {path}, got {error!r}") from error


def _diagram(stored: Mapping[str, np.ndarray], group: str, fields: Mapping[str, Any]) -> CapturedDiagram:
    bars: list[np.ndarray] = []
    while (array := stored.get(f"{group}/H{len(bars)}")) is not None:
        # NaN is in no order with anything.
        if array.dtype.kind != "f" or array.ndim != 2 or array.shape[1] != 2 or not (array >= 0.0).all():
            raise ValueError(
                f"expected births and deaths of shape (m, 2) in {group!r}, got {array.dtype} {array.shape}"
            )
        bars.append(array)
    n_points, engine, exact = int(fields["n_points"]), str(fields["engine"]), bool(fields["exact"])
    return CapturedDiagram(
        tuple(bars), n_points, float(fields["diameter"]), float(fields["covering_radius"]), engine, exact
    )
