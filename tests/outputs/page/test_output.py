"""What rewriting the page may cost while training goes on: another process's time, and little of it."""

import itertools
import os
import subprocess
import sys
import textwrap
import time

import pytest

from lightning_topo.measurement import Measurement
from lightning_topo.outputs import open_outputs
from lightning_topo.outputs.page import output
from lightning_topo.outputs.page.output import PageOutput, page_process
from tests.outputs.driving import Training, drive

TICK = Measurement(1, 0, "training", "", {"loss": 1.0})


class Process:
    """One that runs for so many seconds of the made-up clock."""

    def __init__(self, clock, seconds):
        self.clock, self.ends, self.killed = clock, clock[0] + seconds, False

    def poll(self):
        return 0 if self.clock[0] >= self.ends else None

    def kill(self):
        self.killed = True

    def wait(self, timeout=None):
        return 0


@pytest.mark.parametrize("seconds", [0.5, 3.0, 25.0])
def test_it_takes_no_more_than_a_hundredth_of_the_time(tmp_path, monkeypatch, seconds):
    clock, started = [0.0], []

    def start(dirpath):
        started.append(clock[0])
        return Process(clock, seconds)

    monkeypatch.setattr(output.Clock, "seconds", lambda self: clock[0])
    monkeypatch.setattr(output, "page_process", start)
    page = PageOutput(tmp_path)
    for _ in range(100_000):
        clock[0] += 0.5
        page.measurement(TICK)
    assert started[0] >= 60.0
    assert len(started) > 50_000 * 0.01 / seconds * 0.5 or len(started) > 500
    assert len(started) * seconds <= 0.01 * clock[0] + seconds
    assert min(b - a for a, b in itertools.pairwise(started)) >= 60.0


def test_at_most_one_process_at_a_time_and_the_last_page_is_the_newest(tmp_path, monkeypatch):
    clock, processes = [0.0], []

    def start(dirpath):
        processes.append(Process(clock, 1e9))
        return processes[-1]

    monkeypatch.setattr(output.Clock, "seconds", lambda self: clock[0])
    monkeypatch.setattr(output, "page_process", start)
    monkeypatch.setattr(output, "_reap", lambda process: None)
    training = drive(tmp_path / "topology", 9)
    page = PageOutput(training.outputs.dirpath)
    for _ in range(1000):
        clock[0] += 10.0
        page.measurement(TICK)
    assert len(processes) == 1
    page.end()
    assert processes[0].killed
    assert "9 steps" in (tmp_path / "topology" / "report.html").read_text()


def test_a_process_of_its_own_writes_the_same_page(tmp_path):
    training = drive(tmp_path / "topology", 20, hot={7}, report=True)
    page = training.outputs.dirpath / "report.html"
    written = page.read_bytes()
    page.unlink()
    assert page_process(training.outputs.dirpath).wait(120) == 0
    assert page.read_bytes() == written


def test_a_large_record_is_left_to_a_process_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(output, "MOST_BYTES_HERE", 100)
    monkeypatch.setattr(output, "write_report", None)
    drive(tmp_path / "topology", 20, report=True)
    assert (tmp_path / "topology" / "report.html").is_file()


def test_after_a_signal_the_emergency_checkpoint_has_its_turn_and_the_page_comes_all_the_same(tmp_path):
    """The process is killed a moment after its outputs were closed in haste, as after the grace of a SIGTERM."""
    code = """
        import os, signal, sys, time
        from pathlib import Path
        from lightning_topo.outputs import open_outputs
        from tests.outputs.driving import Training
        outputs = open_outputs(Path(sys.argv[1]), verbose=False)
        Training(outputs).run(3000)
        began = time.perf_counter()
        outputs.end(in_haste=True)
        print(time.perf_counter() - began, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    root = os.getcwd()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "topology")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": root},
    )
    assert float(done.stdout) < 1.0, done.stderr
    page = tmp_path / "topology" / "report.html"
    deadline = time.monotonic() + 120
    while not page.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert "3,000 steps" in page.read_text()


def test_without_a_record_there_is_no_page(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="No topology record"):
        outputs = open_outputs(tmp_path / "file" / "x", verbose=False)
    Training(outputs).run(2)
    outputs.end()
