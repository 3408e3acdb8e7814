"""Where an optimizer's own update begins and ends, and what moves parameters between two of them."""

from contextlib import contextmanager

import lightning as L
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from lightning_topo import Distortion, TopologyMonitor, TopologyWatch
from lightning_topo._watch.steps import Steps
from lightning_topo.measurement import StepState
from tests.callbacks.training import Weights, fit, happened

LR = 0.05


def clamp(net):
    for p in net.parameters():
        p.clamp_(-0.3, 0.3)


def reset(net):
    net[0].weight[:3] = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    net[2].weight[:, :3] = 0.0


def normalise(net):
    net[0].weight.div_(net[0].weight.norm(dim=1, keepdim=True))


def through_data(net):
    net[0].weight.data.mul_(1.01)


def another_state(net):
    net.load_state_dict({name: 0.9 * value for name, value in net.state_dict().items()})


CHANGES = {
    "nothing": (None, "batch", None),
    "clamped after each batch": (clamp, "batch", 1),
    "units reset once": (reset, "once", 4),
    "norms kept": (normalise, "batch", 1),
    "units reset after each epoch": (reset, "epoch", 8),
    "written through .data": (through_data, "once", 4),
    "another state loaded": (another_state, "once", 4),
    "constrained in the training step": (normalise, "step", 0),
    "clamped after the backward": (clamp, "backward", 0),
    "reset in a hook before the update": (reset, "update", 0),
    "norms kept where gradients are clipped": (normalise, "clipping", 0),
}
OUTSIDE = pytest.mark.parametrize(("change", "when", "first"), CHANGES.values(), ids=CHANGES)


class Tampered(L.LightningModule):
    """Something else than the optimizer changes the weights, at some moment."""

    def __init__(self, change, when):
        super().__init__()
        torch.manual_seed(0)
        self.change, self.when = change, when
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        self.ratios = []

    def training_step(self, batch, batch_idx):
        self._at("step")
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=LR)
        optimizer.register_step_post_hook(lambda *_: self.ratios.append(self._own_ratio()))
        return optimizer

    def on_after_backward(self):
        self._at("backward")

    def on_before_optimizer_step(self, optimizer):
        self._at("update")

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self._at("clipping")

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self._at("batch")
        if batch_idx == 3 and self.trainer.current_epoch == 0:
            self._at("once")

    def on_train_epoch_end(self):
        self._at("epoch")

    @torch.no_grad()
    def _at(self, when):
        if self.change is not None and self.when == when:
            self.change(self.net)

    def _own_ratio(self):
        """r of what SGD does by its formula: of -lr times the gradient, from where that ends."""
        pieces = [self.net[0].weight, self.net[0].bias[:, None], self.net[2].weight]
        rows = [p.detach().T if k == 2 else p.detach() for k, p in enumerate(pieces)]
        slopes = [self.net[0].weight.grad, self.net[0].bias.grad[:, None], self.net[2].weight.grad.T]
        after, moved = torch.cat(rows, 1).double(), -LR * torch.cat(slopes, 1).double()
        i, j = torch.triu_indices(8, 8, 1)
        before = after - moved
        return float(((moved[i] - moved[j]).norm(dim=1) / (before[i] - before[j]).norm(dim=1)).max())


@OUTSIDE
def test_r_is_that_of_the_optimizers_own_update_and_other_changes_are_one_event(tmp_path, change, when, first):
    module = Tampered(change, when)
    monitor = TopologyMonitor([Distortion(every_n_steps=1)], verbose=False, report=False, on_error="raise")
    fit(module, [monitor], root=tmp_path, max_epochs=2)
    assert [group.name for group in monitor.groups] == ["net.0"]
    found = {m.step: m.values["critical_ratio"] for m in monitor.record.measurements if m.probe == "distortion"}
    assert list(found) == list(range(1, 17))
    assert list(found.values()) == pytest.approx(module.ratios, rel=1e-3)
    events = happened(monitor.events)
    assert [(event.name, event.step) for event in events] == ([] if first is None else [("outside_change", first)])
    for event in events:
        assert "SGD" in event.message
        assert "net.0.weight" in event.message
        assert event.severity == "info"


@OUTSIDE
def test_bounds_hold_whatever_moves_parameters_between_updates(tmp_path, change, when, first):
    module = Tampered(change, when)
    probes = [Distortion(every_n_steps=1000)]
    monitor = TopologyMonitor(probes, verbose=False, report=False, on_error="raise", max_overhead=None)
    fit(module, [monitor], root=tmp_path, max_epochs=2)
    bounds = {}
    for m in monitor.record.measurements:
        if m.probe == "coverage" and "bound" in m.values:
            bounds |= dict.fromkeys(range(int(m.values["from"]) + 1, m.step + 1), m.values["bound"])
    assert len(bounds) > 8
    for step, bound in bounds.items():
        assert module.ratios[step - 1] <= bound, step


