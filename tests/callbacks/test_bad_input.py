"""Trainings that are hard to certify: each step has a state, or the reason why is said; nothing breaks."""

import math

import lightning as L
import pytest
import torch
from torch import nn

from lightning_topo import Distortion, TopologyMonitor, read_record
from lightning_topo.measurement import StepState
from lightning_topo.neurons import NeuronGroup, ParamSlice
from tests.callbacks.training import Classifier, fit, loader

STEPS = 8
CERTIFIED = (StepState.EXACT, StepState.BOUNDED)


class Doing(L.Callback):
    """Does something to the module before a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            with torch.no_grad():
                self.action(trainer, pl_module)


def states(module, root, *callbacks, steps=STEPS, **options):
    """The state of every step, by group, and the names of the events."""
    monitor = TopologyMonitor([Distortion()], report=False, on_error="raise", dirpath=root / "topology", **options)
    fit(module, [*callbacks, monitor], root=root, max_steps=steps, data=loader(batch_size=64 // steps))
    record = read_record(monitor.dirpath)
    found = {}
    for line in record.measurements:
        if line.probe == "coverage":
            named = found.setdefault(line.group, {})
            steps_of_line = range(int(line.values["from"]) + 1, line.step + 1)
            named |= dict.fromkeys(steps_of_line, StepState(int(line.values["state"])))
    return found, [str(event.name) for event in record.events]


def freeze(trainer, module):
    module.net[0].requires_grad_(False)


def thaw(trainer, module):
    module.net[0].requires_grad_(True)


def replace(trainer, module):
    module.net[3] = nn.Linear(8, 6)
    trainer.optimizers[0].param_groups[0]["params"][:] = list(module.parameters())


def spoil(value):
    def action(trainer, module):
        module.net[0].weight.data[1, 0] = value

    return action


def equal(trainer, module):
    module.net[0].weight.data[1] = module.net[0].weight.data[0]


@pytest.mark.parametrize(
    "callbacks",
    [
        [Doing(2, freeze), Doing(5, thaw)],
        [Doing(3, replace)],
        [Doing(3, spoil(math.nan))],
        [Doing(3, spoil(math.inf))],
        [Doing(0, equal)],
        [Doing(3, equal)],
    ],
    ids=["frozen and thawed", "replaced", "NaN", "infinite", "equal neurons", "equal neurons later"],
)
def test_every_step_has_a_state(tmp_path, callbacks):
    torch.manual_seed(0)
    found, _ = states(Classifier(lr=0.05), tmp_path, *callbacks)
    assert len(found) == 2
    assert set(found["net.3"]) == set(range(1, STEPS + 1))
    if callbacks[0].action is not freeze:
        assert set(found["net.0"]) == set(range(1, STEPS + 1))


def test_what_is_not_finite_is_not_certified(tmp_path):
    torch.manual_seed(0)
    found, events = states(Classifier(lr=0.05), tmp_path, Doing(3, spoil(math.nan)))
    assert all(found["net.0"][step] is StepState.OPEN for step in range(4, STEPS + 1))
    assert "instability" in events


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_certified(tmp_path, dtype):
    torch.manual_seed(0)
    module = Classifier(lr=1e-2).to(dtype)
    step = module.training_step
    module.training_step = lambda batch, batch_idx: step((batch[0].to(dtype), batch[1]), batch_idx)
    found, _ = states(module, tmp_path)
    assert all(state in CERTIFIED for each in found.values() for state in each.values())


def test_an_update_of_zero_is_certified(tmp_path):
    found, _ = states(Classifier(lr=0.0), tmp_path)
    assert all(state in CERTIFIED for each in found.values() for state in each.values())


class Embedded(L.LightningModule):
    def __init__(self, n):
        super().__init__()
        self.table, self.head = nn.Embedding(n, 4), nn.Linear(4, 3)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.head(self.table((batch[0][:, 0] * 1000).long().abs())), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_large_embedding_is_bounded_without_n_squared(tmp_path):
    """100,000 rows: no exact pass, a bound at every step, and a word on why."""
    group = NeuronGroup("table", "unit", 100_000, (), (ParamSlice("table.weight"),))
    torch.manual_seed(0)
    found, events = states(Embedded(100_000), tmp_path, steps=4, groups=[group])
    assert set(found["table"]) == {1, 2, 3, 4}
    assert "probe_failed" in events


def test_a_single_neuron_is_no_cloud(tmp_path):
    group = NeuronGroup("one", "unit", 1, (), (ParamSlice("net.0.weight", (("narrow", 0, 0, 1),)),))
    found, events = states(Classifier(), tmp_path, groups=[group])
    assert found == {}
    assert "probe_failed" in events
