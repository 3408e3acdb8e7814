"""Quantization in training: rounding with observers of the range, for all entries or channel by channel."""

import pytest
import torch
import torch.ao.quantization as quantization
import torch.nn.functional as F
from torch import nn

from lightning_topo.neurons._from_tapes import groups_from_tapes
from tests.tape.recording import recorded


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated", "ignore:Please use quant_min and quant_max")
@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])
@pytest.mark.parametrize("n_before", [0, 2])
def test_neurons_of_a_quantized_training_are_proved_also_in_its_first_step(backend, n_before) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3))
    net = nn.Sequential(quantization.QuantStub(), net).train()
    net.qconfig = quantization.get_default_qat_qconfig(backend)
    quantization.prepare_qat(net, inplace=True)
    x, y = torch.randn(8, 3, 8, 8), torch.randint(3, (8,))
    for _ in range(n_before):
        net(x)
    tape = recorded(net, lambda: F.cross_entropy(net(x), y))
    assert (tape.obstacle, tape.gradient_obstacle) == ("", "")
    groups = groups_from_tapes([tape], module=net).groups
    assert [(group.name, group.n, group.status) for group in groups] == [
        ("1.0", 8, "verified"),
        ("1.2", 6, "verified"),
    ]
    scales = "1.0.weight_fake_quant.scale" in groups[0].params
    assert scales == (backend == "fbgemm" and n_before > 0)  # channel by channel, once there is one for each
