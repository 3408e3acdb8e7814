"""The worker: the same homology in another process, whatever becomes of that process."""

import os
import pickle
import signal
import time

import numpy as np
import pytest
import torch

from lightning_topo.homology import JobLost, Worker, WorkerBroken, available_engines
from lightning_topo.homology._engines import rips_intervals
from lightning_topo.homology._h0 import spanning_weights

pytestmark = pytest.mark.skipif(not Worker.is_supported(), reason="files cannot be handed over here")
ENGINE = available_engines()[-1]  # the quickest to be loaded, where all are installed


@pytest.fixture
def worker():
    made = Worker()
    yield made
    made.close()


def matrix(n=20, seed=0):
    points = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.cdist(points, points).float().numpy()


def gone(pid):
    """Whether the process has ended, within a time that only a process that stays takes."""
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline:
        try:  # a child whose first thread is gone may still have others
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return True
        except ChildProcessError:
            return True
        time.sleep(0.02)
    return False


def stopped(worker):
    """A worker that has answered once, and is now held still."""
    worker.collect(worker.submit([matrix()], 1, ENGINE, spanning=False), 60.0)
    os.kill(worker.pid, signal.SIGSTOP)
    return worker


def test_the_same_numbers_come_back(worker):
    matrices = [matrix(seed=seed, n=n) for seed, n in enumerate((30, 3, 2, 1, 0))]
    job = worker.submit(matrices, 2, ENGINE, spanning=True)
    found = worker.collect(job, 60.0)
    assert len(found) == len(matrices)
    for distances, (tree, *intervals) in zip(matrices, found, strict=True):
        assert np.array_equal(tree, spanning_weights(torch.from_numpy(distances)).numpy())
        expected = rips_intervals(distances, 2, ENGINE)
        assert len(intervals) == len(expected) == 2
        assert all(np.array_equal(a, b) for a, b in zip(intervals, expected, strict=True))


def test_a_killed_worker_is_started_anew_and_only_its_job_is_lost(worker):
    stopped(worker)
    first, second = (worker.submit([matrix(seed=seed)], 1, ENGINE, spanning=False) for seed in (1, 2))
    before = worker.pid
    os.kill(before, signal.SIGKILL)
    with pytest.raises(JobLost, match="died"):
        worker.collect(first, 60.0)
    assert np.array_equal(worker.collect(second, 60.0)[0][0], rips_intervals(matrix(seed=2), 1, ENGINE)[0])
    assert worker.n_lost == 1
    assert worker.pid != before
    assert gone(before)


def test_one_that_died_idle_costs_nothing(worker):
    worker.collect(worker.submit([matrix()], 1, ENGINE, spanning=False), 60.0)
    os.kill(worker.pid, signal.SIGKILL)
    assert gone(worker.pid)
    assert worker.collect(worker.submit([matrix()], 1, ENGINE, spanning=False), 60.0)
    assert worker.n_lost == 0


def test_one_that_hangs_is_ended(worker):
    job = stopped(worker).submit([matrix()], 1, ENGINE, spanning=False)
    before = worker.pid
    with pytest.raises(JobLost, match="in time"):
        worker.collect(job, 0.2)
    assert gone(before)
    assert worker.collect(worker.submit([matrix()], 1, ENGINE, spanning=False), 60.0)


def test_the_oldest_is_dropped_when_too_many_wait():
    worker = stopped(Worker(most_waiting=3))
    pid = worker.pid
    jobs = [worker.submit([matrix(seed=seed)], 1, ENGINE, spanning=False) for seed in range(5)]
    os.kill(pid, signal.SIGCONT)
    for job in jobs[:2]:
        with pytest.raises(JobLost, match="dropped"):
            worker.collect(job, 60.0)
    for seed in (2, 3, 4):
        found = worker.collect(jobs[seed], 60.0)
        assert np.array_equal(found[0][0], rips_intervals(matrix(seed=seed), 1, ENGINE)[0])
    assert worker.n_lost == 2
    assert worker.pid == pid
    worker.close()
    assert gone(pid)


def test_one_that_always_dies_is_given_up(worker, monkeypatch, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit(1)")
    monkeypatch.setattr("lightning_topo.homology._worker.worker_process.__file__", str(broken))
    for _ in range(3):
        with pytest.raises(JobLost, match="died"):
            worker.collect(worker.submit([matrix()], 1, ENGINE, spanning=False), 60.0)
    with pytest.raises(WorkerBroken, match="3 times"):
        worker.submit([matrix()], 1, ENGINE, spanning=False)


def test_closing_loses_what_waits_and_holds_no_file(worker):
    job = stopped(worker).submit([matrix()], 1, ENGINE, spanning=False)
    pid = worker.pid
    worker.close()
    assert gone(pid)
    assert job.file.closed
    with pytest.raises(JobLost, match="closed"):
        worker.collect(job, 1.0)


def test_a_probe_with_a_lag_is_plain_data():
    from lightning_topo import Persistence

    assert pickle.loads(pickle.dumps(Persistence(lag=3))) == Persistence(lag=3)
    with pytest.raises(ValueError, match="lag >= 0"):
        Persistence(lag=-1)
