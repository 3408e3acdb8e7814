"""A training interrupted anywhere and resumed measures what the uninterrupted one does, from there on."""

import contextlib
import json
import math

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from lightning_topo import (
    Distortion,
    Persistence,
    Sharpness,
    TopologyEarlyStopping,
    TopologyMonitor,
    read_record,
)
from lightning_topo.demo import FullBatch
from lightning_topo.measurement import StepState
from tests.callbacks.training import Classifier, dataset, fit, happened, loader

EPOCHS = 4
OUTSIDE = ("schedule", "coverage")


class Shaken(Classifier):
    """Most steps are small and some too large, by a schedule that is known at every step; validates as well."""

    def __init__(self, momentum=0.9):
        super().__init__(width=12, lr=1.0, momentum=momentum)

    def configure_optimizers(self):
        optimizer = self.make_optimizer()
        rates = {3: 60.0, 12: 30.0, 13: 90.0, 19: 40.0, 24: 60.0, 27: 60.0, 30: 60.0}
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: rates.get(k, 0.02))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.net(batch[0]).square().mean())

    def val_dataloader(self):
        return loader(16)


class Interrupt(L.Callback):
    """Raises in one hook, when so many batches have been seen."""

    def __init__(self, hook, at):
        self.at, self.seen, self.hook = at, 0, hook

    def _count(self, hook):
        if hook == self.hook:
            self.seen += 1
            if self.seen == self.at:
                raise InterruptedError

    def on_train_batch_start(self, *_):
        self._count("batch_start")

    def on_before_optimizer_step(self, *_):
        self._count("backward")

    def on_validation_batch_start(self, *_):
        self._count("validation")

    def on_train_epoch_end(self, *_):
        self._count("epoch_end")


def callbacks(*, curvature):
    probes = [Distortion(every_n_steps=1), Persistence(every_n_epochs=1)]
    if curvature:
        probes.append(Sharpness(every_n_steps=3))
    monitor = TopologyMonitor(probes, report=False, max_overhead=None, on_error="raise")
    return monitor, TopologyEarlyStopping("topology_breakdown", min_count=99)


def data():
    """Each batch is the same: Lightning's resume within an epoch begins with the epoch's first batch again."""
    return DataLoader(FullBatch(dataset(), 8), batch_size=None)


def run(root, interrupts, saver, how, module=Shaken, *, curvature=False):
    """Train to the end, resumed after each interruption from the newest checkpoint; the steps of the resumes."""
    resumed, path = [], None
    for interrupt in [*interrupts, None]:
        checkpoint = ModelCheckpoint(root / "checkpoints", save_top_k=-1, filename="{step}", **saver)
        ours = callbacks(curvature=curvature)
        extra = [] if interrupt is None else [interrupt]
        torch.manual_seed(0)
        made = module()
        options = {"root": root, "max_epochs": EPOCHS, "enable_checkpointing": True, "ckpt_path": path, **how}
        if interrupt is None:
            fit(made, [*ours, *extra, checkpoint], data=data(), **options)
            return made, resumed, ours
        with pytest.raises(InterruptedError):
            fit(made, [*ours, *extra, checkpoint], data=data(), **options)
        path = max(
            (root / "checkpoints").glob("*.ckpt"), key=lambda file: torch.load(file, weights_only=True)["global_step"]
        )
        resumed.append(torch.load(path, weights_only=True)["global_step"])
    raise AssertionError


def lines(record, since):
    """What was measured, by step, probe and group.

    Without the edge of the last batches: it is told by those that were recorded since the resume, of at least two.
    """
    return {
        (m.step, m.probe, m.group): dict(m.values)
        for m in record.measurements
        if m.step > since and m.probe not in (*OUTSIDE, "step_edge")
    }


def edges(record):
    return [m.step for m in record.measurements if m.probe == "step_edge"]


def states(record):
    """What is known of each step of each group, from the lines that stretch over them."""
    found = {}
    for m in record.measurements:
        if m.probe == "coverage":
            for step in range(int(m.values["from"]) + 1, m.step + 1):
                assert (m.group, step) not in found, (m, step)
                found[m.group, step] = StepState(int(m.values["state"]))
    return found


