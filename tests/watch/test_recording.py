"""What of a step is recorded: what its losses compute, and no update."""

import lightning as L
import torch
from torch import nn

from lightning_topo import Distortion, TopologyMonitor
from lightning_topo._tape import StepRecorder
from tests.callbacks.training import fit


class ByHand(L.LightningModule):
    """Steps twice in a batch, each time through Lightning's wrapper, which gives every optimizer a closure."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))

    def training_step(self, batch, index):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.net(batch[0]).square().mean())
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.Adam(self.net[k].parameters(), 1e-2) for k in (0, 2)]


def test_no_operator_of_an_update_is_recorded_though_it_was_given_a_closure(tmp_path, monkeypatch):
    recorded = []
    before = StepRecorder._before

    def noted(self, operator, args, kwargs):
        recorded.append(operator._schema.name)
        return before(self, operator, args, kwargs)

    monkeypatch.setattr(StepRecorder, "_before", noted)
    monitor = TopologyMonitor([Distortion()], verbose=False)
    fit(ByHand(), [monitor], root=tmp_path, max_steps=4)
    assert monitor.groups[0].status == "verified"
    assert recorded.count("aten::tanh") == 2
    assert not [name for name in recorded if name.endswith(("lerp_", "addcmul_", "addcdiv_", "sqrt"))]
