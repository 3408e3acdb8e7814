"""`max_record_mb` is about the whole folder."""

import os

import pytest
import torch

from lightning_topo.measurement import Measurement
from lightning_topo.outputs._outputs import open_outputs
from lightning_topo.outputs.record import RecordWriter, read_record
from lightning_topo.outputs.record._space import make_room, other_bytes
from tests.outputs.driving import Training

LIMIT = 200_000


def folder_bytes(folder):
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def lines(writer, n, start=0):
    for step in range(start, start + n):
        writer.measurement(
            Measurement(step, 0, "distortion", f"g{step % 3}", {"critical_ratio": 0.1, "contraction": 0.9})
        )


def test_it_covers_the_clouds_of_the_beginning_and_what_others_write(tmp_path):
    writer = RecordWriter.open(tmp_path, max_bytes=LIMIT)
    writer.reference(0, [("g0", torch.randn(60, 200, generator=torch.Generator().manual_seed(0)))])  # 48 kB
    (tmp_path / "report.html").write_bytes(b"x" * 30_000)
    for part in range(4):
        lines(writer, 1500, 1500 * part)
        assert folder_bytes(tmp_path) <= 1.1 * LIMIT
    assert writer.crowded_by == 0
    writer.close()
    assert read_record(tmp_path).thinned is not None


def test_older_figures_and_abandoned_captures_go_before_measurements(tmp_path):
    for k in range(40):
        path = tmp_path / "figures" / "topology" / "diagram" / f"{k:09d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"p" * 1000)
    (tmp_path / "diagrams" / "abandoned-1").mkdir(parents=True)
    (tmp_path / "diagrams" / "abandoned-1" / "step-000000001.npz").write_bytes(b"d" * 5000)
    (tmp_path / "mine.txt").write_text("a user's own")
    assert other_bytes(tmp_path) == 45_000 + 12
    assert make_room(tmp_path, 15_000) <= 15_012
    left = sorted((tmp_path / "figures").rglob("*.png"))
    assert [left[0].name, left[-1].name] == ["000000000.png", "000000039.png"]
    assert not (tmp_path / "diagrams" / "abandoned-1").exists()
    assert (tmp_path / "mine.txt").exists()


def test_a_parents_history_goes_last_and_never_through_a_link(tmp_path):
    history, elsewhere = tmp_path / "run" / "history", tmp_path / "elsewhere"
    for folder in (history, elsewhere):
        folder.mkdir(parents=True)
        (folder / "measurements.jsonl").write_bytes(b"h" * 5000)
    assert make_room(tmp_path / "run", 6000) == 5000
    assert make_room(tmp_path / "run", 4000) == 0
    history.symlink_to(elsewhere, target_is_directory=True)
    make_room(tmp_path / "run", 0)
    assert (elsewhere / "measurements.jsonl").exists()


def test_nothing_is_given_up_through_a_link(tmp_path):
    for k in range(40):
        (tmp_path / "elsewhere" / "a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "elsewhere" / "a" / f"{k}.png").write_bytes(b"p" * 1000)
    (tmp_path / "run").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "run" / "figures")
    make_room(tmp_path / "run", 0)
    assert len(list((tmp_path / "elsewhere" / "a").iterdir())) == 40


def test_what_leaves_too_little_room_is_said_once_and_training_is_recorded_all_the_same(tmp_path):
    outputs = open_outputs(tmp_path, verbose=False, report=False, max_record_bytes=60_000)
    outputs.store.reference(0, [("net.0", torch.zeros(100, 200))])  # 80 kB
    with pytest.warns(UserWarning, match="too little of max_record_mb") as said:
        Training(outputs).run(200)
    outputs.end()
    assert sum("max_record_mb" in str(w.message) for w in said) == 1
    assert sum("max_record_mb" in event.message for event in outputs.noticed) == 1
    record = read_record(tmp_path)
    assert max(m.step for m in record.measurements) == 200
    assert folder_bytes(tmp_path) < 80_000 + 60_000
