"""Several runs: found below a folder, on a page of their own, as a table."""

import csv
import json
from pathlib import Path

import pytest

from lightning_topo._cli import main
from lightning_topo.measurement import Measurement
from lightning_topo.outputs.page._comparison import run_folders
from lightning_topo.outputs.record import RecordWriter


def write_run(folder: Path, rate: float, ratio: float, n_steps: int = 4) -> Path:
    writer = RecordWriter.open(folder)
    for step in range(1, n_steps + 1):
        values = {"loss": 1.0 / step} | ({"learning_rate": rate} if step == 1 else {})
        writer.measurement(Measurement(step, 0, "training", "", values))
        writer.measurement(Measurement(step, 0, "distortion", "net.0", {"critical_ratio": ratio}))
    writer.close()
    training = {"optimizer": "SGD", "batch_size": 32, "hparams": {"width": int(100 * rate)}}
    (folder / "run.json").write_text(json.dumps({"run_id": writer.run_id, "training": training}))
    return folder


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    for name, rate, ratio in (("b", 0.5, 2.0), ("a", 0.1, 0.4)):
        write_run(tmp_path / "logs" / name / "topology", rate, ratio)
    return tmp_path / "logs"


def test_a_folder_of_runs_is_compared_beside_them(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = logs / "a" / "topology" / "report.html"
    own.write_text("its own page")
    assert main(["report", str(logs), "--csv", str(logs / "runs.csv")]) == 0
    assert own.read_text() == "its own page"
    page = (logs / "comparison.html").read_text()
    assert "2 runs compared" in page
    assert all(word in page for word in ("Learning rate", "width", "batch_size"))
    said = capsys.readouterr().out
    assert said.count("Next: ") == 2
    assert "Lower the learning rate from 0.5 to 0.2." in said
    with (logs / "runs.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["run"] for line in lines] == ["a", "b"]
    assert [float(line["largest learning rate"]) for line in lines] == [0.1, 0.5]
    assert [line["first breakdown"] for line in lines] == ["", "1"]


def test_a_comparison_never_takes_the_place_of_a_runs_own_page(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(logs / name) for name in ("a", "b")]
    assert main(["report", *runs, "--out", str(logs / "a" / "topology" / "report.html")]) == 2
    assert "a run's own page" in capsys.readouterr().err
    assert not (logs / "a" / "topology" / "report.html").exists()


def test_a_history_is_no_run_of_its_own(logs: Path) -> None:
    history = logs / "a" / "topology" / "history"
    history.mkdir()
    (history / "measurements.jsonl").write_text("{}")
    assert [folder.parent.name for folder in run_folders(logs)] == ["a", "b"]
