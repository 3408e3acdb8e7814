"""A loop of one's own as the engine sees it: the user's own module and optimizers, inside whatever wrappers."""

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn
from torch.nn.parallel import DataParallel

from lightning_topo.loops._training import LoopTraining, bare_module, bare_optimizer


class Holder(nn.Module):
    """A user's own module that happens to have attributes of these names."""

    def __init__(self):
        super().__init__()
        self.module = nn.Linear(2, 2)
        self._orig_mod = "a note"


def test_the_module_is_found_however_deep_it_is_wrapped():
    net = nn.Linear(2, 2)
    for wrap in (lambda m: m, DataParallel, lambda m: DataParallel(DataParallel(m))):
        training = LoopTraining.of(wrap(net), torch.optim.SGD(net.parameters()))
        assert training.module is net
        assert training.root is net
    own = Holder()
    assert bare_module(own) is own


def test_fabrics_wrappers_are_taken_off_model_and_optimizers():
    fabric = Fabric(accelerator="cpu", devices=1)
    net = nn.Linear(2, 2)
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    model, optimizer = fabric.setup(net, sgd)
    assert bare_module(model) is net
    found = LoopTraining.of(model, [optimizer, torch.optim.Adam(net.parameters())])
    assert [type(one).__name__ for one in found.optimizers] == ["SGD", "Adam"]
    assert bare_optimizer(optimizer) is found.optimizers[0]
    assert found.optimizers[0].param_groups[0]["params"][0] is net.weight


def test_facts_count_parameters_and_leave_out_those_that_have_no_size_yet():
    net = nn.Sequential(nn.Linear(3, 4), nn.LazyLinear(5))
    facts = LoopTraining.of(net, torch.optim.SGD(net[0].parameters(), lr=0.1), planned_steps=9).facts()
    assert (facts["parameters"], facts["planned_steps"], facts["processes"]) == (16, 9, 1)
    assert facts["optimizer"] == "SGD"
    assert facts["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("options", "match"),
    [({"log_every_n_steps": -1}, "log_every_n_steps >= 0"), ({"planned_steps": 0}, "planned_steps >= 1")],
)
def test_numbers_that_mean_nothing_are_refused(options, match):
    net = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=match):
        LoopTraining.of(net, torch.optim.SGD(net.parameters()), **options)


def test_values_are_those_published_last():
    net = nn.Linear(2, 2)
    training = LoopTraining.of(net, torch.optim.SGD(net.parameters()))
    assert dict(training.values) == {}
    for value in (1.0, 2.0):
        training.publish({"topology/critical_ratio": torch.tensor(value)})
    assert training.values == {"topology/critical_ratio": torch.tensor(2.0)}
    assert training.ends_epoch() is False