class Early(L.Callback):
    """Stands before the monitor, and changes the weights before that has looked at them."""

    def __init__(self, change, at=None):
        self.change, self.at = change, at

    @torch.no_grad()
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.at is None or batch_idx == self.at:
            self.change(pl_module.net)


@pytest.mark.parametrize(
    ("change", "at", "open_step"),
    [(clamp, None, 1), (normalise, None, 1), (reset, 3, 4), (through_data, 2, 3)],
    ids=["clamped", "norms kept", "units reset", "written through .data"],
)
def test_what_is_written_before_the_batch_is_over_is_not_taken_for_the_step(tmp_path, change, at, open_step):
    """The first such step is open, and said to be; from then on every one is measured as the optimizer made it."""
    module = Tampered(None, "")
    monitor = TopologyMonitor([Distortion(every_n_steps=1)], verbose=False, report=False, on_error="raise")
    fit(module, [Early(change, at), monitor], root=tmp_path, max_epochs=2)
    found = {m.step: m.values["critical_ratio"] for m in monitor.record.measurements if m.probe == "distortion"}
    wanted = {step: r for step, r in enumerate(module.ratios, 1) if step != open_step}
    assert found == pytest.approx(wanted, rel=1e-3)
    lines = [m for m in monitor.record.measurements if m.probe == "coverage"]
    states = {step: m.values["state"] for m in lines for step in range(int(m.values["from"]) + 1, m.step + 1)}
    assert {step for step, state in states.items() if state == StepState.OPEN} == {open_step}
    (event,) = happened(monitor.events)
    assert (event.name, event.step) == ("outside_change", open_step)
    assert "net.0.weight" in event.message
    assert event.message.endswith(f"before step {open_step} was measured: that step is open, later ones are not.")


def test_where_values_of_one_layer_are_lost_no_group_of_the_update_is_without_a_state(tmp_path):
    module = Tampered(None, "")
    module.net = nn.Sequential(
        nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)
    )
    module._own_ratio = lambda: 0.0
    monitor = TopologyMonitor([Distortion(every_n_steps=1)], verbose=False, report=False, on_error="raise")
    fit(module, [Early(lambda net: net[0].weight[3].add_(0.1), 2), monitor], root=tmp_path, max_epochs=2)
    states = {}
    for m in monitor.record.measurements:
        if m.probe == "coverage":
            states.setdefault(m.group, {}).update(dict.fromkeys(range(int(m.values["from"]) + 1, m.step + 1), m.values))
    assert states.keys() == {"net.0", "net.2", "net.4"}
    for found in states.values():
        assert sorted(found) == list(range(1, 17))
        assert [step for step, values in found.items() if values["state"] == StepState.OPEN] == [3]


def test_a_critic_that_is_clipped_behind_each_of_its_steps(tmp_path):
    """As Wasserstein GANs are trained: several updates a batch, weights clipped through `.data` after every one."""
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(critic.parameters(), lr=LR)
    ratios = Tampered(None, "")
    ratios.net = critic
    optimizer.register_step_post_hook(lambda *_: ratios.ratios.append(ratios._own_ratio()))
    watch = TopologyWatch(
        critic, optimizer, [Distortion(every_n_steps=1)], dirpath=tmp_path / "t", verbose=False, report=False
    )
    with watch:
        for step in range(6):
            with watch.step():
                for part in torch.randn(3, 2, 16, 4, generator=torch.Generator().manual_seed(step)):
                    optimizer.zero_grad()
                    loss = critic(part[0]).mean() - critic(part[1] + 1.0).mean()
                    watch.loss(loss)
                    loss.backward()
                    optimizer.step()
                    for p in critic.parameters():
                        p.data.clamp_(-0.2, 0.2)
    found = {m.step: m.values["critical_ratio"] for m in watch.record.measurements if m.probe == "distortion"}
    # A step's r is the largest of its three updates. In the first step the neurons are found after the third.
    wanted = [ratios.ratios[2], *(max(ratios.ratios[3 * k : 3 * k + 3]) for k in range(1, 6))]
    assert list(found.values()) == pytest.approx(wanted, rel=1e-3)
    lines = [m for m in watch.record.measurements if m.probe == "coverage"]
    assert [(m.values["from"], m.step, m.values["state"]) for m in lines] == [
        (0.0, 1, StepState.OPEN),
        (1.0, 2, StepState.EXACT),  # at once: a phase waits for it
        (2.0, 6, StepState.EXACT),
    ]
    assert {(event.name, event.step) for event in happened(watch.events)} == {("outside_change", 1), ("gap", 1)}


