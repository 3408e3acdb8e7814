"""Loggers of any kind, and loggers that fail."""

import sys
import warnings

import pytest
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment

from lightning_topo import Persistence, read_record
from lightning_topo.outputs.trackers import Tracker, tracker_of
from lightning_topo.outputs.trackers.wandb import WandbTracker
from tests.callbacks.training import Classifier, fit
from tests.outputs.trackers.tracked import STEPS, dense, hot


class Foreign(Logger):
    """A logger that Lightning knows nothing of, with the generic interface alone."""

    def __init__(self):
        super().__init__()
        self.rows = []

    name, version = "foreign", "0"

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics))

    def log_hyperparams(self, params, *args, **kwargs):
        pass


def test_any_logger_gets_values_and_the_run_folder_the_figures(tmp_path):
    logger, monitor = Foreign(), dense()
    fit(Classifier(), [monitor], root=tmp_path, logger=[CSVLogger(tmp_path), logger], log_every_n_steps=1)
    ours = [(step, row) for step, row in logger.rows if "topology/phase" in row]
    assert [step for step, _ in ours] == [*range(8)]
    figures = {path.relative_to(monitor.dirpath / "figures").as_posix() for path in monitor.dirpath.rglob("*.png")}
    assert figures == {
        f"topology/{group}{name}/000000007.png"
        for group in ("", "net_0/", "net_3/")
        for name in ("diagram", "betti_curves", "crocker")
    }
    lines = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    assert "topology/net_3/betti_0" in lines[0]


@pytest.mark.parametrize("every", [1, 4, 5])
def test_no_row_is_logged_twice_at_an_epochs_end_or_by_a_resume(tmp_path, every):
    options = {"root": tmp_path, "log_every_n_steps": every}
    loggers = Foreign(), Foreign()
    seldom_drawn = {"dirpath": tmp_path / "run", "max_overhead": 0.02}
    first = dense(**seldom_drawn)
    trainer = fit(Classifier(), [first], logger=loggers[0], max_epochs=2, **options)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    fit(
        Classifier(),
        [dense(**seldom_drawn)],
        logger=loggers[1],
        max_epochs=3,
        ckpt_path=tmp_path / "last.ckpt",
        **options,
    )
    for key in ("topology/critical_ratio", "topology/phase", "topology/net_0/betti_0"):
        steps = [step for logger in loggers for step, row in logger.rows if key in row]
        assert sorted(steps) == sorted(set(steps)), key
    logged = {s: row["topology/net_0/betti_0"] for x in loggers for s, row in x.rows if "topology/net_0/betti_0" in row}
    recorded = {
        max(m.step - 1, 0): m.values["betti_0"]
        for m in read_record(first.dirpath).measurements
        if m.group == "net.0" and m.probe == "persistence"
    }
    # The initial network's row is that of the first step, where that one has a row of its own.
    assert {step: recorded[step] for step in logged} == logged
    assert {7, 15, 23} <= logged.keys()


class WandbLogger(Foreign):
    """All of W&B's interface that is used, and nothing of it works."""

    class Experiment:
        def __getattr__(self, name):
            raise ConnectionError("tracker is down")

    @property
    @rank_zero_experiment
    def experiment(self):
        return self.Experiment()

    def log_image(self, key, images, step):
        raise OSError("no space left on device")


def test_a_tracker_of_which_nothing_works_is_named_once_for_each_thing_and_loses_no_line(tmp_path):
    down, fine = WandbLogger(), Foreign()
    assert isinstance(tracker_of(down), WandbTracker)
    assert type(tracker_of(fine)) is Tracker
    module, options = hot(lr=10.0), {"log_every_n_steps": 1, "max_epochs": 2}
    monitor = dense(probes=[*STEPS, Persistence(every_n_steps=8)], log_groups="worst")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer = fit(module, [monitor], root=tmp_path, logger=[down, fine], **options)
    assert trainer.global_step == 16
    messages = [str(w.message) for w in told if "did not take" in str(w.message)]
    kinds = {"the settings", "values", "an event", "events", "figures", "the record"}
    assert {kind for kind in kinds if any(f"did not take {kind} (" in message for message in messages)} == kinds
    assert len(messages) == len(kinds)
    record = read_record(monitor.dirpath)
    assert [m.step for m in record.measurements if m.group == "net.0" and m.probe == "distortion"] == [*range(1, 17)]
    assert record.events
    assert record.n_unreadable == 0
    # The other logger, behind it, got everything.
    assert {step for step, row in fine.rows if "topology/critical_ratio" in row} == set(range(16))


def test_without_matplotlib_figures_are_skipped_with_one_sentence(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "lightning_topo.figures.persistence", raising=False)
    for name in [name for name in sys.modules if name.startswith("matplotlib.")]:
        monkeypatch.setitem(sys.modules, name, None)
    monitor = dense(probes=[Persistence(every_n_steps=2)])
    with caplog.at_level("INFO", "lightning.pytorch"):
        fit(Classifier(), [monitor], root=tmp_path, logger=Foreign(), log_every_n_steps=1)
    assert sum('pip install "lightning-topo[plot]"' in line for line in caplog.messages) == 1
    assert not list(monitor.dirpath.rglob("*.png"))


@pytest.mark.parametrize("name", ["a.b/c d", "\u03b7" * 300, "x" * 300])
def test_groups_of_any_name_are_drawn(tmp_path, name):
    from lightning_topo.neurons import NeuronGroup, ParamSlice

    slices = (ParamSlice("net.0.weight", (), (0,)), ParamSlice("net.0.bias", (), (0,)))
    group = NeuronGroup(name, "unit", 8, (), slices, "incoming_only")
    monitor = dense(probes=[Persistence(every_n_steps=4)], groups=[group])
    fit(Classifier(), [monitor], root=tmp_path, logger=Foreign(), log_every_n_steps=4)
    assert len(list(monitor.dirpath.rglob("*.png"))) == 2 * 2 * 3
