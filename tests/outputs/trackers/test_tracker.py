"""Any logger as a tracker: rows to the logger, figures into the run's folder and nowhere else."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.loggers import CSVLogger

from lightning_topo._watch.published_values import mangled_names
from lightning_topo.outputs.record import Parent
from lightning_topo.outputs.trackers import RunFacts, Tracker
from lightning_topo.outputs.trackers._tracker import config_name, shortened
from tests.outputs.driving import drive
from tests.outputs.strangers import NAMES, Foreign


def test_any_logger_gets_values_and_the_run_folder_the_figures(tmp_path):
    logger, csv = Foreign(), CSVLogger(tmp_path)
    training = drive(tmp_path / "topology", 16, loggers=[csv, logger])
    csv.finalize("success")
    folder = training.outputs.dirpath
    assert [step for step, _ in logger.rows] == [*range(16)]
    assert [row for _, row in logger.rows] == [dict(row.values) for row in training.rows]
    figures = {path.relative_to(folder / "figures").as_posix() for path in folder.rglob("*.png")}
    assert figures == {
        f"topology/{group}{name}/000000015.png"
        for group in ("", "net_0/", "net_3/")
        for name in ("diagram", "betti_curves", "crocker")
    }
    lines = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    assert "topology/net_3/betti_0" in lines[0]


def everything(folder):
    """Every file below a folder, with its content."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_figures_of_any_group_stay_in_the_run_folder(tmp_path):
    class Figure:
        def savefig(self, file, format):
            file.write(b"a figure")

    tracker = Tracker(CSVLogger(tmp_path / "logs"))
    tracker.began(RunFacts("id", tmp_path / "run" / "topology", {}, []))
    (tmp_path / "run" / "topology").mkdir(parents=True)
    for key in mangled_names([*NAMES, "../" * 10 + "x", "a/" + "b" * 5000]).values():
        tracker.figure(f"topology/{key}/diagram", Figure(), 3)
    found = everything(tmp_path)
    assert len(found) >= len(NAMES)
    assert all(path.resolve().is_relative_to(tmp_path / "run" / "topology" / "figures") for path in found)


def test_no_figure_goes_through_a_link(tmp_path):
    class Figure:
        def savefig(self, file, format):
            file.write(b"a figure")

    folder, outside = tmp_path / "run", tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "precious").write_text("mine")
    (folder / "figures").mkdir(parents=True)
    (folder / "figures" / "a").symlink_to(outside, target_is_directory=True)
    (folder / "figures" / "b").mkdir()
    (folder / "figures" / "b" / "000000003.png").symlink_to(outside / "precious")
    tracker = Tracker(CSVLogger(tmp_path / "logs"))
    tracker.began(RunFacts("id", folder, {}, []))
    for key in ("a", "a/deep"):
        with pytest.raises(OSError, match="a link"):
            tracker.figure(key, Figure(), 3)
    tracker.figure("b", Figure(), 3)
    assert everything(outside) == {outside / "precious": b"mine"}
    assert (folder / "figures" / "b" / "000000003.png").read_bytes() == b"a figure"


KEYS = st.text("ab/", max_size=80)


@given(KEYS, KEYS, st.integers(20, 60))
def test_a_key_that_is_cut_keeps_both_ends_and_is_told_apart(one, other, most):
    for key in (one, other):
        found = shortened(key, most)
        assert len(found) == min(len(key), most)
        assert found[:4] == key[:4]
        assert found[-4:] == key[-4:]
    assert (shortened(one, most) == shortened(other, most)) == (one == other)


def test_a_second_monitor_has_a_name_of_its_own_and_a_resumed_run_its_old_one():
    config = {}
    for run_id, name in (("one", "topology"), ("two", "topology_2"), ("one", "topology"), ("two", "topology_2")):
        run = RunFacts(run_id, None, {}, ())
        assert config_name(config, run) == name
        config[name] = run.config()
    for strange in (None, 3, ["run_id"], {"id": "one"}):
        assert config_name({"topology": strange}, RunFacts("one", None, {}, ())) == "topology_2"
    assert config_name({"topology": {"run_id": None}}, RunFacts(None, None, {}, ())) == "topology"


def test_a_config_is_json_and_names_the_parent():
    run = RunFacts("id", None, {"seed": 0, "run_id": "not this"}, [{"name": "net.0"}], Parent("before", 7))
    config = json.loads(json.dumps(run.config()))
    assert config == {
        "seed": 0,
        "run_id": "id",
        "groups": [{"name": "net.0"}],
        "parent": {"run_id": "before", "step": 7},
    }
    assert run.files() == []


def test_without_a_folder_no_figure_is_saved():
    tracker = Tracker(None)
    tracker.began(RunFacts(None, None, {}, ()))
    tracker.figure("topology/diagram", None, 3)  # it is not even looked at
