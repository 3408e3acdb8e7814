"""The clouds of the beginning are kept for those that look back at them, and for nobody else."""

import numpy as np
import pytest
import torch
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


def test_a_group_that_the_record_lacks_takes_no_other_ones_beginning(tmp_path):
    """It was found after the beginning, or the module has grown since."""
    first = train(tmp_path, [Distortion()])
    file = first.dirpath / CLOUDS
    with np.load(file) as archive:
        arrays = {name: archive[name] for name in archive.files}
    groups = [group.name for group in first.groups]
    late = next(name for name in arrays if groups[-1] in name)
    np.savez(file, **{name: array for name, array in arrays.items() if name != late})
    seen = []

    class Noting(Looking):
        measures_steps, period = True, Period(1)

        def measure(self, capture):
            seen.append({name: capture.reference[name].clone() for name in capture.reference})
            return super().measure(capture)

    checkpoint = tmp_path / "checkpoints" / "step=2.ckpt"
    monitor = train(tmp_path, [Distortion(), Noting()], 4, ckpt_path=checkpoint)
    resumed = [event for event in read_record(monitor.dirpath).events if event.name == "gap"][-1]
    assert f"The totals of {groups[-1]} count from here" in resumed.message
    assert set(seen[-1]) == set(groups)
    kept = {name: torch.from_numpy(arrays[key]) for name in groups[:-1] for key in arrays if name in key}
    assert kept
    assert all(torch.equal(seen[-1][name].cpu(), cloud) for name, cloud in kept.items())
    assert not torch.equal(seen[-1][groups[-1]].cpu(), torch.from_numpy(arrays[late]))
