"""What Weights & Biases receives, read back by its own reader and compared with the record."""

import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import pytest
from lightning.pytorch.loggers import WandbLogger
from torch.utils.data import DataLoader

from lightning_topo import Distortion, Fate, Persistence, Sharpness, TopologyMonitor, read_record
from lightning_topo.demo import DigitsMLP, FullBatch, digits
from lightning_topo.measurement import GLOBAL
from lightning_topo.outputs._outputs import open_outputs
from lightning_topo.outputs.page import verdict
from lightning_topo.outputs.trackers._tracker import ARTIFACT_TYPE
from lightning_topo.outputs.trackers._wandb import CHARTS
from lightning_topo.outputs.trackers._workspace import workspace_json
from lightning_topo.phases._edge import EDGE_QUANTITIES
from tests.outputs.driving import Training, drive


@pytest.fixture
def wandb(monkeypatch, tmp_path):
    """W&B with nothing of the machine's own account or settings, and no run left open."""
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-own"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    yield wandb
    wandb.finish()


class Offline:
    """An offline run, read back by W&B's own reader."""

    def __init__(self, folder):
        deadline = time.monotonic() + 30
        while True:
            told = subprocess.run(
                [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)],
                capture_output=True,
                text=True,
                check=True,
            )
            self.records = [json.loads(line) for line in told.stdout.splitlines()]
            # The file is complete a moment after `finish` has returned.
            if any(record["type"] == "exit" for record in self.records) or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        self.folder = Path(folder)

    def of(self, kind):
        return [record[kind] for record in self.records if record["type"] == kind]

    def rows(self, part):
        """The rows that hold a key with such a part: (step, values)."""
        items = [row["item"] for row in self.of("history")]
        return [(item["trainer/global_step"], item) for item in items if any(part in key for key in item)]

    def config(self):
        found = {}
        for config in self.of("config"):
            found |= config["update"]
        return found

    def summary(self):
        found = {}
        for summary in self.of("summary"):
            found |= summary.get("update", {})
        return found

    def table(self, key):
        """The rows of an incremental table, in the order they were logged."""
        rows = []
        for _, item in self.rows(f"{key}.path"):
            table = json.loads((self.folder / "files" / item[f"{key}.path"]).read_text())
            rows += [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        return rows

    def log(self):
        return "".join(path.read_text() for path in (self.folder / "logs").glob("*.log"))


def offline_runs(folder):
    return [Offline(path) for path in sorted((folder / "wandb").glob("offline-run-*"))]


def number(value):
    return float(value) if not isinstance(value, str) else {"Infinity": math.inf, "NaN": math.nan}[value]


def assert_rows_are_the_record(run, folder, n_steps):
    """Every step of every group once in the tracker, with the record's values: nothing missing, nothing doubled."""
    record = read_record(folder)
    rows = {}
    for step, item in run.rows("topology/net_0/critical_ratio"):
        assert step not in rows, f"two rows for step {step}"
        rows[step] = item
    assert sorted(rows) == list(range(n_steps))
    measured = [m for m in record.measurements if m.probe == "distortion"]
    assert {m.step for m in measured} == set(range(1, n_steps + 1))
    for m in measured:
        for name, value in m.values.items():
            key = f"topology/{m.group.replace('.', '_')}/{name}"
            if m.group != GLOBAL and name not in ("critical_i", "critical_j"):
                assert number(rows[m.step - 1][key]) == pytest.approx(value, rel=1e-6, nan_ok=True), (key, m.step)


def test_wandb_holds_the_record_row_for_row(wandb, tmp_path):
    logger = WandbLogger(offline=True, project="p", save_dir=tmp_path)
    outputs = open_outputs(tmp_path / "topology", loggers=[logger], verbose=False, report=False)
    training = Training(outputs)
    for step in range(16):
        logger.log_metrics({"train/loss": 1.0}, step)
        training.run(1)
        if step % 4 == 3:  # validation logs between the monitor's rows
            logger.log_metrics({"val/loss": 2.0}, step)
    outputs.end()
    wandb.finish()
    (run,) = offline_runs(tmp_path)
    assert_rows_are_the_record(run, outputs.dirpath, 16)
    assert [step for step, _ in run.rows("train/loss")] == list(range(16))
    assert len(run.rows("val/loss")) == 4
    assert "less than current" not in run.log()
    sharpness = {m.step - 1: m.values["sharpness"] for m in training.measured if m.probe == "sharpness"}
    found = {s: i["topology/sharpness"] for s, i in run.rows("topology/sharpness") if "topology/sharpness" in i}
    assert found == pytest.approx(sharpness)


def test_wandb_defines_each_key_by_its_exact_name_with_its_extremes(wandb, tmp_path):
    logger = WandbLogger(offline=True, save_dir=tmp_path)
    training = drive(tmp_path / "topology", 9, loggers=[logger])
    wandb.finish()
    (run,) = offline_runs(tmp_path)
    ours = [metric for metric in run.of("metric") if metric.get("name", "").startswith("topology/")]
    assert all("*" not in metric["name"] and "." not in metric["name"] for metric in ours)
    assert {metric["step_metric"] for metric in ours} == {"trainer/global_step"}
    logged = {key for row in training.rows for key in row.values}
    assert {metric["name"] for metric in ours} == logged
    of_group = [m.values for m in training.measured if m.group == "net.0" and m.probe == "distortion"]
    summary = run.summary()
    for key in ("topology/net_0/critical_ratio", "topology/critical_ratio", "topology/worst/critical_ratio"):
        assert summary[key].keys() == {"max", "last"}
    ratios = [values["critical_ratio"] for values in of_group]
    assert summary["topology/net_0/critical_ratio"]["max"] == pytest.approx(max(ratios))
    assert summary["topology/net_0/critical_ratio"]["last"] == pytest.approx(ratios[-1])
    folds = [values["contraction"] for values in of_group]
    assert summary["topology/net_0/contraction"]["min"] == pytest.approx(min(folds))
    assert summary["topology/overhead"].keys() == {"last"}


def test_wandb_events_alerts_media_config_and_artifact(wandb, tmp_path):
    logger = WandbLogger(offline=True, save_dir=tmp_path)
    folder = tmp_path / "topology"
    folder.mkdir()
    (folder / ".env").write_text("KEY=sk-secret")
    training = drive(folder, 24, hot={3, 4, 13}, loggers=[logger], log_groups=["net.0"], log_every=2)
    wandb.finish()
    (run,) = offline_runs(tmp_path)
    events = read_record(folder).events
    assert {event.name for event in events} >= {"topology_breakdown"}
    told = [
        (row["step"], row["event"], row["group"], row["severity"], row["message"])
        for row in run.table("topology/events")
    ]
    assert told == [(e.step, e.name, e.group, e.severity, e.message) for e in events]

    alerts = [(alert["title"], alert["level"]) for alert in run.of("alert")]
    wanted = [
        (f"{e.name}: {e.group}" if e.group else e.name, e.severity.upper()) for e in events if e.severity != "info"
    ]
    assert alerts == wanted

    (config,) = [run.config()["topology"]]
    assert config["run_id"] == training.outputs.run_id
    assert [(g["name"], g["neurons"], g["status"]) for g in config["groups"]] == [
        (g.name, g.n, g.status) for g in training.groups
    ]
    assert config["probes"][0] == {"name": "distortion", "class": "Distortion"}
    assert str(tmp_path) not in json.dumps(config)

    for name in ("diagram", "betti_curves", "crocker"):
        for key in (f"topology/{name}", f"topology/net_0/{name}"):
            images = run.rows(f"{key}.filenames")
            assert images, key
            for _, item in images:
                for file in item[f"{key}.filenames"]:
                    assert (run.folder / "files" / file).stat().st_size > 5_000

    (artifact,) = [a for a in run.of("artifact") if a["type"] == ARTIFACT_TYPE]
    paths = {entry["path"] for entry in artifact["manifest"]["contents"]}
    assert paths == {
        "measurements.jsonl",
        "events.jsonl",
        *(f"diagrams/step-{step:09d}.npz" for step in (8, 16, 24)),
    }


def test_wandb_takes_a_resumed_run_and_two_monitors(wandb, tmp_path):
    def session(**resume):
        logger = WandbLogger(offline=True, save_dir=tmp_path, id="same", prefix="mine")
        trainings = []
        for name in ("run", "other"):
            how = {"resume": (None, resume["ids"][name]), "step": 8} if resume else {}
            outputs = open_outputs(tmp_path / name, loggers=[logger], verbose=False, report=False, **how)
            trainings.append(Training(outputs, step=how.get("step", 0)))
        for _ in range(8):
            for training in trainings:
                training.run(1)
        for training in trainings:
            training.outputs.end()
        wandb.finish()
        return {training.outputs.dirpath.name: training.outputs.run_id for training in trainings}

    ids = session()
    # W&B names an offline run's folder by the second.
    time.sleep(1.0)
    assert session(ids=ids) == ids
    runs = offline_runs(tmp_path)
    assert len(runs) == 2
    steps = [step for run in runs for step, _ in run.rows("mine-topology/net_0/critical_ratio")]
    assert sorted(steps) == sorted([*range(16)] * 2)
    for run in runs:
        assert "less than current" not in run.log()
        assert {"topology", "topology_2"} <= run.config().keys()
        assert {m["name"] for m in run.of("metric") if "critical_ratio" in m.get("name", "")} >= {
            "mine-topology/critical_ratio",
            "mine-topology/net_0/critical_ratio",
        }
    record = read_record(tmp_path / "run")
    assert [m.step for m in record.measurements if m.group == "net.0" and m.probe == "distortion"] == list(range(1, 17))


def test_few_charts_are_drawn_unasked_and_the_workspace_finds_its_keys(wandb, tmp_path):
    pytest.importorskip("wandb_workspaces")
    logger = WandbLogger(offline=True, save_dir=tmp_path)
    module, trainer = watched(tmp_path, logger)
    trainer.fit(module, DataLoader(FullBatch(digits(), 48), batch_size=None))
    wandb.finish()
    (run,) = offline_runs(tmp_path)
    metrics = {metric["name"]: metric for metric in run.of("metric") if metric.get("name", "").startswith("topology/")}
    shown = {name for name, metric in metrics.items() if not metric.get("options", {}).get("hidden")}
    assert shown == CHARTS & metrics.keys()
    assert len(CHARTS) == 14
    assert len(shown) <= 12 < len(metrics)
    kept = {key for row in run.of("history") for key in row["item"]}
    of_other_optimizers = {f"topology/{name}" for name in EDGE_QUANTITIES} - kept
    assert "topology/sharpness_ratio" in kept
    panels = [
        p["config"] for s in workspace_json()["spec"]["section"]["panelBankConfig"]["sections"] for p in s["panels"]
    ]
    for config in panels:
        for key in config.get("metrics") or ():
            if key.startswith("summary_metrics."):
                name, kind = key.removeprefix("summary_metrics.").rsplit(".", 1)
                assert name in of_other_optimizers or kind in run.summary()[name], key
            else:
                assert key in kept | of_other_optimizers, key
        for key in config.get("mediaKeys") or ():
            assert f"{key}.count" in kept or any(name.startswith(key) for name in kept), key
        if config.get("metricRegex"):
            assert any(re.search(config["metricRegex"], key) for key in kept), config["metricRegex"]


def test_the_summary_tells_what_a_table_of_runs_needs(wandb, tmp_path):
    logger = WandbLogger(offline=True, save_dir=tmp_path)
    training = drive(tmp_path / "topology", 16, hot={5}, loggers=[logger])
    wandb.finish()
    (run,) = offline_runs(tmp_path)
    summary = run.summary()
    record = read_record(training.outputs.dirpath)
    assert summary["topology/verdict"] == verdict(record)
    assert summary["topology/first_breakdown"] == 5
    largest = max(m.values["critical_ratio"] for m in record.measurements if "critical_ratio" in m.values)
    assert summary["topology/largest_critical_ratio"] == pytest.approx(largest)
    assert "Lower the learning rate" in summary["topology/recommendation"]


@pytest.mark.parametrize("own", [{"order": 3}, "mine", 7])
def test_a_users_own_config_of_that_name_is_left_alone(wandb, tmp_path, own):
    logger = WandbLogger(offline=True, save_dir=tmp_path, config={"topology": own})
    training = drive(tmp_path / "topology", 2, loggers=[logger])
    config = dict(logger.experiment.config)
    wandb.finish()
    assert config["topology"] == own
    assert config["topology_2"]["run_id"] == training.outputs.run_id


def watched(folder, logger):
    probes = [Distortion(every_n_steps=1), Persistence(every_n_steps=12), Sharpness(every_n_steps=12)]
    probes.append(Fate(every_n_steps=12))
    monitor = TopologyMonitor(probes, dirpath=folder / "topology", report=False, verbose=False)
    quiet = {"enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=logger, callbacks=[monitor], log_every_n_steps=12, **quiet
    )
    return DigitsMLP(0.3), trainer
