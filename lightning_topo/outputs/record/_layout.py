"""The files of a run folder, and their names.

A run folder holds

    measurements.jsonl      a line per measurement: step, epoch, probe, group, reference_step, and values by name
    events.jsonl            a line per event
    diagrams/step-<9 digits>.npz    persistence diagrams: an array (m, 2) "<group>/H<k>" each, and "meta"
    diagrams/abandoned-<k>/ captures that a rewind has abandoned
    parameters.json         the groups of neurons, and for every parameter its groups or why it is in none
    reference/clouds.npz    the neurons when training began, if a probe compares with them, and "step"; of neurons of
                            which a part is frozen, the trained part
    history/*.jsonl         if a run began from another's checkpoint: that run's lines up to the checkpoint
    run.json                what the run is: settings, hyperparameters, versions, start, duration
    report.html             the page

The first line of each .jsonl is `{"schema": 1, "run_id": ...}`, with `"parent": {"run_id": ..., "step": ...}` in a run
that began from another's checkpoint. A line `{"probe": "rewind", "step": S, ...}`, or an event of that name, says that
the run was rewound to step S: earlier lines of later steps are abandoned, and no reader counts them.

Lines are strict JSON; non-finite numbers are the strings "inf", "-inf" and "nan". Reading a record executes nothing
that it holds.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from lightning_topo.outputs.record._jsonl import Line, first_object
from lightning_topo.outputs.record._limits import LONGEST_NAME

SCHEMA = 1
MEASUREMENTS = "measurements.jsonl"
EVENTS = "events.jsonl"
REPORT = "report.html"
HISTORY = "history"
REFERENCE = Path("reference") / "clouds.npz"
DIAGRAM_FIELDS = ("n_points", "diameter", "covering_radius", "engine", "exact")


@dataclass(frozen=True, slots=True)
class Parent:
    """The run from whose checkpoint another run began: its id, and the checkpoint's number of optimizer steps."""

    run_id: str
    step: int


@dataclass(frozen=True, slots=True)
class Header:
    """The first line of a record's files: the run, and its parent where it has one."""

    run_id: str
    parent: Parent | None = None

    def to_line(self) -> Line:
        """The header as a JSON object."""
        line: Line = {"schema": SCHEMA, "run_id": self.run_id}
        return line if self.parent is None else line | {"parent": asdict(self.parent)}


def read_header(path: Path) -> Header:
    """Read the header of a file of lines.

    Raises `FileNotFoundError` if there is no file, and `ValueError` if its first line is no header of this schema.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected a file of lines, found none at {path}")
    line = first_object(path)
    schema, run_id = line.get("schema"), line.get("run_id")
    if schema is None or not isinstance(run_id, str):
        raise ValueError(f"expected a first line with schema and run_id in {path}")
    if len(run_id) > LONGEST_NAME:
        raise ValueError(f"expected a run_id of at most {LONGEST_NAME:,} characters in {path}, got {len(run_id):,}")
    if schema != SCHEMA:
        raise ValueError(f"expected a record of schema {SCHEMA} in {path}, got {schema}: use a matching version")
    return Header(run_id, _parent(line.get("parent")))


def _parent(found: object) -> Parent | None:
    if not isinstance(found, dict):
        return None
    run_id, step = found.get("run_id"), found.get("step")
    return Parent(run_id, step) if isinstance(run_id, str) and type(step) is int and step >= 0 else None


def diagram_path(dirpath: Path, step: int) -> Path:
    return dirpath / "diagrams" / f"step-{step:09d}.npz"


def diagram_steps(folder: Path) -> list[int]:
    found = [path.stem.removeprefix("step-") for path in (folder / "diagrams").glob("step-*.npz")]
    # Only what a writer would have named so: a stranger's folder may hold anything.
    return sorted(int(step) for step in found if step.isascii() and step.isdigit() and step == f"{int(step):09d}")
