"""A run folder made by someone else: reading it executes nothing, fills no memory, and writes nowhere else."""

import json
import os
import re
import resource
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from lightning_topo._cli import main
from lightning_topo.homology import persistence
from lightning_topo.measurement import Measurement
from lightning_topo.outputs.page import render_page, write_report
from lightning_topo.outputs.page._model import Budget, run_view
from lightning_topo.outputs.record import EVENTS, MEASUREMENTS, RecordWriter, read_record
from lightning_topo.outputs.record._archive import write_arrays
from lightning_topo.outputs.trackers import RunFacts
from lightning_topo.phases import EventName, TopologyEvent
from tests.outputs.strangers import NAMES


def stranger(folder, names=NAMES):
    """A record in which every text is chosen to do harm."""
    writer = RecordWriter.open(folder)
    cloud = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    for step in (1, 2):
        for name in names:
            writer.measurement(Measurement(step, 0, "distortion", name, {"critical_ratio": 1.5, name: 1.0}))
            writer.event(TopologyEvent(EventName.GAP, step, 0, name, message=name, remedy=name))
        writer.diagrams(step, {name: persistence(cloud, 1) for name in names if "\ud800" not in name})
    writer.close()
    return writer


def everything(folder):
    """Every file below a folder, with its content."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_name_stays_text_in_the_report(tmp_path):
    stranger(tmp_path / "<img src=x>" / "topology")
    page = render_page([read_record(tmp_path / "<img src=x>" / "topology")])
    plain = re.sub(r'<script type="text/plain" id="plotly">.*?</script>', "", page, flags=re.DOTALL)
    assert page.count("<script") == page.count("</script>") == 3
    assert "<img" not in plain
    assert "<!--<" not in plain
    found = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.extend((tag, name) for name, _ in attributes)
    parser.feed(plain)
    assert ("td", "title") in found
    assert not [name for _, name in found if name in ("href", "src", "srcdoc") or name.startswith("on")]
    data = re.search(r'id="page-data">(.*?)</script>', page, re.DOTALL)[1]
    assert not set("<>&") & set(data)
    assert json.loads(data)["runs"][0]["groups"][0] == NAMES[0]


def test_reading_and_reporting_write_only_the_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = stranger(tmp_path / "run" / "topology").dirpath
    before = everything(tmp_path)
    assert main(["report", str(folder)]) == 0
    after = everything(tmp_path)
    assert after.keys() - before.keys() == {folder / "report.html"}
    assert {path: after[path] for path in before} == before


def test_what_is_written_goes_through_no_link(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("mine\n")
    writer = RecordWriter.open(tmp_path / "topology")
    writer.close()
    folder = writer.dirpath
    # A report, and the temporary name beside it, replaced and not followed.
    (folder / "report.html").symlink_to(outside / "precious")
    (folder / f".report.html.{os.getpid()}.tmp").symlink_to(outside / "precious")
    write_report([read_record(folder)], folder / "report.html")
    # Lines and arrays of a run that is resumed.
    (folder / EVENTS).unlink()
    (folder / EVENTS).symlink_to(outside / "precious")
    with pytest.raises(OSError, match=EVENTS):
        RecordWriter.open(folder, resume=(folder, writer.run_id))
    (folder / EVENTS).unlink()
    for name in ("diagrams", "reference"):
        (folder / name).symlink_to(outside, target_is_directory=True)
    again = RecordWriter.open(folder, resume=(folder, writer.run_id))
    with pytest.raises(OSError, match="a link"):
        again.diagrams(1, {"g": persistence(torch.eye(3), 0)})
    with pytest.raises(OSError, match="a link"):
        again.reference(1, {"g": torch.eye(3)}.items())
    assert everything(outside) == {outside / "precious": b"mine\n"}


def test_a_checkpoint_cannot_choose_where_a_record_goes(tmp_path):
    """A run is recorded where this training's files go, whatever folder the checkpoint names."""
    elsewhere, wanted = tmp_path / "elsewhere", tmp_path / "logs" / "topology"
    writer = RecordWriter.open(wanted, resume=(elsewhere, "some run"), step=3)
    writer.close()
    assert writer.dirpath == wanted
    assert not elsewhere.exists()
    other = stranger(elsewhere, names=("g",))
    before = everything(elsewhere)
    branch = RecordWriter.open(wanted, resume=(elsewhere, other.run_id), step=3)
    branch.measurement(Measurement(4, 0, "distortion", "g", {"critical_ratio": 0.5}))
    branch.close()
    assert branch.dirpath == tmp_path / "logs" / "topology-v1"
    assert everything(elsewhere) == before


