"""The sharpness probe as a training has it: when it measures, and of what."""

import math
import warnings

import pytest
import torch
from torch import nn

from lightning_topo import Distortion, Sharpness, TopologyMonitor, read_record
from lightning_topo.probes import _approach as approach
from tests.callbacks.training import Classifier, Weights, dataset, fit, happened, loader


def watched(tmp_path, module, probes, **options):
    monitor = TopologyMonitor(probes, report=False, on_error="raise", max_overhead=None)
    fit(module, [monitor], root=tmp_path, **options)
    return monitor, read_record(monitor.dirpath)


def sharpnesses(record):
    return {m.step: m.values for m in record.measurements if m.probe == "sharpness" and m.group == ""}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_sharpness_is_that_of_the_loss_on_the_recorded_steps_samples(tmp_path, accumulate):
    """Against the dense Hessian, in float64, at the weights where the step has ended."""
    torch.manual_seed(0)
    module, weights = Classifier(), Weights()
    probes = [Sharpness(every_n_steps=4, tolerance=1e-4)]
    options = {"data": loader(64 * accumulate), "accumulate_grad_batches": accumulate}
    monitor = TopologyMonitor(probes, report=False, on_error="raise", max_overhead=None)
    fit(module, [monitor, weights], root=tmp_path, **options)
    found = sharpnesses(read_record(monitor.dirpath))
    assert list(found) == [4, 8]
    x, y = dataset(64 * accumulate)[:]
    net = module.net.double()

    def truth(end, steps):
        size = 8 * accumulate
        rows = torch.cat([torch.arange((k - 1) * size, k * size) for k in steps])
        names, values = zip(*weights.seen[end * accumulate].items(), strict=True)
        sizes = [value.numel() for value in values]

        def loss(flat):
            parts = zip(names, flat.split(sizes), values, strict=True)
            named = {name.removeprefix("net."): part.view_as(like) for name, part, like in parts}
            return nn.functional.cross_entropy(torch.func.functional_call(net, named, x[rows].double()), y[rows])

        flat = torch.cat([value.flatten() for value in values]).double()
        return float(torch.linalg.eigvalsh(torch.func.hessian(loss)(flat))[-1])

    assert found[4]["sharpness"] == pytest.approx(truth(4, [1, 4]), rel=1e-2)
    assert found[8]["sharpness"] == pytest.approx(truth(8, [1, 4, 8]), rel=1e-2)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_adam_has_a_ratio_from_the_first_measurement_on(tmp_path, accumulate):
    torch.manual_seed(0)  # a step that goes uphill on the recorded samples has no directional ratio
    module = Classifier(optimizer=torch.optim.Adam, lr=1e-3)
    _, record = watched(
        tmp_path, module, [Sharpness(every_n_steps=1)], accumulate_grad_batches=accumulate, data=loader(64, 64 // 8)
    )
    found = sharpnesses(record)
    assert list(found) == list(range(1, 8 // accumulate + 1))
    assert all("sharpness_ratio" in values for values in found.values())
    assert all("directional_ratio" in values for values in found.values())


def test_an_optimizer_that_begins_later_is_measured_again_after_its_first_step(tmp_path):
    class Late(Classifier):
        """The second optimizer steps from the fourth batch on."""

        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.manual_backward(loss)
            for optimizer in self.optimizers()[: 1 if batch_idx < 3 else 2]:
                optimizer.step()
                optimizer.zero_grad()
            return loss

        def configure_optimizers(self):
            return [torch.optim.Adam(half.parameters(), lr=1e-3) for half in (self.net[:3], self.net[3:])]

    _, record = watched(tmp_path, Late(), [Sharpness(every_n_steps=3)])
    found = sharpnesses(record)
    assert list(found) == [3, 4, 6]
    assert ["sharpness_ratio" in values for values in found.values()] == [False, True, True]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_batch_norm_dropout_accumulation_and_precision_have_a_ratio(tmp_path, precision):
    module = Classifier(norm=True, dropout=0.2, optimizer=torch.optim.AdamW, lr=1e-3)
    _, record = watched(tmp_path, module, [Sharpness(every_n_steps=2)], precision=precision, accumulate_grad_batches=2)
    found = sharpnesses(record)
    assert found[4]["converged"]
    assert found[4]["sharpness_ratio"] > 0


def test_a_compiled_module_is_measured_with_a_loss_of_ones_own_as_its_eager_self(tmp_path):
    def loss_fn(module, batch):
        return nn.functional.cross_entropy(module.net(batch[0]), batch[1])

    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        module = Classifier()
        if compiled:
            module.net.compile(backend="aot_eager")
        monitor = TopologyMonitor([Sharpness(every_n_steps=1, loss_fn=loss_fn)], report=False, max_overhead=None)
        fit(module, [monitor], root=tmp_path / str(compiled), max_steps=1)
        found.append(sharpnesses(read_record(monitor.dirpath))[1]["sharpness"])
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_the_three_levels_stand_side_by_side(tmp_path):
    probes = [Distortion(every_n_steps=1), Sharpness(every_n_steps=4, swap_pairs=3, micro_batch=16, n_largest=2)]
    monitor, record = watched(tmp_path, Classifier(), probes, data=loader(64, 64), max_epochs=8)
    for group in monitor.groups:
        (swap,) = (m for m in record.measurements if m.probe == "sharpness" and (m.group, m.step) == (group.name, 8))
        (step,) = (m for m in record.measurements if m.probe == "distortion" and (m.group, m.step) == (group.name, 8))
        assert 0 < swap.values["swap_ratio"] < sharpnesses(record)[8]["eta_lambda"]
        assert step.values["critical_ratio"] > 0
    assert sharpnesses(record)[8]["micro_batch"] == 16  # a recorded step is cut
    assert sharpnesses(record)[8]["sharpness_2"] < sharpnesses(record)[8]["sharpness"]


def test_a_scheduler_s_learning_rate_is_the_one_of_the_step_to_come(tmp_path):
    class Scheduled(Classifier):
        def configure_optimizers(self):
            optimizer = self.make_optimizer()
            return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5), "interval": "step"}]

    _, record = watched(tmp_path, Scheduled(lr=0.2), [Sharpness(every_n_steps=2)])
    for step, values in sharpnesses(record).items():
        assert values["sharpness_ratio"] == pytest.approx(0.2 * 0.5**step / 2 * values["sharpness"])


