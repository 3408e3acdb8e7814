"""The monitor on real trainings: what it measures, and that it changes nothing."""

import copy
import math
import pickle

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_topo import Distortion, Period, Persistence, Sharpness, TopologyMonitor, read_record
from lightning_topo.measurement import StepState
from lightning_topo.neurons import NeuronGroup, ParamSlice, declare_neurons
from lightning_topo.phases import replay
from tests.callbacks.training import Classifier, Weights, dataset, fit, happened, hooks_of_all_optimizers, loader


def dense(**options):
    """A monitor that measures everything at every opportunity."""
    probes = [Distortion(every_n_steps=1), Persistence(every_n_epochs=1), Sharpness(every_n_steps=4)]
    return TopologyMonitor(**({"probes": probes, "report": False, "on_error": "raise"} | options))


def lines(monitor, probe, group=None):
    found = [m for m in read_record(monitor.dirpath).measurements if m.probe == probe]
    return found if group is None else [m for m in found if m.group == group]


def brute_force(before, after, slices):
    """r, a, b over all pairs, in float64."""

    def cloud(params):
        return torch.cat(
            [params[s.param].transpose(0, s.dims[0]).reshape(params[s.param].shape[s.dims[0]], -1) for s in slices], 1
        ).double()

    x, y = cloud(before), cloud(after)
    i, j = torch.triu_indices(len(x), len(x), 1)
    d, e = (x[i] - x[j]).norm(dim=1), (y[i] - y[j]).norm(dim=1)
    moved = ((y - x)[i] - (y - x)[j]).norm(dim=1)
    return float((moved / d).max()), float((e / d).min()), float((e / d).max())


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.9}, {"optimizer": torch.optim.AdamW, "lr": 1e-2}],
    ids=["sgd", "momentum", "adamw"],
)
def test_every_step_is_measured_as_brute_force_has_it(tmp_path, options):
    monitor, weights = dense(), Weights()
    module = Classifier(**options)
    fit(module, [monitor, weights], root=tmp_path, max_epochs=2)
    groups = monitor.groups
    assert {group.name for group in groups} == {"net.0", "net.3"}
    for group in groups:
        found = lines(monitor, "distortion", group.name)
        assert [m.step for m in found] == list(range(1, 17))
        for k, m in enumerate(found):
            for first, names in (
                (weights.seen[k], ("critical_ratio", "contraction", "expansion")),
                (weights.seen[0], (None, "total_contraction", "total_expansion")),
            ):
                for name, truth in zip(names, brute_force(first, weights.seen[k + 1], group.slices), strict=True):
                    if name is not None:
                        assert m.values[name] == pytest.approx(truth, rel=1e-4), (m.step, name)
            assert m.values["log_distortion"] == pytest.approx(
                math.log(m.values["expansion"] / m.values["contraction"])
            )


def test_groups_hold_incoming_bias_and_outgoing(tmp_path):
    monitor = dense()
    fit(Classifier(), [monitor], root=tmp_path, max_steps=1)
    first = next(group for group in monitor.groups if group.name == "net.0")
    assert first.n == 8
    assert {s.param for s in first.slices} == {"net.0.weight", "net.0.bias", "net.4.weight"} or {
        s.param for s in first.slices
    } == {"net.0.weight", "net.0.bias", "net.3.weight"}
    assert first.status == "verified"


class Noisy(L.Callback):
    """Another callback, that draws random numbers of its own.

    Python's own generator is watched in a process without the tests' type checker, which draws from it.
    """

    def __init__(self):
        self.drawn = []

    def on_train_batch_end(self, *_):
        self.drawn.append(
            (
                torch.rand(()).item(),
                np.random.random(),  # noqa: NPY002 - the global generator is what is watched
            )
        )


