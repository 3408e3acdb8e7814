"""Lightning's CSV file, whose header must not grow with every row."""

import csv

from lightning.pytorch.loggers import CSVLogger

from lightning_topo import read_record
from lightning_topo._watch.published_values import Readings
from lightning_topo.measurement import Measurement
from lightning_topo.outputs.trackers import tracker_of
from lightning_topo.outputs.trackers._csv import CSVTracker
from tests.outputs.driving import drive


def rows(logger):
    with open(f"{logger.log_dir}/metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_header_is_whole_before_every_group_has_been_the_worst(tmp_path, monkeypatch):
    logger = CSVLogger(tmp_path)
    writer, rewritten = logger.experiment, []
    original = writer._rewrite_with_new_header
    monkeypatch.setattr(writer, "_rewrite_with_new_header", lambda keys: (rewritten.append(keys), original(keys)))
    groups = [f"layer.{i}" for i in range(10)]
    readings, tracker = Readings(groups, "all"), tracker_of(logger)
    assert isinstance(tracker, CSVTracker)
    expected = []
    for step in range(30):
        for i in range(10):  # another group is the worst at every step
            values = {"critical_ratio": 1.0 if i == step % 10 else 0.1}
            readings.take(Measurement(step, 0, "distortion", groups[i], values))
        if step >= 3:  # a quantity that comes late, as the change of the diagrams does
            readings.take(Measurement(step, 0, "persistence", groups[0], {"log_bottleneck_0": 0.2}))
        row = readings.row(step, 0).values
        expected.append({key: str(value) for key, value in row.items()})
        tracker.row(row, step, readings.keys)
        logger.save()
    assert len(rewritten) == 1
    found = rows(logger)
    assert [int(row["step"]) for row in found] == list(range(30))
    assert [{k: v for k, v in row.items() if v and k != "step"} for row in found] == expected
    assert set(found[0]) == {*readings.keys, "step"}


def test_the_file_is_the_record(tmp_path):
    logger = CSVLogger(tmp_path)
    training = drive(tmp_path / "topology", 16, loggers=[logger], log_groups="worst")
    logger.finalize("success")
    worst = {}
    for m in read_record(training.outputs.dirpath).measurements:
        if m.probe == "distortion":
            worst[m.step - 1] = max(worst.get(m.step - 1, 0.0), m.values["critical_ratio"])
    found = {int(row["step"]): float(row["topology/worst/critical_ratio"]) for row in rows(logger)}
    assert found == worst
    assert not any("net_0" in key for key in rows(logger)[0])


def test_a_column_is_announced_once(tmp_path):
    class Noting(CSVLogger):
        def log_metrics(self, metrics, step=None):
            noted.append(metrics)

    noted = []
    tracker = CSVTracker(Noting(tmp_path))
    tracker.row({"a": 1.0}, 1, ["a", "b"])
    tracker.row({"b": 2.0}, 2, ["a", "b", "c"])
    assert noted == [{"a": 1.0, "b": ""}, {"c": "", "b": 2.0}]
