"""Running a module's own code leaves no trace in the module."""

import random
from collections import deque
from contextlib import suppress

import numpy as np
import pytest
import torch
import torchmetrics
from torch import nn

from lightning_topo._protection import gradient_hooks_set_aside, same_random_state, unchanged


class Busy(nn.Module):
    """Has everything that a training step may touch."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.accuracy = torchmetrics.MeanMetric()
        self.curve = torchmetrics.CatMetric()
        self.count = 0
        self.queue = deque([1.0], maxlen=4)
        self.seen = {"a": 1}
        self.names = {"x"}
        self.history = [torch.zeros(1)]
        self.total = torch.zeros(2)

    def forward(self, x):
        self.count += 1
        self.queue.append(2.0)
        self.seen["b"] = 2
        self.names.clear()
        self.history.append(x)
        self.total += 1.0
        self.latest = x
        self.accuracy.update(x.mean())
        self.curve.update(x.mean())
        self.norm.register_buffer("extra", torch.ones(1))
        self.register_forward_hook(lambda *_: None)
        self.log = lambda *_: None
        return self.norm(x)


def snapshot(module):
    return {
        "state": {name: t.clone() for name, t in module.state_dict().items()},
        "plain": (module.count, list(module.queue), dict(module.seen), set(module.names), len(module.history)),
        "total": module.total.clone(),
        "metrics": (module.accuracy.compute().item(), len(module.curve.value), module.accuracy._update_count),
        "hooks": len(module._forward_hooks),
        "attributes": set(module.__dict__),
    }


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_everything_is_put_back():
    module = Busy()
    module.accuracy.update(1.0)
    before = snapshot(module)
    queue, total = module.queue, module.total
    with unchanged(module):
        module(torch.randn(8, 3))
        assert not same(before, snapshot(module))
    assert same(before, snapshot(module))
    assert module.queue is queue
    assert module.queue.maxlen == 4
    assert module.total is total


def test_also_after_an_error():
    module = Busy()
    module.accuracy.update(1.0)
    before = snapshot(module)
    try:
        with unchanged(module):
            module(torch.randn(8, 3))
            raise KeyError
    except KeyError:
        pass
    assert same(before, snapshot(module))


def test_the_module_still_trains():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with unchanged(module):
        module(torch.randn(8, 3)).sum().backward()
    module.zero_grad()
    before = module[0].weight.clone()
    module(torch.randn(8, 3)).square().sum().backward()
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    assert not torch.equal(before, module[0].weight)


def test_nested_plain_state_and_generators_are_put_back_also_where_the_body_raises():
    class Meter:
        n = 0

    class Keeper(nn.Module):
        def __init__(self):
            super().__init__()
            self.meter, self.outputs = Meter(), {"train": [[1.0], [2.0]]}
            self.counts, self.rng = np.zeros(3), np.random.default_rng(0)
            self.noise, self.chance = torch.Generator().manual_seed(0), random.Random(0)

    module = Keeper()
    inner = module.outputs["train"][0]
    noise, chance = module.noise.get_state().clone(), module.chance.getstate()
    state = module.rng.bit_generator.state
    with suppress(RuntimeError), unchanged(module):
        module.meter.n += 1
        inner.append(9.0)
        module.outputs["train"].append([3.0])
        module.counts += 1.0
        module.rng.normal(), torch.rand(1, generator=module.noise), module.chance.random()
        raise RuntimeError("broken")
    assert module.meter.n == 0
    assert module.outputs == {"train": [[1.0], [2.0]]}
    assert module.outputs["train"][0] is inner
    assert not module.counts.any()
    assert module.rng.bit_generator.state == state
    assert torch.equal(module.noise.get_state(), noise)
    assert module.chance.getstate() == chance


def test_global_random_states_are_those_of_before_also_where_the_body_raises():
    torch.manual_seed(3)
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    with suppress(RuntimeError), same_random_state(0):
        torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002
        raise RuntimeError("broken")
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()  # noqa: NPY002


class Refusing(dict):
    """A container of the user's that may be filled in its own way alone."""

    def update(self, *args, **kwargs):
        raise TypeError("not by update")

    clear = copy = update


