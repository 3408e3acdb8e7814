"""A record read in bounded memory, as it grows, is the record: the same page, the same story, no hole in a chart."""

import json
import math
import shutil
from dataclasses import asdict, replace

import pytest

from lightning_topo._figures.coverage import of_network, stretches
from lightning_topo.measurement import Measurement, StepState
from lightning_topo.outputs.page import render_page
from lightning_topo.outputs.page._model import Budget, run_view
from lightning_topo.outputs.page._outcome import history
from lightning_topo.outputs.record import EVENTS, MEASUREMENTS, RecordFollower, RecordWriter, read_record
from tests.outputs.driving import drive
from tests.outputs.page.synthetic import demo_run, hostile_run

SMALL = 3_000


def covered(folder, n_steps=400, groups=("a", "b", "c")):
    """A run with lines of coverage: exact at some steps, bounded or open between, by group."""
    writer = RecordWriter.open(folder)
    since = dict.fromkeys(groups, 0)
    for step in range(1, n_steps + 1):
        writer.measurement(Measurement(step, 0, "training", "", {"loss": 2.0 / step + 0.1 * (step % 7)}))
        for i, group in enumerate(groups):
            if step % (5 + i) and step != n_steps:
                continue
            if step - 1 > since[group]:
                state = StepState.OPEN if step % 50 < 6 else StepState.BOUNDED
                values = {"from": float(since[group]), "state": float(state)}
                values |= {"bound": 0.3 + 0.001 * (step % 13)} if state is StepState.BOUNDED else {}
                writer.measurement(Measurement(step - 1, 0, "coverage", group, values))
            ratio = 1.2 if (step, i) == (210, 0) else 0.01 * (1 + (7 * step + i) % 11)
            values = {"critical_ratio": ratio, "contraction": 1 - ratio}
            writer.measurement(Measurement(step, 0, "distortion", group, values))
            exact = {"from": step - 1.0, "state": float(StepState.EXACT)}
            writer.measurement(Measurement(step, 0, "coverage", group, exact))
            since[group] = step
    writer.close()
    return writer.dirpath


MAKERS = {
    "demo": lambda path: demo_run(path, n_steps=200).dirpath,
    "breakdown": lambda path: demo_run(path, n_steps=200, breakdown_at=100, edge_at=None).dirpath,
    "hostile": lambda path: hostile_run(path).dirpath,
    "covered": covered,
    "driven": lambda path: drive(path, 120, hot={9, 30}).outputs.dirpath,
}


@pytest.mark.parametrize("name", MAKERS)
def test_what_fits_is_read_as_it_is(tmp_path, name):
    folder = MAKERS[name](tmp_path / "topology")
    assert render_page([RecordFollower(folder).read()]) == render_page([read_record(folder)])


def whole(past):
    """But for the step at which the largest bound was recorded, which of merged lines is the last."""
    coverage = past.outcome.coverage
    if coverage is None or coverage.peak_bound is None:
        return past
    peak = replace(coverage.peak_bound, step=0, group="")
    return replace(past, outcome=replace(past.outcome, coverage=replace(coverage, peak_bound=peak)))


@pytest.mark.parametrize("name", MAKERS)
def test_what_does_not_fit_tells_the_same_story(tmp_path, name):
    folder = MAKERS[name](tmp_path / "topology")
    followed, record = RecordFollower(folder, most_kept=SMALL).read(), read_record(folder)
    assert repr(whole(history(followed))) == repr(whole(history(record)))
    if name != "hostile":
        assert len(followed.measurements) < len(record.measurements)
    assert followed.digest.n_measurements == len(record.measurements)
    assert followed.groups == record.groups


@pytest.mark.parametrize("most_kept", [SMALL, 10**6])
@pytest.mark.parametrize("name", ["covered", "driven"])
def test_reading_on_is_reading_at_once(tmp_path, name, most_kept):
    folder, live = MAKERS[name](tmp_path / "topology"), tmp_path / "live"
    live.mkdir()
    follower = RecordFollower(live, most_kept=most_kept)
    texts = {file: (folder / file).read_bytes() for file in (MEASUREMENTS, EVENTS)}
    for part in (0.13, 0.4, 0.41, 0.99, 1.0):  # cut off in the middle of lines
        for file, text in texts.items():
            (live / file).write_bytes(text[: max(round(part * len(text)), text.index(b"\n") + 1)])
        record = follower.read(whole=part == 1.0)
        assert record.n_unreadable == 0
    at_once = RecordFollower(folder, most_kept=most_kept).read()
    assert repr(whole(history(record))) == repr(whole(history(at_once)))
    if most_kept > SMALL:
        assert record.measurements == at_once.measurements


