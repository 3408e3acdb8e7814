"""What a record may cost whoever reads it."""

import json
import os

import pytest

from lightning_topo.measurement import Measurement
from lightning_topo.outputs.record import EVENTS, MEASUREMENTS, RecordFollower, RecordWriter, read_record
from lightning_topo.outputs.record._limits import (
    LONGEST_NAME,
    LONGEST_TEXT,
    MOST_VALUES,
    RecordTooLarge,
    check,
    readable,
    unreadable,
)
from lightning_topo.phases import EventName, TopologyEvent


def test_more_groups_than_any_training_has_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_topo.outputs.record._read.MOST_GROUPS", 50)
    writer = RecordWriter.open(tmp_path)
    for i in range(60):
        writer.measurement(Measurement(1, 0, "distortion", f"g{i}", {"critical_ratio": 0.5}))
    writer.close()
    with pytest.raises(ValueError, match="at most 50 groups"):
        read_record(tmp_path)


@pytest.mark.parametrize("name", [MEASUREMENTS, EVENTS, f"history/{MEASUREMENTS}", f"history/{EVENTS}"])
def test_a_file_with_a_hole_of_a_terabyte_is_refused_before_it_is_read(tmp_path, name):
    RecordWriter.open(tmp_path).close()
    (tmp_path / "history").mkdir()
    header = {"schema": 1, "run_id": "child", "parent": {"run_id": "parent", "step": 1}}
    line = {"step": 2, "epoch": 0, "probe": "distortion", "group": "g", "reference_step": 0, "critical_ratio": 0.5}
    (tmp_path / MEASUREMENTS).write_text(f"{json.dumps(header)}\n{json.dumps(line)}\n")
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, 1 << 40)
    with pytest.raises(ValueError, match=rf"bytes in {(tmp_path / name).name}"):
        read_record(tmp_path)
    with pytest.raises(ValueError, match=rf"bytes in {(tmp_path / name).name}"):
        RecordFollower(tmp_path).read()


def test_names_and_lines_without_measure_are_left_out_and_counted(tmp_path):
    writer = RecordWriter.open(tmp_path)
    writer.measurement(Measurement(1, 0, "distortion", "g", {"critical_ratio": 0.5}))
    writer.measurement(Measurement(2, 0, "distortion", "n" * 10_001, {"critical_ratio": 0.5}))
    writer.measurement(Measurement(3, 0, "distortion", "g", {"v" * 10_001: 0.5}))
    writer.measurement(Measurement(4, 0, "distortion", "g", {f"v{i}": 0.5 for i in range(2_000)}))
    writer.event(TopologyEvent(EventName.GAP, 1, 0, "g", message="m" * 100_000))
    writer.close()
    record = read_record(tmp_path)
    assert [m.step for m in record.measurements] == [1]
    assert record.events == ()
    assert record.n_unreadable == 4


def test_what_the_writer_lets_through_the_reader_takes(tmp_path):
    """At every limit: one of just that size is read back, one more is refused beforehand."""
    writer = RecordWriter.open(tmp_path)
    at_the_limit = [
        ("p" * LONGEST_NAME, "g", {"v": 1.0}),
        ("p", "g" * LONGEST_NAME, {"v": 1.0}),
        ("p", "g", {"v" * LONGEST_NAME: 1.0}),
        ("p", "h", {f"v{i}": 1.0 for i in range(MOST_VALUES - 6)}),
    ]
    beyond = [
        ("p" * (LONGEST_NAME + 1), "g", {"v": 1.0}),
        ("p", "g" * (LONGEST_NAME + 1), {"v": 1.0}),
        ("p", "g", {"v" * (LONGEST_NAME + 1): 1.0}),
        ("p", "h", {f"v{i}": 1.0 for i in range(MOST_VALUES - 5)}),
    ]
    for step, (probe, group, values) in enumerate(at_the_limit):
        assert unreadable(probe, group, values) == ""
        writer.measurement(Measurement(step, 0, probe, group, values))
    writer.close()
    assert [m.step for m in read_record(tmp_path).measurements] == [0, 1, 2, 3]
    assert all(unreadable(probe, group, values) for probe, group, values in beyond)


def test_an_event_of_any_length_is_read_back_with_both_ends_of_its_words(tmp_path):
    long = TopologyEvent(EventName.GAP, 1, 0, "g" * 2_000, message="begin" + "x" * 20_000 + "end", remedy="r" * 10_001)
    short = TopologyEvent(EventName.GAP, 1, 0, "g", message="m" * LONGEST_TEXT)
    assert readable(short) is short
    writer = RecordWriter.open(tmp_path)
    writer.event(readable(long))
    writer.close()
    (found,) = read_record(tmp_path).events
    assert found.message.startswith("begin")
    assert found.message.endswith("end")
    assert (len(found.group), len(found.message), len(found.remedy)) == (LONGEST_NAME, LONGEST_TEXT, LONGEST_TEXT)


def test_a_refusal_names_its_limit():
    check("lines", 3, 3)
    with pytest.raises(RecordTooLarge, match="at most 3 lines, found 4") as refused:
        check("lines", 3, 4)
    assert refused.value.limit == "lines"
    assert "found more" in str(RecordTooLarge("names", 3))
