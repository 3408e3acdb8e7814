"""The learning rate finder on real trainings: what it suggests holds, and it leaves no trace."""

import logging
import math
import pickle

import lightning as L
import numpy as np
import pytest
import torch
import torchmetrics
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler

from lightning_topo import Distortion, Sharpness, TopologyLRFinder, TopologyMonitor, read_record
from lightning_topo._figures.style import pixels
from lightning_topo.callbacks import _lr_finder
from lightning_topo.demo import FullBatch
from tests.callbacks.test_events_in_training import Quadratic
from tests.callbacks.test_step_guard import TwoOptimizers, ratios
from tests.callbacks.training import Classifier, Weights, dataset, fit

S = torch.optim.lr_scheduler


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def fast(**options):
    return TopologyLRFinder(**({"min_lr": 1e-3, "max_lr": 30.0, "num_training_steps": 12, "sharpness": None} | options))


def full_batch(steps):
    """The same batch again and again: that of the sweep is that of the training."""
    return DataLoader(FullBatch(dataset(), steps), batch_size=None)


class Rates(Classifier):
    """Has its learning rate as an attribute, as Lightning's finder wants it, and a scheduler if asked."""

    def __init__(self, lr=0.1, scheduler=None, optimizer=torch.optim.SGD, dropout=0.0, norm=False, **options):
        super().__init__(dropout=dropout, norm=norm)
        self.lr, self.scheduler = lr, scheduler
        self.make_optimizer = lambda: optimizer(self.parameters(), lr=self.lr, **options)

    def configure_optimizers(self):
        optimizer = self.make_optimizer()
        if self.scheduler is None:
            return optimizer
        return [optimizer], [{"scheduler": self.scheduler(optimizer), "interval": "step"}]


# --- what it suggests is true -----------------------------------------------------------------------------------------


def test_on_a_quadratic_both_suggestions_are_the_critical_point(tmp_path):
    """r = eta lambda = 3.3 lr, whatever the weights: critical at 0.303; the edge is at twice that."""
    finder = TopologyLRFinder(0.01, 1.0, 21, early_stop_threshold=None)
    fit(Quadratic(), [finder], root=tmp_path)
    sweep = finder.sweep
    assert len(sweep.lrs) == 21
    for values in (sweep.critical_ratios, sweep.first_step_ratios, sweep.eta_lambdas):
        assert values == pytest.approx([3.3 * lr for lr in sweep.lrs], rel=1e-2)
    assert sweep.sharpness_ratios == pytest.approx([1.65 * lr for lr in sweep.lrs], rel=1e-2)
    below = max(lr for lr in sweep.lrs if 3.3 * lr < 1.0)
    assert sweep.suggestion_by_ratio == sweep.suggestion_by_curvature == sweep.suggestion == below
    assert f"critical ratio r stays below 1 up to {below:.3g}" in str(sweep)
    for lr, above in ((below, False), (1.3 * below, True)):
        weights = Weights()
        fit(Quadratic(lr=lr), [weights], root=tmp_path)
        assert all((r > 1.0) == above for r in ratios(weights))


@pytest.mark.parametrize("n", [1, 2])
def test_the_curvature_is_that_of_the_clipped_step(tmp_path, n):
    """Clipped to 0.1 a gradient 3.3 theta has the length 0.1; at these rates theta hardly moves."""
    module, finder = Quadratic(), TopologyLRFinder(1e-4, 1e-3, 5, early_stop_threshold=None)
    length = float(nn.utils.parameters_to_vector(module.parameters()).detach().norm())
    fit(module, [finder], root=tmp_path, gradient_clip_val=0.1, accumulate_grad_batches=n)
    sweep = finder.sweep
    assert sweep.eta_lambdas == pytest.approx([lr * 0.1 / length for lr in sweep.lrs], rel=2e-2)
    assert sweep.sharpness_ratios == pytest.approx([lr * 0.05 / length for lr in sweep.lrs], rel=2e-2)
    finder = TopologyLRFinder(1e-4, 1e-3, 5, early_stop_threshold=None)
    fit(Quadratic(), [finder], root=tmp_path, accumulate_grad_batches=n)
    assert finder.sweep.eta_lambdas == pytest.approx([3.3 * lr for lr in sweep.lrs], rel=2e-2)


RULES = {
    "sgd": {},
    "momentum": {"momentum": 0.9, "weight_decay": 1e-2},
    "adam": {"optimizer": torch.optim.Adam},
    "adamw": {"optimizer": torch.optim.AdamW, "weight_decay": 0.1},
}


