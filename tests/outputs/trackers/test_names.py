"""Groups of any name, in every tracker at once."""

import csv
import json
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger

from lightning_topo import read_record
from lightning_topo._watch.published_values import mangled_names
from tests.outputs.driving import drive, empty_figures, group_named

LONG = "block." * 50
NAMES = (
    "encoder.layers.0",
    "/abs//path/",
    "../..",
    "注意力.层 1",
    "\u03b7" * 300,
    f"{LONG}a",
    f"{LONG}b",
    "a b",
    "a.b",
)


def groups():
    return tuple(group_named(name) for name in NAMES)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A training with three loggers, all values sent; the monitor, its record, the loggers."""
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("tensorboard")
    root = tmp_path_factory.mktemp("names")
    mlflow.environment_variables.MLFLOW_DISABLE_TELEMETRY.set(True)
    loggers = {
        "csv": CSVLogger(root / "csv"),
        "tensorboard": TensorBoardLogger(root / "tb"),
        "mlflow": MLFlowLogger(
            "n", tracking_uri=f"sqlite:///{root / 'm.db'}", artifact_location=(root / "artifacts").as_uri()
        ),
    }
    with empty_figures():
        training = drive(root / "record", 16, groups=groups(), loggers=loggers.values())
    for logger in loggers.values():
        logger.finalize("success")
    return root, read_record(training.outputs.dirpath), loggers


def measured(record, group):
    return [m.values["critical_ratio"] for m in record.measurements if m.group == group and m.probe == "distortion"]


def test_the_record_holds_every_group_and_its_diagrams_under_its_own_name(run):
    _, record, _ = run
    assert record.groups == NAMES
    for step in record.diagram_steps:
        assert tuple(record.diagrams(step)) == NAMES
    assert all(len(measured(record, name)) == 16 for name in NAMES)


def test_csv_and_tensorboard_hold_every_group_under_its_key(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, record, loggers = run
    with open(Path(loggers["csv"].log_dir) / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    events = EventAccumulator(loggers["tensorboard"].log_dir, size_guidance={"scalars": 0}).Reload()
    for name, mangled in mangled_names(NAMES).items():
        key = f"topology/{mangled}/critical_ratio"
        assert [float(row[key]) for row in rows if row[key]] == measured(record, name)
        assert [e.value for e in events.Scalars(key)] == pytest.approx(measured(record, name), rel=1e-6)


def test_mlflow_holds_every_group_under_a_name_that_it_takes(run):
    from mlflow.tracking import MlflowClient

    root, record, loggers = run
    client = MlflowClient(f"sqlite:///{root / 'm.db'}")
    run_id = loggers["mlflow"].run_id
    keys = [key for key in client.get_run(run_id).data.metrics if key.endswith("/critical_ratio")]
    found = [[m.value for m in client.get_metric_history(run_id, key)] for key in keys]
    assert sorted(found) == sorted([*(measured(record, name) for name in NAMES), *[_worst(record)] * 2])
    assert len(keys) == len(NAMES) + 2
    figures = list((root / "artifacts" / run_id / "artifacts").rglob("topology/**/diagram/*.png"))
    assert len({path.parent for path in figures}) == len(NAMES) + 1


def _worst(record):
    return [max(values) for values in zip(*(measured(record, name) for name in NAMES), strict=True)]


def test_mlflow_takes_a_row_of_more_values_than_one_request_may_hold(tmp_path):
    pytest.importorskip("mlflow")
    from lightning_topo.outputs.trackers import tracker_of

    logger = MLFlowLogger("n", tracking_uri=f"sqlite:///{tmp_path / 'm.db'}")
    tracker_of(logger).row({f"topology/g{i}/betti_0": float(i) for i in range(2300)}, 3)
    metrics = logger.experiment.get_run(logger.run_id).data.metrics
    assert metrics == {f"topology/g{i}/betti_0": float(i) for i in range(2300)}


def test_wandb_takes_them_too(tmp_path, monkeypatch, small_figures):
    wandb = pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    from tests.outputs.trackers.test_wandb import offline_runs

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(offline=True, save_dir=tmp_path)
    training = drive(tmp_path / "record", 16, groups=groups(), loggers=[logger])
    wandb.finish()
    (run,) = offline_runs(tmp_path)
    record = read_record(training.outputs.dirpath)
    for name, mangled in mangled_names(NAMES).items():
        key = f"topology/{mangled}/critical_ratio"
        assert [item[key] for _, item in run.rows(key) if key in item] == pytest.approx(measured(record, name))
    images = {json.dumps(k) for row in run.of("history") for k in row["item"] if k.endswith("/diagram.filenames")}
    assert len(images) == len(NAMES) + 1