@pytest.mark.parametrize("second", [torch.optim.Rprop, torch.optim.SGD])
def test_two_optimizers_have_a_ratio_where_both_are_known(tmp_path, second):
    class Two(Classifier):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            return loss

        def configure_optimizers(self):
            halves = self.net[:3].parameters(), self.net[3:].parameters()
            return torch.optim.Adam(halves[0], lr=1e-3), second(halves[1], lr=1e-3)

    def loss_fn(module, batch):
        return nn.functional.cross_entropy(module.net(batch[0]), batch[1])

    _, record = watched(tmp_path, Two(), [Sharpness(every_n_steps=2, loss_fn=loss_fn)])
    found = sharpnesses(record)
    assert list(found) == [2, 4, 6, 8]
    assert all(("sharpness_ratio" in values) == (second is torch.optim.SGD) for values in found.values())
    assert all("sharpness" in values for values in found.values())


def test_an_operator_without_double_backward_is_marked_in_the_record_and_kept_from_the_trackers(tmp_path):
    class Embedded(Classifier):
        """Looks its inputs up in a table, by an operator whose backward pass has no derivative."""

        def __init__(self):
            super().__init__()
            self.table = nn.EmbeddingBag(10, 4, mode="max")

        def training_step(self, batch, batch_idx):
            rows = batch[0].abs().mul(3).long().clamp(max=9)
            return super().training_step((self.table(rows) + batch[0], batch[1]), batch_idx)

    probes = [Sharpness(every_n_steps=4)]
    monitor = TopologyMonitor(probes, report=False, on_error="raise", max_overhead=None)
    with pytest.warns(UserWarning, match="second derivative") as said:
        trainer = fit(Embedded(), [monitor], root=tmp_path)
    assert sum("second derivative" in str(w.message) for w in said) == 1
    found = sharpnesses(read_record(monitor.dirpath))
    assert list(found) == [4, 8]
    assert all(values["exact"] == 0.0 and values["converged"] for values in found.values())
    assert "topology/sharpness_ratio" in trainer.callback_metrics
    assert not {"topology/exact", "topology/micro_batch"} & trainer.callback_metrics.keys()


