"""The guard on real trainings: no step that it lets pass reaches the critical point."""

import math

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from lightning_topo import Distortion, TopologyMonitor, TopologyStepGuard, read_record
from lightning_topo._watch.bounds import Bounds, GroupBound
from lightning_topo.neurons import NeuronGroup, ParamSlice
from tests.callbacks.training import Classifier, Weights, fit, hooks_of_all_optimizers, loader

LIMIT = 0.9


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def group(name, n, outgoing):
    pieces = (ParamSlice(f"{name}.weight"), ParamSlice(f"{name}.bias"), ParamSlice(f"{outgoing}.weight", dims=(1,)))
    return NeuronGroup(name, "unit", n, (), pieces)


GROUPS = [group("net.0", 8, "net.3"), group("net.3", 6, "net.5")]


def ratio(before, after, group):
    """r in float64, from what is stored, over the pairs that differ."""
    x, y = (group.gather(tensors).double() for tensors in (before, after))
    i, j = torch.triu_indices(group.n, group.n, 1)
    d = (x[i] - x[j]).norm(dim=1)
    q = ((y - x)[i] - (y - x)[j]).norm(dim=1) / d
    return float(q[d > 0].max())


def ratios(weights):
    """The worst group's r of every step."""
    steps = zip(weights.seen, weights.seen[1:], strict=False)
    return [max(ratio(*step, group) for group in GROUPS) for step in steps]


class Twins(Classifier):
    """Every second neuron of both layers is the one before it, but for 1e-5."""

    def __init__(self, gap=1e-5, **options):
        super().__init__(**options)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for group in GROUPS:
                for piece in group.slices:
                    rows = piece.view(self.get_parameter(piece.param))
                    noise = torch.randn(rows[1::2].shape, generator=generator)
                    rows[1::2] = rows[::2] + gap * noise / math.sqrt(group.dim(dict(self.named_parameters())))


def made(module, **options):
    torch.manual_seed(0)
    return module(**options)


ABOVE = {
    "sgd": {"lr": 30.0},
    "momentum": {"lr": 10.0, "momentum": 0.9, "weight_decay": 1e-3},
    "adam": {"optimizer": torch.optim.Adam, "lr": 1.0},
    "adamw": {"optimizer": torch.optim.AdamW, "lr": 1.0, "weight_decay": 0.1},
}
LARGE = pytest.mark.parametrize("options", ABOVE.values(), ids=ABOVE)


@LARGE
@pytest.mark.parametrize("module", [Classifier, Twins], ids=["apart", "twins"])
def test_every_step_is_below_the_limit(tmp_path, module, options):
    free, watched = Weights(), Weights()
    fit(made(module, **options), [free], root=tmp_path, max_steps=4)
    assert max(ratios(free)) > 1.0
    guard = TopologyStepGuard(LIMIT)
    fit(made(module, **options), [watched, guard], root=tmp_path, max_epochs=2)
    assert max(ratios(watched)) <= LIMIT
    assert guard.n_updates == 16
    assert guard.n_held > guard.n_dropped
    # It is the limit that is aimed at, not something far below.
    assert max(ratios(watched)) > 0.99 * LIMIT


