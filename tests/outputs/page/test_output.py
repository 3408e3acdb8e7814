"""What rewriting the page may cost while training goes on: another process's time, and little of it."""

import io
import os
import re
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from lightning_topo.measurement import Measurement
from lightning_topo.outputs._outputs import open_outputs
from lightning_topo.outputs.page import _output as output
from lightning_topo.outputs.page._live import follow_page
from lightning_topo.outputs.page._output import PageOutput
from tests import warm
from tests.outputs.driving import Training, drive

TICK = Measurement(1, 0, "training", "", {"loss": 1.0})


class Pipe(io.BytesIO):
    """What was written can be read when it is closed."""

    def close(self):
        self.is_closed = True


class Process(subprocess.Popen):
    """No process: one that runs until it is told, or has died."""

    def __init__(self):
        self.stdin, self.returncode, self.waited, self.patience = Pipe(), None, 0, None

    def poll(self):
        return self.returncode

    def wait(self, timeout=None):
        self.waited += 1
        self.patience = timeout
        return 0


@pytest.fixture
def processes(monkeypatch):
    """Those that were started, at which second of the made-up clock `processes.clock`."""

    class Started(list):
        clock = 0.0

    started = Started()

    def start(dirpath, follow=False):
        started.append((started.clock, follow, Process()))
        return started[-1][-1]

    monkeypatch.setattr(output.Clock, "seconds", lambda self: started.clock)
    monkeypatch.setattr(output, "page_process", start)
    return started


def test_one_process_follows_the_run_from_within_its_first_minute_on(tmp_path, processes):
    page = PageOutput(tmp_path)
    for _ in range(10_000):
        processes.clock += 0.5
        page.measurement(TICK)
    [(at, follow, process)] = processes
    assert 10.0 <= at <= 45.0
    assert follow
    page.end()
    assert process.stdin.getvalue() == b"."
    assert process.waited == 1


@pytest.mark.parametrize(("seconds", "most"), [(60.0, 10.0), (3_000.0, 30.0), (10.0**6, 60.0)])
def test_a_short_session_of_a_long_run_does_not_wait_long_for_its_page(tmp_path, processes, seconds, most):
    page = PageOutput(tmp_path)
    processes.clock = 30.0
    page.measurement(TICK)
    processes.clock = seconds
    page.end()
    assert processes[0][-1].patience == most


def test_one_that_dies_is_started_again_but_not_for_ever(tmp_path, processes):
    page = PageOutput(tmp_path)
    for _ in range(10_000):
        processes.clock += 0.5
        page.measurement(TICK)
        if processes:
            processes[-1][-1].returncode = 1
    assert len(processes) == 3


def test_a_short_run_has_its_page_at_the_end_alone(tmp_path, processes):
    training = drive(tmp_path / "topology", 9)
    page = PageOutput(training.outputs.dirpath)
    processes.clock = 5.0
    page.measurement(TICK)
    page.end()
    assert not processes
    assert "9 steps" in (tmp_path / "topology" / "report.html").read_text()


def test_the_page_follows_what_is_appended_and_ends_with_the_run(tmp_path):
    """The process's own loop: a page at once, another as the record grows, and a last one that looks for no newer."""
    outputs = open_outputs(tmp_path / "topology", verbose=False, report=False)
    training = Training(outputs).run(5)
    page = outputs.dirpath / "report.html"

    def stamp():
        found = re.search(r'const LIVE = {"stamp":"(\d+)"', page.read_text()) if page.is_file() else None
        return found and found[1]

    read, write = os.pipe()
    with os.fdopen(read, "rb") as signal:
        options = {"share": 1.0, "fewest_seconds": 0.0}
        follower = threading.Thread(target=follow_page, args=(outputs.dirpath, signal), kwargs=options)
        follower.start()
        try:
            until(stamp)
            first = stamp()
            training.run(20)
            until(lambda: "25 steps" in page.read_text())  # one before it may show fewer
            assert stamp() != first
            training.run(5)
        finally:
            os.write(write, b".")
            follower.join(60)
            os.close(write)
    assert "30 steps" in page.read_text()
    assert "const LIVE = null" in page.read_text()
    outputs.end()


def until(holds):
    patience = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < patience
        time.sleep(0.02)


def test_the_process_writes_a_last_page_when_the_training_is_killed(tmp_path):
    code = """
        import os, signal, sys, time
        from pathlib import Path
        from lightning_topo.outputs._outputs import open_outputs
        from lightning_topo.outputs.page._output import PageOutput
        from tests.outputs.driving import Training
        outputs = open_outputs(Path(sys.argv[1]), verbose=False, report=False)
        page = PageOutput(outputs.dirpath, first_seconds=0.0)
        training = Training(outputs).run(5)
        page.measurement(training.measured[-1])
        assert page.n_started == 1
        training.run(30)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = warm.run(textwrap.dedent(code), tmp_path / "topology", folder=tmp_path)
    assert done.returncode == -9, done.stderr
    page = tmp_path / "topology" / "report.html"
    until(lambda: page.is_file() and "const LIVE = null" in page.read_text())
    assert "35 steps" in page.read_text()


def test_a_large_record_is_left_to_a_process_of_its_own_that_writes_the_same_page(tmp_path, monkeypatch):
    training = drive(tmp_path / "topology", 20, hot={7}, report=True)
    page = training.outputs.dirpath / "report.html"
    written = page.read_bytes()
    page.unlink()
    monkeypatch.setattr(output, "MOST_BYTES_HERE", 100)
    monkeypatch.setattr(output, "write_report", None)
    PageOutput(training.outputs.dirpath).end()
    assert page.read_bytes() == written


def test_after_a_signal_the_emergency_checkpoint_has_its_turn_and_the_page_comes_all_the_same(tmp_path):
    """The process is killed a moment after its outputs were closed in haste, as after the grace of a SIGTERM."""
    code = """
        import os, signal, sys, time
        from pathlib import Path
        from lightning_topo.outputs._outputs import open_outputs
        from tests.outputs.driving import Training
        outputs = open_outputs(Path(sys.argv[1]), verbose=False)
        Training(outputs).run(300)
        began = time.perf_counter()
        outputs.end(in_haste=True)
        print(time.perf_counter() - began, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = warm.run(textwrap.dedent(code), tmp_path / "topology", folder=tmp_path)
    assert float(done.stdout) < 1.0, done.stderr
    page = tmp_path / "topology" / "report.html"
    deadline = time.monotonic() + 120
    while not page.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert "300 steps" in page.read_text()


def test_without_a_record_there_is_no_page(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="No topology record"):
        outputs = open_outputs(tmp_path / "file" / "x", verbose=False)
    Training(outputs).run(2)
    outputs.end()


def test_a_page_is_written_without_torch_or_matplotlib(tmp_path, demo, breakdown):
    """Their import takes ten times as long as the page: a process that does needs a hundredth of a run of minutes."""
    assert demo.diagram_steps
    drive(tmp_path / "topology", 16)
    code = f"""
        import sys
        from lightning_topo._cli import main
        for runs in ({str(demo.dirpath)!r},), ({str(tmp_path)!r}, {str(breakdown.dirpath)!r}):
            assert main(["report", *runs, "--out", {str(tmp_path / "page.html")!r}]) == 0
        assert not {{"torch", "lightning", "matplotlib", "pandas"}} & set(sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
