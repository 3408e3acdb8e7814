"""The page as an output: rewritten now and then by a process of its own, and at the end."""

import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from lightning_topo.clock import Clock
from lightning_topo.homology import PersistenceDiagram
from lightning_topo.measurement import Measurement
from lightning_topo.outputs.page.page import write_report
from lightning_topo.outputs.record import EVENTS, MEASUREMENTS, REPORT, read_record
from lightning_topo.phases import TopologyEvent
from lightning_topo.watch.output import Run

FEWEST_SECONDS = 60.0
"""During training the page is rewritten at most this often."""
MOST_SHARE = 0.01
"""Rewriting takes no larger share of the wall time, though another process does it."""
MOST_BYTES_HERE = 1 << 26
"""A larger record is not read into the training process, not even at the end."""
_PATIENCE = 120.0


class PageOutput:
    """`report.html` in the run folder.

    While training goes on, and where it breaks off, the page is left to `python -m lightning_topo report RUN`: it
    takes no time and no memory of the training, and outlives it.
    """

    name = "The report"

    def __init__(self, dirpath: Path, *, share: float = MOST_SHARE, fewest_seconds: float = FEWEST_SECONDS) -> None:
        self._dirpath, self._share, self._fewest_seconds = dirpath, share, fewest_seconds
        self._clock, self._next = Clock(), fewest_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._began = 0.0
        self._is_over = False
        self.n_rewritten: int = 0

    def start(self, run: Run) -> None:
        """Nothing: there is nothing to show yet."""

    def measurement(self, measurement: Measurement) -> None:
        """Rewrite the page if it is time."""
        now = self._clock.seconds()
        if self._process is not None:
            if self._process.poll() is None:
                return
            took, self._process = now - self._began, None
            self._next = max(self._began + self._fewest_seconds, now + took / self._share)
        if now >= self._next:
            self._began = now
            self._process = page_process(self._dirpath)
            self.n_rewritten += 1

    def event(self, event: TopologyEvent) -> None:
        """Nothing."""

    def diagrams(self, step: int, diagrams: Mapping[str, PersistenceDiagram]) -> None:
        """Nothing."""

    def end(self, *, in_haste: bool = False) -> None:
        """Write the page; in haste leave it to a process that outlives this one."""
        if self._is_over or not self._dirpath.is_dir():  # of a run without a step nothing is left
            return
        self._is_over = True
        if self._process is not None:  # of an older state, and not to replace the page of a newer one
            self._process.kill()
            _reap(self._process)
        if in_haste:
            _reap(page_process(self._dirpath))
        elif record_bytes(self._dirpath) <= MOST_BYTES_HERE:
            write_report([read_record(self._dirpath)], self._dirpath / REPORT)
        else:
            process = page_process(self._dirpath)
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                _reap(process)


def page_process(dirpath: Path) -> "subprocess.Popen[bytes]":
    """A process that writes a run's page, at low priority, and goes on when this one ends."""
    package = str(Path(__file__).parents[3])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lightning_topo", "report", str(dirpath.resolve())]
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def record_bytes(dirpath: Path) -> int:
    """How many bytes of lines a record has."""
    paths = [dirpath / MEASUREMENTS, dirpath / EVENTS]
    return sum(path.stat().st_size for path in paths if path.is_file())


def _reap(process: "subprocess.Popen[bytes]") -> None:
    """Wait for a process, without waiting here."""
    threading.Thread(target=process.wait, name="lightning-topo report", daemon=True).start()
