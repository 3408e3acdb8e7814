"""The one loop over all outputs: each is fenced, the record is whole whatever fails, and what is lost is said."""

import os
import time
import warnings

import pytest

from lightning_topo.outputs._outputs import Outputs, open_outputs
from lightning_topo.outputs.record import read_record
from tests.outputs.driving import Training, drive

VERBS = ("start", "measurement", "event", "diagrams", "end")


class Verbs:
    """An output by one method: `Output` is a protocol whose verbs must be there."""

    def start(self, *args, **options):
        self.do("start")

    def measurement(self, *args, **options):
        self.do("measurement")

    def event(self, *args, **options):
        self.do("event")

    def diagrams(self, *args, **options):
        self.do("diagrams")

    def end(self, *args, **options):
        self.do("end")


class Broken(Verbs):
    """An output of which nothing works."""

    name = "Mine"

    def do(self, verb):
        raise ConnectionError("down")


class Keeping(Verbs):
    """An output that keeps the names of the verbs."""

    name = "Keeping"

    def __init__(self):
        self.verbs = []

    def do(self, verb):
        self.verbs.append(verb)


def test_one_that_fails_is_named_once_for_each_verb_and_harms_no_other():
    kept = Keeping()
    outputs = Outputs([Broken(), kept])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        Training(outputs, hot=frozenset({3, 4})).run(16)
        outputs.end()
    messages = [str(w.message) for w in told]
    assert len(messages) == len(VERBS)
    assert all(m.startswith("Mine did not take ") and "ConnectionError: down" in m for m in messages)
    assert set(kept.verbs) == set(VERBS)
    assert outputs.take() is not None


def test_the_record_holds_what_the_engine_sent(tmp_path):
    training = drive(tmp_path / "topology", 32, hot={3, 20})
    record = read_record(training.outputs.dirpath)
    assert record.run_id == training.outputs.run_id
    assert list(record.measurements) == training.measured
    assert list(record.events) == training.events
    assert record.diagram_steps == (8, 16, 24, 32)


def test_an_end_comes_once(tmp_path):
    outputs = open_outputs(tmp_path, verbose=False, report=False)
    outputs.end()
    outputs.end()
    assert open_outputs(tmp_path / "b", is_first_rank=False).outputs == ()


def test_a_rewind_reaches_every_output_and_the_record_once(tmp_path):
    first = drive(tmp_path, 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outputs = open_outputs(
            tmp_path, resume=(tmp_path, first.outputs.run_id), step=10, epoch=1, verbose=False, report=False
        )
    kept = Keeping()
    outputs.outputs = (*outputs.outputs, kept)
    assert [e.name for e in outputs.noticed] == ["rewind"]
    Training(outputs, step=10).run(5)
    outputs.end()
    assert kept.verbs.count("event") == 1
    # Of several processes only the first has such an event, and gates decide together: it is no finding.
    assert "rewind" not in [e.name for e in outputs.take().events]
    assert [e.name for e in read_record(tmp_path).events] == ["rewind"]
    assert max(m.step for m in read_record(tmp_path).measurements) == 15


def test_a_second_writer_is_told_once(tmp_path):
    first = open_outputs(tmp_path / "topology", verbose=False, report=False)
    with pytest.warns(UserWarning, match=f"is being written by process {os.getpid()}") as told:
        second = open_outputs(tmp_path / "topology", verbose=False, report=False)
    assert len(told) == 1
    assert second.dirpath == tmp_path / "topology-v1"
    first.end()
    second.end()


def test_a_folder_that_cannot_be_made_means_no_record_and_that_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="No topology record"):
        outputs = open_outputs(tmp_path / "file" / "topology", verbose=False)
    Training(outputs).run(9)
    outputs.end()
    assert outputs.dirpath is None
    with pytest.raises(OSError, match="file"):
        open_outputs(tmp_path / "file" / "topology", on_error="raise")


def test_in_haste_only_files_are_closed_and_the_page_comes_later(tmp_path):
    outputs = open_outputs(tmp_path / "topology", verbose=False)
    Training(outputs).run(64)
    began = time.perf_counter()
    outputs.end(in_haste=True)
    assert time.perf_counter() - began < 1.0  # it takes milliseconds; the page alone takes seconds
    page = tmp_path / "topology" / "report.html"
    assert not page.exists()
    deadline = time.monotonic() + 120
    while not page.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert "64 steps" in page.read_text()