def test_what_another_callback_writes_is_in_the_totals(tmp_path):
    module, weights = Tampered(reset, "once"), Weights()
    monitor = TopologyMonitor([Distortion(every_n_steps=1)], verbose=False, report=False, on_error="raise")
    fit(module, [monitor, weights], root=tmp_path)
    [group] = monitor.groups
    start, end = (group.gather(weights.seen[k]).double() for k in (0, 8))
    i, j = torch.triu_indices(8, 8, 1)
    ratio = (end[i] - end[j]).norm(dim=1) / (start[i] - start[j]).norm(dim=1)
    last = [m for m in monitor.record.measurements if m.probe == "distortion"][-1]
    assert last.values["total_expansion"] == pytest.approx(float(ratio.max()), rel=1e-4)
    assert last.values["total_contraction"] == pytest.approx(float(ratio.min()), rel=1e-4)


# --- without a trainer ------------------------------------------------------------------------------------------------


@pytest.fixture
def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))


class Seen:
    """A module's steps, with what they have reported."""

    def __init__(self, module):
        self.settled, self.outside = [], []
        self.steps = Steps(
            module,
            on_settle=lambda lost: self.settled.append([update.optimizer for update in self.steps.pending]),
            on_outside=lambda optimizer, names: self.outside.append((optimizer, list(names))),
        )


@pytest.fixture
def seen(module):
    made = Seen(module)
    yield made
    made.steps.release()


def graded(optimizer):
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    return optimizer


def test_an_update_has_its_parameters_before_and_after(module, seen):
    optimizer = graded(torch.optim.SGD(module[0].parameters(), lr=0.5))
    before = module[0].weight.detach().clone()
    optimizer.step()
    [update] = seen.steps.pending
    assert update.optimizer is optimizer
    assert update.before.keys() == update.after.keys() == {"0.weight", "0.bias"}
    assert torch.equal(update.before["0.weight"], before)
    assert torch.equal(update.after["0.weight"], before - 0.5)
    assert torch.equal(seen.steps.before()["0.weight"], before)
    seen.steps.advance()
    assert seen.steps.pending == []
    optimizer.step()
    assert torch.equal(seen.steps.before()["0.weight"], before - 0.5)


def test_a_second_update_of_the_same_parameters_settles_the_first(module, seen):
    first = graded(torch.optim.SGD(module[0].parameters(), lr=0.5))
    other = graded(torch.optim.SGD(module[1].parameters(), lr=0.5))
    first.step()
    other.step()
    assert seen.settled == []
    assert [update.optimizer for update in seen.steps.pending] == [first, other]
    first.step()
    assert seen.settled == [[first, other]]
    assert [update.optimizer for update in seen.steps.pending] == [first]
    assert seen.outside == []


def test_of_nested_optimizers_the_outermost_counts(module, seen):
    class Outer(torch.optim.Optimizer):
        def __init__(self, inner):
            super().__init__(inner.param_groups, {})
            self.inner = inner

        def step(self, closure=None):
            self.inner.step()
            with torch.no_grad():
                module[0].weight += 1.0

    inner = graded(torch.optim.SGD(module[0].parameters(), lr=0.5))
    outer, before = Outer(inner), module[0].weight.detach().clone()
    outer.step()
    [update] = seen.steps.pending
    assert update.optimizer is outer
    torch.testing.assert_close(update.after["0.weight"] - update.before["0.weight"], torch.full_like(before, 0.5))


class Shifted(torch.optim.SGD):
    """Has a part of its own after that of SGD."""

    @torch.no_grad()
    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                p += 1.0
        return loss


@pytest.mark.parametrize("with_closure", [False, True])
def test_a_class_that_extends_an_optimizer_steps_once(module, seen, with_closure):
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)  # from now on torch's hooks are in SGD.step, too
    optimizer, before = graded(Shifted(module[0].parameters(), lr=0.5)), module[0].weight.detach().clone()
    closure = (lambda: 7.0) if with_closure else None
    assert optimizer.step(closure) == (7.0 if with_closure else None)
    [update] = seen.steps.pending
    assert update.optimizer is optimizer
    torch.testing.assert_close(update.after["0.weight"] - update.before["0.weight"], torch.full_like(before, 0.5))
    assert seen.settled == []