def test_a_held_update_is_a_fraction_of_the_optimizers_own(tmp_path):
    """One step from the same weights, with and without the guard; optimizer state is the same."""
    options = {"norm": True, "momentum": 0.9, "weight_decay": 0.01, "lr": 30.0}
    module, other = made(Classifier, **options), made(Classifier, **options)
    free, held, guard = Weights(), Weights(), TopologyStepGuard(LIMIT)
    plain_trainer = fit(module, [free], root=tmp_path, max_steps=1)
    trainer = fit(other, [guard, held], root=tmp_path, max_steps=1)
    update = guard.latest
    assert update.proposed_critical_ratio > 1.0
    assert update.factor == pytest.approx(LIMIT / update.proposed_critical_ratio, rel=1e-3)
    for name, start in free.seen[0].items():
        wanted = start + update.factor * (free.seen[1][name] - start)
        torch.testing.assert_close(held.seen[1][name], wanted)
    a, b = (t.optimizers[0].state_dict()["state"] for t in (plain_trainer, trainer))
    assert all(torch.equal(a[k]["momentum_buffer"], b[k]["momentum_buffer"]) for k in a)
    for a, b in zip(module.buffers(), other.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("module", [Classifier, Twins], ids=["apart", "twins"])
@pytest.mark.parametrize("options", [ABOVE["momentum"], ABOVE["adam"], {"lr": 0.05}], ids=["momentum", "adam", "below"])
def test_bounds_decide_as_exact_ratios_do(tmp_path, monkeypatch, module, options):
    """The same weights, bit by bit, as a guard that measures every update exactly."""
    guard, exact = TopologyStepGuard(LIMIT), TopologyStepGuard(LIMIT)
    bounded, measured = made(module, **options), made(module, **options)
    fit(bounded, [guard], root=tmp_path)
    unknown = GroupBound(math.nan, math.nan)
    monkeypatch.setattr(Bounds, "of_step", lambda self, before, after: {g.name: unknown for g in self.groups})
    fit(measured, [exact], root=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(bounded.parameters(), measured.parameters(), strict=True))
    assert guard.n_held == exact.n_held
    assert guard.n_updates == exact.n_updates == 8
    assert exact.n_exact >= 8
    assert guard.n_exact <= exact.n_exact


def test_below_the_limit_hardly_any_update_is_measured_exactly(tmp_path):
    guard = TopologyStepGuard()
    fit(made(Classifier, lr=0.05), [guard], root=tmp_path, max_epochs=4)
    assert (guard.n_updates, guard.n_held) == (32, 0)
    assert guard.n_exact <= 3
    assert guard.latest.critical_ratio <= LIMIT


def test_below_the_limit_it_changes_nothing(tmp_path):
    module, other = made(Classifier, dropout=0.3, lr=0.05), made(Classifier, dropout=0.3, lr=0.05)
    guard = TopologyStepGuard()
    for each, callbacks in ((module, []), (other, [guard])):
        L.seed_everything(3, verbose=False)
        fit(each, callbacks, root=tmp_path, data=loader(shuffle=True))
    assert (guard.n_updates, guard.n_held) == (8, 0)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("guard_first", [True, False])
def test_the_monitor_sees_the_step_taken_and_what_was_proposed(tmp_path, guard_first):
    torch.manual_seed(0)
    monitor, guard = TopologyMonitor([Distortion(every_n_steps=1)], report=False, on_error="raise"), TopologyStepGuard()
    trainer = fit(
        Classifier(lr=30.0), [guard, monitor] if guard_first else [monitor, guard], root=tmp_path, max_epochs=3
    )
    found = [m for m in read_record(monitor.dirpath).measurements if m.probe == "distortion"]
    assert max(m.values["critical_ratio"] for m in found) <= LIMIT
    assert not [e for e in monitor.events if e.name == "topology_breakdown"]
    acted = [m for m in found if "proposed_critical_ratio" in m.values]
    assert 0 < len(acted) < len(found)
    steps = {m.step for m in acted}
    assert len(steps) == guard.n_held
    assert all(m.values["proposed_critical_ratio"] >= m.values["critical_ratio"] * 0.999 for m in acted)
    worst = [
        max(m.values["proposed_critical_ratio"] for m in acted if m.step == step) for step in {m.step for m in acted}
    ]
    assert min(worst) > LIMIT
    assert trainer.callback_metrics["topology/proposed_critical_ratio"] > LIMIT
    assert guard.groups == tuple(monitor.groups)


def test_it_finds_the_groups_itself_or_takes_those_given(tmp_path):
    alone = TopologyStepGuard()
    fit(Classifier(), [alone], root=tmp_path)
    assert {(group.name, group.status) for group in alone.groups} == {("net.0", "verified"), ("net.3", "verified")}
    given = TopologyStepGuard(groups=GROUPS)
    fit(Classifier(), [given], root=tmp_path)
    assert [group.name for group in given.groups] == ["net.0", "net.3"]


class TwoOptimizers(Classifier):
    """Two optimizers by hand, the second every other batch, with a scaler that skips."""

    def __init__(self, scaled=False, **options):
        super().__init__(**options)
        self.automatic_optimization = False
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1.0, enabled=scaled)

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        both = [o.optimizer for o in self.optimizers()]
        for optimizer in both:
            optimizer.zero_grad()
        self.manual_backward(self.scaler.scale(loss))
        if self.scaler.is_enabled() and batch_idx == 2:
            self.net[0].weight.grad[0, 0] = math.inf
        for optimizer in both[: 1 + batch_idx % 2]:
            self.scaler.step(optimizer)
        self.scaler.update()
        return loss

    def configure_optimizers(self):
        return [torch.optim.SGD(half.parameters(), lr=30.0) for half in (self.net[:3], self.net[3:])]


