"""The monitor and the guard where Lightning itself starts a second process."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch.utils.data import DistributedSampler

from lightning_topo import Distortion, Persistence, TopologyMonitor, read_record
from tests.callbacks.training import Classifier, dataset, fit, loader

ROOT = Path(__file__).parents[2]
SCRIPT = """
    import os
    import warnings
    import torch
    from lightning_topo import TopologyStepGuard
    from tests.callbacks.test_processes import train
    from tests.callbacks.training import Classifier, fit

    warnings.simplefilter("ignore")
    trainer = train({root!r}, devices=2, strategy="ddp", use_distributed_sampler=False)
    assert "topology/critical_ratio" in trainer.callback_metrics, "every rank can be gated"

    torch.manual_seed(0)
    module, guard = Classifier(lr=30.0), TopologyStepGuard()
    trainer = fit(module, [guard], root={root!r}, max_epochs=2, devices=2, strategy="ddp")
    sums = trainer.strategy.all_gather(torch.stack([p.double().sum() for p in module.parameters()]))
    assert torch.equal(sums[0], sums[1])
    assert trainer.world_size == 2 and guard.n_held > 0
    print("held", guard.n_held)
    trainer.strategy.barrier()  # gloo aborts a process that leaves while its peer still talks
    torch.distributed.destroy_process_group()
"""


def train(root, devices=1, **options):
    """Two epochs of batches of 16, which the processes divide."""
    torch.manual_seed(0)
    monitor = TopologyMonitor([Distortion(every_n_steps=1), Persistence(every_n_epochs=1)], on_error="raise")
    sampler = DistributedSampler(dataset(), devices, int(os.environ.get("LOCAL_RANK", 0)), shuffle=False)
    data = loader(batch_size=16 // devices, sampler=sampler)
    return fit(Classifier(), [monitor], root=root, data=data, max_epochs=2, devices=devices, **options)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="gloo on one machine")
def test_two_processes_measure_what_one_does_and_hold_the_same_steps(tmp_path):
    """Each of two ranks sees half of every batch: together they take the steps of one process."""
    path = tmp_path / "two.py"
    path.write_text(textwrap.dedent(SCRIPT).format(root=str(tmp_path / "two")))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    assert "held" in done.stdout
    train(tmp_path / "one")
    one, two = (read_record(tmp_path / name / "topology") for name in ("one", "two"))
    assert [(m.step, m.probe, m.group) for m in one.measurements if m.probe != "training"] == [
        (m.step, m.probe, m.group) for m in two.measurements if m.probe != "training"
    ]
    pairs = [
        (a.values["critical_ratio"], b.values["critical_ratio"])
        for a, b in zip(
            *([m for m in record.measurements if m.probe == "distortion"] for record in (one, two)), strict=True
        )
    ]
    assert all(a == pytest.approx(b, rel=1e-3) for a, b in pairs)
    assert not (tmp_path / "two" / "topology-v1").exists()
