"""The run's own record: append-only, durable without any tracker, readable after a kill.

A run folder holds

    measurements.jsonl      a line per measurement: step, epoch, probe, group, reference_step, and values by name
    events.jsonl            a line per event
    diagrams/step-<9 digits>.npz    persistence diagrams: an array (m, 2) "<group>/H<k>" each, and "meta"
    reference/clouds.npz    the neurons when training began, and "step"

The first line of each .jsonl is `{"schema": 1, "run_id": ...}`. Lines are strict JSON; non-finite numbers are the
strings "inf", "-inf" and "nan". Reading a record executes nothing that it holds.
"""

import json
import math
import os
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_topo.archive import read_arrays, write_arrays
from lightning_topo.homology import Bars, PersistenceDiagram
from lightning_topo.jsonl import JsonLines, read_objects
from lightning_topo.measurement import GLOBAL, Measurement
from lightning_topo.notebook import RecordViews
from lightning_topo.phases import EventName, Severity, TopologyEvent
from lightning_topo.thinning import N_MERGED, PROBE, Thinned, thinned

SCHEMA = 1
MEASUREMENTS = "measurements.jsonl"
EVENTS = "events.jsonl"
REPORT = "report.html"
_REFERENCE = Path("reference") / "clouds.npz"
_DIAGRAM_FIELDS = ("n_points", "diameter", "covering_radius", "engine", "exact")
_LINE_KEYS = ("step", "epoch", "probe", "group", "reference_step", N_MERGED)
_LARGEST_STEP = 1 << 53
_FEWEST_CAPTURES = 8
_MOST_PASSES = 12


