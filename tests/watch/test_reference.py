"""The clouds of the beginning are kept for those that look back at them, and for nobody else."""

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_topo import Distortion, Fate, Persistence, Sharpness, TopologyMonitor, read_record
from lightning_topo.probes import Period
from tests.callbacks.training import Classifier, fit

CLOUDS = "reference/clouds.npz"


class Looking:
    """A probe of one's own, of which nothing is known."""

    name = "looking"

    def measure(self, capture):
        return {"n": float(len(capture.reference))}


def train(root, probes, max_steps=2, **options):
    monitor = TopologyMonitor(probes, report=False, verbose=False, on_error="raise")
    keep = ModelCheckpoint(root / "checkpoints", filename="{step}", every_n_train_steps=2, save_top_k=-1)
    fit(Classifier(), [monitor, keep], root=root, max_steps=max_steps, enable_checkpointing=True, **options)
    return monitor


@pytest.mark.parametrize(
    ("probes", "is_kept"),
    [
        ([Distortion()], True),
        ([Fate()], True),
        ([Looking()], True),
        ([Persistence(every_n_steps=1), Sharpness(every_n_steps=1)], False),
    ],
    ids=["distortion", "fate", "own", "none that looks back"],
)
def test_the_clouds_are_kept_where_a_probe_looks_back(tmp_path, probes, is_kept):
    assert (train(tmp_path, probes).dirpath / CLOUDS).is_file() == is_kept


def test_a_resume_speaks_of_lost_clouds_only_where_they_are_missed(tmp_path):
    train(tmp_path, [Persistence(every_n_steps=1)])
    checkpoint = tmp_path / "checkpoints" / "step=2.ckpt"
    for probes, is_missed in (([Persistence(every_n_steps=1)], False), ([Distortion()], True)):
        monitor = train(tmp_path, probes, 4, ckpt_path=checkpoint)
        resumed = [event for event in read_record(monitor.dirpath).events if event.name == "gap"][-1]
        assert resumed.message.startswith("Resumed from a checkpoint at step 2")
        assert ("lost" in resumed.message) == is_missed


def test_in_the_first_step_the_beginning_is_at_hand(tmp_path):
    """It need not be read back from the record, to which it has just been written."""
    at_hand = []

    class Noting(Looking):
        measures_steps, period = True, Period(1)

        def measure(self, capture):
            at_hand.append(capture.reference is capture.before)
            return super().measure(capture)

    train(tmp_path, [Noting()], max_steps=3)
    assert at_hand[:1] == [True]
    assert not any(at_hand[1:])
