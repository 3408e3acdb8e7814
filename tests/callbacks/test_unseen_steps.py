"""Updates that do not pass through torch's `Optimizer.step`: seen nevertheless, or named."""

import warnings
from collections import OrderedDict, defaultdict

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from lightning_topo import Distortion, TopologyMonitor, TopologyStepGuard
from lightning_topo.measurement import StepState
from lightning_topo.neurons import NeuronGroup, ParamSlice
from tests.callbacks.training import Weights, fit, loader

LIMIT = 0.5
LR = 20.0
GROUP = NeuronGroup(
    "net.0",
    "unit",
    8,
    (),
    (ParamSlice("net.0.weight"), ParamSlice("net.0.bias"), ParamSlice("net.2.weight", dims=(1,))),
)


class Base(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    def loss(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        return self.loss(batch)


class ByHand(Base):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


# --- the optimizers ---------------------------------------------------------------------------------------------------


class Slow(torch.optim.Optimizer):
    """Slow weights around an inner optimizer; like many wrappers it does not call `super().__init__()`."""

    def __init__(self, inner, hooks):
        if hooks:
            self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = OrderedDict(), OrderedDict()
        self.inner, self.param_groups, self.defaults = inner, inner.param_groups, inner.defaults
        self.state, self.count = defaultdict(dict), 0
        self.slow = [p.detach().clone() for group in self.param_groups for p in group["params"]]

    def step(self, closure=None):
        out = self.inner.step(closure)
        self.count += 1
        if self.count % 5 == 0:
            for p, slow in zip(self.param_groups[0]["params"], self.slow, strict=True):
                p.data.copy_(slow.lerp_(p.detach(), 0.5))
        return out

    def zero_grad(self, set_to_none=True):
        self.inner.zero_grad(set_to_none)

    def state_dict(self):
        return self.inner.state_dict()


class Wrapped(Base):
    hooks = True

    def configure_optimizers(self):
        return Slow(torch.optim.SGD(self.parameters(), lr=LR), self.hooks)


class WrappedWithoutHooks(Wrapped):
    hooks = False


class TwoSteps(torch.optim.Optimizer):
    """Sharpness-aware: ascend, then descend from there, by two methods of other names than `step`."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})
        self.inner = torch.optim.SGD(self.param_groups, lr=lr)

    @torch.no_grad()
    def first_step(self):
        for p in self.param_groups[0]["params"]:
            self.state[p]["at"] = p.clone()
            p.add_(p.grad, alpha=0.01)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for p in self.param_groups[0]["params"]:
            p.copy_(self.state[p]["at"])
        self.inner.step()
        self.zero_grad()


class SharpnessAware(ByHand):
    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        self.manual_backward(self.loss(batch))
        optimizer.first_step()
        self.manual_backward(self.loss(batch))
        optimizer.second_step()

    def configure_optimizers(self):
        return TwoSteps(self.parameters(), LR)


class HeldByHand(ByHand):
    """The trainer knows of no optimizer."""

    def __init__(self):
        super().__init__()
        self.mine = torch.optim.SGD(self.net.parameters(), lr=LR)

    def training_step(self, batch, batch_idx):
        self.mine.zero_grad()
        self.manual_backward(self.loss(batch))
        self.mine.step()

    def configure_optimizers(self):
        return []


class SecondStepOfItsOwn(TwoSteps):
    """Without an inner optimizer: nothing at all passes through `step`."""

    @torch.no_grad()
    def second_step(self):
        for p in self.param_groups[0]["params"]:
            p.copy_(self.state[p]["at"] - self.param_groups[0]["lr"] * p.grad)
        self.zero_grad()


class SharpnessAwareAlone(SharpnessAware):
    def configure_optimizers(self):
        return SecondStepOfItsOwn(self.parameters(), LR)


class ReplacedStep(Base):
    """`step` is another function on the instance, as some loops make it."""

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=LR)

        @torch.no_grad()
        def step(closure=None):
            out = None
            if closure is not None:
                with torch.enable_grad():
                    out = closure()
            for p in optimizer.param_groups[0]["params"]:
                p -= LR * p.grad
            return out

        optimizer.step = step
        return optimizer


class FusedIntoBackward(ByHand):
    """Each parameter steps as soon as its gradient is there, in a hook of its own and by no optimizer."""

    def __init__(self):
        super().__init__()
        for p in self.net.parameters():
            p.register_post_accumulate_grad_hook(self._step)

    @torch.no_grad()
    def _step(self, p):
        p -= LR * p.grad
        p.grad = None

    def training_step(self, batch, batch_idx):
        self.manual_backward(self.loss(batch))

    def configure_optimizers(self):
        return []


class FusedOptimizers(ByHand):
    """An optimizer for each parameter, stepped in the backward."""

    def __init__(self):
        super().__init__()
        self.each = {p: torch.optim.SGD([p], lr=LR) for p in self.net.parameters()}
        for p in self.net.parameters():
            p.register_post_accumulate_grad_hook(self._step)

    def _step(self, p):
        self.each[p].step()
        self.each[p].zero_grad()

    def training_step(self, batch, batch_idx):
        self.manual_backward(self.loss(batch))

    def configure_optimizers(self):
        return []


SEEN = [Wrapped, WrappedWithoutHooks, SharpnessAware, HeldByHand, FusedOptimizers]
UNSEEN = [
    (SharpnessAwareAlone, "SecondStepOfItsOwn"),
    (ReplacedStep, "SGD"),
    (FusedIntoBackward, "an optimizer"),
]
NAMES = [module.__name__ for module, _ in UNSEEN]


def ratio(before, after):
    """r in float64, from what is stored."""
    x, y = (GROUP.gather(tensors).double() for tensors in (before, after))
    i, j = torch.triu_indices(8, 8, 1)
    return float((((y - x)[i] - (y - x)[j]).norm(dim=1) / (x[i] - x[j]).norm(dim=1)).max())


def updates_of(weights):
    return [ratio(*pair) for pair in zip(weights.seen, weights.seen[1:], strict=False)]


# --- the guard --------------------------------------------------------------------------------------------------------


def test_these_steps_are_far_too_large(tmp_path):
    """Else the tests below could not fail."""
    for module in (*SEEN, *(module for module, _ in UNSEEN)):
        weights = Weights()
        fit(module(), [weights], root=tmp_path, data=loader(), max_epochs=1)
        assert max(updates_of(weights)) > 2 * LIMIT, module


@pytest.mark.parametrize("module", SEEN)
def test_the_guard_holds_whatever_passes_through_an_optimizers_step(tmp_path, module):
    guard, held = TopologyStepGuard(LIMIT, groups=[GROUP]), []
    hooks = []

    class Look(L.Callback):
        """The update as the guard has left it; averages and the like between two updates are not its business."""

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if not hooks:
                hooks.append(register_optimizer_step_pre_hook(lambda *_: self.note(pl_module)))
                hooks.append(register_optimizer_step_post_hook(lambda *_: self.note(pl_module)))

        def note(self, pl_module):
            held.append({name: p.detach().clone() for name, p in pl_module.named_parameters()})

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(module(), [guard, Look()], root=tmp_path)
    finally:
        for hook in hooks:
            hook.remove()
    assert guard.n_held > 0
    assert guard.n_updates == len(held) // 2
    pairs = zip(held[::2], held[1::2], strict=True)
    assert max(ratio(*pair) for pair in pairs) <= LIMIT
    told = [str(each.message) for each in caught if "TopologyStepGuard" in str(each.message)]
    assert len(told) == issubclass(module, Wrapped)  # that averages behind an update, which no guard holds
    assert all("SGD something else has written to net.0.weight" in text for text in told)


@pytest.mark.parametrize(("module", "name"), UNSEEN, ids=NAMES)
def test_the_guard_refuses_by_name_what_it_cannot_see(tmp_path, module, name):
    with pytest.raises(MisconfigurationException, match=rf"cannot hold what it cannot see: .*{name}.* does not step"):
        fit(module(), [TopologyStepGuard(LIMIT, groups=[GROUP])], root=tmp_path)


# --- the monitor ------------------------------------------------------------------------------------------------------


def watched(module, folder):
    monitor = TopologyMonitor(
        [Distortion(every_n_steps=1)], groups=[GROUP], on_error="raise", report=False, verbose=False
    )
    weights = Weights()
    fit(module(), [monitor, weights], root=folder)
    return monitor, weights


@pytest.mark.parametrize("module", SEEN)
def test_the_monitor_measures_every_step_that_passes_through_an_optimizers_step(tmp_path, module):
    monitor, _ = watched(module, tmp_path)
    steps = {m.step for m in monitor.record.measurements if m.probe == "distortion"}
    # `Slow` averages behind the fifth update of its inner optimizer, before that could be measured.
    averaged = {5} if issubclass(module, Wrapped) else set()
    assert steps == set(range(1, 9)) - averaged
    assert {event.step for event in monitor.events if event.name == "outside_change"} == averaged
    assert "unseen_step" not in [str(event.name) for event in monitor.events]


@pytest.mark.parametrize(("module", "name"), UNSEEN, ids=NAMES)
def test_the_monitor_says_once_that_steps_are_unseen_and_claims_nothing(tmp_path, module, name):
    monitor, weights = watched(module, tmp_path)
    [event] = [event for event in monitor.events if event.name == "unseen_step"]
    assert event.step == 1
    assert name in event.message
    assert "net.0.weight" in event.message
    lines = [m for m in monitor.record.measurements if m.probe == "coverage"]
    assert {StepState(int(m.values["state"])) for m in lines} == {StepState.OPEN}
    assert [(m.values["from"], m.step) for m in lines if m.step == len(weights.seen) - 1] == [(1.0, 8)]
    assert not [m for m in monitor.record.measurements if m.probe == "distortion" and "critical_ratio" in m.values]
