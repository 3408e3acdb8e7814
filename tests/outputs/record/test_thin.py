"""A record with a limit: older measurements are thinned, their extremes and every event stay, and no kill harms it."""

import json
import random
import signal
import textwrap
from itertools import pairwise

import pytest
import torch

from lightning_topo._figures.coverage import stretches
from lightning_topo.homology import persistence
from lightning_topo.measurement import Measurement, StepState
from lightning_topo.outputs.page import render_page, verdict
from lightning_topo.outputs.page._model import Budget, run_view
from lightning_topo.outputs.page._outcome import history
from lightning_topo.outputs.record import MEASUREMENTS, RecordWriter, read_record
from lightning_topo.outputs.record._thin import Thinned, thinned
from lightning_topo.phases import DetectorState, observe
from tests import warm

GROUPS = ("net.0", "net.2")
LIMIT = 60_000


def run(seed=0, n_steps=600):
    """A training with breakdowns and a time at the edge, as measurements."""
    draw = random.Random(seed)
    for step in range(1, n_steps + 1):
        yield Measurement(step, 0, "training", "", {"loss": float("nan") if step == 77 else 1.0 / step})
        if step % 5 == 0:
            yield Measurement(step, 0, "sharpness", "", {"sharpness_ratio": 1.1 if 200 < step < 400 else 0.3})
        for group in GROUPS:
            r = draw.uniform(0.001, 0.9) if step not in (50, 333) else 1.0 + draw.random()
            values = {"critical_ratio": r, "contraction": 1 - draw.random() * r, "expansion": 1 + draw.random() * r}
            yield Measurement(step, 0, "distortion", group, values | {"critical_i": float(step)})