def test_a_container_that_refuses_to_be_refilled_is_put_back_and_all_behind_it():
    class Keeper(nn.Module):
        def __init__(self):
            super().__init__()
            self.kept, self.chance = Refusing(n=0), random.Random(0)
            self.kept.owner = "me"

    module = Keeper()
    chance = module.chance.getstate()
    with suppress(RuntimeError), unchanged(module):
        module.kept["n"], module.kept.owner = 1, "you"
        module.chance.random()
        raise RuntimeError("broken")
    assert module.kept == {"n": 0}
    assert module.kept.owner == "me"
    assert module.chance.getstate() == chance


def test_what_cannot_be_put_back_is_said_and_all_behind_it_is():
    class Stuck(random.Random):
        def setstate(self, state):
            raise TypeError("no way back")

    class Keeper(nn.Module):
        def __init__(self):
            super().__init__()
            self.stuck, self.handed, self.n = Stuck(0), iter([1, 2, 3]), [0]

    module = Keeper()
    words = r"what list_iterator has handed out, .*Stuck \(TypeError: no way back\)"
    with pytest.warns(UserWarning, match=words), unchanged(module):
        module.n.append(1)
    assert module.n == [0]


def test_hooks_of_parameters_rest_and_are_there_again():
    seen, net = [], nn.Linear(2, 1)
    handle = net.weight.register_hook(lambda g: seen.append("one"))
    net.weight.register_post_accumulate_grad_hook(lambda p: seen.append("after"))
    torch.autograd.graph.register_multi_grad_hook(list(net.parameters()), lambda grads: seen.append("all"))
    with suppress(RuntimeError), gradient_hooks_set_aside(net.parameters()):
        torch.autograd.grad(net(torch.ones(1, 2)).square().sum(), list(net.parameters()))
        net(torch.ones(1, 2)).sum().backward()
        raise RuntimeError("broken")
    assert seen == []
    net(torch.ones(1, 2)).sum().backward()
    assert sorted(seen) == ["after", "all", "one"]
    handle.remove()
    net(torch.ones(1, 2)).sum().backward()
    assert sorted(seen[3:]) == ["after", "all"]


def test_hooks_that_come_and_go_meanwhile_are_as_they_were_left():
    seen, p = [], nn.Parameter(torch.ones(1))
    first = p.register_hook(lambda g: seen.append("first"))
    p.register_hook(lambda g: seen.append("second"))
    with gradient_hooks_set_aside([p, p]):
        with gradient_hooks_set_aside([p]):
            (2 * p).sum().backward()
        first.remove()
        p.register_hook(lambda g: seen.append("third"))
    (2 * p).sum().backward()
    assert seen == ["second", "third"]


def test_an_iterator_of_the_users_own_class_is_put_back():
    class Counting:
        def __init__(self):
            self.n = 0

        def __iter__(self):
            return self

        def __next__(self):
            self.n += 1
            return self.n

    class Keeper(nn.Module):
        def __init__(self):
            super().__init__()
            self.batches = Counting()

    module = Keeper()
    with unchanged(module):
        assert [next(module.batches), next(module.batches)] == [1, 2]
    assert next(module.batches) == 1


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_a_sparse_attribute_is_put_back_where_it_was_written(layout, recwarn):
    module = nn.Linear(2, 2)
    dense = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    module.graph = dense.to_sparse() if layout == "coo" else dense.to_sparse_csr()
    for factor in (1.0, 2.0):
        with unchanged(module):
            if factor != 1.0:
                module.graph.values().mul_(factor) if layout == "csr" else module.graph.mul_(factor)
        assert torch.equal(module.graph.to_dense(), dense)
    assert not [str(warning.message) for warning in recwarn if "put back" in str(warning.message)]