WITH_CURVATURE = {"within an epoch", "in accumulation", "twice"}
POINTS = {
    "within an epoch": ([("batch_start", 14)], {"every_n_train_steps": 5}, {}),
    "with the last batch": ([("batch_start", 19)], {"every_n_train_steps": 8}, {}),
    "at the end of an epoch": ([("batch_start", 13)], {"every_n_epochs": 1, "save_on_train_epoch_end": True}, {}),
    "in the hook of an epoch's end": ([("epoch_end", 2)], {"every_n_train_steps": 6}, {}),
    "in validation": ([("validation", 9)], {"monitor": None}, {"val_check_interval": 4}),
    "in accumulation": ([("batch_start", 15)], {"every_n_train_steps": 2}, {"accumulate_grad_batches": 3}),
    "between backward and step": ([("backward", 14)], {"every_n_train_steps": 1}, {}),
    "twice": ([("batch_start", 12), ("backward", 15)], {"every_n_train_steps": 5}, {}),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted training, by how it is run."""
    made = {}

    def get(how, curvature):
        key = repr((how, curvature))
        if key not in made:
            root = tmp_path_factory.mktemp("whole")
            module, _, (monitor, gate) = run(root, [], {"every_n_train_steps": 1000}, how, curvature=curvature)
            made[key] = module, read_record(monitor.dirpath), gate
        return made[key]

    return get


@pytest.mark.parametrize("point", POINTS)
def test_events_and_measurements_go_on_as_if_nothing_had_happened(tmp_path, whole, point):
    (interrupts, saver, how), curvature = POINTS[point], point in WITH_CURVATURE
    module, record, gate = whole(how, curvature)
    again, resumed, (monitor, gate_again) = run(
        tmp_path, [Interrupt(*at) for at in interrupts], saver, how, curvature=curvature
    )
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True))
    found, since = read_record(monitor.dirpath), resumed[-1]
    assert 0 < since < max(m.step for m in record.measurements)
    # Whatever was interrupted, the record as a whole has every measurement once.
    assert monitor.dirpath == tmp_path / "topology"
    assert not (tmp_path / "topology-v1").exists()
    assert lines(found, -1).keys() == lines(record, -1).keys()
    absent = sorted(set(edges(record)) - set(edges(found)))
    assert len(absent) <= len(resumed)
    assert set(edges(found)) <= set(edges(record))
    assert all(step > resumed[0] for step in absent)
    assert states(found) == states(record)
    assert states(found).keys() == {(m.group, m.step) for m in record.measurements if m.probe == "distortion"}
    captures = [m.step for m in record.measurements if m.probe == "persistence" and m.step > since]
    for key, values in lines(record, since).items():
        step, probe, _ = key
        for name, value in values.items():
            if probe == "persistence" and step == captures[0] and name.startswith("log_bottleneck"):
                # To the capture before: the first after a resume has none.
                assert name not in lines(found, since)[key]
                continue
            if probe == "sharpness":
                continue  # below
            other = lines(found, since)[key][name]
            assert other == value or (math.isnan(other) and math.isnan(value)), (key, name)
    # The first Hessian eigenvalue after a resume is sought from a cold start, which may find another one than the warm.
    for name in ("sharpness", "sharpness_ratio", "eta_lambda"):
        a, b = (
            [m.values[name] for m in each.measurements if m.probe == "sharpness" and m.step > since]
            for each in (record, found)
        )
        assert b[1:] == pytest.approx(a[1:], rel=1e-3), name
    gaps = [e.step for e in found.events if e.name == "gap"]
    assert gaps == resumed
    after = found.events[max(k for k, e in enumerate(found.events) if e.name == "gap") + 1 :]
    assert told(after) == told(e for e in record.events if e.step > since)
    assert told(after)
    assert gate_again._counted.counts == gate._counted.counts


def told(events):
    """Jumps of a diagram are left out: what counts as one is judged by those before, and the first is cut short.

    What every fit reports of its own, too; and the edge that the batches since the resume have told.
    """
    return [
        (e.name, e.step, e.group)
        for e in happened(events)
        if e.name != "diagram_jump" and "(source: batch)" not in e.message
    ]


def test_every_step_keeps_its_state_though_its_line_ended_later(tmp_path):
    """A line of equal states may stretch over the step of the checkpoint; only later lines are abandoned."""

    def start(path=None, extra=()):
        torch.manual_seed(0)
        probes = [Distortion(every_n_steps=4)]
        monitor = TopologyMonitor(probes, report=False, max_overhead=None, on_error="raise")
        checkpoint = ModelCheckpoint(tmp_path / "checkpoints", save_top_k=-1, filename="{step}", every_n_train_steps=6)
        options = {"root": tmp_path, "max_epochs": EPOCHS, "enable_checkpointing": True, "ckpt_path": path}
        with contextlib.suppress(InterruptedError):
            fit(Classifier(lr=0.01), [monitor, *extra, checkpoint], data=data(), **options)
        return read_record(monitor.dirpath)

    start(extra=[Interrupt("batch_start", 16)])
    record = start(tmp_path / "checkpoints" / "step=12.ckpt")
    measured = {(m.group, m.step) for m in record.measurements if m.probe == "distortion"}
    # The first step, the first after the resume, and those that the period names.
    assert measured == {(g, k) for g in ("net.0", "net.3") for k in (1, 13, *range(4, 33, 4))}
    known = states(record)
    assert known.keys() == {(g, k) for g in ("net.0", "net.3") for k in range(1, 33)}
    assert {key for key, state in known.items() if state is StepState.EXACT} == measured
    assert set(known.values()) == {StepState.EXACT, StepState.BOUNDED}


def test_nothing_that_was_written_is_ever_changed(tmp_path):
    """Each file of lines only grows, also where steps are measured again."""
    seen = {}

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            for name in ("measurements.jsonl", "events.jsonl"):
                now = (tmp_path / "topology" / name).read_bytes()
                assert now.startswith(seen.get(name, b""))
                seen[name] = now

    class Looked(Shaken):
        def configure_callbacks(self):
            return [Look()]

    run(tmp_path, [Interrupt("batch_start", 12)], {"every_n_train_steps": 5}, {}, Looked)
    steps = [
        m["step"] for m in map(json.loads, seen["measurements.jsonl"].splitlines()) if m.get("probe") == "training"
    ]
    assert (steps.count(10), steps.count(11)) == (1, 2)
    assert not (tmp_path / "topology-v1").exists()


class TwoScales(Classifier):
    """One of two vectors beside a frozen layer is trained: both have one form."""

    def __init__(self, trained):
        super().__init__(width=12, lr=0.2)
        self.net.requires_grad_(False)
        self.scales = torch.nn.ParameterDict({name: torch.nn.Parameter(torch.ones(12)) for name in "ab"})
        self.scales[trained].requires_grad_(True)
        self.scales["b" if trained == "a" else "a"].requires_grad_(False)

    def training_step(self, batch, batch_idx):
        hidden = self.net[1](self.net[0](batch[0])) * self.scales["a"] * self.scales["b"]
        return torch.nn.functional.cross_entropy(self.net[2:](hidden), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.2)


@pytest.mark.parametrize("second", ["a", "b"])
def test_totals_begin_anew_where_something_else_is_trained_after_a_resume(tmp_path, second):
    torch.manual_seed(0)
    options = {"dirpath": tmp_path / "run", "verbose": False, "max_overhead": None}
    first = TwoScales("a")
    trainer = fit(first, [TopologyMonitor([Distortion(1)], **options)], root=tmp_path, max_steps=4)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    module, monitor = TwoScales(second), TopologyMonitor([Distortion(1)], **options)
    fit(module, [monitor], root=tmp_path, max_steps=8, max_epochs=9, ckpt_path=tmp_path / "one.ckpt")
    [group] = [group for group in monitor.groups if "scales.a" in group.parameter_names]
    of_group = [m for m in monitor.record.measurements if (m.probe, m.group) == ("distortion", group.name)]
    total = {m.step: m.values["total_log_distortion"] for m in of_group}
    assert max(total) == 8
    [resumed] = [event for event in monitor.events if "Resumed from" in event.message]
    lines = [json.loads(line) for line in (tmp_path / "run" / "measurements.jsonl").read_text().splitlines()[1:]]
    since = {line["step"]: line["reference_step"] for line in lines if line["group"] == group.name}
    if second == "a":
        assert "count from here" not in resumed.message
        assert since == dict.fromkeys(range(1, 9), 0)
        return
    assert "totals count from here" in resumed.message
    assert since == dict.fromkeys(range(1, 5), 0) | dict.fromkeys(range(5, 9), 4)
    # From there on, what the second vector has moved alone.
    clouds = []
    for values in (torch.ones(12), module.scales["b"].detach()):
        parameters = {name: p.detach() for name, p in module.named_parameters()} | {"scales.b": values}
        clouds.append(group.gather(parameters))
    i, j = torch.triu_indices(12, 12, 1)
    apart = [(cloud[i] - cloud[j]).double().norm(dim=1) for cloud in clouds]
    stretch = apart[1] / apart[0]
    assert total[8] == pytest.approx(math.log(stretch.max() / stretch.min()), rel=1e-3)
