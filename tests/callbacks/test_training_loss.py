"""The loss on the probe batch: what it is, and what it leaves behind."""

import lightning as L
import pytest
import torch
import torchmetrics
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from lightning_topo.callbacks.training_loss import MIN_SAMPLES, sample_batch, training_loss
from lightning_topo.probes import ProbeUnavailable
from lightning_topo.stability import sharpness
from tests.callbacks.training import Classifier, dataset, fit, loader


class At(L.Callback):
    """Runs a function in the middle of a training."""

    def __init__(self, function):
        self.function = function

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 2:
            self.found = self.function(trainer, pl_module)


def during(tmp_path, function, module=None, **options):
    at = At(function)
    fit(module or Classifier(), [at], root=tmp_path, **options)
    return at.found


@pytest.mark.parametrize(
    ("n", "batch_size", "expected"), [(64, 8, 64), (1000, 8, MIN_SAMPLES), (1000, 400, 400), (1000, None, 1)]
)
def test_the_probe_batch_has_enough_samples_and_disturbs_no_order(tmp_path, n, batch_size, expected):
    data = loader(n, batch_size, shuffle=batch_size is not None, generator=torch.Generator().manual_seed(3))

    def function(trainer, module):
        states = torch.get_rng_state(), data.generator.get_state()
        x, _ = sample_batch(trainer, 0)
        again, _ = sample_batch(trainer, 0)
        assert torch.equal(x, again)
        assert torch.equal(torch.get_rng_state(), states[0])
        assert torch.equal(data.generator.get_state(), states[1])
        return x if batch_size is None else len(x)

    found = during(tmp_path, function, data=data)
    assert (found.shape == (4,)) if batch_size is None else (found == expected)


def test_loaders_in_a_dictionary_give_batches_in_a_dictionary(tmp_path):
    class Two(Classifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch["a"], batch_idx)

    found = during(
        tmp_path, lambda trainer, _: sample_batch(trainer, 0), module=Two(), data={"a": loader(), "b": loader(300)}
    )
    assert {k: len(v[0]) for k, v in found.items()} == {"a": 64, "b": 256}


def test_the_loss_is_that_of_the_training_step_and_is_not_logged(tmp_path):
    def function(trainer, module):
        batch = sample_batch(trainer, 0)
        before = dict(trainer.callback_metrics)
        with training_loss(trainer, module, batch) as loss_fn:
            value = loss_fn().item()
        assert dict(trainer.callback_metrics) == before
        assert value == nn.functional.cross_entropy(module.net(batch[0]), batch[1]).item()
        return value

    assert during(tmp_path, function) > 0


class Everything(Classifier):
    """Logs, counts, draws random numbers, speaks to the logger and keeps a metric."""

    def __init__(self):
        super().__init__(dropout=0.5, norm=True)
        self.accuracy = torchmetrics.MeanMetric()
        self.steps = 0

    def training_step(self, batch, batch_idx):
        self.steps += 1
        self.log_dict({"a": torch.rand(()), "b": 1.0})
        self.logger.log_metrics({"direct": 1.0}, step=self.steps)
        self.logger.experiment.log_metrics({"deeper": 1.0}, step=self.steps)
        loss = super().training_step(batch, batch_idx)
        self.accuracy.update(loss)
        return {"loss": loss, "extra": 1}


def test_nothing_remains_of_an_evaluation(tmp_path):
    def function(trainer, module):
        batch = sample_batch(trainer, 0)
        rows = len(trainer.logger.experiment.metrics)
        state = {k: v.clone() for k, v in module.state_dict().items()}
        rng = torch.get_rng_state()
        kept = module.steps, module.accuracy.compute().item()
        with training_loss(trainer, module, batch) as loss_fn:
            first, second = loss_fn().item(), loss_fn().item()
        assert first != second  # one graph, one dropout mask: a second evaluation draws another
        assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
        assert torch.equal(rng, torch.get_rng_state())
        assert (module.steps, module.accuracy.compute().item()) == kept
        assert len(trainer.logger.experiment.metrics) == rows
        assert isinstance(trainer.logger, CSVLogger)
        return True

    assert during(tmp_path, function, module=Everything(), logger=CSVLogger(tmp_path))


def test_the_same_evaluation_comes_out_the_same_twice(tmp_path):
    def function(trainer, module):
        found = []
        for _ in range(2):
            with training_loss(trainer, module, sample_batch(trainer, 0)) as loss_fn:
                found.append(sharpness(loss_fn, module.parameters()).value)
        return found

    first, second = during(tmp_path, function, module=Classifier(dropout=0.5, norm=True))
    assert first == second


def test_manual_optimization_is_refused_without_a_loss(tmp_path):
    class Manual(Classifier):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            return None

    def function(trainer, module):
        with pytest.raises(ProbeUnavailable, match="manual") as raised, training_loss(trainer, module, None):
            pass
        assert "loss_fn" in raised.value.remedy
        with training_loss(trainer, module, 3.0, lambda module, batch: torch.tensor(batch)) as loss_fn:
            return loss_fn().item()

    assert during(tmp_path, function, module=Manual()) == 3.0


@pytest.mark.parametrize("result", [None, 3.0, {"losses": 1}])
def test_a_step_without_a_loss_says_so(tmp_path, result):
    class Lossless(Classifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) if self.trainer.global_step < 3 else result

    def function(trainer, module):
        with (
            pytest.raises(ValueError, match="a loss from training_step"),
            training_loss(trainer, module, sample_batch(trainer, 0)) as loss_fn,
        ):
            loss_fn()
        return True

    assert during(tmp_path, function, module=Lossless(), max_steps=3)


def test_attention_and_compiled_modules_have_second_derivatives(tmp_path):
    class Attending(Classifier):
        def training_step(self, batch, batch_idx):
            x = batch[0][:, None, :]
            return super().training_step(
                (nn.functional.scaled_dot_product_attention(x, x, x)[:, 0], batch[1]), batch_idx
            )

    def function(trainer, module):
        with training_loss(trainer, module, sample_batch(trainer, 0)) as loss_fn:
            return sharpness(loss_fn, module.parameters()).value

    assert during(tmp_path, function, module=Attending()) > 0


def test_data_sets_that_hand_out_whole_lists(tmp_path):
    class Fast(torch.utils.data.Dataset):
        inner = dataset()

        def __len__(self):
            return len(self.inner)

        def __getitems__(self, indices):
            return [self.inner[i] for i in indices]

    assert during(tmp_path, lambda t, _: len(sample_batch(t, 0)[0]), data=DataLoader(Fast(), batch_size=8)) == 64