def test_recorded_steps_larger_than_memory_are_measured_one_by_one_while_training_goes_on(tmp_path, monkeypatch):
    torch.manual_seed(0)
    whole = sharpnesses(watched(tmp_path / "whole", Classifier(), [Sharpness(every_n_steps=4)])[1])

    def too_large(loss_fn, params):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 bytes.")

    monkeypatch.setattr(approach, "hessian", too_large)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="8 samples at a time") as said:
        _, record = watched(tmp_path, Classifier(), [Sharpness(every_n_steps=4), Distortion()])
    assert sum("memory ran out" in str(w.message) for w in said) == 1
    found = sharpnesses(record)
    assert list(found) == list(whole) == [4, 8]
    for step, values in found.items():
        assert values["micro_batch"] == 8.0
        assert values["sharpness"] == pytest.approx(whole[step]["sharpness"], rel=0.02)
    assert happened(record.events) == []


@pytest.mark.parametrize("empty", ["map", "stream", "limit"])
def test_an_empty_dataloader_trains_nothing_and_measures_nothing(tmp_path, empty):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(())

    data = {
        "map": loader(0, sampler=torch.utils.data.SequentialSampler([])),
        "stream": torch.utils.data.DataLoader(Stream(), batch_size=8),
        "limit": loader(),
    }[empty]
    options = {"limit_train_batches": 0} if empty == "limit" else {}
    monitor = TopologyMonitor(on_error="raise")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(zero|dataloader).*")
        trainer = fit(Classifier(), [monitor], root=tmp_path, data=data, **options)
    assert trainer.global_step == 0
    assert monitor.dirpath is None
    assert not list(tmp_path.glob("**/topology*"))
    assert not monitor.events


class Signed(torch.optim.Optimizer):
    """Steps by the sign of the gradient, as far as `step_size` says: it has no "lr"."""

    def __init__(self, params, step_size):
        super().__init__(params, {"step_size": step_size})

    def step(self, closure=None):
        loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p -= group["step_size"] * p.grad.sign()
        return loss


def test_an_optimizer_without_lr_has_a_sharpness_and_no_ratio(tmp_path):
    module = Classifier()
    module.make_optimizer = lambda: Signed(module.parameters(), step_size=1e-3)
    probes = [Distortion(every_n_steps=1), Sharpness(every_n_steps=2)]
    monitor, record = watched(tmp_path, module, probes, data=loader(64, 64), max_epochs=8)
    found = sharpnesses(record)
    assert list(found) == [2, 4, 6, 8]
    for values in found.values():
        assert not {"sharpness_ratio", "eta_lambda", "directional_ratio"} & values.keys()
    steps = [m.step for m in record.measurements if m.probe == "step_edge" and "directional_ratio" in m.values]
    assert steps
    assert len(set(steps)) == len(steps)
    [why] = happened(monitor.events)
    assert (why.name, why.step) == ("gap", 2)
    assert why.message == "There is no sharpness_ratio and no eta_lambda: Signed: its rule is not known."


def test_a_loss_or_a_hessian_that_is_not_finite_is_an_event_and_training_goes_on(tmp_path):
    class Cusp(Classifier):
        """Its loss has no second derivative where the extra weight stands, and is not finite at steps 4 and 5."""

        def __init__(self):
            super().__init__()
            self.extra = nn.Parameter(torch.zeros(1))

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx) + (self.extra.abs() ** 1.5).sum()
            return loss + math.nan if batch_idx in (3, 4) else loss

    monitor = TopologyMonitor(
        [Distortion(every_n_steps=1), Sharpness(every_n_steps=2)], report=False, max_overhead=None
    )
    trainer = fit(Cusp(), [monitor], root=tmp_path)
    assert trainer.global_step == 8
    failed, single = (e for e in monitor.events if e.name == "probe_failed")
    assert "sharpness failed: expected finite Hessian products" in failed.message
    # The probe beside it looks at the batches one by one, and so meets the fourth.
    assert "step_edge failed: expected a finite loss, got nan" in single.message
    assert single.step == 4
    (unstable,) = (e for e in monitor.events if e.name == "instability")
    assert unstable.step == 4
    assert math.isnan(unstable.value)
    steps = {m.step for m in read_record(monitor.dirpath).measurements if m.probe == "distortion"}
    assert steps == set(range(1, 9))

    def diverged(module, batch):
        return module(batch) * math.inf

    class Forward(Classifier):
        def forward(self, batch):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    monitor = TopologyMonitor([Sharpness(every_n_steps=2, loss_fn=diverged)], report=False)
    assert fit(Forward(), [monitor], root=tmp_path).global_step == 8
    failed = happened(monitor.events)
    assert {event.message.partition(" ")[0] for event in failed} == {"sharpness", "step_edge"}
    assert all("expected a finite loss, got inf" in event.message for event in failed)
