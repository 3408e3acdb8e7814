"""MLflow, started for real on a sqlite store."""

import json
import math

import pytest
from lightning.pytorch.loggers import MLFlowLogger

from lightning_topo import read_record
from lightning_topo.outputs.trackers import tracker_of
from tests.outputs.driving import drive


def test_mlflow_holds_values_figures_settings_and_the_record(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    logger = MLFlowLogger("topology", tracking_uri=store, artifact_location=(tmp_path / "artifacts").as_uri())
    training = drive(tmp_path / "topology", hot={3}, loggers=[logger], log_groups="worst")
    record = read_record(training.outputs.dirpath)

    client = mlflow.tracking.MlflowClient(store)
    logged = {m.step: m.value for m in client.get_metric_history(logger.run_id, "topology/critical_ratio")}
    worst = {}
    for m in record.measurements:
        if m.probe == "distortion":
            worst[m.step - 1] = max(worst.get(m.step - 1, 0.0), m.values["critical_ratio"])
    assert logged == pytest.approx(worst, rel=1e-6)
    assert client.get_run(logger.run_id).data.tags["topology.phase"] in ("BREAKDOWN", "EDGE_OF_STABILITY")

    def files(folder):
        found = client.list_artifacts(logger.run_id, folder)
        return [f.path for f in found if not f.is_dir] + [p for f in found if f.is_dir for p in files(f.path)]

    paths = set(files("topology"))
    assert {"topology/config.json", "topology/record/measurements.jsonl", "topology/record/events.jsonl"} <= paths
    assert "topology/record/diagrams/step-000000016.npz" in paths
    assert "topology/crocker/000000015.png" in paths
    assert not any("reference" in path for path in paths)
    assert not any(str(tmp_path) in text for text in _texts(tmp_path / "artifacts"))
    config = json.loads((tmp_path / "artifacts" / logger.run_id / "artifacts" / "topology/config.json").read_text())
    assert config["run_id"] == record.run_id
    assert [group["name"] for group in config["groups"]] == [group.name for group in training.groups]


def _texts(folder):
    return [path.read_text() for path in folder.rglob("*.json*")]


def test_what_a_run_comes_to_stands_in_its_tags_and_metrics(tmp_path):
    logger = MLFlowLogger("n", tracking_uri=f"sqlite:///{tmp_path / 'm.db'}")
    found = {"topology/verdict": "preserved", "topology/first_breakdown": 3.0, "topology/first_edge": math.nan}
    tracker_of(logger).concluded(found, 7)
    data = logger.experiment.get_run(logger.run_id).data
    assert data.tags["topology.verdict"] == "preserved"
    assert data.metrics == {"topology/first_breakdown": 3.0}


def test_the_verdict_is_the_runs_description_unless_the_user_has_one(tmp_path):
    logger = MLFlowLogger("n", tracking_uri=f"sqlite:///{tmp_path / 'm.db'}")
    tracker, client = tracker_of(logger), logger.experiment

    def described():
        return client.get_run(logger.run_id).data.tags["mlflow.note.content"]

    tracker.concluded({"topology/verdict": "preserved", "topology/first_edge": 3.0}, 7)
    assert described() == "**verdict**: preserved\n\n**first_edge**: 3.0"
    tracker.concluded({"topology/verdict": "broken"}, 9)  # the run went on
    assert described() == "**verdict**: broken"
    client.set_tag(logger.run_id, "mlflow.note.content", "my own words")
    tracker.concluded({"topology/verdict": "preserved"}, 11)
    assert described() == "my own words"
