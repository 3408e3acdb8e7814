"""Lightning's CSV file, whose header must not grow with every row."""

import csv

from lightning.pytorch.loggers import CSVLogger

from lightning_topo import read_record
from lightning_topo.outputs.trackers import tracker_of
from lightning_topo.outputs.trackers.csv import CSVTracker
from lightning_topo.watch.readings import Publisher
from tests.callbacks.training import Classifier, fit
from tests.outputs.trackers.tracked import dense


def rows(logger):
    with open(f"{logger.log_dir}/metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_header_is_whole_before_every_group_has_been_the_worst(tmp_path, monkeypatch):
    logger = CSVLogger(tmp_path)
    writer, rewritten = logger.experiment, []
    original = writer._rewrite_with_new_header
    monkeypatch.setattr(writer, "_rewrite_with_new_header", lambda keys: (rewritten.append(keys), original(keys)))
    groups = [f"layer.{i}" for i in range(10)]
    publisher, tracker = Publisher(groups), tracker_of(logger)
    assert isinstance(tracker, CSVTracker)
    expected = []
    for step in range(30):
        for i, group in enumerate(groups):  # another group is the worst at every step
            values = {"critical_ratio": 1.0 if i == step % 10 else 0.1}
            if step >= 3:  # a quantity that comes late, as the change of the diagrams does
                values["log_bottleneck_0"] = 2.0 if i == (7 * step) % 10 else 0.2
            publisher.take(group, values)
        row = publisher.row()
        expected.append({key: str(value) for key, value in row.items()})
        tracker.row(row, step, publisher.keys)
        logger.save()
    assert len(rewritten) == 1
    found = rows(logger)
    assert [int(row["step"]) for row in found] == list(range(30))
    assert [{k: v for k, v in row.items() if v and k != "step"} for row in found] == expected
    assert set(found[0]) == {*publisher.keys, "step"}


def test_the_file_is_the_record(tmp_path):
    logger, monitor = CSVLogger(tmp_path), dense(log_groups="worst")
    fit(Classifier(lr=1.0), [monitor], root=tmp_path, logger=logger, log_every_n_steps=1, max_epochs=2)
    worst = {}
    for m in read_record(monitor.dirpath).measurements:
        if m.probe == "distortion":
            worst.setdefault(m.step - 1, {})[m.group] = m.values["critical_ratio"]
    logged = {}
    for row in rows(logger):
        for group in monitor.groups:
            if value := row[f"topology/{group.name.replace('.', '_')}/critical_ratio"]:
                logged.setdefault(int(row["step"]), []).append((group.name, float(value)))
    assert sorted(logged) == list(range(16))
    for step, found in logged.items():
        assert found == [max(worst[step].items(), key=lambda item: item[1])]