HOW = {
    "sgd": ({}, {}),
    "momentum": (RULES["momentum"], {}),
    "adam": (RULES["adam"], {}),
    "adamw-accumulated": (RULES["adamw"], {"accumulate_grad_batches": 3}),
    "bf16": (RULES["momentum"], {"precision": "bf16-mixed"}),
    "clipped": ({}, {"gradient_clip_val": 0.05}),
}


@pytest.mark.parametrize(("options", "how"), HOW.values(), ids=HOW)
def test_the_sweep_is_the_training_that_lightning_would_run(tmp_path, options, how):
    """The same rates given by a scheduler to a real training: losses and r are the same, and so is r of first steps."""
    top = 3000.0 if "gradient_clip_val" in how else 30.0
    finder, n = fast(max_lr=top, early_stop_threshold=None), how.get("accumulate_grad_batches", 1)
    start = Rates(**options).state_dict()

    def train(callbacks, steps, **more):
        module = Rates(**(options | more))
        module.load_state_dict(start)
        fit(module, callbacks, root=tmp_path, data=full_batch(steps * n), **how)

    train([finder], 1)
    sweep, weights, losses = finder.sweep, Weights(), Losses()
    rates = S.LambdaLR
    train([weights, losses], 12, lr=1.0, scheduler=lambda o: rates(o, lambda k: sweep.lrs[min(k, 11)]))
    weights.seen = weights.seen[::n]
    assert sweep.losses == pytest.approx(losses.seen[::n], rel=1e-3)
    assert sweep.critical_ratios == pytest.approx(ratios(weights), rel=2e-2)
    assert sweep.suggestion_by_ratio is not None
    at = sweep.lrs.index(sweep.suggestion_by_ratio)
    for k in (at, at + 1):
        weights = Weights()
        train([weights], 1, lr=sweep.lrs[k])
        weights.seen = weights.seen[::n]
        assert ratios(weights) == pytest.approx([sweep.first_step_ratios[k]], rel=1e-2)
    assert max(sweep.critical_ratios[at], sweep.first_step_ratios[at]) < 1.0
    assert max(sweep.critical_ratios[at + 1], sweep.first_step_ratios[at + 1]) >= 1.0