def test_an_update_that_has_raised_is_none_any_more(module, seen):
    class Raising(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            raise ArithmeticError

    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    raising, good = (graded(kind(module[0].parameters(), lr=0.5)) for kind in (Raising, torch.optim.SGD))
    for _ in range(2):
        with pytest.raises(ArithmeticError):
            raising.step()
    good.step()
    assert [update.optimizer for update in seen.steps.pending] == [good]


def test_what_a_closure_writes_is_no_part_of_the_update(module, seen):
    optimizer = graded(torch.optim.SGD(module[0].parameters(), lr=0.5))

    def closure(factor=1.0):
        with torch.no_grad():
            module[0].weight.fill_(3.0 * factor)
        return torch.tensor(2.0)

    seen.steps.keep([optimizer])
    assert optimizer.step(closure=closure) == 2.0
    [update] = seen.steps.pending
    assert torch.equal(update.before["0.weight"], torch.full_like(module[0].weight, 3.0))
    assert seen.outside == [(optimizer, ["0.weight"])]


def test_a_closure_that_is_evaluated_again_stays_part_of_the_update(module, seen):
    lbfgs = torch.optim.LBFGS(module[0].parameters(), lr=0.1, max_iter=4)

    def closure():
        lbfgs.zero_grad()
        loss = module[0](torch.ones(3, module[0].in_features)).square().sum()
        loss.backward()
        return loss

    before = module[0].weight.detach().clone()
    lbfgs.step(closure)
    [update] = seen.steps.pending
    assert torch.equal(update.before["0.weight"], before)
    assert not torch.equal(update.after["0.weight"], before)
    assert seen.outside == []


def compiled_graphs(optimizer):
    """How many graphs torch.compile makes of an optimizer's step."""
    torch._dynamo.reset()
    counter = CompileCounter()
    torch.compile(lambda: optimizer.step(), backend=counter)()
    return counter.frame_count


def test_a_compiled_step_is_seen_and_none_of_our_code_is_compiled(module):
    alone = compiled_graphs(graded(torch.optim.Adam(module[0].parameters())))
    seen = Seen(module)
    optimizer = graded(torch.optim.Adam(module[0].parameters()))
    assert compiled_graphs(optimizer) == alone > 0
    assert [update.optimizer for update in seen.steps.pending] == [optimizer]
    assert seen.steps.failures == []
    seen.steps.release()


def test_the_optimizer_of_another_module_is_passed_over(seen):
    graded(torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0)).step()
    assert seen.steps.pending == []
    assert seen.steps.optimizers == []


def test_parameters_that_join_later_are_seen(module, seen):
    optimizer = graded(torch.optim.SGD(module[0].parameters(), lr=0.5))
    optimizer.step()
    seen.steps.advance()
    module.append(nn.Linear(2, 2))
    optimizer.add_param_group({"params": list(module[2].parameters())})
    before = module[2].weight.detach().clone()
    graded(optimizer).step()
    [update] = seen.steps.pending
    assert update.after.keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert torch.equal(update.before["2.weight"], before)


def test_a_nan_that_stays_is_no_change_and_one_that_comes_is(module, seen):
    optimizer = graded(torch.optim.SGD(module[0].parameters(), lr=0.5))
    module[0].weight.data[0, 0] = float("nan")
    optimizer.step()
    seen.steps.advance()
    optimizer.step()
    assert seen.outside == []
    seen.steps.advance()
    module[0].bias.data[0] = float("nan")
    optimizer.step()
    assert seen.outside == [(optimizer, ["0.bias"])]


def test_what_moves_without_an_update_is_named_once(module, seen):
    optimizer = graded(torch.optim.SGD(module.parameters(), lr=0.5))
    seen.steps.keep([optimizer])
    assert seen.steps.moved() == []
    module[1].weight.data += 1.0
    assert seen.steps.moved() == ["1.weight"]
    assert seen.steps.moved() == []


def test_nothing_is_seen_after_the_release(module, seen):
    optimizer = graded(torch.optim.SGD(module.parameters(), lr=0.5))
    seen.steps.release()
    optimizer.step()
    assert seen.steps.pending == []


def test_what_is_done_at_an_update_is_time_of_ours_and_what_a_guard_does_is_not():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    spent = []

    @contextmanager
    def spending():
        spent.append("in")
        yield
        spent.append("out")

    steps = Steps(model, on_settle=lambda lost: None, on_outside=lambda *_: None, spending=spending)
    steps.guards.append(lambda update: spent.append("guard"))
    steps.keep([optimizer])
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    steps.release()
    assert spent == ["in", "out", "in", "out", "guard", "in", "out"]
