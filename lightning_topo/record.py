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
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_topo.homology import Bars, PersistenceDiagram
from lightning_topo.measurement import GLOBAL, Measurement
from lightning_topo.notebook import RecordViews
from lightning_topo.phases import EventName, Severity, TopologyEvent

SCHEMA = 1
MEASUREMENTS = "measurements.jsonl"
EVENTS = "events.jsonl"
REPORT = "report.html"
_REFERENCE = Path("reference") / "clouds.npz"
_DIAGRAM_FIELDS = ("n_points", "diameter", "covering_radius", "engine", "exact")
_LINE_KEYS = ("step", "epoch", "probe", "group", "reference_step")


@dataclass(frozen=True, slots=True)
class RunRecord(RecordViews):
    """A record as read back from its folder; as frames and figures, see `RecordViews`.

    `n_unreadable` counts lines that are no JSON (a killed process can leave one, at the end). Where a resumed run
    measured a step again, the later measurement stands.
    """

    dirpath: Path
    run_id: str
    measurements: tuple[Measurement, ...] = ()
    events: tuple[TopologyEvent, ...] = ()
    diagram_steps: tuple[int, ...] = ()
    n_unreadable: int = 0

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
    header = _read_header(folder / MEASUREMENTS)
    measurements: dict[tuple[int, str, str], Measurement] = {}
    events: list[TopologyEvent] = []
    n_unreadable = 0
    for line in _read_lines(folder / MEASUREMENTS):
        try:
            values = {name: float(value) for name, value in line.items() if name not in _LINE_KEYS}
            m = Measurement(line["step"], line["epoch"], line["probe"], line["group"], values)
            # Popped first, so that a step measured again also takes its place in the order again.
            measurements.pop((m.step, m.probe, m.group), None)
            measurements[m.step, m.probe, m.group] = m
        except (KeyError, TypeError, ValueError):
            n_unreadable += 1
    for line in _read_lines(folder / EVENTS):
        try:
            numbers = {n: None if line[n] is None else float(line[n]) for n in ("value", "threshold")}
            kinds = {"name": EventName(line["name"]), "severity": Severity(line["severity"])}
            events.append(TopologyEvent(**{**line, **numbers, **kinds}))
        except (KeyError, TypeError, ValueError):
            n_unreadable += 1
    steps = sorted(int(path.stem.removeprefix("step-")) for path in (folder / "diagrams").glob("step-*.npz"))
    return RunRecord(folder, header["run_id"], tuple(measurements.values()), tuple(events), tuple(steps), n_unreadable)


@dataclass(slots=True)
class RecordWriter:
    """Appends to one run folder; make one with `create` or `resume`.

    Every line is flushed as it is written. A write that fails (a full disk) raises `OSError`, leaves no partial
    line, and is tried again, in order, at the next one: nothing is lost if there is room again.
    """

    dirpath: Path
    run_id: str
    reference_step: int = 0
    _measurements: "_JsonLines" = field(init=False, repr=False)
    _events: "_JsonLines" = field(init=False, repr=False)

    def __post_init__(self) -> None:
        header = {"schema": SCHEMA, "run_id": self.run_id}
        self._measurements = _JsonLines(self.dirpath / MEASUREMENTS, header)
        self._events = _JsonLines(self.dirpath / EVENTS, header)

    @classmethod
    def create(cls, dirpath: str | os.PathLike[str]) -> "RecordWriter":
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
                return cls(folder, uuid.uuid4().hex)

    @classmethod
    def resume(cls, dirpath: str | os.PathLike[str], run_id: str) -> "RecordWriter":
        """Go on with the record of the run `run_id`; begin a new one if `dirpath` does not hold it."""
        folder = Path(dirpath)
        try:
            found = _read_header(folder / MEASUREMENTS)["run_id"] == run_id
        except (OSError, ValueError):
            found = False
        return cls(folder, run_id) if found else cls.create(folder)

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
        _write_npz(_diagram_path(self.dirpath, step), arrays | {"meta": np.array(json.dumps(meta))})

    def reference(self, step: int, clouds: Mapping[str, Tensor]) -> None:
        """Keep the clouds from which distances since the beginning are measured."""
        self.reference_step = step
        # NumPy has no bfloat16; float32 holds half-precision values exactly.
        arrays = {f"cloud/{name}": _widened(cloud).cpu().numpy() for name, cloud in clouds.items()}
        _write_npz(self.dirpath / _REFERENCE, arrays | {"step": np.array(step)})

    def read_reference(self) -> tuple[int, dict[str, Tensor]] | None:
        """The clouds kept by `reference`, with their step; None where there are none."""
        try:
            with np.load(self.dirpath / _REFERENCE, allow_pickle=False) as stored:
                clouds = {
                    name.removeprefix("cloud/"): torch.from_numpy(stored[name])
                    for name in stored.files
                    if name.startswith("cloud/")
                }
                self.reference_step = int(stored["step"])
        except (OSError, ValueError, KeyError):
            return None
        return self.reference_step, clouds

    def close(self) -> None:
        """Close the files, after one last try at what could not be written."""
        for lines in (self._measurements, self._events):
            lines.close()


