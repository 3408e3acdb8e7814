"""Loggers of any kind, and loggers that fail."""

import functools
import itertools
import json
import sys
import warnings

import pytest
from lightning.pytorch.loggers.logger import rank_zero_experiment

from lightning_topo import read_record
from lightning_topo._watch.output import Run
from lightning_topo._watch.published_values import Readings
from lightning_topo.outputs._outputs import Outputs, open_outputs
from lightning_topo.outputs.trackers import Tracker, TrackerOutput, tracker_of
from lightning_topo.outputs.trackers._output import FIRST_SECONDS, run_facts
from lightning_topo.outputs.trackers._wandb import WandbTracker
from tests.outputs.driving import Training, drive, group_named
from tests.outputs.strangers import Foreign


def test_figures_take_no_more_than_their_share(tmp_path, monkeypatch):
    """One drawing took a second of a hundred that have passed: the next one waits until a hundred more have.

    The first waits, too, as if 0.1 s were spent: a training of a few seconds is not held up.
    """
    now = [0.0]
    monkeypatch.setattr("lightning_topo.outputs.trackers._output.Clock.seconds", lambda self: now[0])
    drawn = []

    class Slow(Foreign):
        pass

    tracker = TrackerOutput(Slow(), None, share=0.01)

    def draw(drawings):
        drawn.append(now[0])
        now[0] += 1.0
        drawings._drawn = next(reversed(drawings._captures))

    monkeypatch.setattr(tracker, "_draw", draw)
    training = Training(Outputs([tracker]), log_every=1)
    for _ in range(80):
        training.run(8)  # a capture
        now[0] += 5.0
    assert len(drawn) == pytest.approx(5 * 80 * 0.01, abs=1.0)
    assert drawn[0] >= FIRST_SECONDS / 0.01
    assert min(b - a for a, b in itertools.pairwise(drawn)) >= 100.0
    training.outputs.end()
    assert len(drawn) == 6 or now[0] == drawn[-1] + 1.0


def test_in_haste_nothing_costly_is_sent(tmp_path):
    logger = Foreign()
    training = drive(tmp_path / "topology", 16, loggers=[logger], in_haste=True, max_overhead=1e-9)
    assert len(logger.rows) == 16
    assert not list(training.outputs.dirpath.rglob("*.png"))


class WandbLogger(Foreign):
    """All of W&B's interface that is used, and nothing of it works."""

    class Experiment:
        def __getattr__(self, name):
            raise ConnectionError("tracker is down")

    @property
    @rank_zero_experiment
    def experiment(self):
        return self.Experiment()

    def log_image(self, key, images, step):
        raise OSError("no space left on device")


def test_a_tracker_of_which_nothing_works_is_named_once_for_each_thing_and_loses_no_line(tmp_path):
    down, fine = WandbLogger(), Foreign()
    assert isinstance(tracker_of(down), WandbTracker)
    assert type(tracker_of(fine)) is Tracker
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        training = drive(tmp_path / "topology", 16, hot={3}, loggers=[down, fine], log_groups="worst")
    messages = [str(w.message) for w in told if "did not take" in str(w.message)]
    kinds = {"the settings", "values", "an event", "events", "figures", "the verdict", "the record"}
    assert {kind for kind in kinds if any(f"did not take {kind} (" in message for message in messages)} == kinds
    assert len(messages) == len(kinds)
    record = read_record(training.outputs.dirpath)
    assert list(record.measurements) == training.measured
    assert list(record.events) == training.events != []
    assert record.n_unreadable == 0
    # The other logger, behind it, got everything.
    assert {step for step, row in fine.rows if "topology/critical_ratio" in row} == set(range(16))


def test_without_matplotlib_figures_are_skipped_with_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "lightning_topo._figures.persistence", raising=False)
    for name in [name for name in sys.modules if name.startswith("matplotlib.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.warns(UserWarning, match="pip install matplotlib") as told:
        training = drive(tmp_path / "topology", 32, loggers=[Foreign()])
    assert len(told) == 1
    assert not list(training.outputs.dirpath.rglob("*.png"))


@pytest.mark.parametrize("name", ["a.b/c d", "\u03b7" * 300, "x" * 300])
def test_groups_of_any_name_are_drawn(tmp_path, name):
    training = drive(tmp_path / "topology", 16, groups=(group_named(name),), loggers=[Foreign()])
    assert len(list(training.outputs.dirpath.rglob("*.png"))) == 2 * 3


def test_what_leaves_the_machine_is_plain_and_tells_nothing_of_it(tmp_path):
    """The settings by an allow-list: no repr, no object, no path, whatever a user has bound to a probe."""

    class Hyper(Foreign):
        pass

    outputs = open_outputs(tmp_path / "topology", verbose=False, report=False)
    settings = {"probes": [functools.partial(print, key="sk-secret")], "dirpath": tmp_path, "root": str(tmp_path)}
    run = Run((group_named("net.0"),), Readings(["net.0"]), settings, facts={"lr": 0.1, "data": str(tmp_path)})
    config = run_facts(outputs.record.writer.branch, run).config()
    text = json.dumps(config)
    assert "sk-secret" not in text
    assert str(tmp_path) not in text
    assert config["training"] == {"lr": 0.1, "data": None}
    assert config["run_id"] == outputs.run_id
    outputs.end()
