"""The demo reproduces what is known of it, and its command does what the README says."""

import re
import shutil

import lightning as L
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh

from lightning_topo import demo, read_record
from lightning_topo._cli import main
from lightning_topo.measurement import StepState
from lightning_topo.phases import DETECTED, replay
from lightning_topo.stability import hessian
from tests import warm


def ratios(record):
    return {m.step: m.values["sharpness_ratio"] for m in record.measurements if m.probe == "sharpness"}


RUNS = {"edge": (0.3, 800), "control": (0.1, 450)}
"""Learning rate and steps, of one seed; benchmarks/edge.py has many, and longer controls."""
CHECKED = (20, 200, 400)
"""Steps at which the sharpness is held against float64."""


class Keep(L.Callback):
    """The weights behind some steps, in float64."""

    def __init__(self):
        self.weights = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx + 1 in CHECKED:
            self.weights[batch_idx + 1] = {k: v.double().clone() for k, v in pl_module.state_dict().items()}


def train(folder, lr, steps):
    """The demo's training with its sharpness alone; the record, and some of the weights."""
    torch.manual_seed(0)
    keep = Keep()
    monitor = demo.TopologyMonitor([demo.Sharpness(every_n_steps=10)], report=False, verbose=False)
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[keep, monitor],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    data = demo.FullBatch(demo.digits(), steps)
    trainer.fit(demo.DigitsMLP(lr), torch.utils.data.DataLoader(data, batch_size=None))
    return read_record(monitor.dirpath), keep.weights


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One of `RUNS`, trained when first asked for."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = train(tmp_path_factory.mktemp(name), *RUNS[name])
        return made[name]

    return get


@pytest.fixture(scope="module")
def record(trained):
    """The record of one of `RUNS`."""
    return lambda name: trained(name)[0]


def entered(record):
    """The steps at which the edge was entered."""
    return [e.step for e in record.events if e.name == "edge_of_stability_enter"]


@pytest.mark.slow
def test_the_edge_is_entered_at_lr_03(record):
    record = record("edge")
    [at] = entered(record)
    assert 200 <= at <= 350
    found = ratios(record)
    assert 0.3 <= found[10] <= 0.4
    later = sorted(value for step, value in found.items() if step >= at + 50)
    assert 0.98 <= later[len(later) // 2] <= 1.06
    # Recomputed from the record alone, the events are the same.
    detected = [(e.name, e.step) for e in record.events if e.name in DETECTED]
    assert [(e.name, e.step) for e in replay(record.measurements).detected] == detected
    assert {e.name for e in record.events if e.name not in DETECTED} == {"unwatched_parameters"}


@pytest.mark.slow
def test_the_edge_is_never_reached_at_lr_01(record):
    assert entered(record("control")) == []
    found = ratios(record("control"))
    assert max(found) == RUNS["control"][1]
    assert max(found.values()) < 0.6


@pytest.mark.slow
def test_sharpness_along_the_demo_against_float64(trained):
    """Within 2 % of the top eigenvalue of the float64 Hessian; benchmarks/sharpness.py has it dense."""
    measured, weights = trained("edge")
    found = {m.step: m.values for m in measured.measurements if m.probe == "sharpness"}

    x, onehot = (t.double() for t in demo.digits().tensors)
    exact = demo.DigitsMLP().double()
    for step in CHECKED:
        exact.load_state_dict(weights[step])
        curvature = hessian(lambda: 0.5 * ((exact(x) - onehot) ** 2).sum(1).mean(), exact.parameters())
        n = sum(p.numel() for p in exact.parameters())
        operator = LinearOperator((n, n), lambda v, H=curvature: (H @ torch.from_numpy(v.ravel())).numpy(), dtype=float)
        (top,) = eigsh(operator, k=1, which="LA", tol=1e-6, return_eigenvectors=False)
        assert found[step]["sharpness"] == pytest.approx(top, rel=0.02), step
        assert found[step]["sharpness"] <= top * (1 + 1e-4)
        assert found[step]["sharpness_ratio"] == pytest.approx(0.15 * found[step]["sharpness"])


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The command, ended, and the folder in which it ran."""
    root = tmp_path_factory.mktemp("command")
    done = warm.run("lightning_topo", "demo", "--steps", 300, folder=root, cwd=root)
    return done, root / "topology_demo" / "version_0" / "topology"


def test_the_command_trains_reports_and_says_where_to_look(command):
    done, folder = command
    assert done.returncode == 0, done.stdout
    page = re.search(r"file://(\S+report\.html)", done.stdout).group(1)
    assert page == str(folder / "report.html")
    assert (folder / "report.html").stat().st_size > 10_000
    found = read_record(folder)
    assert [m.step for m in found.measurements if m.probe == "distortion" and m.group == "net.0"] == list(range(1, 301))
    assert found.diagram_steps == tuple(range(20, 301, 20))
    states = [m for m in found.measurements if m.probe == "coverage"]
    assert {m.group for m in states} == set(found.groups)
    assert {StepState(int(m.values["state"])) for m in states} == {StepState.EXACT}
    assert "300/300" in done.stdout


@pytest.mark.slow
def test_all_its_probes_see_the_training_that_the_sharpness_alone_has_seen(command, record):
    """It enters the edge at the same step, and its events come out of its record again."""
    found = read_record(command[1])
    assert entered(found) == entered(record("edge")) != []
    assert ratios(found).items() <= ratios(record("edge")).items()
    assert replay(found.measurements).detected == tuple(e for e in found.events if e.name in DETECTED)


def test_the_report_is_made_anew_from_the_record_alone(command, tmp_path, capsys):
    folder = tmp_path / "version_0" / "topology"
    shutil.copytree(command[1], folder)
    (folder / "report.html").unlink()
    # The folder of the version serves as well as the one in it.
    assert main(["report", str(folder.parent)]) == 0
    assert (folder / "report.html").is_file()
    other = tmp_path / "other.html"
    assert main(["report", str(folder), str(folder), "--out", str(other)]) == 0
    assert other.is_file()
    assert capsys.readouterr().out.count("file://") == 2