@dataclass(frozen=True, slots=True)
class RunRecord(RecordViews):
    """A record as read back from its folder; as frames and figures, see `RecordViews`.

    `n_unreadable` counts lines that are no JSON (a killed process can leave one, at the end). Where a resumed run
    measured a step again, the later measurement stands. `thinned` says what a record that has reached its size holds
    no more; None where it is whole.
    """

    dirpath: Path
    run_id: str
    measurements: tuple[Measurement, ...] = ()
    events: tuple[TopologyEvent, ...] = ()
    diagram_steps: tuple[int, ...] = ()
    n_unreadable: int = 0
    thinned: Thinned | None = None

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of the measured groups, in the order of their first measurement."""
        return tuple(dict.fromkeys(m.group for m in self.measurements if m.group != GLOBAL))

    def diagrams(self, step: int) -> dict[str, PersistenceDiagram]:
        """The persistence diagrams of every group, as captured at a step of `diagram_steps`."""
        return _read_diagrams(_diagram_path(self.dirpath, step))


def read_record(dirpath: str | os.PathLike[str]) -> RunRecord:
    """Read a run folder, also while its run is still being written.

    Raises `FileNotFoundError` where there is no record and `ValueError` where it has another schema.
    """
    folder = Path(dirpath)
    if not (folder / MEASUREMENTS).is_file():
        raise FileNotFoundError(f"expected a run folder with {MEASUREMENTS}, found none in {folder}")
    run_id = _run_id(folder / MEASUREMENTS)
    measurements: dict[tuple[int, str, str], Measurement] = {}
    events: dict[str, TopologyEvent] = {}
    n_unreadable, gone = 0, None
    for line in islice(read_objects(folder / MEASUREMENTS), 1, None):
        try:
            m = _measurement(line)
            if m.probe == PROBE:
                gone = Thinned.of(m.values)
                continue
            # Popped first, so that a step measured again also takes its place in the order again.
            measurements.pop((m.step, m.probe, m.group), None)
            measurements[m.step, m.probe, m.group] = m
        except (KeyError, TypeError, ValueError, OverflowError):
            n_unreadable += 1
    for line in islice(read_objects(folder / EVENTS), 1, None):
        try:
            # So does an event that a resumed run has met again.
            event = _event(line)
            events.pop(repr(event), None)
            events[repr(event)] = event
        except (KeyError, TypeError, ValueError, OverflowError):
            n_unreadable += 1
    steps = _diagram_steps(folder)
    found = (tuple(measurements.values()), tuple(events.values()), tuple(steps))
    return RunRecord(folder, run_id, *found, n_unreadable, gone)


def _measurement(line: Mapping[str, Any]) -> Measurement:
    where = _checked(line, step=int, epoch=int, probe=str, group=str)
    return Measurement(**where, values={name: float(value) for name, value in line.items() if name not in _LINE_KEYS})


def _event(line: Mapping[str, Any]) -> TopologyEvent:
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
    return {name: line[name] for name in kinds}


@dataclass(slots=True)
class RecordWriter:
    """Appends to one run folder; make one with `create` or `resume`.

    Every line is flushed as it is written. A write that fails (a full disk) raises `OSError`, leaves no partial
    line, and is tried again, in order, at the next one: nothing is lost if there is room again.

    Where measurements and diagrams take more than `max_bytes`, they are thinned to half of it: of the older captures
    every second is dropped, and of the older measurements two become one, with their extremes. Events are all kept.
    """

    dirpath: Path
    run_id: str
    reference_step: int = 0
    max_bytes: float = math.inf
    _measurements: JsonLines = field(init=False, repr=False)
    _events: JsonLines = field(init=False, repr=False)
    _diagram_bytes: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        header = {"schema": SCHEMA, "run_id": self.run_id}
        self._measurements = JsonLines(self.dirpath / MEASUREMENTS, header)
        self._events = JsonLines(self.dirpath / EVENTS, header)
        self._diagram_bytes = self._measure_diagrams()

    @classmethod
    def create(cls, dirpath: str | os.PathLike[str], max_bytes: float = math.inf) -> "RecordWriter":
        """Begin a record in `dirpath`, or, where another run's record stands, in `dirpath-v1`, `-v2`, ...

        Raises `OSError` if the folder cannot be made.
        """
        wanted, version = Path(dirpath), 0
        while True:
            folder = wanted if version == 0 else wanted.with_name(f"{wanted.name}-v{version}")
            folder.mkdir(parents=True, exist_ok=True)
            try:
                # Claimed by creating the file exclusively: two runs never share a folder.
                (folder / MEASUREMENTS).open("x").close()
            except FileExistsError:
                version += 1
            else:
                return cls(folder, uuid.uuid4().hex, max_bytes=max_bytes)

    @classmethod
    def resume(
        cls,
        dirpath: str | os.PathLike[str],
        run_id: str,
        otherwise: str | os.PathLike[str] | None = None,
        max_bytes: float = math.inf,
    ) -> "RecordWriter":
        """Go on with the record of the run `run_id`, in `dirpath` or in `otherwise`; begin a new one if neither has it.

        `dirpath` may come from a checkpoint made by someone else: where the record is not there, nothing is written
        there, but in `otherwise`.
        """
        wanted = Path(dirpath if otherwise is None else otherwise)
        for folder in (Path(dirpath), wanted):
            try:
                found = _run_id(folder / MEASUREMENTS) == run_id
            except (OSError, ValueError):
                continue
            if found:
                return cls(folder, run_id, max_bytes=max_bytes)
        return cls.create(wanted, max_bytes)

    def measurement(self, measurement: Measurement) -> None:
        """Append a measurement."""
        if clash := measurement.values.keys() & set(_LINE_KEYS):
            raise ValueError(f"expected values not named like the fields of a line, got {sorted(clash)}")
        line = {
            "step": measurement.step,
            "epoch": measurement.epoch,
            "probe": measurement.probe,
            "group": measurement.group,
            "reference_step": self.reference_step,
        }
        self._measurements.append(line | {k: _to_json(float(v)) for k, v in measurement.values.items()})
        if self._measurements.size + self._diagram_bytes > self.max_bytes:
            try:
                self._thin()
            except OSError:
                self.max_bytes *= 2.0  # no room even for less: not tried again at every line
                raise

    def event(self, event: TopologyEvent) -> None:
        """Append an event."""
        self._events.append({name: _to_json(value) for name, value in asdict(event).items()})

    def diagrams(self, step: int, diagrams: Mapping[str, PersistenceDiagram]) -> None:
        """Write the diagrams of one capture."""
        arrays: dict[str, np.ndarray] = {}
        meta: dict[str, Any] = {}
        for group, diagram in diagrams.items():
            for k, bars in enumerate(diagram):
                arrays[f"{group}/H{k}"] = torch.stack((bars.births, bars.deaths), dim=1).cpu().numpy()
            meta[group] = {name: _to_json(getattr(diagram, name)) for name in _DIAGRAM_FIELDS}
        arrays["meta"] = np.array(json.dumps(meta))
        path = _diagram_path(self.dirpath, step)
        write_arrays(path, arrays.items())
        self._diagram_bytes += path.stat().st_size

    def reference(self, step: int, clouds: Iterable[tuple[str, Tensor]]) -> None:
        """Keep the clouds from which distances since the beginning are measured, each with its group's name.

        They are written as they come: no more than one need be in memory.
        """
        self.reference_step = step
        # NumPy has no bfloat16; float32 holds half-precision values exactly.
        arrays = ((f"cloud/{name}", _widened(cloud).cpu().numpy()) for name, cloud in clouds)
        write_arrays(self.dirpath / _REFERENCE, chain(arrays, [("step", np.array(step))]))

    def read_reference(self, group: str) -> Tensor | None:
        """One of the clouds kept by `reference`; None where it is not there. Sets `reference_step` to their step."""
        name = f"cloud/{group}"
        try:
            stored = read_arrays(self.dirpath / _REFERENCE, only=(name, "step"))
            cloud, step = torch.from_numpy(stored[name]), int(stored["step"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        self.reference_step = step
        return cloud

    def _thin(self) -> None:
        """Make room, to half of the limit; a kill in the midst of it leaves every file whole."""
        path = self.dirpath / MEASUREMENTS
        found = [line for line in read_objects(path) if line.get("probe") == PROBE]
        gone = Thinned.of(found[-1]) if found else Thinned()
        steps = _diagram_steps(self.dirpath)
        while self._diagram_bytes > self.max_bytes / 4 and len(steps) > _FEWEST_CAPTURES:
            dropped = steps[1 : len(steps) * 3 // 4 : 2]
            for step in dropped:
                _diagram_path(self.dirpath, step).unlink(missing_ok=True)
            gone = replace(gone, n_captures=gone.n_captures + len(dropped))
            steps, self._diagram_bytes = _diagram_steps(self.dirpath), self._measure_diagrams()
        header = {"schema": SCHEMA, "run_id": self.run_id}
        for _ in range(_MOST_PASSES):
            self._measurements.rewrite(chain([header], thinned(partial(read_objects, path), gone)))
            if self._measurements.size <= self.max_bytes / 2:
                return
            gone = Thinned.of(next(islice(read_objects(path), 1, None)))
        # Nothing more can be made of it: not tried again before it has doubled.
        self.max_bytes = 2.0 * (self._measurements.size + self._diagram_bytes)

    def _measure_diagrams(self) -> int:
        return sum(_diagram_path(self.dirpath, step).stat().st_size for step in _diagram_steps(self.dirpath))

    def close(self) -> None:
        """Close the files, after one last try at what could not be written."""
        try:
            self._measurements.close()
        finally:
            self._events.close()


def _run_id(path: Path) -> str:
    """The run that a file of lines belongs to, as its first line says."""
    if not path.is_file():
        raise FileNotFoundError(f"expected a file of lines, found none at {path}")
    header = next(read_objects(path), {})
    schema, run_id = header.get("schema"), header.get("run_id")
    if schema is None or not isinstance(run_id, str):
        raise ValueError(f"expected a first line with schema and run_id in {path}")
    if schema != SCHEMA:
        raise ValueError(f"expected a record of schema {SCHEMA} in {path}, got {schema}: use a matching version")
    return run_id


def _to_json(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _diagram_path(dirpath: Path, step: int) -> Path:
    return dirpath / "diagrams" / f"step-{step:09d}.npz"


def _diagram_steps(folder: Path) -> list[int]:
    found = [path.stem.removeprefix("step-") for path in (folder / "diagrams").glob("step-*.npz")]
    # Only what a writer would have named so: a stranger's folder may hold anything.
    return sorted(int(step) for step in found if step.isascii() and step.isdigit() and step == f"{int(step):09d}")


def _read_diagrams(path: Path) -> dict[str, PersistenceDiagram]:
    stored = read_arrays(path)
    try:
        meta = json.loads(str(stored["meta"]))
        return {str(group): _diagram(stored, group, fields) for group, fields in meta.items()}
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"expected diagrams with their meta data in {path}, got {error!r}") from error


def _diagram(stored: Mapping[str, np.ndarray], group: str, fields: Mapping[str, Any]) -> PersistenceDiagram:
    bars: list[Bars] = []
    while (array := stored.get(f"{group}/H{len(bars)}")) is not None:
        # NaN is in no order with anything.
        if array.dtype.kind != "f" or array.ndim != 2 or array.shape[1] != 2 or not (array >= 0.0).all():
            raise ValueError(
                f"expected births and deaths of shape (m, 2) in {group!r}, got {array.dtype} {array.shape}"
            )
        bars.append(Bars(*torch.from_numpy(array).unbind(dim=1)))
    n_points, engine, exact = int(fields["n_points"]), str(fields["engine"]), bool(fields["exact"])
    return PersistenceDiagram(
        tuple(bars), n_points, float(fields["diameter"]), float(fields["covering_radius"]), engine, exact
    )


def _widened(cloud: Tensor) -> Tensor:
    return cloud.float() if cloud.dtype in (torch.bfloat16, torch.float16) else cloud
