"""What Weights & Biases receives, read back by its own reader and compared with the record."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger

from lightning_topo import Persistence, read_record
from lightning_topo.measurement import GLOBAL
from lightning_topo.outputs.trackers.wandb import ARTIFACT_TYPE
from tests.callbacks.training import Classifier, fit, loader
from tests.outputs.trackers.tracked import STEPS, dense, hot


class Validated(Classifier):
    """Logs in validation too, between the monitor's rows."""

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def val_dataloader(self):
        return loader(16)


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


def assert_rows_are_the_record(run, monitor, n_steps):
    """Every step of every group once in the tracker, with the record's values: nothing missing, nothing doubled."""
    record = read_record(monitor.dirpath)
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
    monitor, module = dense(), Validated()
    logger = WandbLogger(offline=True, project="p", save_dir=tmp_path)
    fit(module, [monitor], root=tmp_path, logger=logger, log_every_n_steps=1, max_epochs=2, val_check_interval=3)
    wandb.finish()
    (run,) = offline_runs(tmp_path)
    assert_rows_are_the_record(run, monitor, 16)
    assert [step for step, _ in run.rows("train/loss")] == list(range(16))
    assert len(run.rows("val/loss")) == 4
    assert "less than current" not in run.log()
    sharpness = {
        m.step: m.values["sharpness"] for m in read_record(monitor.dirpath).measurements if m.probe == "sharpness"
    }
    assert {s: i["topology/sharpness"] for s, i in run.rows("topology/sharpness_ratio") if s > 0} == pytest.approx(
        {step - 1: value for step, value in sharpness.items() if step > 1}
    )


def test_wandb_defines_each_key_by_its_exact_name_with_its_extremes(wandb, tmp_path):
    monitor = dense(probes=STEPS)
    fit(
        Classifier(), [monitor], root=tmp_path, logger=WandbLogger(offline=True, save_dir=tmp_path), log_every_n_steps=1
    )
    wandb.finish()
    (run,) = offline_runs(tmp_path)
    ours = [metric for metric in run.of("metric") if metric.get("name", "").startswith("topology/")]
    assert all("*" not in metric["name"] and "." not in metric["name"] for metric in ours)
    assert {metric["step_metric"] for metric in ours} == {"trainer/global_step"}
    logged = {k for _, item in run.rows("topology/phase") for k in item if k.startswith("topology/")}
    assert {metric["name"] for metric in ours} == logged
    record = read_record(monitor.dirpath)
    ratios = [m.values["critical_ratio"] for m in record.measurements if m.group == "net.0" and m.probe == "distortion"]
    folds = [m.values["contraction"] for m in record.measurements if m.group == "net.0" and m.probe == "distortion"]
    summary = run.summary()
    assert summary["topology/net_0/critical_ratio"]["max"] == pytest.approx(max(ratios))
    assert summary["topology/net_0/critical_ratio"]["last"] == pytest.approx(ratios[-1])
    assert summary["topology/net_0/contraction"]["min"] == pytest.approx(min(folds))
    assert summary["topology/overhead"].keys() == {"last"}


def test_wandb_events_alerts_media_config_and_artifact(wandb, tmp_path):
    monitor = dense(log_groups=["net.0"], on_error="warn")
    logger = WandbLogger(offline=True, save_dir=tmp_path)
    fit(hot(), [monitor], root=tmp_path, logger=logger, log_every_n_steps=2, max_epochs=3)
    wandb.finish()
    (run,) = offline_runs(tmp_path)
    events = read_record(monitor.dirpath).events
    assert {event.name for event in events} >= {"topology_breakdown"}
    told = [
        (row["step"], row["event"], row["group"], row["severity"], row["message"])
        for row in run.table("topology/events")
    ]
    assert told == [(e.step, e.name, e.group, e.severity, e.message) for e in events]
    assert len(run.rows("topology/events.path")) > 1

    alerts = [(alert["title"], alert["level"]) for alert in run.of("alert")]
    wanted = [
        (f"{e.name}: {e.group}" if e.group else e.name, e.severity.upper()) for e in events if e.severity != "info"
    ]
    assert alerts == wanted

    (config,) = [run.config()["topology"]]
    assert config["run_id"] == read_record(monitor.dirpath).run_id
    assert [(g["name"], g["neurons"], g["status"]) for g in config["groups"]] == [
        (g.name, g.n, g.status) for g in monitor.groups
    ]
    assert config["probes"][0].startswith("Distortion(")

    for name in ("diagram", "betti_curves", "crocker"):
        for key in (f"topology/{name}", f"topology/net_0/{name}"):
            images = run.rows(f"{key}.filenames")
            assert images, key
            for _, item in images:
                for file in item[f"{key}.filenames"]:
                    assert (run.folder / "files" / file).stat().st_size > 5_000

    (artifact,) = [a for a in run.of("artifact") if a["type"] == ARTIFACT_TYPE]
    paths = {entry["path"] for entry in artifact["manifest"]["contents"]}
    assert paths >= {"measurements.jsonl", "events.jsonl", "diagrams/step-000000008.npz"}
    assert not any(path.startswith("reference") for path in paths)


def test_wandb_takes_a_resumed_run_and_two_monitors(wandb, tmp_path):
    def logger():
        return WandbLogger(offline=True, save_dir=tmp_path, id="same", prefix="mine")

    first = dense(probes=STEPS, dirpath=tmp_path / "run")
    second = dense(probes=[Persistence(every_n_epochs=1)], dirpath=tmp_path / "other", log_groups="worst")
    checkpoint = ModelCheckpoint(tmp_path / "ckpt", save_last=True)
    options = {"log_every_n_steps": 1, "enable_checkpointing": True, "root": tmp_path}
    fit(Classifier(), [first, second, checkpoint], logger=logger(), **options)
    wandb.finish()
    again = dense(probes=STEPS, dirpath=tmp_path / "run")
    other = dense(probes=[Persistence(every_n_epochs=1)], dirpath=tmp_path / "other", log_groups="worst")
    last = ModelCheckpoint(tmp_path / "ckpt2")
    # W&B names an offline run's folder by the second.
    time.sleep(1.0)
    fit(
        Classifier(),
        [again, other, last],
        logger=logger(),
        max_epochs=2,
        ckpt_path=tmp_path / "ckpt" / "last.ckpt",
        **options,
    )
    wandb.finish()
    runs = offline_runs(tmp_path)
    assert len(runs) == 2
    steps = [step for run in runs for step, _ in run.rows("mine-topology/net_0/critical_ratio")]
    assert sorted(steps) == list(range(16))
    for run in runs:
        assert "less than current" not in run.log()
        assert {"topology", "topology_2"} <= run.config().keys()
        assert {m["name"] for m in run.of("metric") if "critical_ratio" in m.get("name", "")} >= {
            "mine-topology/critical_ratio",
            "mine-topology/net_0/critical_ratio",
        }
    record = read_record(again.dirpath)
    assert [m.step for m in record.measurements if m.group == "net.0" and m.probe == "distortion"] == list(range(1, 17))
