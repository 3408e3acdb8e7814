"""A session along a loop: begun, broken off, saved, resumed and closed, whatever happens."""

from contextlib import suppress

import pytest
import torch
from torch import nn

from lightning_topo import Distortion
from tests.callbacks.training import happened
from tests.loops.by_hand import LIMIT, by_step, lines, train, watching
from tests.loops.loops import Net, batches, layers, sgd


def test_an_exception_closes_the_record_with_all_that_was_measured(tmp_path):
    model = Net()
    optimizer = sgd(model, 0.1)
    watch = watching(model, optimizer, tmp_path, report=True)

    def loop():
        with watch:
            for k, batch in enumerate(batches()):
                with watch.step():
                    watch.loss(model(**batch)["loss"]).backward()
                    if k == 4:
                        raise KeyError("mine")
                    optimizer.step()
                    optimizer.zero_grad()

    with pytest.raises(KeyError, match="mine"):
        loop()
    assert by_step(watch, "training") == [1, 2, 3, 4]
    assert max(by_step(watch, "coverage")) == 4


def broken_off(tmp_path, error, at, *, updates):
    """A loop that catches an error of its iteration `at`, before or after the update of that."""
    model = Net()
    optimizer = sgd(model, 0.1)
    with watching(model, optimizer, tmp_path, probes=[Distortion(every_n_steps=1)]) as watch:
        for k, batch in enumerate(batches()):
            with suppress(error), watch.step():
                watch.loss(model(**batch)["loss"]).backward()
                if updates or k != at:
                    optimizer.step()
                if k == at:
                    raise error
            optimizer.zero_grad()
    return watch


def test_an_iteration_that_broke_off_and_was_caught_is_no_step(tmp_path):
    watch = broken_off(tmp_path, MemoryError, 4, updates=False)
    assert by_step(watch, "training") == list(range(1, 8))
    assert not happened(watch.events)


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [4, 7])
def test_an_iteration_that_broke_off_after_its_update_is_a_step(tmp_path, error, at):
    """The last one, too: coverage speaks of every update."""
    watch = broken_off(tmp_path, error, at, updates=True)
    assert by_step(watch, "training") == list(range(1, 9))
    assert set(by_step(watch, "distortion")) == set(range(1, 9))
    assert not happened(watch.events)


def test_the_update_before_an_exception_is_in_the_record(tmp_path):
    model = Net()
    optimizer = sgd(model, 0.1)
    watch = watching(model, optimizer, tmp_path, probes=[Distortion(every_n_steps=1)])

    def loop():
        with watch:
            for k, batch in enumerate(batches()):
                with watch.step():
                    watch.loss(model(**batch)["loss"]).backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    if k == 4:
                        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        loop()
    assert max(by_step(watch, "coverage")) == max(by_step(watch, "distortion")) == 5


def test_of_several_updates_in_the_first_step_those_before_the_last_are_not_known(tmp_path):
    model = Net()
    optimizer = sgd(model, 0.1)
    with watching(model, optimizer, tmp_path, probes=[Distortion(every_n_steps=1)]) as watch:
        for batch in batches():
            with watch.step():
                for _ in range(3):
                    watch.loss(model(**batch)["loss"]).backward()
                    optimizer.step()
                    optimizer.zero_grad()
    [gap] = [event for event in watch.events if event.name == "gap"]
    assert (gap.step, "several updates" in gap.message) == (1, True)
    found = [m for m in watch.record.measurements if m.probe == "coverage"]
    assert {m.step: m.values["state"] for m in found} == {1: 0.0, 2: 3.0, 8: 3.0}
    assert not any("bound" in m.values for m in found)


def test_losses_without_an_iteration_are_a_warning(tmp_path):
    model = Net()
    optimizer = sgd(model, 0.1)
    watch = watching(model, optimizer, tmp_path)
    for batch in batches():
        watch.loss(model(**batch)["loss"]).backward()
        optimizer.step()
    with pytest.warns(UserWarning, match="with watch.step"):
        watch.close()
    watch.close()


class Broken:
    name = "broken"

    def measure(self, capture):
        raise OSError("no such thing")


def test_a_failing_probe_is_an_event_or_an_error(tmp_path):
    model = Net()
    optimizer = sgd(model, 0.1)
    with watching(model, optimizer, tmp_path, probes=[Broken()], on_error="warn") as watch:
        train(model, optimizer, watch, epochs=4)
    assert "probe_failed" in [str(event.name) for event in watch.events]
    with (
        pytest.raises(OSError, match="no such thing"),
        watching(model, optimizer, tmp_path, probes=[Broken()]) as watch,
    ):
        train(model, optimizer, watch, epochs=4)


def test_a_resumed_training_leaves_the_record_of_a_whole_one(tmp_path):
    def made():
        model = Net()
        return model, sgd(model, 0.1)

    watched = {"stop_on": "topology_breakdown", "max_ratio": LIMIT}
    model, optimizer = made()
    with watching(model, optimizer, tmp_path / "whole", **watched) as whole:
        train(model, optimizer, whole, epochs=4)

    first, optimizer = made()
    with watching(first, optimizer, tmp_path / "parts", **watched) as watch:
        train(first, optimizer, watch, epochs=2)
        checkpoint = {"model": first.state_dict(), "optimizer": optimizer.state_dict(), "topology": watch.state_dict()}
        torch.save(checkpoint, tmp_path / "last.pt")
        folder = watch.dirpath
    loaded = torch.load(tmp_path / "last.pt", weights_only=True)
    second, optimizer = made()
    second.load_state_dict(loaded["model"])
    optimizer.load_state_dict(loaded["optimizer"])
    with watching(second, optimizer, tmp_path / "parts", **watched) as watch:
        watch.load_state_dict(loaded["topology"])
        train(second, optimizer, watch, epochs=2)
        assert watch.dirpath == folder
        assert watch.epoch == 4
        assert watch.guard.n_updates == 32
    assert lines(watch) == lines(whole)
    assert [str(event.name) for event in happened(watch.events)] == ["gap"]
    with pytest.raises(RuntimeError, match="before the first step"):
        watch.load_state_dict(loaded["topology"])


@pytest.mark.parametrize(
    "state", [{"version": 99}, {"version": 1, "step": "x"}, {"version": 1, "step": 3, "epoch": 0}, {"version": 1}]
)
def test_a_damaged_state_is_an_event_and_the_watch_begins_anew(tmp_path, state):
    model = Net()
    optimizer = sgd(model, 0.1)
    with watching(model, optimizer, tmp_path) as watch:
        watch.load_state_dict(state)
        train(model, optimizer, watch)
    [event] = happened(watch.events)
    assert event.name == "gap"
    assert "cannot be used" in event.message


def test_what_was_never_started_can_be_closed_and_saved(tmp_path):
    model = nn.Sequential(*layers())
    watch = watching(model, sgd(model, 0.1), tmp_path)
    assert watch.state_dict() == {}
    watch.load_state_dict({})
    watch.close()
    assert watch.record is None
    assert not list(tmp_path.iterdir())
