"""`run.json`: what a run is, written beside its record and read back without trust."""

import json
from pathlib import Path

import pytest

from lightning_topo import read_record
from lightning_topo._watch.output import Run
from lightning_topo._watch.published_values import Readings
from lightning_topo.outputs._about import AboutOutput
from lightning_topo.outputs.record._about import ABOUT, read_about
from tests.outputs.driving import SETTINGS, drive


def test_a_run_is_described_by_plain_settings_alone(tmp_path: Path) -> None:
    training = drive(tmp_path / "topology", 5)
    about = read_record(tmp_path / "topology").about
    assert about["run_id"] == training.outputs.run_id
    assert about["training"] == {"lr": 0.1}
    assert about["settings"] == SETTINGS
    assert {"python", "torch"} <= about["versions"].keys()
    assert about["seconds"] >= 0.0
    assert about["started"] <= about["ended"]


def test_paths_and_objects_do_not_enter(tmp_path: Path) -> None:
    output = AboutOutput(tmp_path, "id")
    output.start(Run((), Readings(()), {}, facts={"data": "/home/someone/data", "model": object(), "lr": 0.1}))
    assert read_about(tmp_path)["training"] == {"data": None, "model": None, "lr": 0.1}


def test_a_resumed_run_adds_its_time(tmp_path: Path) -> None:
    (tmp_path / ABOUT).write_text(json.dumps({"run_id": "id", "started": "then", "seconds": 100.0, "timed_steps": 40}))
    output = AboutOutput(tmp_path, "id")
    output.start(Run((), Readings(()), {}, step=40))
    output.end()
    about = read_about(tmp_path)
    assert about["started"] == "then"
    assert about["seconds"] >= 100.0
    assert about["timed_steps"] == 40
    other = AboutOutput(tmp_path, "another")
    other.start(Run((), Readings(()), {}))
    assert read_about(tmp_path)["seconds"] == 0.0


@pytest.mark.parametrize("content", ["", "[1]", "{", "nonsense", "[" * 100_000, '{"seconds": "' + "9" * 2_000_000])
def test_what_cannot_be_read_is_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / ABOUT).write_text(content)
    assert read_about(tmp_path) == {}


def test_a_folder_that_is_gone_ends_nothing(tmp_path: Path) -> None:
    output = AboutOutput(tmp_path / "gone", "id")
    output.start(Run((), Readings(()), {}))
    output.end()
