"""Monitor, guard and gate together in every kind of training that Lightning runs."""

import math
import warnings

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision

from lightning_topo import (
    Distortion,
    Persistence,
    Sharpness,
    TopologyEarlyStopping,
    TopologyLRFinder,
    TopologyMonitor,
    TopologyStepGuard,
    read_record,
)
from tests.callbacks.test_step_guard import GROUPS, TwoOptimizers, ratio
from tests.callbacks.training import Classifier, Weights, fit, happened, hooks_of_all_optimizers, loader

LIMIT = 0.9


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class All(Classifier):
    """Has every kind of step, and a scheduler if asked."""

    def __init__(self, scheduler=None, **options):
        super().__init__(**({"lr": 30.0} | options))
        self.scheduler = scheduler

    def configure_optimizers(self):
        optimizer = self.make_optimizer()
        if self.scheduler is None:
            return optimizer
        return [optimizer], [{"scheduler": self.scheduler(optimizer), "interval": "step"}]

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.net(batch[0]).square().mean())

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        return self.net(batch[0])

    def val_dataloader(self):
        return loader(16)

    test_dataloader = predict_dataloader = val_dataloader


def together(groups="auto"):
    probes = [Distortion(every_n_steps=1), Persistence(every_n_epochs=1), Sharpness(every_n_steps=4)]
    monitor = TopologyMonitor(probes, groups=groups, report=False, max_overhead=None, on_error="raise")
    return monitor, TopologyStepGuard(LIMIT), TopologyEarlyStopping("topology_breakdown")


def distortions(monitor):
    return [m for m in read_record(monitor.dirpath).measurements if m.probe == "distortion"]


def steps(monitor):
    return sorted({m.step for m in distortions(monitor)})


def compiled():
    module = All()
    module.net = torch.compile(module.net, backend="eager")
    return module


class Silent(All):
    """Logs nothing: Lightning's own `log` cannot be traced by dynamo everywhere."""

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])


def scaled():
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=2))


WAYS = {
    "plain": (All, {}, 16),
    "accumulated": (All, {"accumulate_grad_batches": 3}, 6),
    "bf16": (All, {"precision": "bf16-mixed"}, 16),
    "clipped": (lambda: All(lr=300.0), {"gradient_clip_val": 1.0}, 16),
    "scheduled": (lambda: All(lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 30.0, 40)), {}, 16),
    "adam": (lambda: All(optimizer=torch.optim.Adam, lr=1.0), {}, 16),
    "validated often": (All, {"val_check_interval": 3}, 16),
    "limited": (All, {"limit_train_batches": 3}, 6),
    "overfitting": (All, {"overfit_batches": 2}, 4),
    "max_steps": (All, {"max_steps": 5}, 5),
    "max_time": (All, {"max_time": {"hours": 1}}, 16),
}


@pytest.mark.parametrize(("make", "how", "n_steps"), WAYS.values(), ids=WAYS)
def test_every_step_is_guarded_and_measured_once(tmp_path, make, how, n_steps):
    monitor, guard, gate = together()
    weights = Weights()
    fit(make(), [gate, weights, monitor, guard], root=tmp_path, **({"max_epochs": 2} | how))
    assert steps(monitor) == list(range(1, n_steps + 1))
    assert guard.n_updates == n_steps
    assert guard.n_held > 0
    assert max(m.values["critical_ratio"] for m in distortions(monitor)) <= LIMIT * (1 + 1e-6)
    assert gate.stopping_reason is None
    assert [e.name for e in monitor.events if e.name in ("topology_breakdown", "probe_failed")] == []
    moved = moving(weights)
    assert len(moved) == n_steps - guard.n_dropped
    assert max(ratio(*pair, group) for pair in moved for group in GROUPS) <= LIMIT
    assert changed(weights.seen[0], weights.seen[-1])


COMPILED = {
    "a part": lambda: compiled(),
    "as a whole": lambda: torch.compile(Silent(), backend="eager"),
}


@pytest.mark.parametrize("make", COMPILED.values(), ids=COMPILED)
def test_a_compiled_module_is_guarded_and_measured_with_declared_groups(tmp_path, make):
    monitor, guard, gate = together(GROUPS)
    weights = Weights()
    fit(make(), [gate, weights, monitor, guard], root=tmp_path, max_epochs=2)
    assert steps(monitor) == list(range(1, 17))
    assert {m.group for m in distortions(monitor)} == {"net.0", "net.3"}
    assert guard.n_updates == 16
    assert guard.n_held > 0
    assert max(ratio(*pair, group) for pair in moving(weights) for group in GROUPS) <= LIMIT
    # Nothing of it is recorded: no group is looked for beside the declared ones, and of the loss alone there is no
    # sharpness.
    unfollowed, unproved, failed = [e for e in monitor.events if e.name == "probe_failed"]
    assert (unfollowed.step, unfollowed.group) == (unproved.step, unproved.group) == (1, "")
    assert "compile" in unfollowed.message
    assert "net.0, net.3 are not proved: the compiled" in unproved.message
    assert "compile" in failed.message
    assert "loss_fn" in failed.remedy


