"""The record as an output: a disk that is full or gone stops nothing, and what is lost is said and counted."""

import errno
import os
import resource
import shutil
import signal
import warnings

import pytest

from lightning_topo.measurement import Measurement
from lightning_topo.outputs._outputs import open_outputs
from lightning_topo.outputs.record import MEASUREMENTS, read_record
from lightning_topo.phases import EventName, TopologyEvent
from tests.outputs.driving import Training


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
