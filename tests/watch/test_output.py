"""What the engine sends to has the five verbs: every output that is opened, and all of them together."""

import pytest
from lightning.pytorch.loggers import CSVLogger

from lightning_topo._watch.output import Output, ReferenceStore, Run, RunOutputs
from lightning_topo._watch.published_values import Readings
from lightning_topo.outputs._outputs import Outputs, open_outputs
from tests.outputs.driving import SETTINGS, Training
from tests.watch.driving import GROUPS, Kept


@pytest.fixture
def opened(tmp_path):
    made = open_outputs(tmp_path / "topology", loggers=[CSVLogger(tmp_path)])
    yield made
    made.end(in_haste=True)


def test_everything_that_is_opened_is_an_output(opened):
    kinds = [type(output).__name__ for output in opened.outputs]
    assert kinds == ["RecordOutput", "AboutOutput", "PageOutput", "TrackerOutput", "TerminalOutput"]
    assert all(isinstance(output, Output) for output in opened.outputs)
    assert isinstance(opened, RunOutputs)
    assert isinstance(opened.store, ReferenceStore)


def test_where_there_is_no_record_there_is_no_folder_and_no_store():
    elsewhere = Outputs()
    assert isinstance(elsewhere, RunOutputs)
    assert (elsewhere.dirpath, elsewhere.run_id, elsewhere.store, list(elsewhere.noticed)) == (None, None, None, [])


def test_one_verb_less_is_no_output_and_an_output_alone_is_no_run_of_outputs():
    class Deaf:
        start = measurement = diagrams = end = Kept.start

    assert isinstance(Kept(), Output)
    assert not isinstance(Deaf(), Output)
    assert not isinstance(Kept(), RunOutputs)
    assert not isinstance(Kept(), ReferenceStore)


def test_anything_with_the_verbs_can_stand_among_the_outputs_and_gets_all_that_was_sent():
    kept = Kept()
    training = Training(Outputs((kept,)), hot=frozenset({3})).run(5)
    training.outputs.end()
    training.outputs.end()
    assert kept.order[0] == "start"
    assert kept.order.count("end") == 1
    assert [m for m in kept.measured if m.probe not in ("phase", "row")] == training.measured
    assert kept.events == training.events != []
    assert kept.runs[0].settings == SETTINGS


def test_a_run_without_facts_has_its_own():
    first, second = (Run(GROUPS, Readings([]), {}) for _ in range(2))
    assert first.facts == {}
    assert first.facts is not second.facts
    assert (first.step, first.epoch) == (0, 0)
