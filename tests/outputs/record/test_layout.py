"""The names and first lines of a run folder's files."""

import json
import os

import pytest

from lightning_topo.outputs.record import MEASUREMENTS, RecordFollower, read_record
from lightning_topo.outputs.record._layout import Header, Parent, diagram_path, diagram_steps, read_header


def test_a_first_line_without_an_end_is_no_header(tmp_path):
    (tmp_path / MEASUREMENTS).touch()
    os.truncate(tmp_path / MEASUREMENTS, 1 << 40)
    with pytest.raises(ValueError, match="expected a first line with schema and run_id"):
        read_record(tmp_path)
    with pytest.raises(ValueError, match="expected a first line with schema and run_id"):
        RecordFollower(tmp_path).read()


def test_another_schema_is_refused(tmp_path):
    (tmp_path / MEASUREMENTS).write_text('{"schema": 2, "run_id": "x"}\n')
    with pytest.raises(ValueError, match="schema 1"):
        read_record(tmp_path)


@pytest.mark.parametrize("header", [Header("r"), Header("r", Parent("p", 40))])
def test_a_header_comes_back(tmp_path, header):
    path = tmp_path / MEASUREMENTS
    path.write_text(json.dumps(header.to_line()) + "\n")
    assert read_header(path) == header


@pytest.mark.parametrize(
    "parent",
    [
        "p",
        ["p", 3],
        {"run_id": "p"},
        {"run_id": 3, "step": 3},
        {"run_id": "p", "step": -1},
        {"run_id": "p", "step": True},
    ],
)
def test_a_parent_that_is_none_is_not_believed(tmp_path, parent):
    path = tmp_path / MEASUREMENTS
    path.write_text(json.dumps({"schema": 1, "run_id": "r", "parent": parent}) + "\n")
    assert read_header(path) == Header("r")


def test_a_run_id_without_measure_is_refused(tmp_path):
    path = tmp_path / MEASUREMENTS
    with pytest.raises(FileNotFoundError, match="found none"):
        read_header(path)
    path.write_text(json.dumps({"schema": 1, "run_id": "r" * 1_001}) + "\n")
    with pytest.raises(ValueError, match="at most 1,000 characters"):
        read_header(path)


def test_captures_are_those_that_a_writer_has_named(tmp_path):
    (tmp_path / "diagrams").mkdir()
    assert diagram_steps(tmp_path / "nowhere") == []
    for step in (1_234_567_890, 7, 0, 30):
        diagram_path(tmp_path, step).touch()
    for name in (
        "step-7.npz",
        "step--00000007.npz",
        "step-\u0663\u0663\u0663\u0663\u0663\u0663\u0663\u0663\u0663.npz",
        "step-000000009.txt",
        "step-.npz",
        "step-0000000007.npz",
    ):
        (tmp_path / "diagrams" / name).touch()
    assert diagram_steps(tmp_path) == [0, 7, 30, 1_234_567_890]