class Losses(L.Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(float(outputs["loss"]) * trainer.accumulate_grad_batches)


def test_curvature_with_adam_and_without_a_known_rule(tmp_path):
    finder = fast(sharpness=Sharpness(), max_lr=0.1)
    fit(Rates(optimizer=torch.optim.Adam), [finder], root=tmp_path)
    assert math.isnan(finder.sweep.eta_lambdas[0])  # no moments yet
    assert all(math.isfinite(value) for value in finder.sweep.eta_lambdas[1:])
    finder = fast(sharpness=Sharpness())
    fit(Rates(optimizer=torch.optim.Rprop), [finder], root=tmp_path)
    assert all(math.isnan(value) for value in finder.sweep.eta_lambdas)
    assert finder.sweep.suggestion_by_curvature is None
    assert finder.sweep.suggestion == finder.sweep.suggestion_by_ratio
    assert "eta_lambda is not known" in str(finder.sweep)


def test_the_curvature_is_that_of_the_monitor(tmp_path):
    """What the finder says of the learning rate at the start is what the monitor measures there."""
    # So small that the step after which the monitor measures changes nothing.
    finder = TopologyLRFinder(1e-6, 1e-5, 2, mode="linear")
    monitor = TopologyMonitor([Sharpness(every_n_steps=1)], report=False, on_error="raise")
    fit(Rates(lr=1e-6), [finder, monitor], root=tmp_path, data=full_batch(2))
    first = next(m for m in read_record(monitor.dirpath).measurements if m.probe == "sharpness")
    assert first.values["eta_lambda"] == pytest.approx(finder.sweep.eta_lambdas[0], rel=1e-3)


def test_a_diverging_loss_ends_the_sweep(tmp_path):
    finder = fast(min_lr=1.0, max_lr=1e6, num_training_steps=40)
    fit(Rates(), [finder], root=tmp_path)
    assert finder.sweep.diverged
    assert len(finder.sweep.lrs) < 40
    assert len({len(getattr(finder.sweep, name)) for name in ("lrs", "losses", "critical_ratios", "eta_lambdas")}) == 1
    assert "diverged" in str(finder.sweep)


@pytest.mark.parametrize("sharpness", ["auto", None])
def test_a_long_sweep_tells_how_far_it_is_and_what_takes_most_of_it(tmp_path, monkeypatch, sharpness):
    said = []
    monkeypatch.setattr(_lr_finder, "rank_zero_info", said.append)
    fit(Rates(), [TopologyLRFinder(1e-3, 1.0, 8, sharpness=sharpness)], root=tmp_path)
    assert not any("of 8 learning rates" in line for line in said)  # a short one does not
    monkeypatch.setattr(_lr_finder, "_SAID_EVERY_S", 0.0)
    monkeypatch.setattr(_lr_finder._Sweep, "_step", lambda self, lr, batches: (1.0, 0.1))
    fit(Rates(), [TopologyLRFinder(1e-3, 1.0, 8, sharpness=sharpness)], root=tmp_path)
    lines = [line for line in said if "of 8 learning rates" in line]
    assert [line.split()[1] for line in lines] == [str(k) for k in range(1, 9)]
    assert lines[-1].startswith("TopologyLRFinder: 8 of 8 learning rates, about 0 s left")
    assert all(("sharpness=None" in line) == (sharpness is not None) for line in lines)


# --- it leaves no trace -----------------------------------------------------------------------------------------------


class Everything(Rates):
    """Dropout, batch normalisation, a metric, a counter, a queue, and random numbers of numpy's.

    Python's own generator is left out: the tests' type checker draws from it.
    """

    def __init__(self, **options):
        super().__init__(dropout=0.3, norm=True, **options)
        self.accuracy = torchmetrics.MeanMetric()
        self.n_calls, self.recent = 0, []

    def training_step(self, batch, batch_idx):
        self.n_calls += 1
        self.recent.append(self.n_calls)
        loss = super().training_step(batch, batch_idx) * (1 + 0.01 * np.random.random())  # noqa: NPY002
        self.accuracy.update(loss.detach())
        return loss


class Listening(L.Callback):
    """Counts the hooks that it hears."""

    def __init__(self):
        self.heard, self.at_start = [], None

    def on_train_start(self, trainer, pl_module):
        self.at_start = (trainer.global_step, trainer.current_epoch, len(pl_module.recent))

    def on_before_zero_grad(self, *_):
        self.heard.append("zero_grad")

    def on_before_optimizer_step(self, *_):
        self.heard.append("step")


def trained(tmp_path, callbacks, scheduler=None, **options):
    L.seed_everything(7, verbose=False)
    how = {key: options.pop(key) for key in ("accumulate_grad_batches", "precision", "plugins") if key in options}
    module = Everything(scheduler=scheduler, **options)
    sampler = RandomSampler(dataset(), generator=torch.Generator().manual_seed(3))
    listening, logger = Listening(), CSVLogger(tmp_path, version=0)
    data = DataLoader(dataset(), batch_size=8, sampler=sampler)
    trainer = fit(
        module,
        [listening, *callbacks],
        root=tmp_path,
        data=data,
        max_epochs=2,
        logger=logger,
        log_every_n_steps=1,
        **how,
    )
    logger.save()
    rows = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text()
    random_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    return module, trainer, listening, rows, random_state


HOWS = {
    "momentum": {"momentum": 0.9},
    "adam": {"optimizer": torch.optim.Adam, "lr": 0.01},
    "onecycle": {"scheduler": lambda o: S.OneCycleLR(o, 0.2, 40)},
    "bf16": {"precision": "bf16-mixed"},
    "accumulated": {"accumulate_grad_batches": 3, "momentum": 0.9},
    "scaled": {"plugins": lambda: [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", growth_interval=3))]},
}


@pytest.mark.parametrize("options", HOWS.values(), ids=HOWS)
def test_training_is_bitwise_the_same_with_and_without(tmp_path, options):
    def run(where, callbacks):
        made = {"plugins": options["plugins"]()} if "plugins" in options else {}
        return trained(tmp_path / where, callbacks, **(options | made))

    finder = fast(num_training_steps=6, sharpness=Sharpness(max_products=4), early_stop_threshold=None)
    plain, plain_trainer, plain_heard, plain_rows, plain_random = run("plain", [])
    swept, swept_trainer, swept_heard, swept_rows, swept_random = run("swept", [finder])
    assert len(finder.sweep.lrs) == 6
    for (name, a), b in zip(plain.state_dict().items(), swept.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    a, b = (trainer.optimizers[0].state_dict() for trainer in (plain_trainer, swept_trainer))
    assert a["param_groups"] == b["param_groups"]
    assert all(same(a["state"][k], b["state"][k]) for k in a["state"])
    for a, b in zip(plain_trainer.lr_scheduler_configs, swept_trainer.lr_scheduler_configs, strict=True):
        assert {k: v for k, v in a.scheduler.state_dict().items() if k != "anneal_strategy"} == b.scheduler.state_dict()
    assert plain_trainer.precision_plugin.state_dict() == swept_trainer.precision_plugin.state_dict()
    assert plain_heard.heard == swept_heard.heard
    assert plain_heard.at_start == swept_heard.at_start == (0, 0, 0)
    assert plain_rows == swept_rows
    assert (plain.n_calls, plain.recent) == (swept.n_calls, swept.recent)
    assert torch.equal(plain.accuracy.compute(), swept.accuracy.compute())
    assert torch.equal(plain_random[0], swept_random[0])
    assert (plain_random[1] == swept_random[1]).all()
    assert plain_trainer.fit_loop.state_dict() == swept_trainer.fit_loop.state_dict()


def same(a, b):
    return all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)


# --- setting it -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False])
def test_it_sets_the_learning_rate_before_the_monitor_looks(tmp_path, first, caplog):
    finder = fast(sharpness=Sharpness(), update_attr=True)
    monitor = TopologyMonitor([Distortion(every_n_steps=1), Sharpness(every_n_steps=1)], report=False, on_error="raise")
    module = Rates()
    with caplog.at_level(logging.INFO):
        trainer = fit(module, [finder, monitor] if first else [monitor, finder], root=tmp_path, data=full_batch(8))
    lr = finder.sweep.suggestion
    assert lr == min(finder.sweep.suggestion_by_ratio, finder.sweep.suggestion_by_curvature)
    assert module.lr == lr
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(lr)
    assert f"the learning rate (lr) is set to {lr:.6g}" in caplog.text
    found = read_record(monitor.dirpath).measurements
    at = finder.sweep.lrs.index(lr)
    eta_lambda = next(m for m in found if m.probe == "sharpness").values["eta_lambda"]
    assert eta_lambda == pytest.approx(finder.sweep.eta_lambdas[at], rel=0.2)  # of other weights
    assert max(m.values["critical_ratio"] for m in found if m.probe == "distortion") < 1.0


SCALED = {
    "step": lambda o: S.StepLR(o, 3, 0.5),
    "warmup": lambda o: S.LinearLR(o, 0.1, 1.0, 6),
    "lambda": lambda o: S.LambdaLR(o, lambda k: 1 / (k + 2)),
    "cosine": lambda o: S.CosineAnnealingWarmRestarts(o, 5),
    "sequential": lambda o: S.SequentialLR(o, [S.LinearLR(o, 0.1, 1.0, 4), S.CosineAnnealingLR(o, 9)], [4]),
}


@pytest.mark.parametrize("make", SCALED.values(), ids=SCALED)
def test_schedulers_start_from_what_it_sets(tmp_path, make):
    class Watched(Rates):
        def on_train_batch_start(self, *_):
            self.rates = [*getattr(self, "rates", []), self.optimizers().param_groups[0]["lr"]]

    plain, set_to = Watched(scheduler=make), Watched(scheduler=make)
    fit(plain, [], root=tmp_path)
    finder = fast(update_attr=True)
    fit(set_to, [finder], root=tmp_path)
    factor = finder.sweep.suggestion / 0.1
    assert factor > 3.0
    assert set_to.rates == pytest.approx([factor * lr for lr in plain.rates])


def test_parameter_groups_keep_their_ratio(tmp_path):
    class Two(Rates):
        def configure_optimizers(self):
            return torch.optim.SGD(
                [{"params": self.net[:3].parameters()}, {"params": self.net[3:].parameters(), "lr": 0.02}], lr=0.1
            )

    finder = fast(update_attr=True)
    trainer = fit(Two(), [finder], root=tmp_path)
    rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
    assert rates == pytest.approx([finder.sweep.suggestion, 0.2 * finder.sweep.suggestion])


def test_other_names_of_the_attribute(tmp_path):
    class Named(Classifier):
        def __init__(self):
            super().__init__()
            self.save_hyperparameters({"step_size": 0.1})

    module, finder = Named(), fast(update_attr=True, attr_name="step_size")
    fit(module, [finder], root=tmp_path)
    assert module.hparams.step_size == finder.sweep.suggestion
    with pytest.raises(AttributeError, match=r"'lr' or 'learning_rate'.*attr_name"):
        fit(Classifier(), [fast(update_attr=True)], root=tmp_path)
    with pytest.raises(AttributeError, match="'speed'"):
        fit(Rates(), [fast(update_attr=True, attr_name="speed")], root=tmp_path)


def test_without_a_crossing_nothing_is_set(tmp_path):
    module = Rates()
    with pytest.warns(UserWarning, match="did not cross.*Widen"):
        fit(module, [fast(max_lr=1e-2, update_attr=True)], root=tmp_path)
    assert module.lr == 0.1


# --- manners ----------------------------------------------------------------------------------------------------------


class OwnRate(Rates):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        optimizer.param_groups[0]["lr"] = 0.05
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)


class Two(Classifier):
    def configure_optimizers(self):
        return [torch.optim.SGD(half.parameters(), lr=0.1) for half in (self.net[:3], self.net[3:])]

    automatic_optimization = False


class Draws(Rates):
    def training_step(self, dataloader_iter):
        return super().training_step(next(dataloader_iter)[0], 0)


class NoGroups(Rates):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 3)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(list(dataset()))


class Manual(TwoOptimizers):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


REFUSED = {
    "lbfgs": (lambda: Rates(optimizer=torch.optim.LBFGS), {}, "LBFGS"),
    "two": (Two, {}, "one optimizer, and configure_optimizers returned 2"),
    "manual": (Manual, {}, "manual optimization"),
    "draws": (Draws, {}, "dataloader_iter"),
    "stream": (Rates, {"data": DataLoader(Stream(), batch_size=8)}, "only be iterated"),
    "no groups": (NoGroups, {}, "no neurons"),
    "own rate": (OwnRate, {}, "optimizer_step sets it itself"),
    "still": (lambda: Rates(lr=0.0), {}, "is 0"),
}


@pytest.mark.parametrize(("make", "how", "match"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_meaning_is_refused(tmp_path, make, how, match):
    with pytest.raises(MisconfigurationException, match=f"TopologyLRFinder.*{match}"):
        fit(make(), [fast()], root=tmp_path, **how)


@pytest.mark.parametrize("make", [lambda o: S.OneCycleLR(o, 1.0, 100), lambda o: S.CyclicLR(o, 0.01, 0.1)])
def test_schedulers_with_rates_of_their_own_are_refused_only_where_it_would_set_one(tmp_path, make):
    with pytest.raises(MisconfigurationException, match=r"(OneCycleLR|CyclicLR) would overwrite.*update_attr=False"):
        fit(Rates(scheduler=make), [fast(update_attr=True)], root=tmp_path)
    finder = fast()
    fit(Rates(scheduler=make), [finder], root=tmp_path)
    assert finder.sweep is not None


def test_parameters_are_checked():
    for options, match in (
        ({"min_lr": 0.0}, "min_lr"),
        ({"num_training_steps": 1}, "num_training_steps"),
        ({"mode": "cubic"}, "mode"),
        ({"early_stop_threshold": 0.5}, "early_stop_threshold"),
        ({"groups": "all"}, "groups"),
        ({"sharpness": "none"}, "sharpness"),
    ):
        with pytest.raises((ValueError, TypeError), match=match):
            TopologyLRFinder(**options)
    assert TopologyLRFinder(1.0, 3.0, 3, mode="linear").learning_rates() == (1.0, 2.0, 3.0)


def test_trial_runs_and_resumed_trainings_are_not_swept(tmp_path):
    finder = fast()
    with pytest.warns(UserWarning, match="fast_dev_run"):
        fit(Rates(), [finder], root=tmp_path, fast_dev_run=2)
    assert finder.sweep is None
    trainer = fit(Rates(), [finder], root=tmp_path, max_steps=3)
    assert finder.sweep is not None
    assert repr(pickle.loads(pickle.dumps(finder)).sweep) == repr(finder.sweep)  # NaN is not NaN
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    fit(Rates(), [finder], root=tmp_path, max_epochs=2, ckpt_path=tmp_path / "a.ckpt")
    assert finder.sweep is None
    fit(Rates(), [finder], root=tmp_path)  # the same finder, once more
    assert finder.sweep is not None


def test_the_figure_shows_the_numbers(tmp_path):
    finder = fast(sharpness=Sharpness())
    fit(Rates(), [finder], root=tmp_path)
    sweep = finder.sweep
    figure = sweep.plot()
    above, below = figure.axes
    assert list(above.lines[0].get_xdata()) == list(sweep.lrs)
    assert list(above.lines[0].get_ydata()) == list(sweep.losses)
    drawn = {line.get_label(): list(line.get_ydata()) for line in below.lines}
    assert drawn["r, steps of the sweep"] == list(sweep.critical_ratios)
    assert drawn["r, first step"] == list(sweep.first_step_ratios)
    assert [text.get_text() for text in above.texts] == [
        f"{how}: {lr:.3g}"
        for lr, how in sorted(
            [(sweep.suggestion_by_ratio, "by r"), (sweep.suggestion_by_curvature, "by $\\eta\\lambda$")]
        )
    ]
    assert pixels(figure).shape[2] == 4