def written(folder, limit, seed=0, n_steps=600):
    """The record of such a run, with the events that the detector made of it live."""
    writer = RecordWriter.open(folder, max_bytes=limit)
    state, cloud = DetectorState(), torch.randn(12, 3, generator=torch.Generator().manual_seed(seed))
    for measurement in run(seed, n_steps):
        writer.measurement(measurement)
        state, events = observe(state, measurement)
        for event in events:
            writer.event(event)
        if measurement.probe == "training" and measurement.step % 10 == 0:
            writer.diagrams(measurement.step, {"net.0": persistence(cloud, 1)})
    writer.close()
    return read_record(folder)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The same run, whole and with a limit."""
    folder = tmp_path_factory.mktemp("thinning")
    return written(folder / "whole", float("inf")), written(folder / "small", LIMIT)


def size(record):
    paths = [record.dirpath / MEASUREMENTS, *(record.dirpath / "diagrams").iterdir()]
    return sum(path.stat().st_size for path in paths)


def test_it_keeps_to_its_limit(pair):
    whole, small = pair
    assert whole.thinned is None
    assert size(whole) > 4 * LIMIT
    assert size(small) <= 1.1 * LIMIT
    assert small.thinned.factor >= 4
    assert small.thinned.n_captures == 60 - len(small.diagram_steps)
    # The first and the newest captures are there, and can be read.
    assert {10, 600} <= set(small.diagram_steps)
    assert all(small.diagrams(step) for step in small.diagram_steps)


def test_a_line_that_stands_for_many_leaves_no_holes_in_the_map(pair):
    ratio = run_view(pair[1], "small", Budget.of(2)).ratio
    assert ratio is not None
    for column in ratio.columns.values():
        measured = [value is not None for value in column]
        assert all(measured[measured.index(True) :])


def test_every_event_and_phase_is_as_in_the_whole_record(pair):
    whole, small = (history(record) for record in pair)
    assert [(e.name, e.step, e.group) for e in small.events] == [(e.name, e.step, e.group) for e in whole.events]
    assert {e.name for e in small.events} >= {"topology_breakdown", "topology_restored", "edge_of_stability_enter"}
    assert small.replay.phases.keys() == whole.replay.phases.keys()
    for group, phases in whole.replay.phases.items():
        assert [phase for _, phase in small.replay.phases[group]] == [phase for _, phase in phases]
        # But for the first, which begins where the first line that is left stands.
        assert small.replay.phases[group][1:] == phases[1:]
    frames = [
        record.phases_frame().groupby("group").apply(lambda rows: rows[["step", "name"]].to_numpy().tolist()[1:])
        for record in pair
    ]
    assert frames[0].to_dict() == frames[1].to_dict()
    for name in ("worst_phase", "phase", "breakdowns", "edge_step", "peak_ratio", "final_loss", "nonfinite_loss_step"):
        assert getattr(small.outcome, name) == getattr(whole.outcome, name), name


def test_extremes_stay_with_the_step_and_the_pair_that_attain_them(pair):
    for group in GROUPS:
        whole, small = ([m for m in record.measurements if m.group == group] for record in pair)
        assert len(small) < len(whole) / 3
        for name, extreme in (("critical_ratio", max), ("expansion", max), ("contraction", min)):
            assert extreme(m.values[name] for m in small) == extreme(m.values[name] for m in whole)
        at = {m.step: m.values for m in whole}
        for m in small:
            assert m.values["critical_ratio"] == at[m.step]["critical_ratio"]
            assert m.values["critical_i"] == m.step
        # The newest are as they were: a quarter of the 24 kB of lines that events and captures leave room for.
        assert small[-10:] == whole[-10:]


def test_the_page_says_so(pair):
    whole, small = (render_page([record]) for record in pair)
    assert f"up to {pair[1].thinned.factor:,} measurements" in small
    assert f"{pair[1].thinned.n_captures:,} captured diagrams were dropped" in small
    assert "was thinned" not in whole


def test_no_two_lines_of_a_step_measured_again(tmp_path):
    lines = [{"step": s, "epoch": 0, "probe": "p", "group": "g", "v": v} for s, v in ((1, 1.0), (2, 2.0), (1, 3.0))]
    lines += [{"schema": 1}, {}, {"step": "x"}, {"step": 1, "probe": "p", "group": ["g"]}]
    first, *rest = thinned(lambda: iter(lines), Thinned())
    assert first == Thinned().to_line()
    assert rest == [lines[1], lines[2]]


def test_thinning_goes_on_after_a_resume(tmp_path, pair):
    first = written(tmp_path / "run", LIMIT, n_steps=300)
    writer = RecordWriter.open(first.dirpath, resume=(None, first.run_id), max_bytes=LIMIT)
    for measurement in run():
        if measurement.step > 280:
            writer.measurement(measurement)
    writer.close()
    record = read_record(first.dirpath)
    assert size(record) <= 1.1 * LIMIT
    assert record.thinned.until_step > first.thinned.until_step
    assert record.n_unreadable == 0


def test_a_kill_in_the_midst_of_thinning_leaves_a_whole_record(tmp_path):
    """Killed after each of the steps that change a file: what is there is the old record or the new one."""
    code = """
        import os, signal, sys
        from pathlib import Path
        from tests.outputs.record.test_thin import LIMIT, RecordWriter, run
        calls, fatal, real = [0], int(sys.argv[2]), {n: getattr(Path, n) for n in ("replace", "unlink")}
        for name, action in real.items():
            def counted(self, *args, action=action, **options):
                calls[0] += 1
                if calls[0] == fatal:
                    os.kill(os.getpid(), signal.SIGKILL)
                return action(self, *args, **options)
            setattr(Path, name, counted)
        writer = RecordWriter.open(sys.argv[1], max_bytes=LIMIT)
        for measurement in run():
            writer.measurement(measurement)
            print(measurement.step, flush=True)
    """
    for fatal in (1, 2, 5):
        folder = tmp_path / str(fatal)
        done = warm.run(textwrap.dedent(code), folder, fatal, folder=tmp_path)
        assert done.returncode == -signal.SIGKILL, done.stderr
        record = read_record(folder)
        assert record.n_unreadable == 0
        assert max(m.step for m in record.measurements) >= int(done.stdout.split()[-1])
        assert (record.thinned is not None) == (fatal > 2)
        for group in GROUPS:
            seen = [m for m in record.measurements if m.group == group]
            expected = {m.step: m.values["critical_ratio"] for m in run() if m.group == group}
            past = [ratio for step, ratio in expected.items() if step <= seen[-1].step]
            assert max(m.values["critical_ratio"] for m in seen) == max(past)
        again = RecordWriter.open(folder, resume=(None, record.run_id), max_bytes=LIMIT)
        again.measurement(Measurement(601, 0, "distortion", "net.0", {"critical_ratio": 0.5}))
        again.close()
        lines = (folder / MEASUREMENTS).read_text().splitlines()
        assert all(json.loads(line) for line in lines)
        assert json.loads(lines[0])["run_id"] == record.run_id


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_a_limit_is_a_positive_number(limit):
    from lightning_topo import TopologyMonitor

    with pytest.raises(ValueError, match="max_record_mb > 0"):
        TopologyMonitor(max_record_mb=limit)


def test_coverage_is_thinned_too_and_claims_what_it_did(tmp_path):
    """Runs of one state are joined, with the largest bound: each step is as certain as it was, and no more."""
    kept = {}
    for name, limit in (("whole", float("inf")), ("small", 100_000)):
        writer = RecordWriter.open(tmp_path / name, max_bytes=limit)
        for k in range(1_500):
            for group in GROUPS:
                state = StepState.OPEN if k in (300, 301, 777) else StepState.BOUNDED
                values = {"from": 10.0 * k, "state": float(state), "bound": 0.3 + (k % 7) / 20}
                writer.measurement(Measurement(10 * k + 10, 0, "coverage", group, values))
        writer.close()
        kept[name] = read_record(tmp_path / name)
    assert (tmp_path / "small" / MEASUREMENTS).stat().st_size <= 100_000
    whole, small = (stretches(record.measurements) for record in (kept["whole"], kept["small"]))
    for group in GROUPS:
        states = [{s: x.state for x in found[group] for s in range(x.first, x.last + 1)} for found in (whole, small)]
        assert states[0] == states[1]
        bounds = [
            {s: x.bound or 0.0 for x in found[group] for s in range(x.first, x.last + 1)} for found in (whole, small)
        ]
        assert all(bounds[1][s] >= bound for s, bound in bounds[0].items() if states[0][s] is StepState.BOUNDED)
        assert max(bounds[1].values()) < 1.0


def test_a_state_that_alternates_is_thinned_too_and_no_step_is_claimed_that_was_not(tmp_path):
    """As `Distortion(every_n_steps=2)` records it, with two steps of r above 1 in the midst of many below."""
    n_steps, limit = 6000, 60_000
    writer = RecordWriter.open(tmp_path / "t", max_bytes=limit)
    hot = {2001: 1.4, 2003: 1.2}
    for step in range(1, n_steps + 1):
        exact = step % 2 == 1
        if exact:
            ratio = {"critical_ratio": hot.get(step, 0.1 + 0.001 * (step % 7))}
            writer.measurement(Measurement(step, 0, "distortion", "net.0", ratio))
        state = {"state": float(StepState.EXACT)} if exact else {"state": float(StepState.BOUNDED), "bound": 0.5}
        writer.measurement(Measurement(step, 0, "coverage", "net.0", {"from": step - 1.0, **state}))
    writer.close()
    assert (tmp_path / "t" / MEASUREMENTS).stat().st_size <= 1.1 * limit
    record = read_record(tmp_path / "t")
    lines = [m for m in record.measurements if m.probe == "coverage"]
    covered = [(int(m.values["from"]), m.step) for m in lines]
    assert covered[0][0] == 0
    assert covered[-1][1] == n_steps
    assert all(one[1] == other[0] for one, other in pairwise(covered))
    # A step of r above 1 stays exact: it was measured, and certifies nothing.
    for step in hot:
        (line,) = [m for m in lines if m.values["from"] < step <= m.step]
        assert line.values["state"] == StepState.EXACT
    assert {m.values["state"] for m in lines} == {StepState.EXACT, StepState.BOUNDED}
    assert max(m.values["critical_ratio"] for m in record.measurements if m.probe == "distortion") == 1.4
    assert "6,000 of 6,000 steps" in verdict(record)
