"""Records that the first release has written are read as they were then."""

import json
import math
from pathlib import Path

import pytest

from lightning_topo import read_record
from lightning_topo.outputs.page import render_page, verdict
from lightning_topo.outputs.page._outcome import history
from lightning_topo.outputs.record import RecordWriter

FOLDER = Path(__file__).parents[2] / "fixtures" / "records"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())


@pytest.mark.parametrize("name", EXPECTED)
def test_it_is_read_as_it_was_written(name):
    record, expected = read_record(FOLDER / name), EXPECTED[name]
    assert record.run_id == expected["run_id"]
    assert len(record.measurements) == expected["n_measurements"]
    assert record.n_unreadable == expected["n_unreadable"]
    assert list(record.groups) == expected["groups"]
    assert list(record.diagram_steps) == expected["diagram_steps"]
    assert [[str(e.name), e.step, e.group] for e in record.events] == expected["events"]
    gone = record.thinned
    assert (None if gone is None else [gone.until_step, gone.factor, gone.n_captures]) == expected["thinned"]
    last = record.measurements[-1]
    assert last.step == expected["last"]["step"]
    found = {key: value if math.isfinite(value) else str(value) for key, value in last.values.items()}
    assert found == expected["last"]["values"]
    n_bars = [len(record.diagrams(record.diagram_steps[-1])[group][0]) for group in record.groups]
    assert n_bars == expected["n_bars"]
    assert (record.parent, record.history, record.n_abandoned) == (None, (), 0)


@pytest.mark.parametrize("name", EXPECTED)
def test_its_verdict_phases_and_page_are_those_of_then(name):
    record, expected = read_record(FOLDER / name), EXPECTED[name]
    assert verdict(record) == expected["verdict"]
    assert [[step, phase.name] for step, phase in history(record).replay.phases[""]] == expected["phases"]
    assert expected["run_id"] in render_page([record])


def test_it_can_be_gone_on_with(tmp_path):
    import shutil

    shutil.copytree(FOLDER / "broken", tmp_path / "topology")
    writer = RecordWriter.open(tmp_path / "topology", resume=(None, EXPECTED["broken"]["run_id"]), step=0)
    assert writer.branch.resumed
    writer.rewind(0, 0)
    writer.close()
    record = read_record(tmp_path / "topology")
    assert {m.step for m in record.measurements} == {0}
    assert [str(e.name) for e in record.events] == ["rewind"]