class Updates(L.Callback):
    """Remembers the parameters around every update of every optimizer, as the guard has left them."""

    def __init__(self):
        self.pairs, self.hooks = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if not self.hooks:  # those of all optimizers, as the guard's own, behind which they are called
            self.hooks = [
                register_optimizer_step_pre_hook(lambda *_: self.pairs.append([self._copy(pl_module)])),
                register_optimizer_step_post_hook(lambda *_: self.pairs[-1].append(self._copy(pl_module))),
            ]

    def teardown(self, trainer, pl_module, stage):
        for hook in self.hooks:
            hook.remove()

    def _copy(self, module):
        return {name: p.detach().clone() for name, p in module.named_parameters()}


@pytest.mark.parametrize("scaled", [False, True])
def test_two_optimizers_and_a_scaler_that_skips(tmp_path, scaled):
    torch.manual_seed(0)
    guard, updates = TopologyStepGuard(LIMIT, groups=GROUPS), Updates()
    fit(TwoOptimizers(scaled), [guard, updates], root=tmp_path, max_epochs=3)
    n_skipped = 3 if scaled else 0
    assert guard.n_updates == len(updates.pairs) == 36 - n_skipped
    assert guard.n_held > 0
    assert max(ratio(*pair, group) for pair in updates.pairs for group in GROUPS) <= LIMIT


def test_accumulated_batches_are_one_update(tmp_path):
    torch.manual_seed(0)
    guard, weights = TopologyStepGuard(LIMIT), Weights()
    fit(Classifier(lr=30.0), [guard, weights], root=tmp_path, max_epochs=4, accumulate_grad_batches=4)
    assert guard.n_updates == 8
    assert guard.n_held > 0
    assert max(ratios(weights)) <= LIMIT


def test_bf16_mixed_precision(tmp_path):
    torch.manual_seed(0)
    guard, weights = TopologyStepGuard(LIMIT), Weights()
    fit(Classifier(lr=30.0), [guard, weights], root=tmp_path, max_epochs=3, precision="bf16-mixed")
    assert guard.n_held > 0
    assert max(ratios(weights)) <= LIMIT


@pytest.mark.parametrize("mode", ["rescale", "skip"])
def test_an_update_to_infinity_is_dropped(tmp_path, mode):
    class Poison(L.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if trainer.global_step == 3:
                pl_module.net[0].weight.grad[0, 0] = math.nan

    guard, weights = TopologyStepGuard(mode=mode), Weights()
    fit(Classifier(), [guard, weights, Poison()], root=tmp_path)
    assert guard.n_dropped == 1
    assert all(torch.equal(weights.seen[3][name], p) for name, p in weights.seen[4].items())
    assert torch.isfinite(weights.seen[-1]["net.0.weight"]).all()


class Rounding(L.Callback):
    """The noise that a GPU's summation in no fixed order leaves in the gradients."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for p in pl_module.parameters():
            p.grad *= 1 + 1e-7 * torch.randn_like(p)


@pytest.mark.parametrize(
    "options", [{"momentum": 0.9}, {"optimizer": torch.optim.Adam, "lr": 0.01}], ids=["sgd", "adam"]
)
def test_equal_neurons_that_rounding_splits_do_not_stop_the_training(tmp_path, options):
    """By rounding alone they may move by more than their distance, which no factor mends."""
    guard, weights = TopologyStepGuard(LIMIT), Weights()
    fit(made(Twins, gap=0.0, **options), [guard, weights, Rounding()], root=tmp_path, max_epochs=5)
    x = GROUPS[0].gather(weights.seen[-1])
    assert not torch.equal(x[::2], x[1::2])
    assert max(ratios(weights)) > 1.0
    assert (guard.n_updates, guard.n_held) == (40, 0)


def test_skip_drops_what_is_too_large(tmp_path):
    torch.manual_seed(0)
    guard, weights = TopologyStepGuard(LIMIT, "skip"), Weights()
    fit(Classifier(lr=10.0), [guard, weights], root=tmp_path, max_epochs=2)
    assert 0 < guard.n_dropped == guard.n_held
    assert max(ratios(weights)) <= LIMIT
    still = sum(r == 0.0 for r in ratios(weights))
    assert still == guard.n_dropped


class Backbone(L.LightningModule):
    """A frozen backbone under a head that trains; it joins the optimizer after the first epoch, far too fast."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh()]
        self.backbone, self.head = nn.Sequential(*layers), nn.Linear(8, 3)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.05)