def test_a_link_in_a_parents_folder_is_not_copied(tmp_path):
    (tmp_path / "secret").write_text("secret")
    parent = stranger(tmp_path / "parent", names=("g",))
    (parent.dirpath / "reference").mkdir()
    (parent.dirpath / "reference" / "clouds.npz").symlink_to(tmp_path / "secret")
    branch = RecordWriter.open(tmp_path / "own", resume=(parent.dirpath, parent.run_id), step=2)
    branch.close()
    assert not (branch.dirpath / "reference").exists()


def test_only_the_records_own_files_are_sent_and_no_links(tmp_path):
    (tmp_path / "secret").write_text("secret")
    folder = stranger(tmp_path / "run", names=("g",)).dirpath
    for name in (".env", ".git/config", "private.csv", "src/train.py", "diagrams/x.npz", "diagrams/abandoned-1/a"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("secret")
    (folder / "diagrams" / "step-000000009.npz").symlink_to(tmp_path / "secret")
    (folder / "report.html").symlink_to(tmp_path / "secret")
    sent = {str(name) for _, name in RunFacts("id", folder, {}, []).files()}
    assert sent == {MEASUREMENTS, EVENTS, "diagrams/step-000000001.npz", "diagrams/step-000000002.npz"}


# --- what is made to fill the memory ----------------------------------------------------------------------------------


def test_lines_without_end_are_read_in_bounded_memory(tmp_path):
    stranger(tmp_path / "run", names=("g",))
    with (tmp_path / "run" / MEASUREMENTS).open("ab") as file:
        file.truncate(file.tell() + (1 << 29))  # half a gigabyte without a newline, that takes no room on the disk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    record = read_record(tmp_path / "run")
    assert len(record.measurements) == 2
    assert record.n_unreadable == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


def test_what_is_no_plain_file_is_not_waited_for(tmp_path):
    writer = stranger(tmp_path / "run", names=("g",))
    os.mkfifo(tmp_path / "run" / "diagrams" / "step-000000003.npz")
    (tmp_path / "run" / EVENTS).unlink()
    os.mkfifo(tmp_path / "run" / EVENTS)
    record = read_record(tmp_path / "run")
    assert record.events == ()
    assert "1 of the captured diagrams could not be read" in render_page([record])
    (tmp_path / "run" / MEASUREMENTS).unlink()
    os.mkfifo(tmp_path / "run" / MEASUREMENTS)
    with pytest.raises(FileNotFoundError):
        read_record(tmp_path / "run")
    assert RecordWriter.open(tmp_path / "run", resume=(tmp_path / "run", writer.run_id)).dirpath.name == "run-v1"


@pytest.mark.parametrize(
    ("fields", "arrays"),
    [
        ({"n_points": "many"}, {}),
        ({"surprise": 1}, {}),
        ([], {}),
        ({}, {"g/H0": np.zeros((2, 3))}),
        ({}, {"g/H0": np.array([[0.0, np.nan]])}),
        ({}, {"g/H0": np.zeros((2, 2), dtype=int)}),
    ],
)
def test_diagrams_that_are_none_are_counted(tmp_path, fields, arrays):
    stranger(tmp_path / "run", names=("g",))
    whole = {"n_points": 2, "diameter": 1.0, "covering_radius": 0.0, "engine": "x", "exact": True}
    meta = {"g": fields if isinstance(fields, list) else whole | fields}
    write_arrays(
        tmp_path / "run" / "diagrams" / "step-000000002.npz",
        {"g/H0": np.array([[0.0, 1.0]]), **arrays, "meta": np.array(json.dumps(meta))}.items(),
    )
    page = render_page([read_record(tmp_path / "run")])
    known = fields == {"surprise": 1}  # what is not asked for does no harm
    assert ("could not be read" in page) != known


def test_a_page_reads_no_more_bars_than_fit(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_topo.outputs.page._model._MOST_NUMBERS", 100)
    stranger(tmp_path / "run", names=("g",))
    writer = RecordWriter.open(tmp_path / "many")
    writer.measurement(Measurement(1, 0, "distortion", "g", {"critical_ratio": 0.5}))
    for step in range(1, 8):
        writer.diagrams(step, {"g": persistence(torch.randn(20, 3, generator=torch.Generator().manual_seed(step)), 1)})
    writer.close()
    detail = run_view(read_record(tmp_path / "many"), "many", Budget.of(1)).details[0]
    assert 1 <= len(detail.crocker.steps) <= 3
    assert detail.crocker.steps[0] == 1
