"""What of a step is recorded: what its losses compute, and no update."""

import lightning as L
import pytest
import torch
from torch import nn

from lightning_topo import Distortion, TopologyMonitor
from lightning_topo._tape.call_log import CallLog
from lightning_topo._watch import recording
from lightning_topo._watch.recording import Recording
from lightning_topo.neurons import _from_tapes
from tests.callbacks.training import fit
from tests.watch.driving import training_of


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
    before = CallLog.prepare

    def noted(self, operator, args, kwargs):
        recorded.append(operator._schema.name)
        return before(self, operator, args, kwargs)

    monkeypatch.setattr(CallLog, "prepare", noted)
    monitor = TopologyMonitor([Distortion()], verbose=False)
    fit(ByHand(), [monitor], root=tmp_path, max_steps=4)
    assert monitor.groups[0].status == "verified"
    assert recorded.count("aten::tanh") == 2
    assert not [name for name in recorded if name.endswith(("lerp_", "addcmul_", "addcdiv_", "sqrt"))]


class Epochs(L.LightningModule):
    """Forty updates from one batch, as in reinforcement learning; a mode of the user's counts what runs in the end."""

    def __init__(self, width: int = 5):
        super().__init__()
        self.automatic_optimization = False
        self.net = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2))
        self.modes = []

    def training_step(self, batch, index):
        optimizer = self.optimizers()
        for _ in range(40):
            optimizer.zero_grad()
            self.manual_backward(self.net(batch[0]).square().mean())
            optimizer.step()
            self.modes.append(len(torch.utils._python_dispatch._get_current_dispatch_mode_stack()))

    def configure_optimizers(self):
        return torch.optim.Adam(self.net.parameters(), 1e-2)


@pytest.mark.parametrize(("width", "small", "wanted"), [(5, recording.SMALL, recording.MOST_LOSSES), (500, 0, 4)])
def test_a_step_of_many_updates_is_recorded_as_far_as_it_may_cost(tmp_path, monkeypatch, width, small, wanted):
    """Not beyond so many losses, and not beyond so many copies of what the updates move."""
    monkeypatch.setattr(recording, "SMALL", small)
    proved = []
    verify = _from_tapes.verify_on_tapes
    monkeypatch.setattr(
        _from_tapes,
        "verify_on_tapes",
        lambda tapes, *args, **kwargs: proved.append(tapes) or verify(tapes, *args, **kwargs),
    )
    net, monitor = Epochs(width), TopologyMonitor([Distortion()], verbose=False)
    fit(net, [monitor], root=tmp_path, max_steps=80)
    assert [group.status for group in monitor.groups] == ["verified"]
    assert net.modes[: 2 * wanted] == [1] * (wanted - 1) + [0] * (wanted + 1)  # left in the last update that counts
    assert set(net.modes[40:]) == {0}
    assert [len(tapes) for tapes in proved] == [2]  # all forty are the same program


@pytest.mark.parametrize("is_reported", [True, False])
def test_a_factor_is_one_of_hooks_only_if_the_gradient_was_seen_before_it_is_clipped(is_reported):
    net = nn.Linear(4, 2)
    net.weight.register_hook(lambda g: 0.5 * g)
    net.bias.register_hook(lambda g: 0.5 * g)
    watched = Recording(training_of(net), None)
    watched.begin(None, 1, wanted=True)
    loss = net(torch.ones(3, 4)).square().mean()
    watched.loss(loss, 1.0)
    loss.backward()
    if is_reported:
        watched.differentiated(goes_on=False)
    nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
    watched.update_begins(("weight", "bias"), runs_closure=False)
    [tape] = watched.end()
    assert (tape.obstacle, tape.gradient_obstacle) == ("", "")
    assert tape.gradient_factor == (pytest.approx(0.5, rel=1e-5) if is_reported else None)