def unfreeze():
    return BackboneFinetuning(
        unfreeze_backbone_at_epoch=1, lambda_func=lambda epoch: 1.0, backbone_initial_lr=40.0, should_align=False
    )


@pytest.mark.parametrize("beside", ["nothing", "monitor"])
@pytest.mark.filterwarnings("ignore:.*requires_grad.*")
def test_parameters_that_join_later_are_guarded_too(tmp_path, beside):
    groups = [
        group("backbone.0", 8, "backbone.2"),
        group("backbone.2", 8, "backbone.4"),
        group("backbone.4", 8, "head"),
    ]
    free, held, guard = Weights(), Weights(), TopologyStepGuard(0.5)
    fit(Backbone(), [free, unfreeze()], root=tmp_path, max_epochs=2)
    monitor = TopologyMonitor([Distortion(every_n_steps=1)], report=False, on_error="raise")
    ours = [guard] if beside == "nothing" else [monitor, guard]
    fit(Backbone(), [*ours, held, unfreeze()], root=tmp_path, max_epochs=2)
    for each in groups:
        steps = [list(zip(w.seen, w.seen[1:], strict=False)) for w in (free, held)]
        without, with_guard = ([ratio(*step, each) for step in these] for these in steps)
        assert max(without[8:]) > 0.5
        assert max(with_guard) <= 0.5
        assert max(with_guard[8:]) > 0
    assert guard.latest.proposed.keys() == {each.name for each in groups}
    if beside == "monitor":
        measured = {(m.group, m.step) for m in monitor.record.measurements if m.probe == "distortion"}
        assert measured >= {(each.name, step) for each in groups for step in range(9, 17)}
        assert not [event for event in monitor.events if event.name == "probe_failed"]
        # Until it joined, nothing of the first layer moved.
        first = [m.values for m in monitor.record.measurements if (m.probe, m.group) == ("distortion", "backbone.0")]
        moved = [groups[0].gather(weights) for weights in (held.seen[8], held.seen[16])]
        i, j = torch.triu_indices(8, 8, 1)
        start, end = ((x[i] - x[j]).double().norm(dim=1) for x in moved)
        assert first[-1]["total_expansion"] == pytest.approx(float((end / start).max()), rel=1e-4)


# --- the learning rate ------------------------------------------------------------------------------------------------

S = torch.optim.lr_scheduler


class Scheduled(Classifier):
    def __init__(self, scheduler, **options):
        super().__init__(**({"lr": 10.0} | options))
        self.make_scheduler, self.rates = scheduler, []

    def configure_optimizers(self):
        optimizer = self.make_optimizer()
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.make_scheduler(optimizer), "interval": "step"},
        }

    def on_train_batch_end(self, *_):
        self.rates.append(self.optimizers().param_groups[0]["lr"])