def test_lines_that_a_rewind_abandons_are_left_out_also_if_the_run_is_rewound_while_followed(tmp_path):
    first = drive(tmp_path / "topology", 40, hot={30})
    folder = first.outputs.dirpath
    follower = RecordFollower(folder, most_kept=SMALL)
    assert history(follower.read()).outcome.breakdowns
    drive(folder, 12, step=20, resume=(folder, first.outputs.run_id))
    followed, record = follower.read(), read_record(folder)
    assert repr(history(followed)) == repr(history(record))
    assert not history(followed).outcome.breakdowns
    assert followed.n_abandoned >= record.n_abandoned > 0  # every line, also those of steps that were measured again


def test_of_a_step_measured_twice_without_a_rewind_the_later_line_stands(tmp_path):
    """As older versions resumed."""
    drive(tmp_path / "topology", 30, hot={25})
    path = tmp_path / "topology" / MEASUREMENTS
    lines = path.read_text().splitlines(keepends=True)
    again = [line for line in lines[1:] if 20 < json.loads(line)["step"] <= 27]
    again = [line.replace('"critical_ratio": 1.', '"critical_ratio": 0.') for line in again]
    path.write_text("".join([*lines, *again]))
    followed, record = RecordFollower(path.parent).read(), read_record(path.parent)
    assert sorted(map(repr, followed.measurements)) == sorted(map(repr, record.measurements))
    assert repr(history(followed).outcome) == repr(history(record).outcome)


def test_the_parents_history_is_the_same(tmp_path):
    first = drive(tmp_path / "A" / "topology", 24)
    second = drive(tmp_path / "B" / "topology", 12, step=16, resume=(first.outputs.dirpath, first.outputs.run_id))
    folder = second.outputs.dirpath
    assert render_page([RecordFollower(folder).read()]) == render_page([read_record(folder)])


def test_a_file_put_in_place_of_the_one_that_was_read_is_read_anew(tmp_path):
    folder = MAKERS["driven"](tmp_path / "topology")
    follower = RecordFollower(folder)
    follower.read()
    other = drive(tmp_path / "other", 9).outputs.dirpath
    for file in (MEASUREMENTS, EVENTS):
        shutil.copy(other / file, folder / "new")
        (folder / "new").replace(folder / file)
    assert asdict(history(follower.read()).outcome) == asdict(history(read_record(other)).outcome)


def test_no_column_of_the_heat_map_is_empty_and_no_peak_is_lost(tmp_path):
    writer = RecordWriter.open(tmp_path / "topology")
    for step in range(1, 3001):
        for i in range(3):
            ratio = 0.9 if (step, i) == (1733, 1) else 0.01 * (1 + (step * 7 + i) % 5)
            writer.measurement(Measurement(step, 0, "distortion", f"g{i}", {"critical_ratio": ratio}))
        writer.measurement(Measurement(step, 0, "training", "", {"loss": math.inf if step == 2000 else 1.0 / step}))
    writer.close()
    record = RecordFollower(writer.dirpath, most_kept=6_000).read()
    assert len(record.measurements) < 1_000
    view = run_view(record, "x", Budget.of(3))
    assert all(value is not None for column in view.ratio.columns.values() for value in column)
    assert len(view.ratio.steps) > 30
    assert max(view.ratio.columns["1"]) == 0.9
    assert (view.outcome.peak_ratio.step, view.outcome.peak_ratio.group) == (1733, "g1")
    assert view.outcome.nonfinite_loss_step == 2000
    assert view.outcome.n_ratio_steps == 3000
    assert view.ratio.merged >= 3000 / len(view.ratio.steps)


def test_the_network_is_never_claimed_to_be_more_certain_than_it_is(tmp_path, monkeypatch):
    folder = covered(tmp_path / "topology")
    truth = of_network(stretches(read_record(folder).measurements), since=0)
    assert RecordFollower(folder).read().digest.network == truth
    monkeypatch.setattr("lightning_topo.outputs.record._network._MOST_PIECES", 20)
    coarse = RecordFollower(folder).read().digest.network
    assert len(coarse) <= 21

    def at(pieces, step):
        return next((s.state for s in pieces if s.first <= step <= s.last), StepState.OPEN)

    assert all(at(coarse, step) <= at(truth, step) for step in range(1, 401))
