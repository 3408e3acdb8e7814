"""The logger for Trackio: one run, found again, on this machine and by one process."""

from argparse import Namespace

import pytest

from lightning_topo import TrackioLogger
from lightning_topo.outputs.trackers import tracker_of
from lightning_topo.outputs.trackers._trackio import TrackioTracker
from tests.outputs.trackers.trackio_store import refuse_network, stored, values_of


@pytest.fixture
def project(request, trackio_dir):
    """A project of this test's own."""
    return request.node.name.partition("[")[0]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    refuse_network(monkeypatch)


def test_runs_of_one_name_are_two_unless_the_second_resumes_the_first(project):
    def session(value, **options):
        logger = TrackioLogger(project, "same", **options)
        logger.log_hyperparams({f"by_{value}": value})
        logger.log_metrics({"x": float(value)}, value)
        logger.finalize("success")

    session(1, resume=True)  # nothing to resume: a new one
    session(2)
    assert len(stored(project)) == 2
    session(3, resume=True)
    first, second = stored(project)
    assert values_of(project, first, "x") == [(1, 1.0)]
    assert values_of(project, second, "x") == [(2, 2.0), (3, 3.0)]
    assert (second.config["by_2"], second.config["by_3"]) == (2, 3)


def test_other_ranks_start_nothing(project, monkeypatch):
    from lightning.pytorch.utilities import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = TrackioLogger(project, "one")
    assert isinstance(tracker_of(logger), TrackioTracker)
    logger.log_hyperparams({"lr": 0.1})
    logger.log_metrics({"loss": 1.0}, 0)
    logger.finalize("success")
    assert logger._experiment is None
    assert (logger.name, logger.version) == (project, "one")


def test_without_trackio_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr("lightning_topo.callbacks._trackio_logger.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'lightning-topo\[trackio\]'"):
        TrackioLogger()


def test_what_is_logged_after_the_end_belongs_to_the_same_run(project):
    logger = TrackioLogger(project, "mine", group="sweep")
    logger.log_hyperparams(Namespace(lr=0.1))
    logger.log_metrics({"loss": 2.0}, 0)
    logger.finalize("success")
    logger.log_metrics({"test_loss": 0.5}, 1)
    logger.finalize("success")
    logger.finalize("success")
    (run,) = stored(project)
    assert (run.name, run.config["lr"], run.config["_Group"]) == ("mine", 0.1, "sweep")
    assert values_of(project, run, "loss") == [(0, 2.0)]
    assert values_of(project, run, "test_loss") == [(1, 0.5)]


def test_runs_without_a_name_have_names_of_their_own(project):
    names = {TrackioLogger(project).version for _ in range(20)}
    assert len(names) == 20
    assert stored_names(project) == []  # nothing is begun before something is logged


def stored_names(project):
    try:
        return [run.name for run in stored(project)]
    except ValueError:
        return []
