"""What we use of Lightning that has no public name: these fail when Lightning changes it."""

import lightning as L
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.utils.data import DataLoader, IterableDataset

from lightning_topo.callbacks._lightning_internals import (
    batches_stepped,
    epochs_finished,
    is_last_of_epoch,
    is_trial_run,
    logged_hyperparameters,
    run_folder,
)
from tests.callbacks.training import Classifier, dataset, fit


def test_the_count_of_batches_is_that_of_lightnings_own_rows(tmp_path):
    class Look(L.Callback):
        def __init__(self):
            self.batch_ends, self.epoch_ends = [], []

        def on_train_batch_end(self, trainer, *_):
            self.batch_ends.append(batches_stepped(trainer))

        def on_train_epoch_end(self, trainer, *_):
            self.epoch_ends.append(batches_stepped(trainer))

    look, logger = Look(), CSVLogger(tmp_path)
    fit(Classifier(), [look], root=tmp_path, logger=logger, log_every_n_steps=1, max_epochs=2)
    assert look.batch_ends == list(range(16))
    assert look.epoch_ends == [8, 16]
    with open(f"{logger.log_dir}/metrics.csv") as file:
        assert [int(line.split(",")[1]) for line in list(file)[1:]] == list(range(16))


class Configured(Classifier):
    def __init__(self, logger, width=8):
        super().__init__()
        self.save_hyperparameters("width", logger=logger)


def test_hyperparameters_that_are_kept_from_the_loggers_are_none():
    assert logged_hyperparameters(Configured(logger=True)) == {"width": 8}
    assert logged_hyperparameters(Configured(logger=False)) == {}
    assert logged_hyperparameters(Classifier()) == {}


@pytest.mark.parametrize("make", [CSVLogger, TensorBoardLogger, None])
def test_the_run_folder_is_where_checkpoints_go(tmp_path, make):
    class Look(L.Callback):
        def on_train_start(self, trainer, *_):
            self.folder = run_folder(trainer)

    look, checkpoint = Look(), ModelCheckpoint()
    logger = False if make is None else make(str(tmp_path), name="runs")
    fit(Classifier(), [look, checkpoint], root=tmp_path, logger=logger, enable_checkpointing=True)
    assert str(look.folder / "checkpoints") == checkpoint.dirpath


class Endless(IterableDataset):
    """A stream, whose length nobody knows."""

    def __iter__(self):
        return iter(list(dataset()))


@pytest.mark.parametrize("options", [{}, {"limit_train_batches": 5}, {"max_steps": 5}, {"max_epochs": 1}], ids=str)
@pytest.mark.parametrize("stream", [False, True])
def test_the_last_batch_of_an_epoch_is_known_in_its_own_hook(tmp_path, options, stream):
    class Look(L.Callback):
        def __init__(self):
            self.last, self.epoch_ends, self.finished = [], [], []

        def on_train_batch_end(self, trainer, *_):
            self.last += [batches_stepped(trainer) + 1] if is_last_of_epoch(trainer) else []

        def on_train_epoch_end(self, trainer, *_):
            self.epoch_ends.append(batches_stepped(trainer))
            self.finished.append(epochs_finished(trainer))
            assert not is_trial_run(trainer)

    look, data = Look(), DataLoader(Endless(), batch_size=8) if stream else None
    fit(Classifier(), [look], root=tmp_path, data=data, **({"max_epochs": 2} | options))
    assert look.last == look.epoch_ends
    assert look.finished == list(range(1, len(look.finished) + 1))
