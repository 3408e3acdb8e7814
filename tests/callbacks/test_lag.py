"""Persistence that is computed elsewhere: when its results are taken in, and what becomes of those that never come."""

import json
import os
import signal

import lightning as L
import pytest

from lightning_topo import Distortion, Persistence, TopologyMonitor, read_record
from lightning_topo.homology import Worker
from lightning_topo.phases import replay
from tests.callbacks.training import Classifier, fit, happened

pytestmark = pytest.mark.skipif(not Worker.is_supported(), reason="files cannot be handed over here")


def lagging(lag, every=2, **options):
    probes = [Distortion(every_n_steps=1), Persistence(every_n_steps=every, lag=lag)]
    return TopologyMonitor(probes, report=False, verbose=False, max_overhead=None, on_error="raise", **options)


def persistence_lines(monitor):
    return {(m.step, m.group): m.values for m in read_record(monitor.dirpath).measurements if m.probe == "persistence"}


def arrivals(monitor):
    """The step of each persistence line, with that of the last distortion line before it."""
    found, step = [], 0
    for text in (monitor.dirpath / "measurements.jsonl").read_text().splitlines()[1:]:
        line = json.loads(text)
        if line["probe"] == "distortion":
            step = line["step"]
        elif line["probe"] == "persistence" and line["group"] == "net.0":
            found.append((line["step"], step))
    return found


def trained(monitor, root, *callbacks, **options):
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Classifier()
    return fit(module, [monitor, *callbacks], root=root, **({"max_epochs": 2} | options))


def test_a_lag_changes_when_values_come_and_nothing_else(tmp_path):
    at_once, later = lagging(0), lagging(3)
    trained(at_once, tmp_path / "a")
    trained(later, tmp_path / "b")
    assert persistence_lines(later) == persistence_lines(at_once)
    assert len(persistence_lines(later)) == 2 * 8
    a, b = (read_record(monitor.dirpath) for monitor in (at_once, later))
    assert a.diagram_steps == b.diagram_steps
    for name, diagram in a.diagrams(16).items():
        assert all(
            (x.births.equal(y.births) and x.deaths.equal(y.deaths))
            for x, y in zip(diagram, b.diagrams(16)[name], strict=True)
        )
    # Exactly three steps later, as soon as the epoch ends, and at last when training does.
    assert arrivals(later) == [(2, 4), (4, 6), (6, 8), (8, 8), (10, 12), (12, 14), (14, 16), (16, 16)]
    assert replay(b.measurements).state.to_dict() == later.watch.state()["detector"]


class KillsTheWorker(L.Callback):
    """Ends the worker's process, and keeps what it was."""

    def __init__(self, at, how=signal.SIGKILL):
        self.at, self.how, self.pids = at, how, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pid = trainer.callbacks[0].watch._worker.pid
        if pid is not None:
            self.pids.append(pid)
        if trainer.global_step == self.at:
            os.kill(pid, self.how)


def test_a_worker_that_dies_is_a_gap_and_training_goes_on(tmp_path):
    monitor, killer = lagging(3, every=4), KillsTheWorker(at=4)
    # Held still before it can have answered, then killed: what it was given at step 4 is lost for certain.
    held = KillsTheWorker(at=4, how=signal.SIGSTOP)
    trainer = trained(monitor, tmp_path, held, killer)
    assert trainer.global_step == 16
    (gap,) = happened(monitor.events)
    assert (gap.name, gap.step, gap.severity) == ("gap", 4, "warn")
    assert "died" in gap.message
    assert {step for step, _ in persistence_lines(monitor)} == {8, 12, 16}
    for pid in set(killer.pids):
        with pytest.raises(OSError, match="No such process"):
            os.kill(pid, 0)


def test_what_was_awaited_stands_in_the_checkpoint_and_in_the_gap_of_the_resume(tmp_path):
    class Save(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "early.ckpt")

    trained(lagging(3), tmp_path, Save(), max_epochs=1)
    monitor = lagging(3)
    trained(monitor, tmp_path, max_epochs=1, ckpt_path=tmp_path / "early.ckpt")
    (gap,) = [event for event in monitor.events if event.name == "gap"]
    assert "persistence at step 2" in gap.message
