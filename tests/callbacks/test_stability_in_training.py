"""The sharpness probe as a training has it: when it measures, and of what."""

import math
import warnings

import pytest
import torch
from torch import nn

from lightning_topo import Distortion, Sharpness, TopologyMonitor, read_record
from tests.callbacks.training import Classifier, fit, loader


def watched(tmp_path, module, probes, **options):
    monitor = TopologyMonitor(probes, report=False, on_error="raise", max_overhead=None)
    fit(module, [monitor], root=tmp_path, **options)
    return monitor, read_record(monitor.dirpath)


def sharpnesses(record):
    return {m.step: m.values for m in record.measurements if m.probe == "sharpness" and m.group == ""}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_adam_is_measured_again_after_its_first_step(tmp_path, accumulate):
    torch.manual_seed(0)  # a step that goes uphill on the probe batch has no directional ratio
    module = Classifier(optimizer=torch.optim.Adam, lr=1e-3)
    _, record = watched(tmp_path, module, [Sharpness(every_n_steps=3)], accumulate_grad_batches=accumulate)
    found = sharpnesses(record)
    assert list(found) == ([0, 1, 3, 6] if accumulate == 1 else [0, 1, 3])
    assert "sharpness_ratio" not in found[0]
    assert all("sharpness_ratio" in found[step] for step in found if step)
    assert all("directional_ratio" in found[step] for step in found if step)


def test_sgd_is_not(tmp_path):
    _, record = watched(tmp_path, Classifier(), [Sharpness(every_n_steps=3)])
    found = sharpnesses(record)
    assert list(found) == [0, 3, 6]
    assert "sharpness_ratio" in found[0]
    assert "directional_ratio" not in found[0]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_batch_norm_dropout_accumulation_and_precision_have_a_ratio(tmp_path, precision):
    module = Classifier(norm=True, dropout=0.2, optimizer=torch.optim.AdamW, lr=1e-3)
    _, record = watched(tmp_path, module, [Sharpness(every_n_steps=2)], precision=precision, accumulate_grad_batches=2)
    found = sharpnesses(record)
    assert found[4]["converged"]
    assert found[4]["sharpness_ratio"] > 0


def test_a_compiled_module_is_measured_as_its_eager_self(tmp_path):
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        module = Classifier()
        if compiled:
            module.net.compile(backend="aot_eager")
        _, record = watched(tmp_path / str(compiled), module, [Sharpness(every_n_steps=4)])
        found.append(sharpnesses(record)[8]["sharpness"])
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_the_three_levels_stand_side_by_side(tmp_path):
    probes = [Distortion(every_n_steps=1), Sharpness(every_n_steps=4, swap_pairs=3, micro_batch=16, n_largest=2)]
    monitor, record = watched(tmp_path, Classifier(), probes, data=loader(64, 64), max_epochs=8)
    for group in monitor.groups:
        (swap,) = (m for m in record.measurements if m.probe == "sharpness" and (m.group, m.step) == (group.name, 8))
        (step,) = (m for m in record.measurements if m.probe == "distortion" and (m.group, m.step) == (group.name, 8))
        assert 0 < swap.values["swap_ratio"] < sharpnesses(record)[8]["eta_lambda"]
        assert step.values["critical_ratio"] > 0
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
    assert all(
        ("sharpness_ratio" in values) == (second is torch.optim.SGD and step > 0) for step, values in found.items()
    )
    assert "sharpness" in found[8]


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
    assert list(found) == [0, 4, 8]
    assert all(values["exact"] == 0.0 and values["converged"] for values in found.values())
    assert "topology/sharpness_ratio" in trainer.callback_metrics
    assert not {"topology/exact", "topology/micro_batch"} & trainer.callback_metrics.keys()


def test_a_probe_batch_larger_than_memory_is_measured_in_parts_while_training_goes_on(tmp_path):
    class Small(Classifier):
        """Has room for 40 samples at a time."""

        def training_step(self, batch, batch_idx):
            if len(batch[0]) > 40:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 bytes.")
            return super().training_step(batch, batch_idx)

    with pytest.warns(UserWarning, match="32 samples of the probe batch at a time") as said:
        _, record = watched(tmp_path, Small(), [Sharpness(every_n_steps=4), Distortion()])
    assert sum("memory ran out" in str(w.message) for w in said) == 1
    whole = watched(tmp_path / "whole", Classifier(), [Sharpness(every_n_steps=4)])[1]
    found, truth = sharpnesses(record), sharpnesses(whole)
    assert all(values["micro_batch"] == 32.0 for values in found.values())
    assert len(found) == len(truth) == 3
    assert not [e for e in record.events if "sharpness" in e.message]
    # Neurons are found, whole, on as many samples as there is room for.
    assert record.groups
    assert not [e for e in record.events if "neurons" in e.message.lower()]


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
    assert list(found) == [0, 2, 4, 6, 8]
    for step, values in found.items():
        assert not {"sharpness_ratio", "eta_lambda"} & values.keys()
        assert ("directional_ratio" in values) == (step > 0)
    assert monitor.events == ()


def test_a_loss_or_a_hessian_that_is_not_finite_is_an_event_and_training_goes_on(tmp_path):
    class Cusp(Classifier):
        """Its loss has no second derivative where the extra weight stands, and is not finite at steps 4 and 5."""

        def __init__(self):
            super().__init__()
            self.extra = nn.Parameter(torch.zeros(1))

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx) + (self.extra.abs() ** 1.5).sum()
            return loss + math.nan if batch_idx in (3, 4) else loss

    monitor = TopologyMonitor([Distortion(every_n_steps=1), Sharpness(every_n_steps=2)], report=False)
    trainer = fit(Cusp(), [monitor], root=tmp_path)
    assert trainer.global_step == 8
    (failed,) = (e for e in monitor.events if e.name == "probe_failed")
    assert "finite Hessian products" in failed.message
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
    (failed,) = monitor.events
    assert "expected a finite loss, got inf" in failed.message
