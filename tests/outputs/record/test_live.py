"""A file of lines read on as it grows: the same that is read at once, and never twice."""

import random

import pytest

from lightning_topo.measurement import Measurement
from lightning_topo.outputs.record import EVENTS, MEASUREMENTS, RecordWriter, read_record
from lightning_topo.outputs.record._live import LiveLines, Stale, superseded
from lightning_topo.outputs.record._read import event_of, measurement_of


def some(step, value=0.5):
    return Measurement(step, 0, "distortion", "net.0", {"critical_ratio": value})


def rewound(folder, writer, step):
    writer.close()
    writer = RecordWriter.open(folder, resume=(folder, writer.run_id), step=step)
    writer.rewind(step, 0)
    return writer


@pytest.mark.parametrize("seed", range(5))
def test_what_is_read_as_it_stands_is_what_a_record_holds(tmp_path, seed):
    """With rewinds, lines of nothing, and a last one that was broken off."""
    draw, step = random.Random(seed), 0
    writer = RecordWriter.open(tmp_path)
    for k in range(60):
        if step and draw.random() < 0.1:
            step = draw.randrange(step + 1)
            writer = rewound(tmp_path, writer, step)
        step += 1
        writer.measurement(some(step, k / 60))
    writer.close()
    with (tmp_path / MEASUREMENTS).open("a") as file:
        file.write('no line\n{"step": -1}\n{"step": 7')
    record = read_record(tmp_path)
    lines = LiveLines(tmp_path / MEASUREMENTS, measurement_of, n_header=1)
    assert tuple(lines.read_on(whole=True)) == record.measurements
    assert lines.n_unreadable == record.n_unreadable == 3
    events = LiveLines(tmp_path / EVENTS, event_of, n_header=1)
    found = list(events.read_on(whole=True))
    # The same event met again takes its place in the order again.
    assert tuple(event for k, event in enumerate(found) if event not in found[k + 1 :]) == record.events


def test_only_what_was_appended_is_read_on_and_a_line_when_it_is_whole(tmp_path):
    writer = RecordWriter.open(tmp_path)
    lines = LiveLines(tmp_path / MEASUREMENTS, measurement_of, n_header=1)
    assert list(lines.read_on(whole=False)) == []
    writer.measurement(some(1))
    writer.measurement(some(2))
    assert [m.step for m in lines.read_on(whole=False)] == [1, 2]
    path = tmp_path / MEASUREMENTS
    text = path.read_text().splitlines()[-1].replace('"step": 2', '"step": 3')
    with path.open("a") as file:
        file.write(text[:20])
    assert list(lines.read_on(whole=False)) == []
    with path.open("a") as file:
        file.write(text[20:] + "\n")
    assert [m.step for m in lines.read_on(whole=False)] == [3]
    assert (lines.at, lines.n_unreadable, lines.is_replaced) == (3, 0, False)


def test_a_rewind_that_comes_later_makes_stale_what_was_read(tmp_path):
    writer = RecordWriter.open(tmp_path)
    for step in (1, 2, 3):
        writer.measurement(some(step))
    lines = LiveLines(tmp_path / MEASUREMENTS, measurement_of, n_header=1)
    assert len(list(lines.read_on(whole=False))) == lines.n_at_first - 1 == 3
    writer = rewound(tmp_path, writer, 1)
    with pytest.raises(Stale):
        list(lines.read_on(whole=False))
    anew = LiveLines(tmp_path / MEASUREMENTS, measurement_of, n_header=1)
    assert [m.step for m in anew.read_on(whole=False)] == [1]
    assert anew.n_abandoned == 2
    writer.close()


def test_a_file_without_end_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_topo.outputs.record._live.MOST_LINES", 3)
    writer = RecordWriter.open(tmp_path)
    for step in (1, 2):
        writer.measurement(some(step))
    LiveLines(tmp_path / MEASUREMENTS, measurement_of, n_header=1)
    writer.measurement(some(3))
    with pytest.raises(ValueError, match=r"at most 3 lines in measurements\.jsonl, found 4"):
        LiveLines(tmp_path / MEASUREMENTS, measurement_of, n_header=1)
    assert list(LiveLines(tmp_path / "nowhere", measurement_of, n_header=1).read_on(whole=True)) == []


def test_of_a_step_measured_again_the_earlier_lines_are_named(tmp_path):
    writer = RecordWriter.open(tmp_path)
    for step in (1, 2, 1, 3, 1):
        writer.measurement(some(step))
    writer.measurement(Measurement(2, 0, "own", "net.0", {"critical_ratio": 0.1}))
    writer.close()
    assert [line for line in range(8) if line in superseded(tmp_path / MEASUREMENTS)] == [1, 3]