class _JsonLines:
    """A file of JSON objects, one a line, whole lines only."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self._file = path.open("ab", buffering=0)
        self._backlog: list[bytes] = []
        _cut_partial_line(path)
        if path.stat().st_size == 0:
            self.append(header)

    def append(self, line: Mapping[str, Any]) -> None:
        text = json.dumps(line, allow_nan=False, ensure_ascii=False)
        self._backlog.append(text.encode() + b"\n")
        self._flush()

    def _flush(self) -> None:
        while self._backlog:
            end = self._file.seek(0, os.SEEK_END)
            try:
                if self._file.write(self._backlog[0]) != len(self._backlog[0]):
                    raise OSError(f"no room to append a line to {self._file.name}")
            except OSError:
                self._file.truncate(end)
                raise
            del self._backlog[0]

    def close(self) -> None:
        try:
            self._flush()
        finally:
            self._file.close()


def _cut_partial_line(path: Path) -> None:
    """Drop what a killed process may have left behind the last newline."""
    text = path.read_bytes()
    if text and not text.endswith(b"\n"):
        os.truncate(path, text.rfind(b"\n") + 1)


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects below the header; a line that is no JSON comes as an empty one."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        next(file, None)
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                line = None
            yield line if isinstance(line, dict) else {}


def _read_header(path: Path) -> dict[str, Any]:
    with path.open(encoding="utf-8", errors="replace") as file:
        try:
            header = json.loads(file.readline())
            schema, _ = header["schema"], header["run_id"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"expected a first line with schema and run_id in {path}") from error
    if schema != SCHEMA:
        raise ValueError(f"expected a record of schema {SCHEMA} in {path}, got {schema}: use a matching version")
    return header


def _to_json(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _diagram_path(dirpath: Path, step: int) -> Path:
    return dirpath / "diagrams" / f"step-{step:09d}.npz"


def _read_diagrams(path: Path) -> dict[str, PersistenceDiagram]:
    with np.load(path, allow_pickle=False) as stored:
        meta = json.loads(str(stored["meta"]))
        diagrams = {}
        for group, fields in meta.items():
            bars: list[Bars] = []
            while (name := f"{group}/H{len(bars)}") in stored.files:
                births, deaths = torch.from_numpy(stored[name]).unbind(dim=1)
                bars.append(Bars(births, deaths))
            numbers = {name: float(fields[name]) for name in ("diameter", "covering_radius")}
            diagrams[group] = PersistenceDiagram(tuple(bars), **{**fields, **numbers})
    return diagrams


def _write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write to a temporary name, then rename: a reader sees the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]  # names are free
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _widened(cloud: Tensor) -> Tensor:
    return cloud.float() if cloud.dtype in (torch.bfloat16, torch.float16) else cloud
