"""All four callbacks by class path in a YAML of LightningCLI, and under `pytorch_lightning` as under `lightning`."""

import textwrap

import pytest

from lightning_topo import read_record
from tests import warm


def run(path, code, *arguments):
    path.write_text(textwrap.dedent(code))
    return warm.run(str(path), *arguments, folder=path.parent, cwd=path.parent)


MODULE = """
    import {namespace} as L
    import torch
    from torch import nn

    class Module(L.LightningModule):
        def __init__(self, lr: float = 0.1):
            super().__init__()
            self.lr = lr
            self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.lr)

        def train_dataloader(self):
            data = torch.utils.data.TensorDataset(torch.randn(64, 4), torch.randint(0, 3, (64,)))
            return torch.utils.data.DataLoader(data, batch_size=8)
"""

YAML = """
    seed_everything: 7
    model:
      lr: 0.05
    trainer:
      max_epochs: 1
      accelerator: cpu
      logger: false
      enable_checkpointing: false
      enable_progress_bar: false
      callbacks:
        - class_path: lightning_topo.TopologyMonitor
          init_args:
            probes:
              - class_path: lightning_topo.Distortion
                init_args:
                  every_n_steps: 2
              - class_path: lightning_topo.Persistence
                init_args:
                  every_n_epochs: 1
                  max_dim: 0
            log_groups: all
            max_overhead: null
            report: false
            on_error: raise
        - class_path: lightning_topo.TopologyEarlyStopping
          init_args:
            stop_on: [topology_breakdown, instability]
            min_count: 2
        - class_path: lightning_topo.TopologyStepGuard
          init_args:
            max_ratio: 0.8
            mode: rescale
        - class_path: lightning_topo.TopologyLRFinder
          init_args:
            min_lr: 0.001
            max_lr: 10.0
            num_training_steps: 4
            mode: linear
            sharpness:
              class_path: lightning_topo.Sharpness
              init_args:
                tolerance: 0.05
"""


def test_lightnings_command_line_takes_all_of_them_from_yaml(tmp_path):
    pytest.importorskip("jsonargparse")
    (tmp_path / "config.yaml").write_text(textwrap.dedent(YAML))
    code = (
        textwrap.dedent(MODULE.format(namespace="lightning"))
        + """
from lightning.pytorch.cli import LightningCLI
cli = LightningCLI(Module, save_config_callback=None)
finder, monitor, gate, guard = cli.trainer.callbacks[:4]
assert [type(c).__name__ for c in (finder, monitor, gate, guard)] == [
    "TopologyLRFinder", "TopologyMonitor", "TopologyEarlyStopping", "TopologyStepGuard"]
distortion, persistence = monitor.settings.probes
assert (distortion.every_n_steps, persistence.max_dim) == (2, 0)
assert gate.rules.min_count == 2 and len(gate.rules.events) == 2
assert (guard.max_ratio, guard.n_updates) == (0.8, 8)
assert len(finder.sweep.lrs) <= 4 and finder.sharpness.tolerance == 0.05
print(monitor.dirpath)
"""
    )
    done = run(tmp_path / "cli.py", code, "fit", "--config", "config.yaml")
    assert done.returncode == 0, done.stderr[-3000:]
    record = read_record(tmp_path / "topology")
    assert sorted({m.step for m in record.measurements if m.probe == "distortion"}) == [1, 2, 4, 6, 8]


def test_all_of_them_work_under_the_other_namespace(tmp_path):
    pytest.importorskip("pytorch_lightning")
    code = (
        textwrap.dedent(MODULE.format(namespace="pytorch_lightning"))
        + """
import random
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from lightning_topo import *

def fit(module, *callbacks, logger=False):
    trainer = L.Trainer(max_epochs=2, accelerator="cpu", logger=logger, enable_checkpointing=False,
                        enable_progress_bar=False, log_every_n_steps=1, callbacks=list(callbacks))
    trainer.fit(module)
    return trainer

torch.manual_seed(0)
drawn = random.getstate()
probes = [Distortion(every_n_steps=1), Persistence(every_n_epochs=1), Sharpness(every_n_steps=4)]
monitor = TopologyMonitor(probes, on_error="raise", max_overhead=None)
guard, gate = TopologyStepGuard(), TopologyEarlyStopping("gap")
finder = TopologyLRFinder(0.01, 30.0, 6, update_attr=True)
module, logger = Module(30.0), CSVLogger("logs", version=0)
trainer = fit(module, gate, monitor, guard, finder, logger=logger)
assert module.lr == finder.sweep.suggestion != 30.0
assert guard.n_updates == 16 and guard.groups == tuple(monitor.groups)
assert str(monitor.dirpath) == "logs/lightning_logs/version_0/topology"
assert random.getstate() == drawn
trainer.save_checkpoint("other.ckpt")
state = torch.load("other.ckpt", weights_only=True)["callbacks"][monitor.state_key]
assert state["run_id"] == read_record(monitor.dirpath).run_id
assert "topology/critical_ratio" in open("logs/lightning_logs/version_0/metrics.csv").readline()

gate = TopologyEarlyStopping("topology_breakdown")
trainer = fit(Module(30.0), gate, TopologyMonitor([Distortion(every_n_steps=1)], report=False))
assert trainer.global_step < 16 and "topology_breakdown" in gate.stopping_reason

class LBFGS(Module):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters())

for module, callback, match in (
    (Module(), TopologyEarlyStopping(), "TopologyMonitor"),
    (LBFGS(), TopologyStepGuard(), "LBFGS"),
    (LBFGS(), TopologyLRFinder(), "LBFGS"),
):
    try:
        fit(module, callback)
    except MisconfigurationException as error:
        assert match in str(error)
    else:
        raise AssertionError(match)

from lightning_topo.callbacks._lightning_internals import shards_parameters
class Sharded:
    strategy = L.strategies.FSDPStrategy()
assert shards_parameters(Sharded)
print("done")
"""
    )
    done = run(tmp_path / "other.py", code)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-1] == "done"
