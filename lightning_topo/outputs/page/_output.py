"""The page as an output: rewritten now and then by a separate process, and at the end."""

import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_topo._clock import Clock
from lightning_topo.measurement import Measurement
from lightning_topo.outputs.page._live import MOST_SHARE, record_bytes
from lightning_topo.outputs.page._page import write_report
from lightning_topo.outputs.record import REPORT, RecordFollower
from lightning_topo.phases import TopologyEvent

if TYPE_CHECKING:
    from lightning_topo._watch.output import Run
    from lightning_topo.homology import PersistenceDiagram

FIRST_SECONDS = 20.0
"""So long after the first measurement the first page is begun; a shorter run has its page at the end alone."""
MOST_BYTES_HERE = 1 << 22
"""A larger record is not read into the training process, not even at the end."""
_MOST_STARTS = 3
_LEAST_PATIENCE, _MOST_PATIENCE = 10.0, 60.0


class PageOutput:
    """`report.html` in the run folder.

    While training goes on, and where it breaks off, the page is left to `python -m lightning_topo report RUN --follow`:
    it takes no time and no memory of the training, and outlives it.
    """

    name = "The report"

    def __init__(self, dirpath: Path, *, first_seconds: float = FIRST_SECONDS) -> None:
        self._dirpath = dirpath
        self._clock, self._next = Clock(), first_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._is_over = False
        self.n_started: int = 0

    def start(self, run: "Run") -> None:
        """Nothing: there is nothing to show yet."""

    def measurement(self, measurement: Measurement) -> None:
        """Start the process if it is time."""
        if self.n_started == _MOST_STARTS or self._clock.seconds() < self._next:
            return
        if self._process is None or self._process.poll() is not None:
            self._process = page_process(self._dirpath, follow=True)
            self.n_started += 1
        self._next = self._clock.seconds() + FIRST_SECONDS

    def event(self, event: TopologyEvent) -> None:
        """The page reads it from the record."""

    def diagrams(self, step: int, diagrams: "Mapping[str, PersistenceDiagram]") -> None:
        """The page reads them from the record."""

    def end(self, *, in_haste: bool = False) -> None:
        """Write the page; in haste leave it to a process that outlives this one."""
        if self._is_over:
            return
        self._is_over = True
        process = self._process if self._process is not None and self._process.poll() is None else None
        if process is not None:
            _tell(process)
        elif not self._dirpath.is_dir():  # of a run without a step nothing is left
            return
        elif in_haste or record_bytes(self._dirpath) > MOST_BYTES_HERE:
            process = page_process(self._dirpath)
        else:
            write_report([RecordFollower(self._dirpath).read()], self._dirpath / REPORT)
            return
        if in_haste:
            _reap(process)
            return
        try:
            process.wait(patience(self._clock.seconds()))
        except subprocess.TimeoutExpired:
            _reap(process)


def patience(seconds: float) -> float:
    """How long a training of so many seconds waits for its last page, which then comes all the same.

    A run resumed with a long record may be over before the record was read once.

    >>> patience(60.0), patience(3_000.0), patience(36_000.0)
    (10.0, 30.0, 60.0)
    """
    return min(_MOST_PATIENCE, max(_LEAST_PATIENCE, MOST_SHARE * seconds))


def page_process(dirpath: Path, *, follow: bool = False) -> "subprocess.Popen[bytes]":
    """A process that writes a run's page, and goes on when this one ends; with `follow` again and again until then."""
    package = str(Path(__file__).parents[3])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lightning_topo", "report", str(dirpath.resolve())]
    return subprocess.Popen(
        [*command, "--follow"] if follow else command,
        env=environment,
        stdin=subprocess.PIPE if follow else subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _tell(process: "subprocess.Popen[bytes]") -> None:
    """Let a process that follows know that the run is over."""
    with suppress(OSError):
        if process.stdin is not None:
            process.stdin.write(b".")
            process.stdin.close()


def _reap(process: "subprocess.Popen[bytes]") -> None:
    """Wait for a process, without waiting here."""
    threading.Thread(target=process.wait, name="lightning-topo report", daemon=True).start()
