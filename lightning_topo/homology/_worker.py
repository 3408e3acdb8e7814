"""Homology outside the training process: engines hold the interpreter's lock, and a thread would stop the training.

One subprocess without torch does the work, in the order in which it is given. It is started when first needed, started
anew when it dies or hangs, and gone when this process is, however that ends.
"""

import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Float

from lightning_topo.homology import _worker_process as worker_process
from lightning_topo.homology._worker_process import NUMBER

MOST_WAITING = 8
"""Of more jobs than these the oldest is dropped: each holds its matrices in memory."""
_MOST_FAILURES = 3
_SUPPORTED = hasattr(socket, "send_fds") and hasattr(socket, "AF_UNIX")


class JobLost(RuntimeError):
    """Raised by `Worker.collect` if a job has no result: it was dropped, or the worker died, hung or was closed."""


class WorkerBroken(RuntimeError):
    """Raised by `Worker.submit` after the worker has died or hung three times in a row."""


@dataclass(slots=True, eq=False)
class Job:
    """Matrices that were handed to the worker; `lost` says why there will be no result."""

    number: int
    file: BinaryIO
    n_matrices: int
    lost: str = ""
    done: bool = False


@dataclass(slots=True, weakref_slot=True)
class Worker:
    """A subprocess that computes persistent homology while the training goes on.

    Queue distance matrices with `submit` and take the results with `collect`. The subprocess starts at the first job,
    does one job after the other in the order of submission, and is started again if it dies or hangs. A worker cannot
    be pickled, or used in a forked child.

    Attributes:
        most_waiting: Most unfinished jobs; if there are more, the oldest is dropped.
        n_lost: Number of jobs so far that were dropped, or lost because the worker died, hung or was closed.
    """

    most_waiting: int = MOST_WAITING
    n_lost: int = 0
    _waiting: deque[Job] = field(default_factory=deque, repr=False)
    _numbers: itertools.count = field(default_factory=itertools.count, repr=False)
    _process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)
    _socket: socket.socket | None = field(default=None, repr=False)
    _received: bytes = field(default=b"", repr=False)
    _failures: int = field(default=0, repr=False)
    _end: weakref.finalize | None = field(default=None, repr=False)

    @staticmethod
    def is_supported() -> bool:
        """Whether this system can pass open files from process to process, which a worker needs."""
        return _SUPPORTED

    @property
    def pid(self) -> int | None:
        """The process id of the subprocess; None while there is none."""
        return None if self._process is None else self._process.pid

    def submit(self, matrices: Sequence[Float[np.ndarray, "_ _"]], max_dim: int, engine: str, *, spanning: bool) -> Job:
        """Queue a job for the subprocess, and return it without waiting for its result.

        Args:
            matrices: Symmetric, finite distance matrices with zero diagonal.
            max_dim: The highest homology dimension.
            engine: The library that computes dimensions 1 and up, one of `available_engines()`.
            spanning: Whether to compute the minimum spanning tree of each matrix too, for dimension 0.

        Raises:
            WorkerBroken: The subprocess has died or hung three times in a row.
        """
        if self._failures >= _MOST_FAILURES:
            raise WorkerBroken(f"the homology worker failed {self._failures} times in a row")
        head = {"n_matrices": len(matrices), "max_dim": max_dim, "engine": engine, "spanning": spanning}
        job = Job(next(self._numbers), _file(json.dumps(head), matrices), len(matrices))
        self._waiting.append(job)
        if len(self._waiting) > self.most_waiting:
            self._lose(self._waiting[0], f"it was dropped, the oldest of {len(self._waiting)} that waited")
        if self._process is not None and (len(self._waiting) > 1 or self._process.poll() is None):
            self._send(job)
        else:  # there is none yet, or it died when it had nothing to do
            self._stop()
            self._start()
        return job

    def collect(self, job: Job, most_seconds: float) -> list[list[np.ndarray] | RuntimeError]:
        """Wait for a job, and return one result per matrix. Call it once per job.

        A result is a list of arrays: (birth, death) rows for each dimension 1, ..., max_dim, and before them the sorted
        edge lengths of the minimum spanning tree if the job has `spanning`. For a matrix on which the engine failed the
        result is a `RuntimeError`, which is not raised.

        Args:
            job: What `submit` returned.
            most_seconds: How long to wait. After that the subprocess is ended, and started again for the other jobs.

        Raises:
            JobLost: The job was dropped or lost, or the time is over.
        """
        deadline = time.monotonic() + most_seconds
        while not job.done and not job.lost:
            self._receive(job, deadline)
        if job.lost:
            raise JobLost(job.lost)
        with job.file as file:
            file.seek(0)
            found: list[list[np.ndarray] | RuntimeError] = []
            for error, n_arrays in json.loads(file.readline()):
                arrays = [np.load(file, allow_pickle=False) for _ in range(n_arrays)]
                found.append(arrays if error is None else RuntimeError(error))
        return found

    def close(self) -> None:
        """End the subprocess. Unfinished jobs are lost: `collect` raises `JobLost` for them."""
        self._stop()
        while self._waiting:
            self._lose(self._waiting[0], "the worker was closed")

    # --- the subprocess --------------------------------------------------------------------------------------------

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            path, arguments = Path(worker_process.__file__), (theirs.fileno(), os.getpid(), json.dumps(sys.path))
            self._process = subprocess.Popen(
                # Without this folder on its module path, whose names are those of other modules.
                [sys.executable, "-P", str(path), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                process_group=0,  # an interrupt from the keyboard is for the training
            )
        self._socket, self._received = ours, b""
        self._end = weakref.finalize(self, _end, self._process, ours, os.getpid())
        for job in tuple(self._waiting):
            self._send(job)

    def _stop(self) -> None:
        if self._end is not None:
            self._end()
        self._end = self._process = self._socket = None

    def _send(self, job: Job) -> None:
        assert self._socket is not None
        try:
            self._socket.settimeout(0.0)
            socket.send_fds(self._socket, [NUMBER.pack(job.number)], [job.file.fileno()])
        except OSError:
            # The queue is full or closed. A result that is waited for finds out, and starts another process.
            pass

    def _receive(self, job: Job, deadline: float) -> None:
        """Take in answers, until there is one more or the job is lost."""
        if self._socket is None:
            self._start()
        assert self._socket is not None
        try:
            self._socket.settimeout(max(deadline - time.monotonic(), 1e-3))
            data = self._socket.recv(NUMBER.size * MOST_WAITING)
        except TimeoutError:
            self._fail(job, "the worker gave no answer in time, and was ended")
            return
        except OSError:
            data = b""
        if not data:
            self._fail(self._waiting[0], "the worker died")
            return
        self._received += data
        while len(self._received) >= NUMBER.size:
            (number,) = NUMBER.unpack(self._received[: NUMBER.size])
            self._received = self._received[NUMBER.size :]
            self._done(number)

    def _done(self, number: int) -> None:
        self._failures = 0
        for job in self._waiting:
            if job.number == number:
                job.done = True
                self._waiting.remove(job)
                return

    def _fail(self, job: Job, reason: str) -> None:
        """Give up the worker: one job is lost, the others go to the next worker."""
        self._failures += 1
        self._stop()
        self._lose(job, reason)
        if self._waiting and self._failures < _MOST_FAILURES:
            self._start()
        while self._failures >= _MOST_FAILURES and self._waiting:
            self._lose(self._waiting[0], reason)

    def _lose(self, job: Job, reason: str) -> None:
        self.n_lost += 1
        self._waiting.remove(job)
        job.lost = reason
        # Emptied, so that the worker passes over it, if it has it in its queue.
        job.file.truncate(0)
        job.file.close()


def _file(head: str, matrices: Sequence[Float[np.ndarray, "_ _"]]) -> BinaryIO:
    """A file without a name, in memory if possible: it disappears with the last process that has it open."""
    make = getattr(os, "memfd_create", None)
    file = tempfile.TemporaryFile() if make is None else os.fdopen(make("lightning-topo"), "w+b")  # noqa: SIM115 - the job closes it
    file.write(head.encode() + b"\n")
    for matrix in matrices:
        np.save(file, matrix, allow_pickle=False)
    file.flush()
    return file


def _end(process: "subprocess.Popen[bytes]", connection: socket.socket, owner: int) -> None:
    connection.close()
    if os.getpid() == owner:  # a forked child has a copy of this, but not the process
        process.kill()
        process.wait()