def trained(tmp_path, callbacks, **options):
    L.seed_everything(7, verbose=False)
    module = Classifier(norm=True, dropout=0.3, momentum=0.9)
    trainer = fit(module, callbacks, root=tmp_path, data=loader(shuffle=True), max_epochs=3, **options)
    return module, trainer


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}])
def test_training_is_bitwise_the_same_with_and_without(tmp_path, options):
    plain_noise, watched_noise, hooks = Noisy(), Noisy(), hooks_of_all_optimizers()
    plain, plain_trainer = trained(tmp_path, [plain_noise], **options)
    watched, watched_trainer = trained(tmp_path, [watched_noise, dense()], **options)
    for (name, a), b in zip(plain.state_dict().items(), watched.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert plain_noise.drawn == watched_noise.drawn
    a, b = (t.optimizers[0].state_dict()["state"] for t in (plain_trainer, watched_trainer))
    assert all(torch.equal(a[k]["momentum_buffer"], b[k]["momentum_buffer"]) for k in a)
    assert plain.training == watched.training
    assert len(watched_trainer.optimizers[0]._optimizer_step_post_hooks) == 0
    assert hooks_of_all_optimizers() == hooks
    assert "log" not in watched.__dict__


def test_accumulated_batches_are_one_step(tmp_path):
    monitor = dense()
    fit(Classifier(), [monitor], root=tmp_path, accumulate_grad_batches=4)
    assert [m.step for m in lines(monitor, "distortion", "net.0")] == [1, 2]


def test_the_recorded_loss_is_the_modules_own(tmp_path):
    class Losses(L.Callback):
        def __init__(self):
            self.seen = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.seen.append(float(trainer.callback_metrics["train/loss"]))

    losses, monitor = Losses(), dense()
    fit(Classifier(), [losses, monitor], root=tmp_path, accumulate_grad_batches=2)
    found = [m.values["loss"] for m in lines(monitor, "training")]
    assert found == pytest.approx(losses.seen[1::2])


class TwoOptimizers(Classifier):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        first, second = self.optimizers()
        first.zero_grad(), second.zero_grad()
        self.manual_backward(loss)
        first.step()
        if batch_idx % 2:
            second.step()
        return loss

    def configure_optimizers(self):
        halves = self.net[:3], self.net[3:]
        return [torch.optim.SGD(half.parameters(), lr=0.1) for half in halves]


def test_two_optimizers_by_hand(tmp_path):
    monitor, weights = dense(), Weights()
    fit(TwoOptimizers(), [monitor, weights], root=tmp_path)
    assert {group.name: group.status for group in monitor.groups} == {"net.0": "verified", "net.3": "verified"}
    assert happened(monitor.events) == []
    # The second optimizer, which owns all of net.3, steps with every second batch.
    for group, steps in zip(monitor.groups, (range(1, 9), range(2, 9, 2)), strict=True):
        found = lines(monitor, "distortion", group.name)
        assert [m.step for m in found] == list(steps)
        for m in found:
            truth = brute_force(weights.seen[m.step - 1], weights.seen[m.step], group.slices)
            assert m.values["critical_ratio"] == pytest.approx(truth[0], rel=1e-4)
    assert [m.step for m in lines(monitor, "sharpness")] == [4, 8]


class Adversaries(L.LightningModule):
    """A generator and a discriminator, each with a loss and an optimizer of its own; there is no `forward`."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(2, 7), nn.Tanh(), nn.Linear(7, 4))
        self.discriminator = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))

    def training_step(self, batch, batch_idx):
        real = batch[0]
        fake = self.generator(torch.randn(len(real), 2))
        for optimizer, loss in zip(self.optimizers(), (self.against(fake), self.between(real, fake)), strict=True):
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def against(self, fake):
        frozen = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        return -torch.func.functional_call(self.discriminator, frozen, (fake,)).mean()

    def between(self, real, fake):
        margin = 1 + self.discriminator(fake.detach()) - self.discriminator(real)
        return margin.relu().square().mean()

    def configure_optimizers(self):
        nets = self.generator, self.discriminator
        return [torch.optim.SGD(net.parameters(), lr=0.05) for net in nets]


def test_each_network_of_a_gan_has_neurons_and_every_step_is_measured(tmp_path):
    torch.manual_seed(0)
    monitor, weights = dense(), Weights()
    fit(Adversaries(), [monitor, weights], root=tmp_path)
    groups = {group.name: (group.n, group.status) for group in monitor.groups}
    assert groups == {"generator.0": (7, "verified"), "discriminator.0": (5, "verified")}
    for group in monitor.groups:
        found = lines(monitor, "distortion", group.name)
        assert [m.step for m in found] == list(range(1, 9))
        for m in found:
            truth = brute_force(weights.seen[m.step - 1], weights.seen[m.step], group.slices)
            assert m.values["critical_ratio"] == pytest.approx(truth[0], rel=1e-4)
    assert [m.step for m in lines(monitor, "sharpness")] == [4, 8]
    assert happened(monitor.events) == []


def declared():
    pieces = (ParamSlice("net.0.weight"), ParamSlice("net.0.bias"), ParamSlice("net.3.weight", dims=(1,)))
    return [NeuronGroup("net.0", "unit", 8, (), pieces, status="declared")]


def test_sharpness_with_a_loss_of_ones_own_under_manual_optimization(tmp_path):
    def loss(module, batch):
        return nn.functional.cross_entropy(module.net(batch[0]), batch[1])

    monitor = TopologyMonitor([Sharpness(every_n_steps=2, loss_fn=loss)], groups=declared(), report=False)
    fit(TwoOptimizers(), [monitor], root=tmp_path)
    assert [m.step for m in lines(monitor, "sharpness")] == [2, 4, 6, 8]
    assert happened(monitor.events) == []


# --- what is published ------------------------------------------------------------------------------------------------


class Look(L.Callback):
    """Keeps our keys as they are at the start, and after every batch."""

    def on_train_start(self, trainer, pl_module):
        self.seen = [self._ours(trainer)]

    def on_train_batch_end(self, trainer, *_):
        self.seen.append(self._ours(trainer))

    def _ours(self, trainer):
        return {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("topology/")}


@pytest.mark.parametrize("look_first", [True, False])
def test_keys_are_there_as_soon_as_something_is_measured_and_never_before(tmp_path, look_first):
    look, monitor = Look(), dense(max_overhead=None)
    fit(Classifier(), [look, monitor] if look_first else [monitor, look], root=tmp_path)
    assert look.seen[0] == {}
    if look_first:
        look.seen = [{}, *look.seen[2:]]  # what a callback before the monitor sees is one batch old
    first = look.seen[1]
    for group in ("net.0", "net.3"):
        [found] = [m.values for m in lines(monitor, "distortion", group) if m.step == 1]
        place = f"topology/{group.replace('.', '_')}"
        assert {key.rpartition("/")[2] for key in first if key.startswith(place)} >= {
            *("critical_ratio", "contraction", "expansion", "log_distortion"),
            *("total_contraction", "total_expansion", "total_log_distortion", "distinct_neurons"),
        }
        for key, value in first.items():
            # A bound of the steps in between belongs to the coverage, not to the distortion.
            if key.startswith(place) and not key.endswith("/critical_ratio_bound"):
                assert value == pytest.approx(found[key.rpartition("/")[2]])
    assert first["topology/net_0/distinct_neurons"] == 8
    assert first["topology/coverage"] == 1.0
    assert 0 < first["topology/overhead"] < 1
    assert {key for key in first if key.count("/") == 1} == {
        *("topology/critical_ratio", "topology/overhead", "topology/phase"),
        *("topology/coverage", "topology/coverage_span", "topology/critical_ratio_bound"),
        *("topology/learning_rate", "topology/critical_learning_rate"),
    }
    # What is measured later adds its own keys, and nothing else does.
    added = look.seen[4].keys() - look.seen[3].keys()
    assert added == {"topology/sharpness", "topology/sharpness_ratio", "topology/eta_lambda", *added}
    assert all(key.count("/") == 1 for key in added)
    assert look.seen[5].keys() == look.seen[4].keys()


def test_lightnings_own_callbacks_can_watch_our_keys(tmp_path):
    callbacks = [
        dense(),
        EarlyStopping("topology/critical_ratio", mode="min", patience=10, strict=True),
        ModelCheckpoint(tmp_path, monitor="topology/net_0/expansion", filename="{topology/net_0/expansion:.3f}"),
    ]
    fit(Classifier(), callbacks, root=tmp_path, max_epochs=2, enable_checkpointing=True)
    assert callbacks[2].best_model_score >= 1.0


def test_rows_of_the_loggers_agree_with_the_record(tmp_path):
    monitor = dense(log_groups="all")
    logger = CSVLogger(tmp_path, name="runs")
    fit(Classifier(), [monitor], root=tmp_path, max_epochs=3, logger=logger, log_every_n_steps=3)
    assert monitor.dirpath == tmp_path / "runs" / "version_0" / "topology"
    rows = {}
    with open(tmp_path / "runs" / "version_0" / "metrics.csv") as file:
        header, *body = (line.rstrip("\n").split(",") for line in file)
    for row in body:
        values = {k: float(v) for k, v in zip(header, row, strict=True) if v}
        rows.setdefault(int(values.pop("step")), {}).update(values)
    ratios = {m.step: m.values for m in lines(monitor, "distortion", "net.0")}
    # Lightning logs the k-th step under k - 1; the row holds the extremes since the row before.
    assert rows[2]["topology/net_0/critical_ratio"] == pytest.approx(
        max(ratios[k]["critical_ratio"] for k in (1, 2, 3))
    )
    assert rows[5]["topology/net_0/contraction"] == pytest.approx(min(ratios[k]["contraction"] for k in (4, 5, 6)))
    assert rows[5]["topology/net_0/total_expansion"] == pytest.approx(ratios[6]["total_expansion"])
    assert "train/loss" in rows[2]
    assert [m.step for m in lines(monitor, "persistence", "net.0")] == [8, 16, 24]
    captured = lines(monitor, "persistence", "net.0")[0].values
    assert rows[7]["topology/net_0/max_persistence_0"] == pytest.approx(captured["max_persistence_0"])
    assert all((row + 1) % 3 == 0 or (row + 1) % 8 == 0 for row in rows)


def test_the_worst_group_of_each_quantity_is_logged(tmp_path):
    logger = CSVLogger(tmp_path)
    monitor = dense(log_groups="worst")
    fit(Classifier(), [monitor], root=tmp_path, logger=logger, log_every_n_steps=8)
    last = [lines(monitor, "distortion", g)[-1].values for g in ("net.0", "net.3")]
    with open(logger.experiment.metrics_file_path) as file:
        header, *body = (line.rstrip("\n").split(",") for line in file)
    row = {k: float(v) for line in body for k, v in zip(header, line, strict=True) if v}
    for name, worst in (("total_contraction", min), ("total_expansion", max), ("distinct_neurons", min)):
        assert row[f"topology/worst/{name}"] == pytest.approx(worst(values[name] for values in last))
    assert "topology/critical_ratio" in row
    assert not [key for key in row if key.startswith(("topology/net_0/", "topology/net_3/"))]


# --- when -------------------------------------------------------------------------------------------------------------


def test_numbers_are_obeyed(tmp_path):
    probes = [Distortion(every_n_steps=3), Persistence(every_n_steps=5), Sharpness(every_n_steps=4)]
    monitor, weights = dense(probes=probes), Weights()
    fit(Classifier(), [monitor, weights], root=tmp_path, max_epochs=2)
    found = lines(monitor, "distortion", "net.0")
    assert [m.step for m in found] == [1, 3, 6, 9, 12, 15]  # the first step is measured besides
    for m in found:
        slices = monitor.groups[0].slices
        truth = brute_force(weights.seen[m.step - 1], weights.seen[m.step], slices)
        assert m.values["critical_ratio"] == pytest.approx(truth[0], rel=1e-4)
    assert [m.step for m in lines(monitor, "persistence", "net.0")] == [5, 10, 15]
    assert [m.step for m in lines(monitor, "sharpness")] == [4, 8, 12, 16]


def test_auto_certifies_every_step_and_measures_what_its_share_allows(tmp_path):
    monitor, weights = TopologyMonitor(report=False, max_overhead=0.02), Weights()
    fit(Classifier(), [monitor, weights], root=tmp_path, data=loader(n=400), max_epochs=3)
    for group in monitor.groups:
        measured = {m.step for m in lines(monitor, "distortion", group.name)}
        assert 1 in measured
        stretches = [(m.values["from"], m.step, m.values) for m in lines(monitor, "coverage", group.name)]
        # Each of the 150 steps belongs to one stretch; the states say which were measured ...
        assert [start for start, _, _ in stretches] == [0, *(end for _, end, _ in stretches[:-1])]
        assert stretches[-1][1] == 150
        states = {step: v for start, end, v in stretches for step in range(int(start) + 1, end + 1)}
        assert {step for step, v in states.items() if v["state"] == StepState.EXACT} == measured
        assert {v["state"] for v in states.values()} <= {StepState.EXACT, StepState.BOUNDED}
        # ... and a bound holds for every step of its stretch.
        for step, values in states.items():
            if values["state"] == StepState.BOUNDED:
                truth = brute_force(weights.seen[step - 1], weights.seen[step], group.slices)
                assert truth[0] <= values["bound"] < 1
    planned = {name for m in lines(monitor, "schedule") for name in m.values}
    assert planned == {f"{name}_every" for name in ("distortion", "fate", "persistence", "sharpness", "step_edge")}


def test_without_a_budget_auto_is_dense(tmp_path):
    monitor = TopologyMonitor(report=False, max_overhead=None)
    fit(Classifier(), [monitor], root=tmp_path, max_epochs=4)
    assert [m.step for m in lines(monitor, "distortion", "net.0")] == list(range(1, 33))
    assert [m.step for m in lines(monitor, "persistence", "net.0")] == [8, 16, 24, 32]
    assert [m.step for m in lines(monitor, "sharpness")] == [25]
    assert not lines(monitor, "schedule")


class WeightNorm:
    name = "weight_norm"

    def measure(self, capture):
        return {"weight_norm": sum(float(p.detach().norm()) for p in capture.module.parameters())}


def test_a_probe_of_ones_own(tmp_path):
    monitor = dense(probes=[WeightNorm()], max_overhead=None)
    weights = Weights()
    trainer = fit(Classifier(), [monitor, weights], root=tmp_path, max_epochs=4)
    [found] = lines(monitor, "weight_norm")
    assert found.step == 25
    assert found.values["weight_norm"] == pytest.approx(sum(float(p.norm()) for p in weights.seen[25].values()))
    assert float(trainer.callback_metrics["topology/weight_norm"]) == pytest.approx(found.values["weight_norm"])


class Stream(IterableDataset):
    """Can be drawn from only once."""

    def __init__(self):
        self.items = iter(list(dataset()))

    def __iter__(self):
        return self.items


def test_a_stream_is_not_drawn_from(tmp_path):
    monitor = dense()
    fit(Classifier(), [monitor], root=tmp_path, data=DataLoader(Stream(), batch_size=8))
    assert [m.step for m in lines(monitor, "distortion", "net.0")] == list(range(1, 9))
    assert [m.step for m in lines(monitor, "sharpness")] == [4, 8]


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_resume_goes_on_with_the_same_record(tmp_path):
    first = dense()
    trainer = fit(Classifier(), [first], root=tmp_path, max_epochs=2)
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    state = torch.load(path, weights_only=True)["callbacks"][first.state_key]
    assert state["run_id"] == read_record(first.dirpath).run_id

    second = dense()
    fit(Classifier(), [second], root=tmp_path, max_epochs=4, ckpt_path=path)
    assert second.dirpath == first.dirpath
    record = read_record(second.dirpath)
    assert [m.step for m in record.measurements if m.probe == "distortion" and m.group == "net.0"] == list(range(1, 33))
    assert [(e.name, e.step) for e in record.events] == [
        ("unwatched_parameters", 1),
        ("gap", 16),
        ("unwatched_parameters", 17),
    ]
    # Totals go on from the same beginning: at the first step after the resume they do not start over.
    totals = [m.values["total_expansion"] for m in lines(second, "distortion", "net.0")]
    assert totals[16] == pytest.approx(totals[15], rel=0.1)
    assert totals[16] > 1.01
    # What the detector saw live is what a replay of the record sees.
    sharpness = [m.step for m in record.measurements if m.probe == "sharpness"]
    assert sharpness == list(range(4, 33, 4))
    assert replay(record.measurements).state.to_dict() == second.watch.state()["detector"]

    third = dense()
    fit(Classifier(), [third], root=tmp_path, max_epochs=1)
    assert third.dirpath.name == "topology-v1"


def test_a_resume_without_the_old_folder_begins_anew(tmp_path):
    trainer = fit(Classifier(), [dense()], root=tmp_path / "a", max_epochs=1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    (tmp_path / "a").rename(tmp_path / "gone")
    monitor = dense()
    with pytest.warns(UserWarning, match="its history is not shown"):
        fit(Classifier(), [monitor], root=tmp_path / "b", max_epochs=2, ckpt_path=tmp_path / "last.ckpt")
    (gap,) = happened(monitor.events)
    assert gap.name == "gap"
    assert "totals count from here" in gap.message
    text = (monitor.dirpath / "measurements.jsonl").read_text()
    assert '"reference_step": 8' in text


def test_a_monitor_can_be_copied_and_pickled_in_training(tmp_path):
    class Copy(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            for other in (copy.deepcopy(trainer.callbacks[0]), pickle.loads(pickle.dumps(trainer.callbacks[0]))):
                assert other.settings == trainer.callbacks[0].settings

    fit(Classifier(), [dense(), Copy()], root=tmp_path, max_steps=1)


def test_two_monitors_have_their_own_state_and_folder(tmp_path):
    a, b = dense(), dense(dirpath=tmp_path / "other")
    assert a.state_key != b.state_key
    fit(Classifier(), [a, b], root=tmp_path)
    assert (a.dirpath, b.dirpath) == (tmp_path / "topology", tmp_path / "other")
    for monitor in (a, b):
        assert [m.step for m in lines(monitor, "distortion", "net.0")] == list(range(1, 9))


def test_two_monitors_of_one_folder_are_refused_as_the_trainer_is_made(tmp_path):
    """Their probes differ, but they would write one record and publish the same names: one monitor takes all probes."""
    pair = [dense(probes=[Distortion(every_n_steps=1)]), dense(probes=[Persistence(every_n_steps=2)])]
    with pytest.raises(RuntimeError, match="state_key` must be unique"):
        L.Trainer(callbacks=pair, logger=False, default_root_dir=tmp_path)


def test_other_periods_on_a_resume_are_obeyed_and_the_record_goes_on(tmp_path):
    trainer = fit(Classifier(), [dense(probes=[Distortion(every_n_steps=1)])], root=tmp_path, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    monitor = dense(probes=[Distortion(every_n_steps=5)])
    fit(Classifier(), [monitor], root=tmp_path, max_epochs=3, ckpt_path=tmp_path / "last.ckpt")
    assert monitor.dirpath == tmp_path / "topology"
    # The first step after a resume is measured besides.
    assert [m.step for m in lines(monitor, "distortion", "net.0")] == [*range(1, 9), 9, 10, 15, 20]


# --- what goes wrong --------------------------------------------------------------------------------------------------


class Poison(L.Callback):
    """Writes NaN into one layer at a step."""

    def __init__(self, at):
        self.at = at

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == self.at:
            with torch.no_grad():
                pl_module.net[0].weight[0, 0] = math.nan


def test_nan_weights_are_an_event_and_training_goes_on(tmp_path):
    monitor = TopologyMonitor(report=False, max_overhead=None)
    trainer = fit(Classifier(), [Poison(3), monitor], root=tmp_path, max_epochs=2)
    assert trainer.global_step == 16
    record = read_record(monitor.dirpath)
    failed = [e for e in record.events if e.name == "probe_failed"]
    assert {e.group for e in failed} >= {"net.0"}
    assert len(failed) == len({(e.group, e.message.split()[0]) for e in failed})
    assert all(e.remedy and e.severity == "warn" for e in failed)
    assert [m.step for m in record.measurements if m.probe == "distortion" and m.group == "net.0"] == [1, 2, 3]


@pytest.mark.parametrize("width", [1])
def test_one_hidden_unit_is_no_cloud(tmp_path, width):
    monitor = TopologyMonitor(report=False)
    module = Classifier(width=width)
    fit(module, [monitor], root=tmp_path)
    assert {m.group for m in lines(monitor, "distortion")} == {"net.3"}


class NoGroups(Classifier):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 3)


def test_no_group_is_an_event_with_a_remedy_and_the_rest_goes_on(tmp_path):
    monitor = dense()
    fit(NoGroups(), [monitor], root=tmp_path)
    (event,) = happened(monitor.events)
    assert event.name == "probe_failed"
    assert "No neurons found" in event.message
    assert "declare_neurons" in event.remedy
    assert [m.step for m in lines(monitor, "sharpness")] == [4, 8]


def test_a_file_in_the_folders_place_is_said_and_training_goes_on(tmp_path):
    (tmp_path / "topology").write_text("in the way")
    monitor = TopologyMonitor()
    with pytest.warns(UserWarning, match="topology cannot be written.*dirpath"):
        trainer = fit(Classifier(), [monitor], root=tmp_path)
    assert trainer.global_step == 8
    assert monitor.dirpath is None
    assert trainer.callback_metrics["topology/critical_ratio"] > 0
    assert (tmp_path / "topology").read_text() == "in the way"
    with pytest.raises(OSError, match="topology"):
        fit(Classifier(), [TopologyMonitor(on_error="raise")], root=tmp_path)


class Broken:
    name = "broken"
    period = Period(3)

    def measure(self, capture):
        raise RuntimeError("no such luck")


def test_a_probe_that_raises_is_an_event_once(tmp_path):
    monitor = TopologyMonitor([Broken(), Distortion()], report=False, max_overhead=None)
    fit(Classifier(), [monitor], root=tmp_path, max_epochs=2)
    (event,) = happened(monitor.events)
    assert (event.name, event.step) == ("probe_failed", 3)
    assert "no such luck" in event.message
    assert len(lines(monitor, "distortion", "net.0")) == 16
    with pytest.raises(RuntimeError, match="no such luck"):
        fit(Classifier(), [TopologyMonitor([Broken()], on_error="raise")], root=tmp_path)


def test_an_exception_in_training_leaves_a_whole_record(tmp_path):
    class Crash(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 5:
                raise KeyError("crash")

    monitor, module = dense(), Classifier()
    with pytest.raises(KeyError, match="crash"):
        fit(module, [Crash(), monitor], root=tmp_path)
    assert [m.step for m in lines(monitor, "distortion", "net.0")] == [1, 2, 3, 4, 5]


def test_a_logger_that_raises_does_not_stop_the_training(tmp_path):
    class Failing(CSVLogger):
        def log_metrics(self, metrics, step=None):
            if any(key.startswith("topology/") for key in metrics):
                raise ConnectionError("tracker is down")

    monitor = TopologyMonitor(report=False, max_overhead=None)
    with pytest.warns(UserWarning, match="tracker is down"):
        trainer = fit(Classifier(), [monitor], root=tmp_path, logger=Failing(tmp_path), log_every_n_steps=1)
    assert trainer.global_step == 8
    assert len(lines(monitor, "distortion", "net.0")) == 8


def test_frozen_layers_are_measured_as_they_stand(tmp_path):
    module = Classifier()
    for p in module.net[0].parameters():
        p.requires_grad_(False)
    monitor = dense()
    fit(module, [monitor], root=tmp_path)
    assert len(lines(monitor, "distortion", "net.0")) == 8


def test_parameters_are_checked():
    for options, match in (
        ({"groups": "all"}, "groups"),
        ({"on_error": "ignore"}, "on_error"),
        ({"log_groups": "best"}, "log_groups"),
        ({"max_overhead": 0.0}, "max_overhead"),
        ({"probes": [Distortion(), Distortion()]}, "different names"),
    ):
        with pytest.raises((ValueError, TypeError), match=match):
            TopologyMonitor(**options)


class Convolutional(Classifier):
    """Channels, a flattened head, and a dictionary batch."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(1, 5, 2), nn.BatchNorm1d(5), nn.ReLU(), nn.Flatten(), nn.Linear(15, 3))

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0][:, None]), batch[1])
        return {"loss": loss}


