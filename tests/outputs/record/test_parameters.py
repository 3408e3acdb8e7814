"""For every parameter the record has its groups, or the reason why it is in none."""

import json

import pytest
import torch
from torch import nn

from lightning_topo import Distortion, TopologyMonitor, read_record
from lightning_topo._cli import main
from lightning_topo.neurons import declare_neurons
from lightning_topo.neurons._coverage import ParameterCoverage
from lightning_topo.outputs.page._page import render_page
from lightning_topo.outputs.page._parameters import MOST_ROWS, parameter_section
from lightning_topo.outputs.record._parameters import PARAMETERS, ParameterTable, read_parameters, write_parameters
from tests.callbacks.training import Classifier, fit


class Part(Classifier):
    """Has a parameter that no loss meets, and one that is not trained."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(2, 7))
        self.frozen = nn.Parameter(torch.zeros(5), requires_grad=False)


def watched(tmp_path, module, **options):
    monitor = TopologyMonitor([Distortion()], verbose=False, **options)
    fit(module, [monitor], root=tmp_path, max_steps=2)
    return read_record(monitor.dirpath)


def test_every_parameter_has_its_groups_or_a_reason(tmp_path, capsys):
    module = Part()
    record = watched(tmp_path, module)
    table = record.parameters
    assert [p.param for p in table.parameters] == [name for name, _ in module.named_parameters()]
    assert [p.numel for p in table.parameters] == [p.numel() for p in module.parameters()]
    found = {p.param: p for p in table.parameters}
    assert found["net.3.weight"].groups == ("net.0", "net.3")
    assert [(g.name, g.size, g.status) for g in table.groups] == [
        ("net.0", "8", "verified"),
        ("net.3", "6", "verified"),
    ]
    assert all(bool(p.groups) != bool(p.reason) for p in table.parameters)
    assert "does not use it" in found["unused"].reason
    assert "not trained" in found["frozen"].reason
    assert "classes" in found["net.5.bias"].reason
    [event] = [e for e in record.events if e.name == "unwatched_parameters"]
    assert event.value == 2.0  # the frozen one is nobody's loss
    assert "unused" in event.message

    assert main(["neurons", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed == f"{table}\n"
    for name in found:
        assert name in printed
    section = parameter_section(table)
    assert section in render_page([record])
    assert "net.5.bias" in section


def compiled():
    module = Classifier()
    module.net = torch.compile(module.net, backend="eager")
    return module


@pytest.mark.parametrize("declares", [False, True])
def test_where_nothing_is_recorded_the_reason_is_that(tmp_path, declares):
    module = compiled()
    hidden = declare_neurons(module, "hidden", {"net.0.weight": 0, "net.0.bias": 0, "net.3.weight": 1})
    groups = hidden if declares else "auto"
    table = watched(tmp_path, module, groups=groups).parameters
    assert len(table.parameters) == 6
    assert table.uncovered
    assert all("compile" in p.reason for p in table.uncovered)
    assert declares == ("hidden" in [g.name for g in table.groups])


class Grows(Classifier):
    """From the second step on it has another layer."""

    def on_train_batch_end(self, *args):
        if not hasattr(self, "more"):
            self.more = nn.Linear(3, 3)
            self.trainer.optimizers[0].add_param_group({"params": list(self.more.parameters())})

    def training_step(self, batch, batch_idx):
        out = self.net(batch[0])
        return nn.functional.cross_entropy(self.more(out) if hasattr(self, "more") else out, batch[1])


def test_what_joins_later_is_told_too(tmp_path):
    monitor = TopologyMonitor([Distortion()], verbose=False)
    fit(Grows(), [monitor], root=tmp_path, max_epochs=1)
    names = [p.param for p in read_record(monitor.dirpath).parameters.parameters]
    assert "more.weight" in names


def coverage(n):
    return [ParameterCoverage(f"p{k}.<b>", k + 1, (), f"reason {k} <i>") for k in range(n)]


def test_there_and_back(tmp_path):
    write_parameters(tmp_path, [], coverage(3))
    assert read_parameters(tmp_path) == ParameterTable((), tuple(coverage(3)))
    assert [p.param for p in read_parameters(tmp_path).uncovered] == ["p2.<b>", "p1.<b>", "p0.<b>"]


WRONG = {
    "none": None,
    "text": "{",
    "list": "[]",
    "schema": '{"schema": 2, "groups": [], "parameters": []}',
    "fields": '{"schema": 1, "groups": [], "parameters": [{"name": 3}]}',
    "kinds": '{"schema": 1, "groups": [], "parameters": [{"name": "p", "entries": "x", "groups": [], "reason": ""}]}',
    "groups": '{"schema": 1, "groups": [], "parameters": [{"name": "p", "entries": 1, "groups": [1], "reason": ""}]}',
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_a_file_that_is_not_ours_is_none(tmp_path, text):
    if text is not None:
        (tmp_path / PARAMETERS).write_text(text)
    assert read_parameters(tmp_path) is None


def test_the_page_shows_the_largest_and_escapes_names():
    section = parameter_section(ParameterTable((), tuple(coverage(MOST_ROWS + 3))))
    assert "<b>" not in section
    assert "p14.&lt;b&gt;" in section
    assert "p2.&lt;b&gt;" not in section
    assert "3 more are in parameters.json" in section
    assert parameter_section(None) == ""


def test_a_record_of_an_older_version_is_refused_by_the_command(tmp_path, capsys):
    monitor = TopologyMonitor([Distortion()], verbose=False)
    fit(Classifier(), [monitor], root=tmp_path, max_steps=1)
    json.loads((monitor.dirpath / PARAMETERS).read_text())
    (monitor.dirpath / PARAMETERS).unlink()
    assert main(["neurons", str(monitor.dirpath)]) == 2
    assert "older version" in capsys.readouterr().err
