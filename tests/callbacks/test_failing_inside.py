"""Whatever of ours raises, wherever: the training is what it is without the monitor, bitwise; the failure is said."""

import importlib
import warnings

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from torch import nn

from lightning_topo import Distortion, Persistence, Sharpness, TopologyMonitor
from tests.callbacks.training import loader
from tests.callbacks.untouched import Noted, differences, left_behind

WORDS = "an injected fault"


class Net(Noted):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 3))

    def step(self, batch):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss


class Figures(Logger):
    """Takes rows, and figures as TensorBoard does."""

    name, version = "figures", "0"

    def __init__(self):
        super().__init__()
        self.rows, self.add_figure = [], lambda *args, **kwargs: None

    @property
    @rank_zero_experiment
    def experiment(self):
        return self

    def log_metrics(self, metrics, step=None):
        self.rows.append({key: value for key, value in metrics.items() if not key.startswith("topology/")})

    def log_hyperparams(self, *args, **kwargs): ...


SEAMS = [
    # Recording
    "_tape.recorder:StepRecorder.begin",
    "_tape.call_log:CallLog.prepare",
    "_tape.call_log:CallLog.note",
    "_tape.draws:Draws.keep",
    "_tape.gradient_trail:GradientTrail.leads_to",
    "_tape.recorder:write_positions",
    "_tape.recorder:StepRecorder._tape",
    "_tape.recorder:StepRecorder.loss",
    "_tape.memory_map:MemoryMap.find",
    "_tape.memory_map:MemoryMap.about_to_write",
    "_tape.closing:pruned",
    "_watch.recording:accepted",
    "_watch.recording:Recording._judge",
    "_watch.training_loss:TrainingLoss.keep",
    # Neurons
    "neurons._trace:rule_for",
    "neurons._from_tapes:couple",
    "neurons._from_tapes:assemble",
    "neurons._from_tapes:verify_on_tapes",
    "neurons._bench:replay",
    "_watch.finding:Finding._found",
    "_watch.finding:whole_coverage",
    # The end
    "_watch.measuring:Measuring.release",
    "_watch.probing:Probing.release",
    "_watch.training_loss:TrainingLoss.release",
    # Steps
    "_watch.steps:Steps.keep",
    "_watch.steps:Steps._owned",
    "_watch.parameter_names:ParameterNames.read",
    "_watch.kept_values:KeptValues.renew",
    "_watch.kept_values:Kept.has_moved",
    "_watch.values_after:ValuesAfter.updated",
    "_watch.gradient_scales:GradientScales.differentiated",
    "_watch.certifying:Certifying.settle",
    "_watch.bounds:Bounds.launch",
    "_watch.bounds:Bounds.read",
    "_watch.snapshots:Snapshots.capture",
    "_watch.reference:keep",
    # Probes
    "probes._distortion:Distortion.measure",
    "probes._persistence:Persistence.measure",
    "probes._sharpness:Sharpness.measure",
    "_tape.curvature:TapeLoss.__call__",
    # What leaves
    "_watch.reporting:observe",
    "_watch.published_values:Readings.take",
    "_watch.schedule:Schedule.plan",
    "_watch.findings_exchange:Exchange.run",
    "_watch.watch:Watch._publish",
    "outputs.record._write:RecordWriter.measurement",
    "outputs.record._write:RecordWriter.event",
    "outputs.record._write:RecordWriter.diagrams",
    "outputs.record._write:RecordWriter.reference",
    "outputs.record._write:RecordWriter.parameters",
    "outputs.record._write:RecordWriter.close",
    "outputs.trackers._output:TrackerOutput.measurement",
    "outputs.trackers._output:TrackerOutput.diagrams",
    "outputs._terminal:TerminalOutput.event",
    "outputs.page._output:write_report",
    "callbacks._monitor:open_outputs",
    "outputs._outputs:Outputs.take",
]


def watch_all(**options):
    probes = [Distortion(every_n_steps=1), Persistence(every_n_steps=2, max_dim=0), Sharpness(every_n_steps=2)]
    return TopologyMonitor(probes, max_overhead=None, **options)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    logger = Figures()
    return *left_behind(Net, [], loader, tmp_path_factory.mktemp("plain"), logger=logger, log_every_n_steps=1), logger


def broken(monkeypatch, seam):
    module_name, _, path = seam.partition(":")
    owner = importlib.import_module(f"lightning_topo.{module_name}")
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)

    def fails(*args, **kwargs):
        raise RuntimeError(WORDS)

    assert hasattr(owner, name), seam
    monkeypatch.setattr(owner, name, (lambda operator: fails) if name == "rule_for" else fails)


@pytest.mark.parametrize("seam", SEAMS)
def test_a_failure_inside_leaves_the_training_as_it_was_and_is_said(tmp_path, monkeypatch, plain, seam):
    _, wanted, rows = plain
    broken(monkeypatch, seam)
    monitor, logger = watch_all(), Figures()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        _, found = left_behind(Net, [monitor], loader, tmp_path, logger=logger, log_every_n_steps=1)
    assert differences(wanted, found) == []
    assert [row for row in logger.rows if row] == rows.rows
    assert torch.utils._python_dispatch._get_current_dispatch_mode_stack() == []
    words = [str(warning.message) for warning in said] + [event.message for event in monitor.events]
    assert any(WORDS in each for each in words), words