def test_other_architectures_are_found_and_measured(tmp_path):
    monitor, weights = dense(), Weights()
    fit(Convolutional(), [monitor, weights], root=tmp_path)
    (group,) = monitor.groups
    assert (group.kind, group.n, group.status) == ("channel", 5, "verified")
    for k, m in enumerate(lines(monitor, "distortion", group.name)):
        x, y = (group.gather(weights.seen[at]).double() for at in (k, k + 1))
        i, j = torch.triu_indices(5, 5, 1)
        truth = ((y - x)[i] - (y - x)[j]).norm(dim=1) / (x[i] - x[j]).norm(dim=1)
        assert m.values["critical_ratio"] == pytest.approx(float(truth.max()), rel=1e-4)


def test_declared_groups_are_verified_and_wrong_ones_are_events(tmp_path):
    module = Classifier()
    right = declare_neurons(module, "right", {"net.0.weight": 0, "net.0.bias": 0, "net.3.weight": 1})
    wrong = declare_neurons(module, "wrong", {"net.3.weight": 0, "net.3.bias": 0})
    monitor = TopologyMonitor([Distortion(every_n_steps=1)], groups=[*right, *wrong], report=False)
    fit(module, [monitor], root=tmp_path)
    assert [group.status for group in monitor.groups] == ["verified", "incoming_only"]
    (event,) = happened(monitor.events)
    assert (event.name, event.group) == ("probe_failed", "wrong")
    assert {m.group for m in lines(monitor, "distortion")} == {"right", "wrong"}


