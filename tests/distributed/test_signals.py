"""SIGTERM to one of two processes: with the monitor both end as soon as they do without it."""

import signal
import time

import pytest
from torch import distributed

from lightning_topo import read_record
from tests.distributed.processes import launch, wait

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="torch without torch.distributed")


@pytest.mark.parametrize("target", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_signal_to_one_process_ends_both_and_leaves_a_whole_record(tmp_path, target):
    processes = launch(["endless"], tmp_path, 2)
    lines = tmp_path / "endless" / "topology" / "measurements.jsonl"
    deadline = time.monotonic() + 120
    while not (lines.is_file() and lines.read_bytes().count(b"\n") > 100):
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes)  # noqa: PT018
        time.sleep(0.05)
    processes[target].send_signal(signal.SIGTERM)
    codes = wait(processes, 60)
    assert None not in codes, "a process was left waiting"
    record = read_record(tmp_path / "endless" / "topology")
    assert record.n_unreadable == 0
    steps = [m.step for m in record.measurements if (m.probe, m.group) == ("distortion", "net.2")]
    assert steps == list(range(1, len(steps) + 1))
