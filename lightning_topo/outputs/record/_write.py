"""Write a record: append-only, durable without any tracker, readable after the process was killed."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_topo._parameter_coverage import ParameterCoverage
from lightning_topo.measurement import Measurement, OpenCause, StepState
from lightning_topo.outputs.record._archive import read_stored_array, write_arrays
from lightning_topo.outputs.record._branch import REWIND, Branch, claim, has_later_lines, set_aside
from lightning_topo.outputs.record._jsonl import JsonLines, Line, read_objects
from lightning_topo.outputs.record._layout import (
    DIAGRAM_FIELDS,
    EVENTS,
    MEASUREMENTS,
    REFERENCE,
    Header,
    diagram_path,
    diagram_steps,
)
from lightning_topo.outputs.record._parameters import write_parameters
from lightning_topo.outputs.record._space import make_room, other_bytes
from lightning_topo.outputs.record._thin import PROBE, Thinned, thinned
from lightning_topo.phases import EventName, TopologyEvent

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_topo.homology import PersistenceDiagram
    from lightning_topo.neurons import NeuronGroup

COVERAGE = "coverage"
_FEWEST_CAPTURES = 8
_LOOK_EVERY = 500
_MOST_PASSES = 12


@dataclass(slots=True)
class RecordWriter:
    """Writes the record of one run: appends lines to the files of its folder. Make one with `RecordWriter.open`.

    Every line is flushed as it is written. A line that cannot be written (a full disk) leaves no partial line, raises
    `OSError`, and is tried again, in order, at the next one.

    If the folder takes more than `max_bytes`, captures abandoned by a rewind are deleted first, then older figures,
    then the copied history of a parent. After that, every second one of the older captures is dropped, and older
    measurements are merged two by two, with their extremes. All events are kept.

    - `branch` is the claimed folder.
    - `reference_step` is the step of the clouds from which `total_contraction` and `total_expansion` are measured;
      every measurement's line has it, or the later step from which the totals of its group count.
    - `max_bytes` is the limit of the folder's size; it is raised if the folder cannot be made smaller.
    - `crowded_by` is 0, or the bytes of the files besides measurements and diagrams if these exceed half the limit.
    """

    branch: Branch
    reference_step: int = 0
    max_bytes: float = math.inf
    _measurements: JsonLines = field(init=False, repr=False)
    _events: JsonLines = field(init=False, repr=False)
    _diagram_bytes: int = field(init=False, repr=False)
    _other_bytes: int = field(init=False, default=0, repr=False)
    _n_until_look: int = field(init=False, default=0, repr=False)
    crowded_by: int = field(init=False, default=0)
    _totals_from: dict[str, int] = field(init=False, default_factory=dict, repr=False)
    _writing: Thread | None = field(init=False, default=None, repr=False)
    _unchanged: tuple[int, int] | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        try:
            self._measurements = JsonLines(self.dirpath / MEASUREMENTS, self._header)
            self._events = JsonLines(self.dirpath / EVENTS, self._header)
            self._diagram_bytes = self._measure_diagrams()
        except BaseException:
            self.branch.lock.release()
            raise

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        resume: tuple[str | os.PathLike[str] | None, str | None] | None = None,
        step: int = 0,
        max_bytes: float = math.inf,
    ) -> "RecordWriter":
        """Claim the folder of a run, and open its files.

        `folder`, `resume` and `step` are passed on to `claim`; `max_bytes` is the limit of the folder's size. Raises
        `OSError` if the folder cannot be created or written.
        """
        return cls(claim(folder, resume=resume, step=step), max_bytes=max_bytes)

    @property
    def dirpath(self) -> Path:
        """The run folder."""
        return self.branch.dirpath

    @property
    def run_id(self) -> str:
        """The id of the run, in the first line of its files."""
        return self.branch.run_id

    @property
    def n_lost(self) -> int:
        """The number of lines lost, because the folder was deleted or too many lines waited to be written."""
        return self._measurements.n_lost + self._events.n_lost

    @property
    def n_waiting(self) -> int:
        """The number of lines in memory that could not be written yet."""
        return self._measurements.n_waiting + self._events.n_waiting

    @property
    def size(self) -> int:
        """The size of the folder in bytes; without a `max_bytes`, the size of measurements and diagrams alone.

        The size of other files is looked up only now and then.
        """
        return self._measurements.size + self._diagram_bytes + self._other_bytes

    @property
    def _header(self) -> Line:
        return Header(self.run_id, self.branch.parent).to_line()

    def rewind(self, step: int, epoch: int) -> TopologyEvent | None:
        """Abandon the lines and diagrams of steps after `step`: they stay in the folder, and no reader counts them.

        Returns the `rewind` event that it appends, or None if there are no later lines. Raises `OSError` if the folder
        cannot be written.
        """
        if not has_later_lines(self.dirpath, step):
            return None
        n_captures = set_aside(self.dirpath, step)
        self._diagram_bytes = self._measure_diagrams()
        self.measurement(Measurement(step, epoch, REWIND))
        message = f"The run was rewound to step {step:,}: later lines of the record are abandoned"
        event = TopologyEvent(
            EventName.REWIND,
            step,
            epoch,
            value=float(step),
            message=f"{message}, with {n_captures:,} captured diagrams." if n_captures else f"{message}.",
            remedy="Nothing to do: they stay in the record and are not counted.",
        )
        self.event(event)
        return event

    def measurement(self, measurement: Measurement) -> None:
        """Append a measurement, and thin the record if the folder is above `max_bytes`.

        Raises `OSError` if the line must wait, and `ValueError` if it is longer than 4 MiB.
        """
        line = {
            "step": measurement.step,
            "epoch": measurement.epoch,
            "probe": measurement.probe,
            "group": measurement.group,
            "reference_step": self._totals_from.get(measurement.group, self.reference_step),
        }
        if measurement.probe == COVERAGE:
            self._measurements.append(line | {k: _coverage(k, float(v)) for k, v in measurement.values.items()})
        else:
            self._measurements.append(line | {k: _to_json(float(v)) for k, v in measurement.values.items()})
        if self.max_bytes == math.inf:
            return
        self._n_until_look -= 1
        if self._n_until_look < 0:
            self._n_until_look = _LOOK_EVERY
            self._other_bytes = other_bytes(self.dirpath)
        if self.size > self.max_bytes:
            try:
                self._thin()
            except OSError:
                self.max_bytes *= 2.0  # no room even for less: not tried again at every line
                raise

    def event(self, event: TopologyEvent) -> None:
        """Append an event. Raises `OSError` if the line must wait, and `ValueError` if it is longer than 4 MiB."""
        self._events.append({name: _to_json(value) for name, value in asdict(event).items()})

    def diagrams(self, step: int, diagrams: "Mapping[str, PersistenceDiagram]") -> None:
        """Write the persistence diagrams captured at `step`, by group, to one file.

        Raises `OSError` if the file cannot be written.
        """
        arrays: dict[str, np.ndarray] = {}
        meta: dict[str, Any] = {}
        for group, diagram in diagrams.items():
            for k, bars in enumerate(diagram.to_numpy()):
                arrays[f"{group}/H{k}"] = bars
            meta[group] = {name: _to_json(getattr(diagram, name)) for name in DIAGRAM_FIELDS}
        arrays["meta"] = np.array(json.dumps(meta))
        path = diagram_path(self.dirpath, step)
        write_arrays(path, arrays.items())
        self._diagram_bytes += path.stat().st_size

    def reference(self, step: int, clouds: "Iterable[tuple[str, Tensor]]") -> None:
        """Write the clouds from which `total_contraction` and `total_expansion` are measured.

        `clouds` yields pairs (name of a group, its cloud after `step` optimizer steps). Each cloud is written before
        the next is asked for, so that one at a time is in memory. Clouds of another device are copied to the host and
        written by a thread, so that training need not wait. Sets `self.reference_step` to `step`. Raises `OSError` if
        the file cannot be written; of a thread's, `self.read_reference` then gives nothing.
        """
        self._wait()
        self.reference_step, self._unchanged = step, None
        # NumPy has no bfloat16; float32 holds half-precision values exactly.
        named = ((f"cloud/{name}", _widened(cloud)) for name, cloud in clouds)
        first = next(named, None)
        tensors = named if first is None else chain([first], named)
        if first is None or not is_away(first[1]):
            self._write_reference(tensors)
            return
        from lightning_topo._memory import aside

        held, beside_training = _held(tensors), aside(first[1].device)
        self._writing = Thread(target=self._write_aside, args=(held, beside_training), name="lightning-topo reference")
        self._writing.start()

    def _write_reference(self, clouds: "Iterable[tuple[str, Tensor]]") -> None:
        path = self.dirpath / REFERENCE
        arrays = ((name, cloud.cpu().numpy()) for name, cloud in clouds)
        write_arrays(path, chain(arrays, [("step", np.array(self.reference_step))]), compressed=False)
        self._unchanged = _state(path)

    def _write_aside(
        self, clouds: "Sequence[tuple[str, Tensor]]", beside_training: AbstractContextManager[object]
    ) -> None:
        # Whoever reads finds that it is not there.
        with suppress(OSError, RuntimeError), beside_training:
            self._write_reference(clouds)

    def _wait(self) -> None:
        """Wait until the thread has written the reference."""
        if self._writing is not None:
            self._writing.join()
            self._writing = None

    def totals_from(self, step: int, groups: "Iterable[str]") -> None:
        """Let the lines of these groups say that their totals count from `step`."""
        self._totals_from |= dict.fromkeys(groups, step)

    def parameters(self, groups: "Sequence[NeuronGroup]", coverage: Sequence[ParameterCoverage]) -> None:
        """Write for every parameter the names of its groups, or the reason why it is in none.

        The file replaces that of an earlier session. Raises `OSError` if it cannot be written.
        """
        write_parameters(self.dirpath, groups, coverage)

    def read_reference(self, group: str) -> "Tensor | None":
        """Return the cloud of a group that `self.reference` wrote, in this session or an earlier one.

        Sets `self.reference_step` to the step of the cloud. Returns None if there is none or it cannot be read.
        """
        import torch

        self._wait()
        path = self.dirpath / REFERENCE
        try:
            is_own = _state(path) == self._unchanged
            cloud = torch.from_numpy(read_stored_array(path, f"cloud/{group}", check=not is_own))
            step = self.reference_step if is_own else int(read_stored_array(path, "step"))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        self.reference_step = step
        return cloud

    def _thin(self) -> None:
        """Make room, to half of the limit; a kill in the midst of it leaves every file whole."""
        path = self.dirpath / MEASUREMENTS
        self._other_bytes = make_room(self.dirpath, self.max_bytes / 4)
        if self._other_bytes > self.max_bytes / 2:
            self.crowded_by = self._other_bytes
        room = max(self.max_bytes - self._other_bytes, self.max_bytes / 8)
        found = [line for line in read_objects(path) if line.get("probe") == PROBE]
        gone = Thinned.of(found[-1]) if found else Thinned()
        steps = diagram_steps(self.dirpath)
        while self._diagram_bytes > room / 4 and len(steps) > _FEWEST_CAPTURES:
            dropped = steps[1 : len(steps) * 3 // 4 : 2]
            for step in dropped:
                diagram_path(self.dirpath, step).unlink(missing_ok=True)
            gone = replace(gone, n_captures=gone.n_captures + len(dropped))
            steps, self._diagram_bytes = diagram_steps(self.dirpath), self._measure_diagrams()
        for _ in range(_MOST_PASSES):
            self._measurements.rewrite(chain([self._header], thinned(partial(read_objects, path), gone)))
            if self._measurements.size <= room / 2:
                if self.size > self.max_bytes:  # the rest alone takes too much
                    self.max_bytes = self.size + room
                return
            gone = Thinned.of(next(islice(read_objects(path), 1, None)))
        # It cannot be thinned further: try again once our own part has doubled.
        self.max_bytes = 2.0 * self.size - self._other_bytes

    def _measure_diagrams(self) -> int:
        return sum(diagram_path(self.dirpath, step).stat().st_size for step in diagram_steps(self.dirpath))

    def discard(self) -> None:
        """Close the record of a run without a step and delete its files, and the folder if it is empty then."""
        self.close()
        for name in (MEASUREMENTS, EVENTS):
            (self.dirpath / name).unlink(missing_ok=True)
        with suppress(OSError):
            self.dirpath.rmdir()

    def close(self) -> None:
        """Close the files and unlock the folder, after a last try to write the waiting lines.

        Raises `OSError` if lines cannot be written; the files are closed all the same.
        """
        self._wait()
        try:
            self._measurements.close()
        finally:
            try:
                self._events.close()
            finally:
                self.branch.lock.release()


def _coverage(name: str, value: float) -> Any:
    """A line of coverage names its state and its cause, and counts its steps in whole numbers."""
    if name == "state":
        return StepState(int(value)).word
    if name == "cause":
        return OpenCause(int(value)).word
    return int(value) if name == "from" else _to_json(value)


def _to_json(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _widened(cloud: "Tensor") -> "Tensor":
    return cloud.float() if cloud.is_floating_point() and cloud.element_size() < 4 else cloud


def is_away(cloud: "Tensor") -> bool:
    """Whether a cloud lies in another memory than the host's."""
    return cloud.device.type != "cpu"


def _held(clouds: "Iterable[tuple[str, Tensor]]") -> "list[tuple[str, Tensor]]":
    """All clouds at once: on their device as far as there is room, on the host the others."""
    from lightning_topo._memory import resting_device

    found, n_bytes = [], 0
    for name, cloud in clouds:
        n_bytes += cloud.nbytes
        found.append((name, cloud.to(resting_device(cloud.device, n_bytes))))
    return found


def _state(path: Path) -> tuple[int, int]:
    """What tells that a file is the one that was written."""
    found = path.stat()
    return found.st_mtime_ns, found.st_size
