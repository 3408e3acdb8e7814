"""What something else than an update moves is in no path: the bound of the next step knows where neurons are."""

import torch
import torch.nn.functional as F
from torch import nn

from lightning_topo import Distortion, TopologyWatch


def test_a_step_after_an_outside_change_is_not_bounded_by_the_path_before_it(tmp_path):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)), torch.randn(16, 4)
    y = torch.randint(2, (16,))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    watch = TopologyWatch(net, optimizer, [Distortion(1000)], dirpath=tmp_path, verbose=False, report=False)
    with watch:
        for step in range(1, 13):
            with watch.step():
                loss = F.cross_entropy(net(x), y)
                watch.loss(loss)
                loss.backward()
                if step == 12:
                    net[0].weight.grad[1] += 1.0
                optimizer.step()
                optimizer.zero_grad()
            if step == 11:
                with torch.no_grad():  # two neurons nearly meet
                    for parameter in (net[0].weight, net[0].bias, net[2].weight.T):
                        parameter[1] = parameter[0] + 1e-5
    assert [event.step for event in watch.events if event.name == "topology_breakdown"] == [12]
