"""Choose a run's folder: each run writes into its own, and names the run that it branches from.

A fresh run creates a folder. A resumed run appends to the folder that holds its record; lines of later steps than the
one it resumes from are abandoned: they stay in the file, and no reader counts them. A run that begins from another
folder's checkpoint creates a folder that names its parent, with a copy of the parent's history up to there.
"""

import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lightning_topo.outputs.record._archive import own_folder
from lightning_topo.outputs.record._jsonl import Line, LineReader, decoded, find_lines
from lightning_topo.outputs.record._layout import (
    EVENTS,
    HISTORY,
    MEASUREMENTS,
    REFERENCE,
    Parent,
    diagram_path,
    diagram_steps,
    read_header,
)
from lightning_topo.outputs.record._lock import FolderBusy, FolderLock, lock_folder

REWIND = "rewind"
_OURS = re.compile(rb'\{"step": (\d{1,15}), "epoch": \d')
_MOST_VERSIONS = 10_000
_MOST_HISTORY = 1 << 28
"""A history of more bytes is not copied."""


@dataclass(frozen=True, slots=True)
class Branch:
    """A run folder that this run has claimed and locked, as `claim` returns it.

    - `run_id` is the id of the run, in the first line of its files.
    - `lock` keeps other writers out until it is released.
    - `resumed` is whether the folder already holds lines of this run, to which the run appends.
    - `parent` is the other run from whose checkpoint this run began; None if there is none.
    - `notes` are warnings for the user: why another folder was taken, or what could not be copied from the parent.
    """

    dirpath: Path
    run_id: str
    lock: FolderLock = field(repr=False)
    resumed: bool = False
    parent: Parent | None = None
    notes: tuple[str, ...] = ()


def claim(
    folder: str | os.PathLike[str],
    *,
    resume: tuple[str | os.PathLike[str] | None, str | None] | None = None,
    step: int = 0,
) -> Branch:
    """Claim and lock the folder of a run: `folder`, or `folder-v1`, `-v2`, ... if another run's record is in it.

    `resume` is the pair (folder, run id) in the checkpoint from which this run begins; None for a run from scratch.
    `step` is the number of optimizer steps done at that checkpoint. If `folder` or one of its versions holds the record
    of that id, the run appends to it, unless another writer has locked it. Otherwise the run gets a new folder and id,
    with the checkpoint's run as its `parent` and a copy of the parent's history up to `step`. The parent's folder is
    read, never written.

    Raises `OSError` if the folder cannot be created.
    """
    wanted = Path(folder)
    origin, run_id = resume if resume is not None else (None, None)
    notes: list[str] = []
    if run_id is not None:
        own = next((found for found in _versions(wanted) if _belongs(found, run_id)), None)
        if own is not None:
            try:
                return Branch(own, run_id, lock_folder(own), resumed=True)
            except FolderBusy as busy:
                notes.append(f"{busy}: this run is recorded beside it, as a branch of that one.")
                origin = own
    dirpath, lock, passed = _begin(wanted)
    notes += passed
    if run_id is None:
        return Branch(dirpath, uuid.uuid4().hex, lock, notes=tuple(notes))
    parent = Parent(run_id, step)
    notes += _copy_from(None if origin is None else Path(origin), parent, dirpath)
    return Branch(dirpath, uuid.uuid4().hex, lock, parent=parent, notes=tuple(notes))


def live_lines(read: Callable[[], Iterable[Line]]) -> Iterator[tuple[int, Line]]:
    """Yield the lines that count, each with its index: not those that a later rewind has abandoned.

    `read` returns all lines, and is called twice.
    """
    floors = rewind_floors((i, _rewound_to(line)) for i, line in enumerate(read()))
    at = 0
    for i, line in enumerate(read()):
        while at < len(floors) and floors[at][0] <= i:
            at += 1
        step = line.get("step")
        if at == len(floors) or not isinstance(step, int) or step <= floors[at][1] or is_rewind(line):
            yield i, line


def rewind_floors(rewinds: Iterable[tuple[int, int | None]]) -> list[tuple[int, int]]:
    """Find which lines count, as pairs (index of a rewind, last step).

    Lines between the preceding rewind and this one count up to that step; those of later steps were abandoned.

    >>> rewind_floors([(0, None), (1, 7), (2, None), (3, 9), (4, 8)])
    [(1, 7), (3, 8), (4, 8)]
    """
    found = [(i, step) for i, step in rewinds if step is not None]
    lowest: int | None = None
    for k in range(len(found) - 1, -1, -1):
        i, step = found[k]
        lowest = step if lowest is None else min(lowest, step)
        found[k] = (i, lowest)
    return found


def is_rewind(line: Line) -> bool:
    """Whether a line of measurements or events is a rewind, which abandons earlier lines of later steps."""
    return line.get("probe") == REWIND or (line.get("name") == REWIND and "probe" not in line)


def _rewound_to(line: Line) -> int | None:
    step = line.get("step")
    return step if is_rewind(line) and type(step) is int and step >= 0 else None


