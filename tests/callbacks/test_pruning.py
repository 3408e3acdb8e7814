"""Lightning's `ModelPruning`: weights change their names during training, and get masks."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelPruning
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_topo import Distortion, Sharpness, TopologyMonitor
from lightning_topo.measurement import StepState


class Classifier(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-3)


@pytest.fixture(scope="module", params=[False, True], ids=["weights go on", "lottery ticket"])
def monitor(request, tmp_path_factory):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(256, 6, generator=generator), torch.randint(3, (256,), generator=generator)
    prune = ModelPruning("l1_unstructured", amount=0.2, use_lottery_ticket_hypothesis=request.param)
    probes = [Distortion(), Sharpness(every_n_steps=8)]
    made = TopologyMonitor(probes, dirpath=tmp_path_factory.mktemp("pruned"), on_error="raise", verbose=False)
    trainer = L.Trainer(
        max_epochs=4, accelerator="cpu", callbacks=[prune, made], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Classifier(), DataLoader(TensorDataset(x, y), batch_size=16))
    return made


def test_neurons_are_found_again_under_their_new_names_with_their_masks(monitor):
    groups = {group.name: group for group in monitor.groups}
    assert {group.n for group in groups.values()} == {16, 12}
    assert {group.status for group in groups.values()} == {"verified"}
    [hidden] = [group for group in groups.values() if group.n == 16]
    assert {"net.0.weight_orig", "net.0.bias_orig", "net.2.weight_orig"} <= set(hidden.params)


def test_the_sharpness_goes_on_with_the_new_names(monitor):
    steps = [m.step for m in monitor.record.measurements if m.probe == "sharpness"]
    assert steps == list(range(8, 65, 8))


def test_the_step_in_which_names_changed_is_open_and_all_others_are_certified(monitor):
    states = {}
    for m in monitor.record.measurements:
        if m.probe == "coverage":
            for step in range(int(m.values["from"]) + 1, m.step + 1):
                states.setdefault(step, set()).add(m.values["state"])
    assert set(states) == set(range(1, 65))
    uncertified = [step for step, found in states.items() if not found <= {StepState.EXACT, StepState.BOUNDED}]
    assert uncertified == [17]  # the first after the epoch at whose end the weights got their masks
    assert not [event for event in monitor.events if event.name in ("probe_failed", "unseen_step")]