def test_parameters_in_no_group_are_one_event(tmp_path):
    monitor = dense()
    fit(Classifier(), [monitor], root=tmp_path, max_epochs=2)
    (event,) = monitor.events
    assert (event.name, event.step, event.severity, event.value) == ("unwatched_parameters", 1, "info", 1.0)
    assert "net.5.bias" in event.message
    assert "declare_neurons" in event.remedy


def test_a_compiled_module_has_neurons_without_what_reads_them_and_says_why(tmp_path):
    module = Classifier()
    module.net.compile(backend="eager")
    monitor = dense(on_error="warn")
    fit(module, [monitor], root=tmp_path)
    assert [(group.name, group.n, group.status) for group in monitor.groups] == [
        ("net.0", 8, "incoming_only"),
        ("net.3", 6, "incoming_only"),
    ]
    assert all("compile" in group.reason for group in monitor.groups)
    assert {piece.param for group in monitor.groups for piece in group.slices} == {
        *("net.0.weight", "net.0.bias", "net.3.weight", "net.3.bias"),
    }
    unfollowed, neurons, sharpness = happened(monitor.events)
    for event in (unfollowed, neurons):
        assert (event.name, event.step) == ("probe_failed", 1)
        assert "declare_neurons" in event.remedy
    assert "compile" in unfollowed.message
    assert "net.0, net.3 are taken from the structure, without what reads them" in neurons.message
    assert "compile" in sharpness.message
    assert "loss_fn" in sharpness.remedy
    assert len(lines(monitor, "training")) == 8