def moving(weights):
    return [pair for pair in zip(weights.seen, weights.seen[1:], strict=False) if changed(*pair)]


def changed(before, after):
    before, after = ({name.replace("_orig_mod.", ""): p for name, p in each.items()} for each in (before, after))
    return any(not torch.equal(p, after[name]) for name, p in before.items())


class Overflow(L.Callback):
    """Makes the loss scaler skip the third step."""

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step == 2:
            pl_module.net[0].weight.grad[0, 0] = math.inf


def test_a_step_that_the_scaler_skips_is_no_step(tmp_path):
    monitor, guard, gate = together()
    trainer = fit(All(lr=1.0), [monitor, guard, gate, Overflow()], root=tmp_path, plugins=[scaled()])
    assert trainer.global_step == 8  # Lightning counts the skipped one
    assert guard.n_updates == 7
    assert steps(monitor) == [1, 2, 4, 5, 6, 7, 8]
    assert {e.name for e in happened(monitor.events)} <= {"gap", "betti_changed", "diagram_jump"}


@pytest.mark.parametrize("skips", [False, True])
def test_two_optimizers_by_hand(tmp_path, skips):
    monitor = TopologyMonitor([Distortion(every_n_steps=1)], groups=GROUPS, report=False, on_error="raise")
    guard, gate = TopologyStepGuard(LIMIT, groups=GROUPS), TopologyEarlyStopping("topology_breakdown", min_count=99)
    fit(TwoOptimizers(skips), [monitor, guard, gate], root=tmp_path, max_epochs=2)
    # Every other batch both step: the batch as a whole may come to twice what each update may.
    assert steps(monitor) == [k for k in range(1, 17) if not (skips and k % 8 == 3)]
    assert guard.n_updates == (22 if skips else 24)
    assert guard.n_held > 0
    alone = [m.values["critical_ratio"] for m in distortions(monitor) if m.step % 2 == 1]
    assert max(alone) <= LIMIT * (1 + 1e-6)


def test_lbfgs_is_watched_as_one_map_and_refused_by_those_that_act(tmp_path):
    """r of its whole outer step, all inner iterations together, is the observed map's, as for any rule."""
    monitor, _, _ = together()
    gate, weights = TopologyEarlyStopping("topology_breakdown", min_count=99), Weights()  # its first step is above 1
    fit(Classifier(optimizer=torch.optim.LBFGS, lr=1.0, max_iter=4), [monitor, gate, weights], root=tmp_path)
    pairs = list(zip(weights.seen, weights.seen[1:], strict=False))
    assert 1 <= len(steps(monitor)) <= 8
    by_name = {group.name: group for group in GROUPS}
    for m in distortions(monitor):
        truth = ratio(*pairs[m.step - 1], by_name[m.group])
        assert m.values["critical_ratio"] == pytest.approx(truth, rel=1e-4)
    values = [m.values for m in read_record(monitor.dirpath).measurements if m.probe == "sharpness"]
    assert values
    assert not any("sharpness_ratio" in each or "eta_lambda" in each for each in values)
    for refused in (TopologyStepGuard(), TopologyLRFinder()):
        with pytest.raises(Exception, match="LBFGS"):
            fit(Classifier(optimizer=torch.optim.LBFGS), [refused], root=tmp_path)


class Averaged(WeightAveraging):
    def __init__(self):
        super().__init__(avg_fn=lambda mean, new, n: 0.9 * mean + 0.1 * new)


