"""What a fit takes over from a checkpoint: its own, and all of it, and nothing of another's."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Dataset

from lightning_topo import Distortion, Fate, Period, TopologyLRFinder, TopologyMonitor, read_record
from tests.callbacks.training import Classifier, fit, loader


class Tested(Classifier):
    def test_step(self, batch, batch_idx):
        self.log("test/loss", self.net(batch[0]).square().mean())


class Weight:
    """A probe of one's own."""

    name, period = "weight", Period(1)

    def measure(self, capture):
        return {"weight": 1.0}


def train(root, probes=(), max_steps=4, *, dirpath=None, monitor=None, module=None, **options):
    """Train, with a checkpoint at step 4."""
    settings = {"dirpath": dirpath, "report": False, "verbose": False, "on_error": "raise", "max_overhead": None}
    monitor = monitor or TopologyMonitor(probes or [Distortion(every_n_steps=1)], **settings)
    keep = ModelCheckpoint(root / "checkpoints", filename="{step}", every_n_train_steps=4, save_top_k=-1)
    trainer = fit(
        module or Classifier(), [monitor, keep], root=root, max_steps=max_steps, max_epochs=-1,
        enable_checkpointing=True, **options,
    )  # fmt: skip
    return monitor, trainer


def steps(monitor, probe="distortion"):
    return sorted({m.step for m in read_record(monitor.dirpath).measurements if m.probe == probe})


@pytest.fixture
def checkpoint(tmp_path):
    train(tmp_path)
    return tmp_path / "checkpoints" / "step=4.ckpt"


def test_a_period_that_is_a_number_is_obeyed_now(tmp_path, checkpoint):
    monitor, _ = train(tmp_path, [Distortion(every_n_steps=5)], 16, ckpt_path=checkpoint)
    # The first step behind a resume is looked at whatever the period: its neurons are found on it.
    assert steps(monitor) == [1, 2, 3, 4, 5, 10, 15]


def test_a_probe_added_on_resume_begins_and_the_others_go_on(tmp_path, checkpoint):
    monitor, _ = train(tmp_path, [Distortion(every_n_steps=1), Fate(), Weight()], 8, ckpt_path=checkpoint)
    record = read_record(monitor.dirpath)
    assert record.dirpath.name == "topology"
    assert steps(monitor) == list(range(1, 9))
    assert steps(monitor, "weight") == [5, 6, 7, 8]
    (resumed,) = [event for event in record.events if event.name == "gap"]
    assert "lost" not in resumed.message
    values = next(m.values for m in record.measurements if (m.step, m.probe, m.group) == (5, "distortion", "net.0"))
    assert values["total_expansion"] != values["expansion"]  # since the beginning, not since the resume


def test_a_probe_left_out_on_resume_takes_nothing_with_it(tmp_path):
    train(tmp_path, [Distortion(every_n_steps=1), Weight()])
    monitor, _ = train(tmp_path, max_steps=8, ckpt_path=tmp_path / "checkpoints" / "step=4.ckpt")
    assert steps(monitor) == list(range(1, 9))
    assert steps(monitor, "weight") == [1, 2, 3, 4]


def test_a_fit_behind_a_test_begins_anew(tmp_path):
    torch.manual_seed(0)
    monitor, trainer = train(tmp_path, module=Tested())
    first = read_record(monitor.dirpath)
    trainer.test(dataloaders=loader(), ckpt_path="best", verbose=False)
    train(tmp_path, monitor=monitor, module=Tested())
    second = read_record(monitor.dirpath)
    assert second.dirpath.name == "topology-v1"
    assert second.run_id != first.run_id
    assert second.parent is None
    assert not [event for event in second.events if event.name in ("gap", "rewind")]
    assert read_record(first.dirpath).measurements == first.measurements


def test_a_run_with_another_dirpath_names_its_parent(tmp_path):
    first, _ = train(tmp_path, dirpath=tmp_path / "one")
    before = {path: path.read_bytes() for path in first.dirpath.rglob("*") if path.is_file()}
    second, _ = train(
        tmp_path, max_steps=8, dirpath=tmp_path / "two", ckpt_path=tmp_path / "checkpoints" / "step=4.ckpt"
    )
    record = read_record(tmp_path / "two")
    assert record.dirpath == second.dirpath
    assert record.parent is not None
    assert (record.parent.run_id, record.parent.step) == (read_record(tmp_path / "one").run_id, 4)
    assert {m.step for m in record.history if m.probe == "distortion"} == {1, 2, 3, 4}
    assert steps(second) == [5, 6, 7, 8]
    assert {path: path.read_bytes() for path in first.dirpath.rglob("*") if path.is_file()} == before


class Tokens(Dataset):
    """Windows of a text of a trillion tokens: any permutation of its places takes terabytes."""

    def __init__(self):
        self.asked = set()

    def __len__(self):
        return 10**12

    def __getitem__(self, i):
        self.asked.add(i)
        generator = torch.Generator().manual_seed(i)
        return torch.randn(4, generator=generator), torch.randint(0, 3, (), generator=generator)


def test_no_data_set_is_too_long(tmp_path):
    tokens = Tokens()
    finder = TopologyLRFinder(min_lr=1e-3, max_lr=1e-1, num_training_steps=3)
    monitor = TopologyMonitor(report=False, verbose=False, on_error="raise", max_overhead=None)
    data = DataLoader(tokens, batch_size=4)
    fit(Classifier(), [finder, monitor], root=tmp_path, max_steps=3, max_epochs=-1, data=data)
    assert max(tokens.asked) < 200
    assert steps(monitor) == [1, 2, 3]
