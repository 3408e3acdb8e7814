"""What Trackio has stored, read back by itself: no server, no network."""

import json
import sqlite3
import warnings
from argparse import Namespace

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_topo import Distortion, TopologyMonitor, TopologyWatch, TrackioLogger, read_record
from lightning_topo.outputs.page import verdict
from lightning_topo.outputs.trackers._tracker import ARTIFACT_TYPE
from tests.outputs.driving import drive
from tests.outputs.trackers.trackio_store import refuse_network, stored, values_of


@pytest.fixture
def project(request, trackio_dir):
    """A project of this test's own."""
    return request.node.name.partition("[")[0]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    refuse_network(monkeypatch)


def test_scalars_events_figures_settings_verdict_and_record(tmp_path, project, trackio_dir, capfd):
    logger = TrackioLogger(project)
    logger.log_hyperparams({"lr": 0.1})
    logger.log_metrics({"loss": 1.0}, 0)
    training = drive(tmp_path / "topology", 24, hot={3, 4, 9}, loggers=[logger], log_groups=["net.0"])
    logger.finalize("success")
    assert "TRACKIO" not in capfd.readouterr().out  # the terminal is ours
    record = read_record(training.outputs.dirpath)
    (run,) = stored(project)
    assert run.name == logger.version

    measured = [
        (m.step - 1, m.values["critical_ratio"])
        for m in record.measurements
        if m.probe == "distortion" and m.group == "net.0"
    ]
    assert values_of(project, run, "topology/net_0/critical_ratio") == measured
    assert len(values_of(project, run, "topology/worst/critical_ratio")) == 24

    alerts = sorted((a["step"], a["title"], a["level"], a["text"]) for a in run.alerts())
    wanted = [
        (e.step - 1, ": ".join(filter(None, (e.name, e.group))), e.severity, f"Step {e.step}. {e.message} {e.remedy}")
        for e in record.events
    ]
    assert alerts == sorted(wanted) != []
    table = values_of(project, run, "topology/events")[-1][1]["_value"]
    assert [(r["step"], r["event"], r["group"], r["message"]) for r in table] == [
        (e.step, e.name, e.group, e.message) for e in record.events
    ]

    assert run.config["lr"] == 0.1
    assert run.config["topology"]["run_id"] == record.run_id
    assert [group["name"] for group in run.config["topology"]["groups"]] == ["net.0", "net.3"]
    assert run.config["topology"]["outcome"]["first_breakdown"] == 3.0
    ((step, told),) = values_of(project, run, "topology/verdict")
    assert step == 23
    assert f"**verdict**: {verdict(record)}" in told["_value"]

    names = ("diagram", "betti_curves", "crocker")
    for key in [f"topology/{name}" for name in names] + [f"topology/net_0/{name}" for name in names]:
        images = [image for _, image in values_of(project, run, key)]
        assert images
        assert all((trackio_dir / "media" / image["file_path"]).stat().st_size > 5_000 for image in images)

    with sqlite3.connect(trackio_dir / f"{project}.db") as store:
        ((kind, manifest),) = store.execute(
            "select a.type, v.manifest from artifacts a join artifact_versions v on v.artifact_id = a.id"
        )
    assert kind == ARTIFACT_TYPE
    assert {entry["path"] for entry in json.loads(manifest)} == {
        "measurements.jsonl",
        "events.jsonl",
        *(f"diagrams/step-{step:09d}.npz" for step in (8, 16, 24)),
    }
    assert str(tmp_path) not in json.dumps(run.config)


def test_a_training_by_lightning_with_a_test_after_it_is_one_run(tmp_path, project):
    from lightning_topo.demo import DigitsMLP, FullBatch, digits

    module, batches = DigitsMLP(0.3), DataLoader(FullBatch(digits(), 12), batch_size=None)
    logger = TrackioLogger(project, "mine")
    quiet = {"enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}
    monitor = TopologyMonitor([Distortion(every_n_steps=1)], report=False, verbose=False)
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=logger,
        callbacks=[monitor],
        log_every_n_steps=4,
        default_root_dir=tmp_path,
        **quiet,
    )
    trainer.fit(module, batches)
    assert monitor.dirpath == tmp_path / project / "mine" / "topology"
    logger.log_metrics({"test_loss": 0.5}, 12)
    logger.finalize("success")
    (run,) = stored(project)
    assert run.name == "mine"
    assert [step for step, _ in values_of(project, run, "topology/critical_ratio")] == [3, 7, 11]
    assert values_of(project, run, "test_loss") == [(12, 0.5)]


def test_a_users_own_config_of_that_name_is_left_alone(tmp_path, project):
    logger = TrackioLogger(project)
    logger.log_hyperparams(Namespace(topology="mine", depth=3))
    training = drive(tmp_path / "topology", 2, loggers=[logger])
    logger.finalize("success")
    (run,) = stored(project)
    assert (run.config["topology"], run.config["depth"]) == ("mine", 3)
    assert run.config["topology_2"]["run_id"] == training.outputs.run_id


def test_the_table_is_sent_seldom_and_whole(tmp_path, project, small_figures):
    logger = TrackioLogger(project)
    training = drive(tmp_path / "topology", 64, hot=range(3, 60, 2), loggers=[logger])
    logger.finalize("success")
    (run,) = stored(project)
    tables = [table["_value"] for _, table in values_of(project, run, "topology/events")]
    assert [row["step"] for row in tables[-1]] == [event.step for event in training.events]
    assert sum(map(len, tables)) <= 3 * len(training.events)


def test_a_store_that_fails_harms_nothing(tmp_path, project, monkeypatch):
    from trackio.sqlite_storage import SQLiteStorage

    def full(*args, **kwargs):
        raise OSError("no space left on device")

    for name in ("bulk_log", "bulk_alert", "commit_artifact_version"):
        monkeypatch.setattr(SQLiteStorage, name, full)
    logger = TrackioLogger(project)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        training = drive(tmp_path / "topology", 16, hot={3}, loggers=[logger])
        logger.finalize("success")
    assert any("no space left on device" in str(warning.message) for warning in told)
    record = read_record(training.outputs.dirpath)
    assert list(record.measurements) == training.measured
    assert list(record.events) == training.events != []


def test_a_loop_of_ones_own_has_it_as_a_trainer_does(tmp_path, project, trackio_dir):
    logger = TrackioLogger(project)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probes = [Distortion(every_n_steps=1)]
    with TopologyWatch(
        model, optimizer, probes, dirpath=tmp_path / "topology", loggers=[logger], log_every_n_steps=1, verbose=False
    ) as watch:
        for _ in range(6):
            with watch.step():
                watch.loss(model(torch.randn(8, 4)).square().mean()).backward()
                optimizer.step()
                optimizer.zero_grad()
    logger.finalize("success")
    (run,) = stored(project)
    assert len(values_of(project, run, "topology/critical_ratio")) == 6
