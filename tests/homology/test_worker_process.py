"""The worker's own process: without torch, one answer for each matrix, and none that outlives its parent."""

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_topo.homology import Worker, available_engines
from lightning_topo.homology import _worker_process as worker_process
from lightning_topo.homology._engines import rips_intervals
from lightning_topo.homology._h0 import spanning_weights

ENGINE = available_engines()[-1]  # the quickest to be loaded, where all are installed
needs_a_process = pytest.mark.skipif(not Worker.is_supported(), reason="files cannot be handed over here")


def matrix(n=12, seed=0):
    points = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.cdist(points, points).float().numpy()


@pytest.fixture
def worker():
    made = Worker()
    yield made
    made.close()


@needs_a_process
def test_it_takes_no_torch_along(worker):
    worker.collect(worker.submit([matrix()], 1, ENGINE, spanning=False), 60.0)
    if sys.platform == "linux":
        assert "torch" not in Path(f"/proc/{worker.pid}/maps").read_text()


@needs_a_process
def test_an_engines_error_hides_no_other_matrix(worker):
    bad = matrix()
    bad[0, 1] = bad[1, 0] = np.nan
    found = worker.collect(worker.submit([bad, matrix()], 1, "no such engine", spanning=False), 60.0)
    assert all("no such engine failed" in str(error) for error in found)
    broken, whole = worker.collect(worker.submit([np.zeros((3, 2)), matrix()], 1, ENGINE, spanning=False), 60.0)
    assert isinstance(broken, RuntimeError) or len(broken) == 1
    assert np.array_equal(whole[0], rips_intervals(matrix(), 1, ENGINE)[0])


def request(matrices, *, spanning=True, n_matrices=None):
    """What the worker writes into a file."""
    file = io.BytesIO()
    head = {"n_matrices": n_matrices or len(matrices), "max_dim": 1, "engine": ENGINE, "spanning": spanning}
    file.write(json.dumps(head).encode() + b"\n")
    for each in matrices:
        np.save(file, each, allow_pickle=False)
    return file.getvalue()


def answered(content):
    """What stands in a file of this content when the process's own modules have answered it."""
    with tempfile.TemporaryFile() as file:
        file.write(content)
        worker_process._answer(file, worker_process._sibling("_engines"), worker_process._sibling("_spanning"))
        file.seek(0)
        return file.read()


@pytest.mark.parametrize("spanning", [True, False])
def test_the_answer_replaces_the_request(spanning):
    matrices = [matrix(), matrix(2), matrix(9, seed=1)]
    file = io.BytesIO(answered(request(matrices, spanning=spanning)))
    head = json.loads(file.readline())
    assert head == [[None, 2 if spanning else 1]] * 3
    for each in matrices:
        if spanning:
            assert np.array_equal(np.load(file), spanning_weights(torch.from_numpy(each)).numpy())
        assert np.array_equal(np.load(file), rips_intervals(each, 1, ENGINE)[0])
    assert file.read() == b""


def test_a_file_that_was_emptied_is_left_empty_and_one_that_was_cut_is_left_as_it_is():
    assert answered(b"") == b""
    for cut in (request([matrix()], n_matrices=2), request([matrix()])[:-40]):
        assert answered(cut) == cut


@needs_a_process
def test_without_its_parent_it_ends_at_once():
    """As where the parent died before the process could ask to die with it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        another = 1  # never the parent here
        command = [
            sys.executable,
            "-P",
            worker_process.__file__,
            str(theirs.fileno()),
            str(another),
            json.dumps(sys.path),
        ]
        found = subprocess.run(command, pass_fds=[theirs.fileno()], capture_output=True, timeout=60, check=False)
    assert (found.returncode, found.stderr) == (0, b"")


PARENT = """
import os, socket, subprocess, sys
ours, theirs = socket.socketpair()
script, path = sys.argv[1:]
command = [sys.executable, "-P", script, str(theirs.fileno()), str(os.getpid()), path]
worker = subprocess.Popen(command, pass_fds=[theirs.fileno()])
socket.send_fds(ours, [bytes(8)], [os.memfd_create("empty")])
print(worker.pid, len(ours.recv(8)), flush=True)  # it has begun, and answered
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="where the system cannot end it, it ends at the next request")
def test_it_does_not_outlive_its_parent_even_where_it_hangs():
    command = [sys.executable, "-c", PARENT, worker_process.__file__, json.dumps(sys.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, answered = map(int, parent.stdout.readline().split())
        assert answered == 8
        os.kill(pid, signal.SIGSTOP)
        parent.kill()
    state, deadline = "T", time.monotonic() + 10.0
    while state not in ("Z", "X", "") and time.monotonic() < deadline:
        time.sleep(0.02)
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
            continue
        state = ""
    if state == "T":
        os.kill(pid, signal.SIGKILL)
    assert state in ("Z", "X", "")
