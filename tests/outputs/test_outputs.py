"""The one loop over all outputs: each is fenced, the record is whole whatever fails, and what is lost is said."""

import errno
import os
import resource
import shutil
import signal
import time
import warnings

import pytest

from lightning_topo.measurement import Measurement
from lightning_topo.outputs._outputs import Outputs, open_outputs
from lightning_topo.outputs.record import MEASUREMENTS, read_record
from lightning_topo.phases import EventName, TopologyEvent
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


def test_other_ranks_have_the_feed_alone(tmp_path):
    training = drive(tmp_path, 3, is_first_rank=False)
    assert training.outputs.dirpath is None
    found = training.outputs.take()
    assert {m.probe for m in found.measurements} == {"distortion"}
    assert not list(tmp_path.iterdir())


def test_findings_are_of_one_hook(tmp_path):
    outputs = Outputs()
    outputs.measurement(Measurement(1, 0, "training", "", {"loss": 1.0}))
    assert outputs.take() is None
    event = TopologyEvent(EventName.GAP, 2, 1)
    outputs.event(event)
    assert outputs.take().events == (event,)
    found = Measurement(3, 1, "fit", "", {"x": 1.0})
    outputs.measurement(found)
    taken = outputs.take()
    assert (taken.step, taken.epoch, taken.measurements, taken.events) == (3, 1, (found,), ())
    assert outputs.take() is None


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


@pytest.mark.parametrize("how", ["deleted", "moved", "file_deleted"])
def test_a_folder_that_vanishes_is_made_again_and_the_loss_is_said(tmp_path, how):
    outputs = open_outputs(tmp_path / "run" / "topology", verbose=False, report=False)
    training = Training(outputs).run(20)
    folder = outputs.dirpath
    n_gone = len((folder / MEASUREMENTS).read_text().splitlines()) - 1
    if how == "deleted":
        shutil.rmtree(folder)
    elif how == "moved":
        folder.rename(tmp_path / "moved")
    else:
        (folder / MEASUREMENTS).unlink()
    with pytest.warns(UserWarning, match=f"{n_gone} lines of the topology record are lost") as told:
        training.run(10)
    assert len(told) == 1
    with pytest.warns(UserWarning, match=f"lacks {n_gone} lines"):
        outputs.end()
    record = read_record(folder)
    assert record.run_id == outputs.run_id
    assert list(record.measurements) == [m for m in training.measured if m.step > 20]
    (event,) = [e for e in record.events if e.name == "gap"]
    assert event.value == n_gone
    assert outputs.noticed == [event]


def test_another_thing_in_the_folders_place_is_said_once_and_nothing_is_written_into_it(tmp_path):
    outputs = open_outputs(tmp_path / "topology", verbose=False, report=False)
    training = Training(outputs).run(5)
    shutil.rmtree(tmp_path / "topology")
    (tmp_path / "topology").write_text("in the way")
    with pytest.warns(UserWarning, match="cannot be written") as told:
        training.run(20)
    assert len([w for w in told if "cannot be written" in str(w.message)]) == 1
    with pytest.warns(UserWarning, match="lacks"):
        outputs.end()
    assert (tmp_path / "topology").read_text() == "in the way"


def test_a_disk_that_stays_full_is_said_when_it_happens_and_at_the_end(tmp_path):
    outputs = open_outputs(tmp_path, verbose=False, report=False)
    training = Training(outputs).run(5)
    n_written = len(training.measured)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / MEASUREMENTS).stat().st_size + 10, limits[1]))
        with pytest.warns(UserWarning, match=f"no room|{os.strerror(errno.EFBIG)}") as told:
            training.run(15)
        assert len(told) == 1
        n_missing = len(training.measured) - n_written
        with pytest.warns(UserWarning, match=f"lacks {n_missing} lines"):
            outputs.end()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [e.name for e in outputs.noticed] == ["gap"]
    assert len(read_record(tmp_path).measurements) == n_written


def test_of_too_many_waiting_lines_the_oldest_are_lost_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_topo.outputs.record._jsonl.MAX_WAITING", 2_000)
    outputs = open_outputs(tmp_path / "topology", verbose=False, report=False)
    training = Training(outputs).run(2)
    monkeypatch.setattr("lightning_topo.outputs.record._jsonl.JsonLines._find_again", _no_room)
    with pytest.warns(UserWarning, match="lost"):
        training.run(20)
    monkeypatch.undo()
    n_lost = outputs.record.writer.n_lost
    assert n_lost > 30
    with pytest.warns(UserWarning, match=f"lacks {n_lost} lines"):
        outputs.end()
    assert len(read_record(tmp_path / "topology").measurements) == len(training.measured) - n_lost


def _no_room(self):
    raise OSError("no room")


@pytest.mark.parametrize("when", ["before the last lines", "after them"])
def test_the_lines_of_a_folder_that_is_gone_to_the_end_are_counted(tmp_path, when):
    outputs = open_outputs(tmp_path / "topology", verbose=False, report=False)
    training = Training(outputs).run(5)
    n_lines = len(training.measured) + len(training.events)
    shutil.rmtree(outputs.dirpath)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if when == "before the last lines":
            outputs.dirpath.write_text("x")
            training.run(5)
            n_lines = len(training.measured) + len(training.events) + len(outputs.noticed)
        outputs.end()
    assert f"lacks {n_lines:,} lines" in str(told[-1].message)


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


def test_what_no_reader_would_take_is_said_and_counted_and_an_events_long_words_are_cut(tmp_path):
    """The record's reader has limits against strangers: nothing is written into them in silence."""
    outputs = open_outputs(tmp_path, verbose=False, report=False)
    training = Training(outputs).run(2)
    many = {f"v{k}": 1.0 for k in range(1_200)}
    found = [("mine", "", many), ("other", "g" * 1_001, {"v": 1.0}), ("mine", "net.0", {"v": 1.0})]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for step in (1, 2):
            for probe, group, values in found:
                outputs.measurement(Measurement(step, 0, probe, group, values))
    assert len(told) == 2
    assert all("are not recorded" in str(w.message) for w in told)
    words = "size mismatch: " + "layer " * 10**6
    outputs.event(TopologyEvent(EventName.PROBE_FAILED, 2, 0, message=words, remedy=words))
    outputs.event(TopologyEvent(EventName.GAP, 2, 0, "g" * 5_000, message="short"))
    with pytest.warns(UserWarning, match="lacks 4 lines"):
        outputs.end()
    record = read_record(tmp_path)
    assert record.n_unreadable == 0
    assert [m for m in record.measurements if m.probe != "mine"] == training.measured
    assert [m.group for m in record.measurements if m.probe == "mine"] == ["net.0", "net.0"]
    messages = [event.message for event in record.events]
    assert sum("are not recorded: expected" in message for message in messages) == 2
    assert any(message.startswith("size mismatch") for message in messages)
    assert "short" in messages


def test_as_many_values_as_a_reader_takes_are_recorded(tmp_path):
    outputs = open_outputs(tmp_path, verbose=False, report=False)
    Training(outputs).run(1)
    found = Measurement(1, 0, "mine", "g" * 1_000, {f"v{k:03d}" + "n" * 996: 1.0 for k in range(994)})
    outputs.measurement(found)
    outputs.end()
    assert read_record(tmp_path).measurements[-1] == found
