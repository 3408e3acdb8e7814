"""What a run is, beside its record: `run.json` with settings, hyperparameters, versions, start and duration."""

import json
import os
import platform
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning_topo._clock import Clock
from lightning_topo._watch.output import Run
from lightning_topo.homology import PersistenceDiagram
from lightning_topo.measurement import Measurement
from lightning_topo.outputs._leaving import plain
from lightning_topo.outputs.record._about import ABOUT, read_about
from lightning_topo.phases import TopologyEvent

_PACKAGES = ("lightning_topo", "torch", "lightning", "pytorch_lightning", "transformers")


class AboutOutput:
    """Writes `run.json` when the run begins, and its duration when it ends; a resumed run adds to both."""

    name = "run.json"

    def __init__(self, dirpath: Path, run_id: str) -> None:
        self._path, self._run_id = dirpath / ABOUT, run_id
        self._clock = Clock()
        self._about: dict[str, Any] = {}
        self._before = 0.0
        self._first_step = self._step = 0

    def start(self, run: Run) -> None:
        """Write what is known of the run as it begins."""
        known = read_about(self._path.parent)
        known = known if known.get("run_id") == self._run_id else {}
        seconds, steps = known.get("seconds"), known.get("timed_steps")
        self._before = float(seconds) if isinstance(seconds, int | float) else 0.0
        self._first_step = self._step = run.step
        self._about = {
            "run_id": self._run_id,
            "started": known.get("started") or _now(),
            "timed_steps": steps if isinstance(steps, int) else 0,
            "seconds": self._before,
            "training": plain(run.facts),
            "settings": plain(run.settings),
            "versions": _versions(),
        }
        self._write()

    def measurement(self, measurement: Measurement) -> None:
        """Note how far the run has come."""
        self._step = max(self._step, measurement.step)

    def event(self, event: TopologyEvent) -> None:
        """Do nothing: `run.json` holds no events."""

    def diagrams(self, step: int, diagrams: Mapping[str, PersistenceDiagram]) -> None:
        """Do nothing: `run.json` holds no diagrams."""

    def end(self, *, in_haste: bool = False) -> None:
        """Write how long it took, also if `in_haste`: it is one small file."""
        if self._about:
            self._about["ended"] = _now()
            self._about["seconds"] = round(self._before + self._clock.seconds(), 3)
            self._about["timed_steps"] += self._step - self._first_step
            self._write()

    def _write(self) -> None:
        """Replace the file in one move, never through a link. A full disk is ignored here; the record reports it."""
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
            with temporary.open("x", encoding="utf-8") as file:
                json.dump(self._about, file, indent=1, default=str)
            temporary.replace(self._path)
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    """Of what this process has imported: to look into the installed packages' metadata takes many steps' time."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        version = getattr(sys.modules.get(package), "__version__", None)
        if version is not None:
            found[package.replace("_", "-")] = str(version)
    return found
