"""Run folders that are not as this version writes them: older, newer, cut short."""

import json

import pytest

from lightning_topo import read_record
from lightning_topo._cli import main
from lightning_topo.outputs.record import EVENTS, MEASUREMENTS


@pytest.fixture
def folder(tmp_path):
    """As an early version wrote it: no reference step, no remedies, no diagrams; killed within a line."""
    run = tmp_path / "topology"
    run.mkdir()
    header = json.dumps({"schema": 1, "run_id": "old"}) + "\n"
    lines = [{"step": s, "epoch": 0, "probe": "distortion", "group": "fc", "critical_ratio": 0.1 * s} for s in range(5)]
    cut = '{"step": 5, "epoch": 0, "probe": "distor'
    (run / MEASUREMENTS).write_text(header + "".join(json.dumps(line) + "\n" for line in lines) + cut)
    event = {"name": "gap", "step": 3, "epoch": 0, "group": "", "severity": "info", "value": None, "threshold": None}
    events = [event | {"message": "Resumed."}, event | {"name": "of_a_later_version"}, event | {"of_a_later": 1}]
    (run / EVENTS).write_text(header + "".join(json.dumps(line) + "\n" for line in events))
    return run


def test_what_can_be_read_is_shown_and_what_cannot_is_counted(folder, capsys):
    record = read_record(folder)
    assert [m.step for m in record.measurements] == list(range(5))
    assert [(event.message, event.remedy) for event in record.events] == [("Resumed.", ""), ("", "")]
    assert record.n_unreadable == 2
    assert main(["report", str(folder)]) == 0
    assert "Topology preserved over 4 steps" in capsys.readouterr().out
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "2 lines of the record could not be read and are left out." in page


def test_a_record_of_another_schema_is_refused_with_a_remedy(folder, capsys):
    path = folder / MEASUREMENTS
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 0'))
    assert main(["report", str(folder)]) == 2
    assert "expected a record of schema 1" in capsys.readouterr().err
    assert not (folder / "report.html").exists()


def test_a_cut_off_diagram_does_not_hide_the_others(folder):
    import torch

    from lightning_topo.homology import persistence
    from lightning_topo.outputs.record import RecordWriter

    writer = RecordWriter.open(folder, resume=(None, "old"))
    for step in (1, 2, 3):
        writer.diagrams(step, {"fc": persistence(torch.randn(8, 2, generator=torch.Generator().manual_seed(step)), 0)})
    writer.close()
    path = folder / "diagrams" / "step-000000002.npz"
    path.write_bytes(path.read_bytes()[:100])
    assert main(["report", str(folder)]) == 0
    assert "1 of the captured diagrams could not be read" in (folder / "report.html").read_text(encoding="utf-8")
