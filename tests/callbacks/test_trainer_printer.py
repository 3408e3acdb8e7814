"""What stands in the terminal of a Lightning training: the progress bar, and a line for each event above it."""

import logging
import re

import pytest
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar

from lightning_topo import read_record
from tests.callbacks.tracked import STEPS, dense, hot
from tests.callbacks.training import Classifier, fit

SHOWN = {"enable_progress_bar": True, "log_every_n_steps": 1}


class Keeping:
    """Keeps what a progress bar was given to show."""

    def __init__(self):
        super().__init__()
        self.shown = []

    def get_metrics(self, trainer, pl_module):
        metrics = super().get_metrics(trainer, pl_module)
        self.shown.append(dict(metrics))
        return metrics


class KeepingTqdm(Keeping, TQDMProgressBar):
    pass


class KeepingRich(Keeping, RichProgressBar):
    pass


@pytest.mark.parametrize("kind", [KeepingTqdm, KeepingRich])
def test_phase_and_ratio_stand_in_the_bar(tmp_path, kind, capsys, caplog):
    bar, monitor = kind(), dense(probes=STEPS)
    with caplog.at_level(logging.INFO, "lightning.pytorch"):
        fit(hot(lr=10.0), [monitor, bar], root=tmp_path, max_epochs=2, **SHOWN)
    record = read_record(monitor.dirpath)
    worst = {}
    for m in record.measurements:
        if m.probe == "distortion":
            worst[m.step] = max(worst.get(m.step, 0.0), m.values["critical_ratio"])
    shown = [(entry["phase"], entry["r"]) for entry in bar.shown if "phase" in entry]
    assert {ratio for _, ratio in shown} <= {"0"} | {f"{ratio:.3g}" for ratio in worst.values()}
    assert shown[-1][1] == f"{worst[16]:.3g}"
    assert shown[-1][0] == "breakdown"
    out = "".join(capsys.readouterr())
    assert re.search(r"phase.{1,12}breakdown", out)
    said = re.sub(r"\s+", " ", out + caplog.text)
    assert record.events
    for event in record.events:
        place = f" [{event.group}]" if event.group else ""
        assert said.count(f"{event.name} at step {event.step}{place}: ") == 1


@pytest.mark.parametrize("bar", [TQDMProgressBar, RichProgressBar])
def test_quiet_when_asked(tmp_path, bar, capsys, caplog):
    fit(hot(lr=10.0), [dense(probes=STEPS, verbose=False), bar()], root=tmp_path, **SHOWN)
    said = "".join(capsys.readouterr()) + caplog.text
    assert "topology_breakdown" not in said
    assert "Topology" not in said
    assert "breakdown" not in said


@pytest.mark.parametrize("bar", [TQDMProgressBar, RichProgressBar])
def test_lightnings_log_level_silences_the_lines(tmp_path, bar, capsys):
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        fit(hot(lr=10.0), [dense(probes=STEPS), bar()], root=tmp_path, **SHOWN)
    finally:
        logger.setLevel(before)
    assert "topology_breakdown" not in "".join(capsys.readouterr())


def test_a_bar_of_ones_own_that_cannot_say_whether_it_shows(tmp_path):
    from lightning.pytorch.callbacks import ProgressBar

    class Bare(ProgressBar):
        def disable(self):
            pass

        def enable(self):
            pass

    trainer = fit(Classifier(), [dense(probes=STEPS), Bare()], root=tmp_path, **SHOWN)
    assert trainer.global_step == 8
