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

from lightning_topo import Distortion, Persistence, Sharpness, TopologyMonitor, read_record
from lightning_topo.neurons import NeuronGroup, ParamSlice, declare_neurons
from lightning_topo.phases import replay
from tests.callbacks.training import Classifier, Weights, dataset, fit, loader


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
    plain_noise, watched_noise = Noisy(), Noisy()
    plain, plain_trainer = trained(tmp_path, [plain_noise], **options)
    watched, watched_trainer = trained(tmp_path, [watched_noise, dense()], **options)
    for (name, a), b in zip(plain.state_dict().items(), watched.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert plain_noise.drawn == watched_noise.drawn
    a, b = (t.optimizers[0].state_dict()["state"] for t in (plain_trainer, watched_trainer))
    assert all(torch.equal(a[k]["momentum_buffer"], b[k]["momentum_buffer"]) for k in a)
    assert plain.training == watched.training
    assert len(watched_trainer.optimizers[0]._optimizer_step_post_hooks) == 0
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
    monitor, weights = TopologyMonitor(groups=declared(), report=False), Weights()
    fit(TwoOptimizers(), [monitor, weights], root=tmp_path)
    found = lines(monitor, "distortion", "net.0")
    assert [m.step for m in found] == list(range(1, 9))
    for k, m in enumerate(found):
        truth = brute_force(weights.seen[k], weights.seen[k + 1], declared()[0].slices)
        assert m.values["critical_ratio"] == pytest.approx(truth[0], rel=1e-4)
    # training_step would step: sharpness is switched off, once, with what to do instead.
    (event,) = [e for e in monitor.events if e.name == "probe_failed"]
    assert "manual optimization" in event.message
    assert "loss_fn" in event.remedy


def test_neurons_are_found_by_the_forward_pass_where_the_training_step_steps(tmp_path):
    class Forward(TwoOptimizers):
        def forward(self, x):
            return self.net(x)

    monitor = TopologyMonitor([Distortion(every_n_steps=1)], report=False)
    fit(Forward(), [monitor], root=tmp_path)
    assert {group.name: group.status for group in monitor.groups} == {"net.0": "verified", "net.3": "verified"}
    assert monitor.events == ()


def declared():
    pieces = (ParamSlice("net.0.weight"), ParamSlice("net.0.bias"), ParamSlice("net.3.weight", dims=(1,)))
    return [NeuronGroup("net.0", "unit", 8, (), pieces, status="declared")]


def test_sharpness_with_a_loss_of_ones_own_under_manual_optimization(tmp_path):
    def loss(module, batch):
        return nn.functional.cross_entropy(module.net(batch[0]), batch[1])

    monitor = TopologyMonitor([Sharpness(every_n_steps=2, loss_fn=loss)], groups=declared(), report=False)
    fit(TwoOptimizers(), [monitor], root=tmp_path)
    assert [m.step for m in lines(monitor, "sharpness")] == [0, 2, 4, 6, 8]
    assert monitor.events == ()


# --- what is published ------------------------------------------------------------------------------------------------

STEP_KEYS = {"critical_ratio": 0.0, "contraction": 1.0, "expansion": 1.0, "log_distortion": 0.0}


def test_every_key_is_there_before_the_first_step(tmp_path):
    class Look(L.Callback):
        def on_train_start(self, trainer, pl_module):
            self.metrics = dict(trainer.callback_metrics)

    look = Look()
    trainer = fit(Classifier(), [dense(), look], root=tmp_path)
    for name, identity in STEP_KEYS.items():
        assert look.metrics[f"topology/net_0/{name}"] == identity
    assert look.metrics["topology/critical_ratio"] == 0.0
    assert look.metrics["topology/net_0/total_expansion"] == 1.0
    assert look.metrics["topology/net_0/distinct_neurons"] == 8
    for name in ("sharpness", "sharpness_ratio", "eta_lambda", "overhead", "phase"):
        assert math.isfinite(look.metrics[f"topology/{name}"])
    for name in ("betti_0", "betti_1", "total_persistence_0", "entropy_1", "max_persistence_1"):
        assert math.isfinite(look.metrics[f"topology/net_0/{name}"])
    # One capture has nothing before it to be compared with.
    added = set(trainer.callback_metrics) - set(look.metrics)
    assert {key for key in added if key.startswith("topology/net_0/")} == {
        "topology/net_0/log_bottleneck_0",
        "topology/net_0/log_bottleneck_1",
        "topology/net_0/log_bottleneck_bound",
    }


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
    assert [m.step for m in lines(monitor, "persistence", "net.0")] == [0, 8, 16, 24]
    captured = lines(monitor, "persistence", "net.0")[1].values
    assert rows[7]["topology/net_0/max_persistence_0"] == pytest.approx(captured["max_persistence_0"])
    assert rows[0]["topology/net_0/critical_ratio"] == 0.0


def test_the_worst_group_of_each_quantity_is_logged(tmp_path):
    logger = CSVLogger(tmp_path)
    monitor = dense()
    fit(Classifier(), [monitor], root=tmp_path, logger=logger, log_every_n_steps=8)
    row = logger.experiment.metrics_keys
    assert "topology/critical_ratio" in row
    last = {g: lines(monitor, "distortion", g)[-1].values["total_contraction"] for g in ("net.0", "net.3")}
    worst = min(last, key=last.get).replace(".", "_")
    assert f"topology/{worst}/total_contraction" in row


# --- when -------------------------------------------------------------------------------------------------------------


def test_numbers_are_obeyed(tmp_path):
    probes = [Distortion(every_n_steps=3), Persistence(every_n_steps=5), Sharpness(every_n_steps=4)]
    monitor, weights = dense(probes=probes), Weights()
    fit(Classifier(), [monitor, weights], root=tmp_path, max_epochs=2)
    found = lines(monitor, "distortion", "net.0")
    assert [m.step for m in found] == [3, 6, 9, 12, 15]
    for m in found:
        slices = monitor.groups[0].slices
        truth = brute_force(weights.seen[m.step - 1], weights.seen[m.step], slices)
        assert m.values["critical_ratio"] == pytest.approx(truth[0], rel=1e-4)
    assert [m.step for m in lines(monitor, "persistence", "net.0")] == [0, 5, 10, 15]
    assert [m.step for m in lines(monitor, "sharpness")] == [0, 4, 8, 12, 16]


def test_auto_measures_the_first_200_steps_fully_and_then_keeps_to_its_share(tmp_path):
    monitor = TopologyMonitor(report=False, max_overhead=0.02)
    fit(Classifier(), [monitor], root=tmp_path, data=loader(n=800), max_epochs=3)
    steps = [m.step for m in lines(monitor, "distortion", "net.0")]
    assert steps[:200] == list(range(1, 201))
    assert len(steps) < 230
    assert lines(monitor, "schedule")[0].step >= 200
    free = TopologyMonitor([Distortion()], report=False, max_overhead=None)
    fit(Classifier(), [free], root=tmp_path, data=loader(n=840), max_epochs=2)
    assert len(lines(free, "distortion", "net.0")) == 210


class WeightNorm:
    name = "weight_norm"

    def measure(self, capture):
        return {"weight_norm": sum(float(p.detach().norm()) for p in capture.module.parameters())}


def test_a_probe_of_ones_own(tmp_path):
    monitor = dense(probes=[WeightNorm()], max_overhead=None)
    trainer = fit(Classifier(), [monitor], root=tmp_path, max_epochs=4)
    assert [m.step for m in lines(monitor, "weight_norm")] == [0, 25]
    assert trainer.callback_metrics["topology/weight_norm"] > 0


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
    assert lines(monitor, "sharpness")[0].step == 0


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
    assert [(e.name, e.step) for e in record.events] == [("gap", 16)]
    # Totals go on from the same beginning: at the first step after the resume they do not start over.
    totals = [m.values["total_expansion"] for m in lines(second, "distortion", "net.0")]
    assert totals[16] == pytest.approx(totals[15], rel=0.1)
    assert totals[16] > 1.01
    # What the detector saw live is what a replay of the record sees.
    sharpness = [m.step for m in record.measurements if m.probe == "sharpness"]
    assert sharpness == list(range(0, 33, 4))
    assert replay(record.measurements).state == second._session._journal.detector

    third = dense()
    fit(Classifier(), [third], root=tmp_path, max_epochs=1)
    assert third.dirpath.name == "topology-v1"


def test_a_resume_without_the_old_folder_begins_anew(tmp_path):
    trainer = fit(Classifier(), [dense()], root=tmp_path / "a", max_epochs=1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    (tmp_path / "a").rename(tmp_path / "gone")
    monitor = dense()
    fit(Classifier(), [monitor], root=tmp_path / "b", max_epochs=2, ckpt_path=tmp_path / "last.ckpt")
    (gap,) = monitor.events
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
    a, b = dense(), dense(probes=[Distortion()])
    assert a.state_key != b.state_key
    fit(Classifier(), [a, b], root=tmp_path, enable_checkpointing=False)
    assert {a.dirpath.name, b.dirpath.name} == {"topology", "topology-v1"}


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
    monitor = TopologyMonitor(report=False)
    fit(NoGroups(), [monitor], root=tmp_path)
    (event,) = monitor.events
    assert event.name == "probe_failed"
    assert "No neurons found" in event.message
    assert "declare_neurons" in event.remedy
    assert lines(monitor, "sharpness")


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

    def measure(self, capture):
        raise RuntimeError("no such luck")


def test_a_probe_that_raises_is_an_event_once(tmp_path):
    monitor = TopologyMonitor([Broken(), Distortion()], report=False, max_overhead=None)
    fit(Classifier(), [monitor], root=tmp_path, max_epochs=8)
    (event,) = monitor.events
    assert "no such luck" in event.message
    assert len(lines(monitor, "distortion", "net.0")) == 64
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

    monitor = TopologyMonitor(report=False)
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
    (event,) = monitor.events
    assert (event.name, event.group) == ("probe_failed", "wrong")
    assert {m.group for m in lines(monitor, "distortion")} == {"right", "wrong"}