@pytest.mark.parametrize("first", [True, False])
def test_averaged_weights_that_are_swapped_in_for_validation_are_not_captured(tmp_path, first):
    monitor, guard, gate = together()
    weights = Weights()
    averaging = Averaged()
    ours = [monitor, guard, gate, weights]
    callbacks = [averaging, *ours] if first else [*ours, averaging]
    module = All(lr=3.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(module, callbacks, root=tmp_path, max_epochs=2, val_check_interval=2)
    assert steps(monitor) == list(range(1, 17))
    by_name = {group.name: group for group in GROUPS}
    for m in distortions(monitor):
        truth = ratio(weights.seen[m.step - 1], weights.seen[m.step], by_name[m.group])
        assert m.values["critical_ratio"] == pytest.approx(truth, rel=1e-4)


# --- not quite a training ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "n_steps"),
    [
        ({"fast_dev_run": 2}, 2),
        ({"barebones": True, "max_epochs": 1}, 8),
        ({"logger": True}, 8),
        ({"limit_train_batches": 0}, None),
        ({"max_epochs": 0}, None),
        ({"num_sanity_val_steps": 2}, 8),
    ],
    ids=str,
)
def test_trainings_that_are_short_or_bare(tmp_path, how, n_steps):
    options = {
        "accelerator": "cpu",
        "default_root_dir": str(tmp_path),
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": 1,
    } | how
    if options.get("logger") is True:
        options["logger"] = CSVLogger(tmp_path)
    if "barebones" in how:
        options = {"barebones": True, "accelerator": "cpu", "max_epochs": 1, "default_root_dir": str(tmp_path)}
    monitor, guard, gate = together()
    finder = TopologyLRFinder(1e-3, 10.0, 4, sharpness=None)
    trainer = L.Trainer(**options, callbacks=[gate, finder, guard, monitor])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(All(), loader())
    if n_steps is None:
        assert monitor.dirpath is None
        assert guard.n_updates == 0
        assert finder.sweep is None
    else:
        assert steps(monitor) == list(range(1, n_steps + 1))
        assert guard.n_updates == n_steps
        assert (finder.sweep is None) == ("fast_dev_run" in how)
    assert gate.stopping_reason is None


def test_validation_test_and_prediction_without_fit(tmp_path):
    monitor, guard, gate = together()
    finder = TopologyLRFinder()
    module, callbacks = All(), [monitor, guard, gate, finder]
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "default_root_dir": str(tmp_path)}
    for what in ("validate", "test", "predict"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            getattr(L.Trainer(**options, callbacks=callbacks), what)(module)
    assert monitor.dirpath is None
    assert not list(tmp_path.glob("**/*.jsonl"))
    assert guard.n_updates == 0
    # After which the same callbacks train.
    fit(module, callbacks[:3], root=tmp_path)
    assert steps(monitor) == list(range(1, 9))


def test_several_fits_with_the_same_callbacks(tmp_path):
    callbacks = together()
    for k in range(2):
        fit(All(), list(callbacks), root=tmp_path)
        assert steps(callbacks[0]) == list(range(1, 9))
        assert callbacks[0].dirpath.name == ("topology" if k == 0 else "topology-v1")
        assert callbacks[1].n_updates == 8


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interruption_leaves_a_whole_record_and_no_hooks(tmp_path, error):
    class Stop(L.Callback):
        def on_before_optimizer_step(self, trainer, *_):
            if trainer.global_step == 5:
                raise error("enough")

    monitor, guard, gate = together()
    module, hooks = All(), hooks_of_all_optimizers()
    optimizer = module.make_optimizer()
    module.make_optimizer = lambda: optimizer
    expected = SystemExit if error is KeyboardInterrupt else error
    with pytest.raises(expected):  # Lightning exits with 1 after an interrupt by the keyboard
        fit(module, [monitor, guard, gate, Stop()], root=tmp_path)
    assert steps(monitor) == [1, 2, 3, 4, 5]
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert hooks_of_all_optimizers() == hooks
    lines = (monitor.dirpath / "measurements.jsonl").read_text()
    assert lines.endswith("\n")


def test_checkpoints_of_all_of_them_are_plain(tmp_path):
    ours = [*together(), TopologyLRFinder(1e-3, 10.0, 4)]
    saver = ModelCheckpoint(tmp_path / "c", every_n_train_steps=3, save_top_k=-1)
    fit(All(optimizer=torch.optim.AdamW, lr=0.01), [*ours, saver], root=tmp_path, enable_checkpointing=True)
    files = list((tmp_path / "c").glob("*.ckpt"))
    assert len(files) >= 2
    for file in files:
        saved = torch.load(file, weights_only=True)["callbacks"]
        assert {callback.state_key for callback in ours[:3]} <= saved.keys()


def test_what_validation_finds_belongs_to_the_step_behind_which_it_runs(tmp_path):
    class Validated(All):
        def validation_step(self, batch, batch_idx):
            self.log("steps_so_far", float(self.trainer.global_step))

    monitor = TopologyMonitor([Distortion()], report=False, verbose=False, dirpath=tmp_path / "record")
    fit(Validated(), [monitor], root=tmp_path, max_epochs=2, val_check_interval=3)
    found = {m.step: m.values["steps_so_far"] for m in monitor.record.measurements if m.probe == "validation"}
    assert len(found) > 3
    assert all(step == so_far for step, so_far in found.items())
