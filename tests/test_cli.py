"""The command: what it prints, and what it says of arguments that it cannot use."""

import gc
from pathlib import Path

import pytest

from lightning_topo._cli import main
from lightning_topo.measurement import Measurement
from lightning_topo.outputs.record import RecordWriter


def test_a_folder_without_a_record_is_said(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "expected a run folder" in capsys.readouterr().err


def test_the_neurons_of_a_model_are_listed(tmp_path, capsys, monkeypatch):
    model = "nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))"
    (tmp_path / "mine.py").write_text(f"from torch import nn\nmodel = {model}\n")
    monkeypatch.chdir(tmp_path)
    assert main(["neurons", "mine:model", "--shape", "2,3,8,8"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "kind", "n", "d", "parameters", "verified"]
    assert row.split()[:4] == ["0", "channel", "4", str(27 + 1 + 18)]
    assert row.endswith("yes")
    assert main(["neurons", "lightning_topo.demo:DigitsMLP"]) == 0
    found = capsys.readouterr()
    assert (found.out.count("yes"), found.err) == (2, "")
    layers = "nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 11 * 11, 2)"
    (tmp_path / "sized.py").write_text(f"from torch import nn\nmodel = nn.Sequential({layers})\n")
    assert main(["neurons", "sized:model"]) == 0
    assert "as in --shape 4,3,32,32" in capsys.readouterr().err
    assert main(["neurons", "sized:model", "--shape", "2,3,13,13"]) == 0
    found = capsys.readouterr()
    assert (found.out.count("yes"), found.err) == (1, "")
    for wrong in ("mine:nothing", "mine", "nowhere:model"):
        assert main(["neurons", wrong]) == 2
        assert capsys.readouterr().err.startswith("lightning-topo:")


def test_where_there_is_no_run_it_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "found no measurements.jsonl" in capsys.readouterr().err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    import lightning_topo

    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == f"lightning-topo {lightning_topo.__version__}"


def a_run(folder):
    writer = RecordWriter.open(folder)
    writer.measurement(Measurement(1, 0, "distortion", "net.0", {"critical_ratio": 0.5}))
    writer.close()
    return folder


@pytest.mark.parametrize("command", [["watch"], ["report", "--follow"], ["neurons"]])
def test_where_one_run_is_wanted_several_are_named(tmp_path, capsys, command):
    for name in "ab":
        a_run(tmp_path / name)
    assert main([*command, str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.err == (
        f"lightning-topo: expected one run, got a folder with 2: name one of {tmp_path / 'a'}, {tmp_path / 'b'}\n"
    )
    assert said.out == ""


def test_one_run_below_a_folder_is_that_run(tmp_path, capsys):
    a_run(tmp_path / "logs" / "version_0" / "topology")
    assert main(["report", str(tmp_path / "logs")]) == 0
    page = tmp_path / "logs" / "version_0" / "topology" / "report.html"
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{page.parent}: Topology preserved")
    assert said[-1] == page.as_uri()
    assert page.is_file()
    assert main(["neurons", str(tmp_path)]) == 2
    assert "an older version" in capsys.readouterr().err


def test_a_report_leaves_the_collector_of_garbage_as_it_was(tmp_path, capsys):
    run = str(a_run(tmp_path / "run"))
    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            assert main(["report", run]) == 0
            assert main(["report", str(tmp_path / "nowhere")]) == 2
            assert gc.isenabled() is enabled
        finally:
            gc.enable()


@pytest.mark.parametrize("arguments", [[], ["unheard-of"], ["report"], ["demo", "--lr", "fast"]])
def test_what_is_no_command_shows_how_it_is_used(capsys, arguments):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "usage: lightning-topo" in capsys.readouterr().err
