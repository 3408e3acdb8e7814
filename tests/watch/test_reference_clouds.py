"""The clouds of the beginning rest in the record's file, and come back from there as they were."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback

import lightning_topo._watch.reference_clouds as at_rest
from lightning_topo import Distortion, TopologyMonitor, read_record
from lightning_topo._watch.reference_clouds import ReferenceClouds, Stored
from lightning_topo.probes._probe import CloudMissing
from tests.callbacks.training import Classifier, fit

KIND = Stored((3, 2), torch.float32)


class Store:
    """Keeps clouds in a dictionary, and counts how often it is asked."""

    def __init__(self, **clouds):
        self.clouds, self.n_read = clouds, 0

    def reference(self, step, clouds):
        self.clouds |= dict(clouds)
        return True

    def parameters(self, groups, coverage):
        pass

    def read_reference(self, group):
        self.n_read += 1
        return self.clouds.get(group)

    def totals_from(self, step, groups):
        pass


def test_large_clouds_are_read_each_time_and_small_ones_held(monkeypatch):
    a, b = torch.randn(3, 2), torch.randn(3, 2)
    monkeypatch.setattr(at_rest, "MOST_HELD", a.nbytes)
    store = Store(b=b)
    clouds = ReferenceClouds()
    clouds.leave("a", KIND, store, a)
    clouds.leave("b", KIND, store, b)
    assert store.n_read == 0
    assert list(clouds) == ["a", "b"]
    assert ("a" in clouds, "b" in clouds, "c" in clouds) == (True, True, False)
    assert clouds.shape("b") == (3, 2)
    assert clouds.shape("c") is None
    assert torch.equal(clouds["a"], a)
    assert store.n_read == 0
    assert torch.equal(clouds["b"], b)
    assert torch.equal(clouds["b"], b)
    assert store.n_read == 2
    clouds.hold("b", a)
    assert torch.equal(clouds["b"], a)
    assert list(clouds.among({"a": (3, 2), "b": (3, 3)})) == ["a"]


def test_what_is_lost_is_told_once_and_tried_again(monkeypatch):
    monkeypatch.setattr(at_rest, "MOST_HELD", 0)
    store = Store(a=torch.ones(3, 2))
    clouds = ReferenceClouds()
    clouds.leave("a", KIND, store)
    clouds.leave("b", KIND, store)
    assert clouds.take_lost() == []
    store.clouds.clear()
    for name in ("a", "b"):
        assert clouds.get(name) is None
    with pytest.raises(CloudMissing, match="can no longer be read"):
        clouds["a"]
    assert clouds.take_lost() == ["a", "b"]
    assert clouds.get("a") is None
    assert clouds.take_lost() == []
    store.clouds["a"] = torch.ones(3, 2)
    assert torch.equal(clouds["a"], torch.ones(3, 2))
    store.clouds["a"] = torch.ones(3, 5)  # another cloud
    assert clouds.get("a") is None


class Ends(L.Callback):
    """Takes the clouds of the beginning from the monitor before it lets them go."""

    def on_train_end(self, trainer, module):
        (monitor,) = (callback for callback in trainer.callbacks if isinstance(callback, TopologyMonitor))
        self.reference = monitor.watch._measuring.snapshots.reference


def trained(root, callbacks=()):
    """The lines of `Distortion` by step; the monitor; the clouds of the beginning, as they rest when it ends."""
    torch.manual_seed(0)
    ends = Ends()
    monitor = TopologyMonitor([Distortion(every_n_steps=1)], report=False, verbose=False, on_error="raise")
    fit(Classifier(), [ends, monitor, *callbacks], root=root, max_steps=4)
    lines = [m for m in read_record(monitor.dirpath).measurements if m.probe == "distortion"]
    return {(m.step, m.group): dict(m.values) for m in lines}, monitor, ends.reference


def test_totals_are_the_same_wherever_the_beginning_rests(tmp_path, monkeypatch):
    held, _, reference = trained(tmp_path / "held")
    assert not reference._left
    monkeypatch.setattr(at_rest, "MOST_HELD", 0)
    read, _, reference = trained(tmp_path / "read")
    assert not reference._held
    assert all("total_expansion" in values for values in held.values())
    assert read == held


@pytest.mark.filterwarnings("ignore:The topology record cannot be written")
def test_without_a_file_they_are_held(tmp_path, monkeypatch):
    monkeypatch.setattr(at_rest, "MOST_HELD", 0)
    monkeypatch.setattr("lightning_topo.outputs.record._output.RecordWriter.reference", full)
    found, _, reference = trained(tmp_path)
    assert not reference._left
    assert reference._held
    assert all("total_expansion" in values for values in found.values())


def full(*args):
    raise OSError("no space left")


@pytest.mark.parametrize("damage", ["gone", "cut", "changed"])
@pytest.mark.filterwarnings("ignore:The neurons of")
def test_a_file_that_is_lost_takes_the_totals_along_and_nothing_else(tmp_path, monkeypatch, damage):
    # The first cloud is held: the tests' check of types looks at one of each mapping.
    monkeypatch.setattr(at_rest, "MOST_HELD", 4 * 8 * (4 + 1 + 6))
    whole, *_ = trained(tmp_path / "whole")

    def harm(trainer, module, *_):
        if trainer.global_step != 2:
            return
        (path,) = (tmp_path / "harmed").rglob("clouds.npz")
        content = path.read_bytes()
        if damage == "gone":
            path.unlink()
        elif damage == "cut":
            path.write_bytes(content[: len(content) // 2])
        else:
            middle = len(content) // 2  # in the second cloud
            path.write_bytes(content[:middle] + bytes(64) + content[middle + 64 :])

    found, monitor, _ = trained(tmp_path / "harmed", [LambdaCallback(on_train_batch_end=harm)])
    assert found.keys() == whole.keys()
    for (step, group), values in found.items():
        expected = whole[step, group]
        if step > 2 and group == "net.3":
            expected = {name: value for name, value in expected.items() if not name.startswith("total")}
        assert values == expected
    (event,) = [event for event in monitor.events if "can no longer be read" in event.message]
    assert event.name == "gap"
    assert event.value == 1
    assert event.step == 3