def has_later_lines(dirpath: Path, step: int) -> bool:
    """Whether a record holds live lines of later steps."""
    return any(found > step for name in (MEASUREMENTS, EVENTS) for found, _ in _live_texts(dirpath / name))


def set_aside(dirpath: Path, step: int) -> int:
    """Move the captures of later steps into a subfolder that no reader looks into; return how many there were."""
    later = [found for found in diagram_steps(dirpath) if found > step]
    if not later:
        return 0
    taken = {path.name for path in (dirpath / "diagrams").iterdir()}
    name = next(f"abandoned-{k}" for k in range(1, len(taken) + 2) if f"abandoned-{k}" not in taken)
    aside = own_folder(dirpath, "diagrams", name)
    for found in later:
        path = diagram_path(dirpath, found)
        path.replace(aside / path.name)
    return len(later)


def _begin(wanted: Path) -> tuple[Path, FolderLock, list[str]]:
    notes: list[str] = []
    for version in range(_MOST_VERSIONS):
        folder = _version(wanted, version)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = lock_folder(folder)
        except FolderBusy as busy:
            notes = [f"{busy}: this run is recorded beside it."]
            continue
        try:
            # Claimed by creating the file exclusively: two runs never share a folder, even without locks.
            (folder / MEASUREMENTS).open("x").close()
        except FileExistsError:
            lock.release()
            continue
        except BaseException:
            lock.release()
            raise
        return folder, lock, notes
    raise OSError(f"expected a folder without a record among {_MOST_VERSIONS:,} versions of {wanted}, found none")


def _versions(wanted: Path) -> Iterator[Path]:
    """The folder and its versions, as far as there are any."""
    for version in range(_MOST_VERSIONS):
        folder = _version(wanted, version)
        if version > 0 and not folder.is_dir():
            return
        yield folder


def _version(wanted: Path, version: int) -> Path:
    return wanted if version == 0 else wanted.with_name(f"{wanted.name}-v{version}")


def _belongs(folder: Path, run_id: str) -> bool:
    try:
        return read_header(folder / MEASUREMENTS).run_id == run_id
    except (OSError, ValueError):
        return False


def _copy_from(origin: Path | None, parent: Parent, dirpath: Path) -> list[str]:
    """Copy the parent's clouds and history, as far as they can be read; what a person should know of it."""
    if origin is None or not _belongs(origin, parent.run_id):
        return ["The record of the run that this one begins from cannot be read here: its history is not shown."]
    notes = []
    try:
        _copy_reference(origin, dirpath)
    except OSError as error:
        notes.append(f"The neurons that the run began with could not be copied ({error}): totals count from here.")
    try:
        for name in (MEASUREMENTS, EVENTS):
            _copy_history(origin, dirpath, name, parent.step)
    except (OSError, ValueError) as error:
        shutil.rmtree(dirpath / HISTORY, ignore_errors=True)
        notes.append(f"The history of the run that this one begins from could not be copied ({error}).")
    return notes


def _copy_reference(origin: Path, dirpath: Path) -> None:
    source = origin / REFERENCE
    if not source.is_file() or source.is_symlink() or source.parent.is_symlink():
        return
    target = own_folder(dirpath, REFERENCE.parent.name) / REFERENCE.name
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with source.open("rb") as read, temporary.open("xb") as written:
            shutil.copyfileobj(read, written, 1 << 20)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _copy_history(origin: Path, dirpath: Path, name: str, step: int) -> None:
    """Copy the parent's own history, then its lines up to `step` that count."""
    source, older = origin / name, origin / HISTORY / name
    size = sum(path.stat().st_size for path in (source, older) if path.is_file())
    if size > _MOST_HISTORY:
        raise ValueError(f"its {size:,} bytes are more than {_MOST_HISTORY:,}")
    target = own_folder(dirpath, HISTORY) / name
    with target.open("xb") as file:
        for path in (older, source):
            file.writelines(text for found, text in _live_texts(path) if found <= step)


def _live_texts(path: Path) -> Iterator[tuple[int, bytes]]:
    """The step and the text of each line that counts; a writer's own lines are not parsed: training waits for this."""
    floors = rewind_floors((i, _rewound_to(decoded(text))) for i, text in find_lines(path, REWIND.encode()))
    at = 0
    for i, text in enumerate(LineReader(path).read_on(whole=True)):
        step = _step(text)
        if step is None:
            continue
        while at < len(floors) and floors[at][0] <= i:
            at += 1
        if at == len(floors) or step <= floors[at][1]:
            yield step, text


def _step(text: bytes) -> int | None:
    """The step of a line; None where it is a rewind, or none of ours."""
    ours = _OURS.match(text)
    if ours is not None and text.endswith(b"}\n") and REWIND.encode() not in text:
        return int(ours[1])
    line = decoded(text) if text.endswith(b"\n") else {}
    step = line.get("step")
    return step if type(step) is int and not is_rewind(line) else None
