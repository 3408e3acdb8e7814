"""What changes under a run while it goes on: its folder moves or loses a file, its optimizer is another one."""

import shutil

import lightning as L
import pytest
import torch

from lightning_topo import Distortion, TopologyMonitor, TopologyStepGuard, read_record
from lightning_topo.outputs._outputs import open_outputs
from lightning_topo.outputs.record import EVENTS
from tests.callbacks.training import Classifier, fit
from tests.outputs.driving import Training


@pytest.mark.parametrize("how", ["renamed", "copied to another disk"])
def test_a_folder_that_moves_and_leaves_a_link_is_gone_on_with(tmp_path, how):
    outputs = open_outputs(tmp_path / "topology", verbose=False, report=False)
    training = Training(outputs).run(10)
    if how == "renamed":
        outputs.dirpath.rename(tmp_path / "larger")
    else:
        shutil.copytree(outputs.dirpath, tmp_path / "larger")
        shutil.rmtree(outputs.dirpath)
    (tmp_path / "topology").symlink_to(tmp_path / "larger")
    training.run(10)
    outputs.end()
    assert outputs.noticed == []
    assert list(read_record(tmp_path / "larger").measurements) == training.measured


def test_events_that_are_deleted_are_counted_and_the_measurements_stay(tmp_path):
    outputs = open_outputs(tmp_path / "topology", verbose=False, report=False)
    training = Training(outputs, hot=frozenset({5})).run(10)
    before = len(read_record(outputs.dirpath).events)
    (outputs.dirpath / EVENTS).unlink()
    with pytest.warns(UserWarning, match=f"{before} lines of the topology record are lost"):
        outputs.event(training.events[-1])
    with pytest.warns(UserWarning, match=f"lacks {before} lines"):
        outputs.end()
    record = read_record(outputs.dirpath)
    assert list(record.measurements) == training.measured
    assert {event.name for event in record.events} == {training.events[-1].name, "gap"}


class Swap(L.Callback):
    """Another optimizer, or another group of parameters in it, within an epoch."""

    def __init__(self, how):
        self.how = how

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 4:
            if self.how == "another":
                trainer.strategy.optimizers = [torch.optim.Adam(pl_module.parameters(), lr=0.5)]
            else:
                trainer.optimizers[0].add_param_group({"params": list(pl_module.net[5].parameters()), "lr": 0.3})


class Partly(Classifier):
    def configure_optimizers(self):
        return torch.optim.SGD([*self.net[0].parameters(), *self.net[3].parameters()], lr=0.1)


@pytest.mark.parametrize(("how", "module"), [("another", Classifier), ("a group more", Partly)])
def test_no_step_is_missed_where_the_optimizer_changes_within_an_epoch(tmp_path, how, module):
    monitor = TopologyMonitor([Distortion(every_n_steps=1)], report=False, verbose=False, on_error="raise")
    guard = TopologyStepGuard(max_ratio=0.3)
    fit(module(), [monitor, guard, Swap(how)], root=tmp_path)
    record = read_record(monitor.dirpath)
    assert {m.step for m in record.measurements if m.probe == "distortion"} == set(range(1, 9))
    assert max(m.values["critical_ratio"] for m in record.measurements if m.probe == "distortion") <= 0.3 + 1e-6
    assert guard.n_updates == 8
    assert not [event for event in record.events if event.name == "unseen_step"]
