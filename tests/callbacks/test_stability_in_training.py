"""The sharpness probe as a training has it: when it measures, and of what."""

import pytest
import torch
from torch import nn

from lightning_topo import Distortion, Sharpness, TopologyMonitor, read_record
from tests.callbacks.training import Classifier, fit, loader


def watched(tmp_path, module, probes, **options):
    monitor = TopologyMonitor(probes, report=False, on_error="raise", max_overhead=None)
    fit(module, [monitor], root=tmp_path, **options)
    return monitor, read_record(monitor.dirpath)


def sharpnesses(record):
    return {m.step: m.values for m in record.measurements if m.probe == "sharpness" and m.group == ""}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_adam_is_measured_again_after_its_first_step(tmp_path, accumulate):
    module = Classifier(optimizer=torch.optim.Adam, lr=1e-3)
    _, record = watched(tmp_path, module, [Sharpness(every_n_steps=3)], accumulate_grad_batches=accumulate)
    found = sharpnesses(record)
    assert list(found) == ([0, 1, 3, 6] if accumulate == 1 else [0, 1, 3])
    assert "sharpness_ratio" not in found[0]
    assert all("sharpness_ratio" in found[step] for step in found if step)
    assert all("directional_ratio" in found[step] for step in found if step)


def test_sgd_is_not(tmp_path):
    _, record = watched(tmp_path, Classifier(), [Sharpness(every_n_steps=3)])
    found = sharpnesses(record)
    assert list(found) == [0, 3, 6]
    assert "sharpness_ratio" in found[0]
    assert "directional_ratio" not in found[0]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_batch_norm_dropout_accumulation_and_precision_have_a_ratio(tmp_path, precision):
    module = Classifier(norm=True, dropout=0.2, optimizer=torch.optim.AdamW, lr=1e-3)
    _, record = watched(tmp_path, module, [Sharpness(every_n_steps=2)], precision=precision, accumulate_grad_batches=2)
    found = sharpnesses(record)
    assert found[4]["converged"]
    assert found[4]["sharpness_ratio"] > 0


def test_a_compiled_module_is_measured_as_its_eager_self(tmp_path):
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        module = Classifier()
        if compiled:
            module.net.compile(backend="aot_eager")
        _, record = watched(tmp_path / str(compiled), module, [Sharpness(every_n_steps=4)])
        found.append(sharpnesses(record)[8]["sharpness"])
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_the_three_levels_stand_side_by_side(tmp_path):
    probes = [Distortion(every_n_steps=1), Sharpness(every_n_steps=4, swap_pairs=3, micro_batch=16, n_largest=2)]
    monitor, record = watched(tmp_path, Classifier(), probes, data=loader(64, 64), max_epochs=8)
    for group in monitor.groups:
        (swap,) = (m for m in record.measurements if m.probe == "sharpness" and (m.group, m.step) == (group.name, 8))
        (step,) = (m for m in record.measurements if m.probe == "distortion" and (m.group, m.step) == (group.name, 8))
        assert 0 < swap.values["swap_ratio"] < sharpnesses(record)[8]["eta_lambda"]
        assert step.values["critical_ratio"] > 0
    assert sharpnesses(record)[8]["sharpness_2"] < sharpnesses(record)[8]["sharpness"]


def test_two_optimizers_of_which_one_is_unknown(tmp_path):
    class Two(Classifier):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            return loss

        def configure_optimizers(self):
            halves = self.net[:3].parameters(), self.net[3:].parameters()
            return torch.optim.Adam(halves[0], lr=1e-3), torch.optim.Rprop(halves[1], lr=1e-3)

    def loss_fn(module, batch):
        return nn.functional.cross_entropy(module.net(batch[0]), batch[1])

    _, record = watched(tmp_path, Two(), [Sharpness(every_n_steps=2, loss_fn=loss_fn)])
    found = sharpnesses(record)
    assert all("sharpness_ratio" not in values for values in found.values())
    assert "directional_ratio" in found[8]
