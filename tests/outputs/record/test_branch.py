"""A run is a branch: whose folder it writes into, what it takes from its parent, what a rewind abandons."""

import json
import os
import random
import signal
import textwrap
import time
from functools import partial
from operator import attrgetter

import pytest
import torch

from lightning_topo.outputs.page import render_page, verdict
from lightning_topo.outputs.page._outcome import history
from lightning_topo.outputs.record import EVENTS, MEASUREMENTS, Parent, RecordWriter, read_record
from lightning_topo.outputs.record._branch import has_later_lines, live_lines, rewind_floors
from lightning_topo.outputs.record._jsonl import read_objects
from lightning_topo.phases import EventName, TopologyEvent
from tests import warm
from tests.outputs.record.written import ratio, write


def everything(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def steps_of(record, probe="distortion"):
    return [m.step for m in record.measurements if m.probe == probe]


@pytest.fixture
def parent(tmp_path):
    """A run of 40 steps that broke down at step 31."""
    writer = RecordWriter.open(tmp_path / "A" / "topology")
    writer.reference(0, [("net.0", torch.eye(3))])
    write(writer, range(1, 31))
    write(writer, range(31, 41), value=2.0)
    writer.close()
    return writer


def resumed(parent, folder, step=20, **options):
    return RecordWriter.open(folder, resume=(parent.dirpath, parent.run_id), step=step, **options)


# --- branches ---------------------------------------------------------------------------------------------------------


def test_two_branches_of_one_checkpoint_have_folders_of_their_own_and_never_touch_the_parents(tmp_path, parent):
    before = everything(parent.dirpath)
    branches = [resumed(parent, tmp_path / name / "topology") for name in "BC"]
    for k, step in ((k, step) for step in range(21, 61) for k in (0, 1)):
        write(branches[k], [step], value=0.1 * (k + 1))
    for branch in branches:
        branch.close()
    assert everything(parent.dirpath) == before
    for k, branch in enumerate(branches):
        record = read_record(branch.dirpath)
        assert record.run_id not in (parent.run_id, branches[1 - k].run_id)
        assert record.parent == Parent(parent.run_id, 20)
        assert steps_of(record) == list(range(21, 61))
        assert {m.values["critical_ratio"] for m in record.measurements if m.group} == {0.1 * (k + 1)}
        assert steps_of_history(record) == list(range(1, 21))
        assert "preserved" in verdict(record)
    assert steps_of(read_record(parent.dirpath)) == list(range(1, 41))


def steps_of_history(record):
    return [m.step for m in record.history if m.probe == "distortion"]


def test_the_header_names_the_parent(tmp_path, parent):
    branch = resumed(parent, tmp_path / "B")
    branch.close()
    for name in (MEASUREMENTS, EVENTS):
        header = json.loads((branch.dirpath / name).read_text().splitlines()[0])
        assert header == {"schema": 1, "run_id": branch.run_id, "parent": {"run_id": parent.run_id, "step": 20}}


def test_a_branch_has_a_copy_of_the_clouds_that_its_parent_began_with(tmp_path, parent):
    branch = resumed(parent, tmp_path / "B")
    assert torch.equal(branch.read_reference("net.0"), torch.eye(3))
    (parent.dirpath / "reference" / "clouds.npz").unlink()
    assert torch.equal(branch.read_reference("net.0"), torch.eye(3))


def test_a_branch_of_a_branch_has_the_whole_history(tmp_path, parent):
    first = resumed(parent, tmp_path / "B")
    write(first, range(21, 41))
    first.close()
    second = resumed(first, tmp_path / "C", step=30)
    write(second, range(31, 41))
    second.close()
    record = read_record(second.dirpath)
    assert steps_of_history(record) == list(range(1, 31))
    assert record.parent == Parent(first.run_id, 30)


def test_a_parents_abandoned_lines_are_no_history(tmp_path, parent):
    again = resumed(parent, parent.dirpath, step=25)
    again.rewind(25, 0)
    write(again, [26, 27], value=0.5)
    again.close()
    branch = resumed(again, tmp_path / "B", step=35)
    branch.close()
    record = read_record(branch.dirpath)
    assert steps_of_history(record) == list(range(1, 28))
    assert [e.name for e in record.history_events] == []


def test_where_the_parents_record_is_gone_it_is_named_all_the_same_and_that_is_said(tmp_path, parent):
    branch = RecordWriter.open(tmp_path / "B", resume=(tmp_path / "nowhere", parent.run_id), step=20)
    branch.close()
    record = read_record(branch.dirpath)
    assert record.parent == Parent(parent.run_id, 20)
    assert record.history == ()
    assert any("history is not shown" in note for note in branch.branch.notes)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
def test_a_parent_that_may_be_read_and_not_written_is_enough(tmp_path, parent):
    """Training from a colleague's checkpoint: the record goes where this one may write."""
    for path in (tmp_path, *tmp_path.parents):  # as deep as the runner puts them: pytest-xdist by one folder deeper
        if path.stat().st_mode & 0o005 != 0o005:
            path.chmod(path.stat().st_mode | 0o755)
    (tmp_path / "own").mkdir()
    os.chown(tmp_path / "own", 65534, 65534)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            branch = resumed(parent, tmp_path / "own" / "topology")
            write(branch, [21])
            branch.close()
            record = read_record(branch.dirpath)
            code = 0 if len(record.history) == 40 and steps_of(record) == [21] else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_run_that_was_given_no_checkpoint_begins_anew(tmp_path, parent):
    fresh = RecordWriter.open(parent.dirpath)
    fresh.close()
    assert fresh.dirpath.name == "topology-v1"
    assert read_record(fresh.dirpath).parent is None


def test_a_run_finds_its_own_folder_again_among_the_versions(tmp_path, parent):
    other = RecordWriter.open(parent.dirpath)
    other.close()
    again = RecordWriter.open(parent.dirpath, resume=(other.dirpath, other.run_id), step=3)
    assert again.branch.resumed
    assert again.dirpath == other.dirpath


# --- rewinds ----------------------------------------------------------------------------------------------------------


def test_lines_that_a_rewind_abandons_are_kept_and_not_counted(tmp_path, parent):
    assert "broke down" in verdict(read_record(parent.dirpath))
    n_lines = len((parent.dirpath / MEASUREMENTS).read_text().splitlines())
    again = resumed(parent, parent.dirpath)
    event = again.rewind(20, 0)
    assert event.name is EventName.REWIND
    assert event.step == 20
    write(again, range(21, 36))
    again.close()
    lines = (parent.dirpath / MEASUREMENTS).read_text().splitlines()
    assert len(lines) == n_lines + 1 + 2 * 15
    line = json.loads(lines[n_lines])
    assert (line["probe"], line["group"], line["step"]) == ("rewind", "", 20)
    record = read_record(parent.dirpath)
    assert steps_of(record) == list(range(1, 36))
    assert record.n_abandoned == 2 * 5 + 1  # measured again up to 35; and the breakdown
    assert record.n_unreadable == 0
    assert [e.name for e in record.events] == ["rewind"]
    assert record.diagram_steps == (5, 10, 15, 20, 25, 30, 35)
    told = history(record).outcome
    assert (told.last_step, told.peak_ratio.value) == (35, 0.1)
    assert verdict(record).startswith("Topology preserved over 35 steps")
    assert set(record.measurements_frame()["step"]) == set(range(1, 36))
    assert "broke down" not in verdict(record)
    assert "topology_breakdown" not in render_page([record]).split("</head>")[1].split("plotly")[0]


def test_captures_behind_a_rewind_are_set_aside(tmp_path, parent):
    again = resumed(parent, parent.dirpath)
    again.rewind(20, 0)
    again.close()
    assert read_record(parent.dirpath).diagram_steps == (5, 10, 15, 20)
    aside = {path.name for path in (parent.dirpath / "diagrams" / "abandoned-1").iterdir()}
    assert aside == {f"step-{step:09d}.npz" for step in (25, 30, 35, 40)}


def test_a_resume_from_the_last_step_marks_nothing(parent):
    again = resumed(parent, parent.dirpath, step=40)
    assert again.rewind(40, 0) is None
    again.close()
    assert "rewind" not in (parent.dirpath / MEASUREMENTS).read_text()


def test_training_waits_for_no_line_to_be_parsed_where_a_run_goes_on_goes_back_or_branches(
    tmp_path, parent, monkeypatch
):
    n_lines = (parent.dirpath / MEASUREMENTS).read_bytes().count(b"\n")
    parsed = []
    real = json.loads
    monkeypatch.setattr(json, "loads", lambda text: parsed.append(text) or real(text))
    for folder, step in ((parent.dirpath, 40), (parent.dirpath, 35), (tmp_path / "B", 20)):
        parsed.clear()
        writer = resumed(parent, folder, step=step)
        writer.rewind(step, 0)
        writer.close()
        assert len(parsed) < n_lines / 3
    branch = read_record(tmp_path / "B")
    assert branch.history == tuple(m for m in read_record(parent.dirpath).measurements if m.step <= 20)
    assert branch.history_events == tuple(e for e in read_record(parent.dirpath).events if e.step <= 20)


@pytest.mark.parametrize("seed", range(20))
def test_what_others_have_written_among_the_lines_does_not_hide_or_add_any(tmp_path, parent, seed):
    """Against the obvious way, parsing every line: other spacing, other orders of fields, broken and foreign lines."""
    draw = random.Random(seed)
    texts = []
    for k in range(80):
        step = draw.randrange(60)
        line = {"step": step, "epoch": 0, "probe": draw.choice(["p", "p", "rewind"]), "group": "g", "v": k}
        items = list(line.items())
        if draw.random() < 0.3:
            draw.shuffle(items)
        text = json.dumps(dict(items), separators=draw.choice([(", ", ": "), (",", ":")]))
        texts.append(
            draw.choice([text, text, text, text[:-9], f"[{text}]", '{"step": "x"}', "", '{"step": 7, "epoch": 0'])
        )
    path = parent.dirpath / MEASUREMENTS
    with path.open("a") as file:
        file.write("\n".join(texts) + "\n")
    kept = [m for m in read_record(parent.dirpath).measurements if m.step <= 30]
    branch = resumed(parent, tmp_path / "B", step=30)
    branch.close()
    key = attrgetter("step", "probe", "group")
    assert sorted(read_record(branch.dirpath).history, key=key) == sorted(kept, key=key)
    for step in (0, 20, 59, 60):
        expected = any(
            type(line.get("step")) is int and line["step"] > step and line.get("probe") != "rewind"
            for _, line in live_lines(partial(read_objects, path))
        )
        assert has_later_lines(parent.dirpath, step) is expected or any(
            event.step > step for event in read_record(parent.dirpath).events
        )


@pytest.mark.parametrize("seed", range(20))
def test_any_history_of_rewinds_leaves_what_a_plain_list_would(tmp_path, seed):
    """Against the obvious way: a list from which later steps are cut at every rewind."""
    draw = random.Random(seed)
    writer = RecordWriter.open(tmp_path)
    kept, step = {}, 0
    for k in range(120):
        if step and draw.random() < 0.1:
            step = draw.randrange(step + 1)
            writer.close()
            writer = RecordWriter.open(tmp_path, resume=(None, writer.run_id), step=step)
            writer.rewind(step, 0)
            kept = {s: v for s, v in kept.items() if s <= step}
        else:
            step += 1
            writer.measurement(ratio(step, k / 120))
            kept.pop(step, None)
            kept[step] = k / 120
    writer.close()
    found = {m.step: m.values["critical_ratio"] for m in read_record(tmp_path).measurements}
    assert found == kept


@pytest.mark.parametrize("seed", range(10))
def test_live_lines_are_those_of_the_definition(seed):
    draw = random.Random(seed)
    lines = [
        {"probe": "rewind" if draw.random() < 0.2 else "p", "step": draw.randrange(12), "group": ""} for _ in range(60)
    ]
    expected = [
        i
        for i, line in enumerate(lines)
        if line["probe"] == "rewind"
        or all(line["step"] <= later["step"] for later in lines[i + 1 :] if later["probe"] == "rewind")
    ]
    assert [i for i, _ in live_lines(lambda: iter(lines))] == expected
    floors = rewind_floors((i, line["step"] if line["probe"] == "rewind" else None) for i, line in enumerate(lines))
    assert [step for _, step in floors] == sorted(step for _, step in floors)


def test_thinning_drops_what_is_abandoned_and_nothing_of_it_comes_back(tmp_path):
    limit = 40_000
    writer = RecordWriter.open(tmp_path, max_bytes=limit)
    for step in range(1, 151):
        writer.measurement(ratio(step, 0.1))
    for step in range(151, 201):
        writer.measurement(ratio(step, 5.0))
    writer.close()
    writer = RecordWriter.open(tmp_path, resume=(None, writer.run_id), step=150, max_bytes=limit)
    writer.rewind(150, 0)
    for step in range(151, 1200):
        writer.measurement(ratio(step, 0.2 + step / 10_000))
    writer.close()
    record = read_record(tmp_path)
    assert record.thinned is not None
    assert record.n_unreadable == 0
    assert max(m.values["critical_ratio"] for m in record.measurements) == pytest.approx(0.3199)
    assert steps_of(record)[-1] == 1199


# --- one writer a folder ----------------------------------------------------------------------------------------------


def test_a_second_writer_goes_beside_and_is_told_who_writes(tmp_path):
    first = RecordWriter.open(tmp_path / "topology")
    write(first, [1, 2])
    second = RecordWriter.open(tmp_path / "topology", resume=(first.dirpath, first.run_id), step=1)
    assert second.dirpath.name == "topology-v1"
    assert f"process {os.getpid()}" in second.branch.notes[0]
    assert steps_of_history(read_record(second.dirpath)) == [1]
    write(first, [3])
    first.close()
    second.close()
    assert steps_of(read_record(first.dirpath)) == [1, 2, 3]
    third = RecordWriter.open(tmp_path / "topology", resume=(first.dirpath, first.run_id), step=3)
    assert third.dirpath == first.dirpath


WRITER = """
    import sys, time
    from lightning_topo.measurement import Measurement
    from lightning_topo.outputs.record import RecordWriter
    resume = (sys.argv[1], sys.argv[2]) if len(sys.argv) > 2 else None
    writer = RecordWriter.open(sys.argv[1], resume=resume, step=10, max_bytes=20_000)
    print(writer.dirpath, flush=True)
    for step in range(1, 10_000):
        writer.measurement(Measurement(step, 0, "distortion", "g", {"critical_ratio": 0.5}))
        if step == 20:
            print("ready", flush=True)
        time.sleep(0.001)
"""


def start_writer(log, *arguments):
    process = warm.start(textwrap.dedent(WRITER), *arguments, log=log)
    deadline = time.monotonic() + 60
    while not (said := log.read_text() if log.is_file() else "").endswith("ready\n"):
        assert time.monotonic() < deadline and process.poll() is None, said  # noqa: PT018
        time.sleep(0.02)
    return process, said.splitlines()[0]


@pytest.mark.slow
def test_two_processes_with_thinning_share_no_folder_and_a_killed_one_leaves_it_free(tmp_path):
    one, first = start_writer(tmp_path / "1.txt", tmp_path / "topology")
    run_id = read_record(first).run_id
    two, second = start_writer(tmp_path / "2.txt", tmp_path / "topology", run_id)
    try:
        assert [first, second] == [str(tmp_path / "topology"), str(tmp_path / "topology-v1")]
        time.sleep(0.3)
        for folder in (first, second):
            assert read_record(folder).n_unreadable == 0
        one.send_signal(signal.SIGKILL)
        one.wait()
        three, third = start_writer(tmp_path / "3.txt", tmp_path / "topology", run_id)
        three.kill()
        three.wait()
        assert third == first
    finally:
        for process in (one, two):
            process.kill()
            process.wait()


def test_an_event_of_a_rewind_is_no_finding_of_the_detector(tmp_path):
    writer = RecordWriter.open(tmp_path)
    writer.event(TopologyEvent(EventName.GAP, 7, 0))
    writer.close()
    writer = RecordWriter.open(tmp_path, resume=(None, writer.run_id), step=5)
    writer.rewind(5, 1)
    writer.close()
    record = read_record(tmp_path)
    assert [(e.name, e.step, e.epoch) for e in record.events] == [("rewind", 5, 1)]
    assert history(record).events == record.events