KEPT = {
    "step": lambda o: S.StepLR(o, 5, 0.7),
    "multi": lambda o: S.MultiStepLR(o, [6, 12], 0.5),
    "exponential": lambda o: S.ExponentialLR(o, 0.97),
    "constant": lambda o: S.ConstantLR(o, 0.3, 12),
    "linear": lambda o: S.LinearLR(o, 0.1, 1.0, 15),
    "cosine": lambda o: S.CosineAnnealingLR(o, 40),
    "cosine-again": lambda o: S.CosineAnnealingLR(o, 8),
    "polynomial": lambda o: S.PolynomialLR(o, 50),
    "chained": lambda o: S.ChainedScheduler([S.ExponentialLR(o, 0.97), S.LinearLR(o, 0.5, 1.0, 12)]),
    "sequential": lambda o: S.SequentialLR(o, [S.LinearLR(o, 0.1, 1.0, 10), S.CosineAnnealingLR(o, 30)], [10]),
    "sequential-step": lambda o: S.SequentialLR(o, [S.LinearLR(o, 0.1, 1.0, 10), S.StepLR(o, 4)], [10]),
}


@pytest.mark.parametrize("make", KEPT.values(), ids=KEPT)
def test_a_lowered_learning_rate_stays_lowered_under_these_schedulers(tmp_path, make):
    torch.manual_seed(0)
    module, guard, weights = Scheduled(make), TopologyStepGuard(0.5, "lower_lr"), Weights()
    fit(module, [guard, weights], root=tmp_path, max_epochs=4)
    assert guard.n_held > 0
    assert guard.n_dropped == 0
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=10.0)
    scheduler, wanted, factor = make(optimizer), [], 1.0
    for r in ratios(weights):
        factor *= max(0.5 / r, 0.1) if r > 0.5 else 1.0
        optimizer.step()
        scheduler.step()
        wanted.append(optimizer.param_groups[0]["lr"] * factor)
    assert factor < 0.9
    assert module.rates == pytest.approx(wanted, rel=1e-4, abs=1e-9)


OVERWRITING = {
    "LambdaLR": lambda o: S.LambdaLR(o, lambda k: 1 / (k + 1)),
    "OneCycleLR": lambda o: S.OneCycleLR(o, 1.0, 100),
    "CosineAnnealingWarmRestarts": lambda o: S.CosineAnnealingWarmRestarts(o, 7),
    "CyclicLR": lambda o: S.CyclicLR(o, 0.01, 0.1),
}


@pytest.mark.parametrize("name", OVERWRITING)
def test_schedulers_that_would_overwrite_it_are_refused(tmp_path, name):
    with pytest.raises(MisconfigurationException, match=f'{name} would overwrite.*mode="rescale"'):
        fit(Scheduled(OVERWRITING[name]), [TopologyStepGuard(mode="lower_lr")], root=tmp_path)
    inside = lambda o: S.SequentialLR(o, [S.LinearLR(o), OVERWRITING["LambdaLR"](o)], [3])  # noqa: E731
    with pytest.raises(MisconfigurationException, match="LambdaLR"):
        fit(Scheduled(inside), [TopologyStepGuard(mode="lower_lr")], root=tmp_path)
    fit(Scheduled(OVERWRITING[name], lr=0.1), [TopologyStepGuard()], root=tmp_path, max_steps=2)


# --- manners ----------------------------------------------------------------------------------------------------------


def test_what_has_no_meaning_is_refused(tmp_path):
    with pytest.raises(MisconfigurationException, match="LBFGS"):
        fit(Classifier(optimizer=torch.optim.LBFGS), [TopologyStepGuard()], root=tmp_path)

    class NoGroups(Classifier):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(4, 3)

    with pytest.raises(MisconfigurationException, match=r"no neurons to work on.*declare_neurons"):
        fit(NoGroups(), [TopologyStepGuard()], root=tmp_path)
    for options in ({"max_ratio": 1.0}, {"max_ratio": 0.0}, {"mode": "clip"}, {"groups": "all"}):
        with pytest.raises((ValueError, TypeError), match=r"expected|mode|groups"):
            TopologyStepGuard(**options)


