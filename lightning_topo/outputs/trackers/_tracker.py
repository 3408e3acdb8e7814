"""The interface of experiment trackers, for any of Lightning's loggers."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from lightning_topo.outputs._leaving import record_files
from lightning_topo.outputs.record import Parent
from lightning_topo.outputs.record._archive import own_folder
from lightning_topo.phases import Phase, TopologyEvent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARTIFACT_TYPE = "topology-record"
_LONGEST_KEY = 200
"""A file's name must not be longer than 255 bytes, with what a tracker adds to the key."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """The facts of a run at its start: the monitor's `settings`, and a row for each group of neurons.

    `run_id` and `dirpath` are the record's; None where no record can be written. What a tracker is sent of them are
    `config()` and `files()`, which reveal nothing about the machine.
    """

    run_id: str | None
    dirpath: Path | None
    settings: Mapping[str, Any]
    groups: Sequence[Mapping[str, Any]]
    parent: Parent | None = None

    def config(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        known = {**self.settings, "run_id": self.run_id, "groups": list(self.groups)}
        return known if self.parent is None else known | {"parent": asdict(self.parent)}

    def files(self) -> list[tuple[Path, PurePosixPath]]:
        """The record's own files: where each lies, and its name in the run's folder."""
        return record_files(self.dirpath)


def config_name(config: Any, run: RunFacts) -> str:
    """Under which name a run's settings stand in a tracker's config: `topology`; for a second monitor `topology_2`.

    >>> config_name({"topology": "the user's own"}, RunFacts("id", None, {}, ()))
    'topology_2'
    """
    name, count = "topology", 1
    # What stands there may be the user's own, of any type: only a mapping with this run's id is ours.
    while name in config and not _is_of(config[name], run.run_id):
        count += 1
        name = f"topology_{count}"
    return name


def _is_of(found: Any, run_id: str | None) -> bool:
    return isinstance(found, Mapping) and "run_id" in found and found["run_id"] == run_id


def shortened(key: str, most: int = _LONGEST_KEY) -> str:
    """A key where it is short enough, else its two ends around what tells it apart from other long ones.

    >>> shortened("topology/net_0/critical_ratio")
    'topology/net_0/critical_ratio'
    >>> shortened("topology/" + "n" * 300 + "/betti_0", most=40)
    'topology/nnnnnn_aeb9fa0a_nnnnnnn/betti_0'
    """
    if len(key) <= most:
        return key
    mark = f"_{hashlib.sha256(key.encode()).hexdigest()[:8]}_"
    left = (most - len(mark)) // 2
    return f"{key[:left]}{mark}{key[-(most - len(mark) - left) :]}"


class Tracker:
    """A tracker for any logger: it sends values to the logger's `log_metrics`, and saves figures in the run's folder.

    `step` is Lightning's zero-based step, as in its own logger rows. Errors of the logger pass through; `TrackerOutput`
    catches them.
    """

    takes_conclusions: bool = False

    def __init__(self, logger: Any) -> None:
        self.logger: Any = logger
        self._folder: Path | None = None

    def began(self, run: RunFacts) -> None:
        """The run begins, or goes on after a resume."""
        self._folder = run.dirpath

    def row(self, values: Mapping[str, float], step: int, known: Collection[str] = ()) -> None:
        """New values, by their published keys, of which `known` are all that have a value yet."""
        self.logger.log_metrics(dict(values), step=step)

    def figure(self, key: str, figure: "Figure", step: int) -> None:
        """A new figure: `figures/<key>/<step>.png` in the run's folder, never through a link."""
        if self._folder is None:
            return
        parts = [part for part in shortened(key).split("/") if part not in ("", ".", "..")]
        folder = own_folder(self._folder, "figures", *parts)
        target, temporary = folder / f"{step:09d}.png", folder / f".{step:09d}.png.tmp"
        try:
            temporary.unlink(missing_ok=True)
            with temporary.open("xb") as file:
                figure.savefig(file, format="png")
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def phase(self, phase: Phase, step: int) -> None:
        """The network has entered a phase."""

    def events(self, events: Sequence[TopologyEvent], step: int) -> None:
        """Take in events as soon as they are noticed."""

    def flush(self, step: int) -> None:
        """Send what is costly; called seldom."""

    def concluded(self, found: Mapping[str, str | float], step: int) -> None:
        """Write the run's outcome; called where `takes_conclusions`."""

    def closed(self, run: RunFacts, step: int) -> None:
        """The run is over, its record complete."""
