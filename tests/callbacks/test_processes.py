"""Monitor, guard and gate where Lightning itself starts the second process: one pair of them goes through all three."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.utils.data import DistributedSampler

from lightning_topo import (
    Distortion,
    Persistence,
    TopologyEarlyStopping,
    TopologyEvent,
    TopologyMonitor,
    TopologyStepGuard,
    read_record,
)
from lightning_topo.callbacks import Findings
from tests import warm
from tests.callbacks.training import Classifier, dataset, fit, loader

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="gloo on one machine")
SCRIPT = """
import sys
from tests.callbacks.test_processes import all_three

all_three(sys.argv[1])
"""


def train(root, callbacks, devices=1, module=None, **options):
    """Batches of 16, which the processes divide."""
    torch.manual_seed(0)
    sampler = DistributedSampler(dataset(), devices, int(os.environ.get("LOCAL_RANK", 0)), shuffle=False)
    data = loader(batch_size=16 // devices, sampler=sampler)
    options = {"max_epochs": 2, "devices": devices, "use_distributed_sampler": False} | options
    return fit(Classifier() if module is None else module, callbacks, root=root, data=data, **options)


def monitor():
    return TopologyMonitor([Distortion(every_n_steps=1), Persistence(every_n_epochs=1)], on_error="raise")


class OnlyOne(TopologyEarlyStopping):
    """Hears of an event in the second process alone."""

    def on_topology_findings(self, trainer, pl_module, findings):
        here = trainer.global_rank == 1 and findings.step == 5
        events = (TopologyEvent("topology_breakdown", 5, 0, "net.0"),) if here else ()
        super().on_topology_findings(
            trainer, pl_module, Findings(findings.step, findings.epoch, findings.measurements, events)
        )


def all_three(root):
    """What each of the two processes does; it writes down what it saw."""
    two = {"devices": 2, "strategy": "ddp"}
    measured = train(f"{root}/measured", [monitor()], **two)
    module, guard = Classifier(lr=30.0), TopologyStepGuard()
    train(f"{root}/held", [guard], module=module, **two)
    gate = OnlyOne()
    stopped = train(f"{root}/stopped", [gate, TopologyMonitor([Distortion(1)], on_error="raise")], **two)
    saw = {
        "size": measured.world_size,
        "keys": sorted(measured.callback_metrics),
        "held": guard.n_held,
        "weights": [p.tolist() for p in module.parameters()],
        "stopped at": stopped.global_step,
        "reason": gate.stopping_reason,
    }
    Path(f"{root}/saw-{stopped.global_rank}.json").write_text(json.dumps(saw))
    stopped.strategy.barrier()  # gloo aborts a process that leaves while its peer still talks
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The folder of a pair of processes that is done."""
    root = tmp_path_factory.mktemp("two")
    (root / "two.py").write_text(SCRIPT)
    done = warm.run(str(root / "two.py"), root, folder=root)
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture(scope="module")
def pair(root):
    """What each process saw."""
    return [json.loads((root / f"saw-{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes_measure_what_one_does(root, pair):
    """Each of two ranks sees half of every batch: together they take the steps of one process."""
    train(root / "one", [monitor()])
    one, two = (read_record(root / name / "topology") for name in ("one", "measured"))
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
    assert not (root / "measured" / "topology-v1").exists()
    for process in pair:
        assert process["size"] == 2
        assert "topology/critical_ratio" in process["keys"], "every rank can be gated"


def test_two_processes_hold_the_same_steps(pair):
    assert pair[0]["held"] == pair[1]["held"] > 0
    assert pair[0]["weights"] == pair[1]["weights"]


def test_two_processes_stop_together(root, pair):
    """Only the second process sees an event; both stop at its step."""
    for process, reason in zip(pair, ("Another process", "at step 5 in net.0"), strict=True):
        assert process["stopped at"] == 5
        assert reason in process["reason"]
    lines = (root / "stopped" / "topology" / "measurements.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if '"gate"' in line] == [5]