def test_it_leaves_the_optimizers_as_they_were_and_serves_again(tmp_path):
    guard, hooks = TopologyStepGuard(), hooks_of_all_optimizers()
    for _ in range(2):
        trainer = fit(Classifier(lr=1.0), [guard], root=tmp_path)
        assert guard.n_updates == 8
        assert not trainer.optimizers[0]._optimizer_step_pre_hooks
        assert not trainer.optimizers[0]._optimizer_step_post_hooks
        assert hooks_of_all_optimizers() == hooks


def test_its_counts_survive_a_resume(tmp_path):
    trainer = fit(Classifier(lr=30.0), [first := TopologyStepGuard()], root=tmp_path, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"][first.state_key]["n_updates"] == 8
    second = TopologyStepGuard()
    fit(Classifier(lr=30.0), [second], root=tmp_path, max_epochs=2, ckpt_path=tmp_path / "last.ckpt")
    assert second.n_updates == 16
    assert second.n_held >= first.n_held


class TakingTurns(L.LightningModule):
    """A GAN whose networks are frozen in turn, as `toggle_optimizer` does it."""

    def __init__(self, order):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(2, 7), nn.Tanh(), nn.Linear(7, 4))
        self.critic = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
        self.order = order

    def training_step(self, batch, batch_idx):
        optimizers = dict(zip(("generator", "critic"), self.optimizers(), strict=True))
        for name in self.order:
            self.toggle_optimizer(optimizers[name])
            fake = self.generator(torch.randn(len(batch[0]), 2))
            loss = nn.functional.softplus(-self.critic(fake)).mean()
            if name == "critic":
                loss = -loss + nn.functional.softplus(-self.critic(batch[0])).mean()
            self.manual_backward(loss)
            optimizers[name].step()
            optimizers[name].zero_grad()
            self.untoggle_optimizer(optimizers[name])

    def configure_optimizers(self):
        return [torch.optim.SGD(net.parameters(), lr=0.5) for net in (self.generator, self.critic)]


@pytest.mark.parametrize("beside_a_monitor", [True, False])
@pytest.mark.parametrize("order", [("generator", "critic"), ("critic", "generator")])
def test_networks_that_are_frozen_in_turn_are_both_held(tmp_path, order, beside_a_monitor):
    """By their neurons in all losses: the generator's outputs are none, since the critic sees real data too."""
    guard, weights = TopologyStepGuard(0.05), Weights()
    monitor = [TopologyMonitor([Distortion(every_n_steps=1)], report=False, verbose=False)] if beside_a_monitor else []
    fit(TakingTurns(order), [*monitor, guard, weights], root=tmp_path)
    assert sorted(group.name for group in guard.groups) == ["critic.0", "generator.0"]
    assert all(group.status == "verified" for group in guard.groups)
    assert guard.state_dict()["n_held"] > 4
    steps = list(zip(weights.seen, weights.seen[1:], strict=False))
    for group in guard.groups:
        later = [ratio(*step, group) for step in steps[1:]]  # in the first not all losses were known
        assert 0.0 < max(later) <= 0.05 + 1e-4


class Grown(L.Callback):
    """A layer becomes wider, or the head gets more classes; the rate is then far too high."""

    def __init__(self, what):
        self.what = what

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            linear = [k for k, layer in enumerate(pl_module.net) if isinstance(layer, nn.Linear)]
            last, before = pl_module.net[linear[-1]], pl_module.net[linear[-2]]
            more = before.out_features + (3 if self.what == "layer" else 0)
            pl_module.net[linear[-2]] = nn.Linear(before.in_features, more)
            pl_module.net[linear[-1]] = nn.Linear(more, last.out_features + (2 if self.what == "head" else 0))
            trainer.strategy.optimizers = [torch.optim.SGD(pl_module.parameters(), lr=50.0)]


@pytest.mark.parametrize("what", ["layer", "head"])
def test_a_network_that_grows_is_trained_on_and_held_again(tmp_path, what):
    guard = TopologyStepGuard(0.9)
    fit(Classifier(), [Grown(what), guard], root=tmp_path, max_epochs=2)
    assert guard.n_updates == 16
    assert guard.n_held > 0
    assert max(guard.latest.critical_ratio, 0.0) <= 0.9
