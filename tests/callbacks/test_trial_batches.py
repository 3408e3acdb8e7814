"""Batches for trial steps: those that the training is given first, drawn without moving anything."""

from itertools import islice

import lightning as L
import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, Subset, TensorDataset

from lightning_topo import TopologyLRFinder
from lightning_topo.callbacks._trial_batches import can_only_be_iterated, trial_batches
from lightning_topo.callbacks._trial_steps import on_trial
from tests.callbacks.training import Classifier, fit, loader


class Ragged(Dataset):
    """Sequences of very different lengths, which fit together only as the batch sampler has them; with noise."""

    def __init__(self):
        self.rng, self.n_drawn = np.random.default_rng(2), 0

    def __len__(self):
        return 24

    def __getitem__(self, i):
        self.n_drawn += 1
        length = 3 + 4 * (i % 3)
        noise = self.rng.standard_normal((length, 4)).astype(np.float32)
        return torch.from_numpy(noise), i % 3


class Buckets:
    """Sequences of one length together; counts its epochs."""

    def __init__(self):
        self.epoch, self.generator = 0, torch.Generator().manual_seed(3)

    def __len__(self):
        return 6

    def __iter__(self):
        self.epoch += 1
        for bucket in torch.randperm(3, generator=self.generator).tolist():
            yield list(range(bucket, 12, 3))
            yield list(range(12 + bucket, 24, 3))


class Sequences(Classifier):
    def __init__(self):
        super().__init__()
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch[0].clone())
        return super().training_step((batch[0].mean(1), batch[1]), batch_idx)


def stacked(items):
    assert len({len(x) for x, _ in items}) == 1, "sequences of different lengths"
    return pad_sequence([x for x, _ in items], batch_first=True), torch.tensor([y for _, y in items])


def ragged():
    return DataLoader(Ragged(), batch_sampler=Buckets(), collate_fn=stacked)


def test_a_finder_takes_ragged_data_as_its_batch_sampler_has_them_and_moves_nothing(tmp_path):
    def trained(callbacks):
        torch.manual_seed(0)
        module, data = Sequences(), ragged()
        fit(module, callbacks, root=tmp_path, data=data, max_epochs=2)
        return module, data

    finder = TopologyLRFinder(1e-3, 1e-1, 3)
    (plain, untouched), (swept, drawn) = trained([]), trained([finder])
    assert len(finder.sweep.lrs) == 3
    assert all(np.isfinite(finder.sweep.eta_lambdas))
    assert all(torch.equal(a, b) for a, b in zip(plain.seen, swept.seen, strict=True))
    assert all(torch.equal(p, swept.state_dict()[name]) for name, p in plain.state_dict().items())
    assert (untouched.dataset.n_drawn, untouched.batch_sampler.epoch) == (48, 2)
    assert (drawn.dataset.n_drawn, drawn.batch_sampler.epoch) == (48, 2)


class Look(L.Callback):
    """Draws as many batches as there are, twice, as training starts."""

    def on_train_start(self, trainer, pl_module):
        self.drawn = []
        for _ in range(2):
            with on_trial(trainer, pl_module, 0):
                self.drawn.append(list(islice(trial_batches(trainer), int(trainer.num_training_batches))))


class Moved(Classifier):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return 2 * batch[0], batch[1]

    def training_step(self, batch, batch_idx):
        self.seen.append(batch)
        return super().training_step(batch, batch_idx)


def shuffled():
    data = TensorDataset(torch.randn(40, 4, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 3)
    return DataLoader(
        Subset(data, range(32)),
        batch_size=8,
        sampler=RandomSampler(range(32), generator=torch.Generator().manual_seed(7)),
    )


@pytest.mark.parametrize(
    ("data", "options"),
    [(shuffled, {}), (loader, {}), (loader, {"overfit_batches": 2}), (loader, {"limit_train_batches": 3})],
    ids=["sampler", "plain", "overfit", "limited"],
)
def test_they_are_the_very_batches_of_the_training(tmp_path, data, options):
    look, module = Look(), Moved()
    fit(module, [look], root=tmp_path, data=data(), **options)
    for drawn in look.drawn:
        assert len(drawn) == len(module.seen)
        for batch, seen in zip(drawn, module.seen, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(batch, seen, strict=True))


class Stream(IterableDataset):
    def __iter__(self):
        yield torch.zeros(4), 0


def test_streams_are_told_from_data_sets(tmp_path):
    class Asks(L.Callback):
        def on_train_start(self, trainer, pl_module):
            self.found = can_only_be_iterated(trainer)

    for data, expected in ((DataLoader(Stream(), batch_size=1), True), (loader(), False)):
        asks = Asks()
        fit(Classifier(), [asks], root=tmp_path, data=data, max_steps=1)
        assert asks.found is expected
