"""What a person is shown: progress, a line for each event, and what the run came to."""

import logging
import os
import re

from lightning_topo import Phase, read_record
from lightning_topo.outputs import _terminal as terminal
from lightning_topo.outputs._outputs import open_outputs
from lightning_topo.outputs._terminal import LoggingPrinter, TerminalOutput, event_line, summary
from lightning_topo.phases import EventName, TopologyEvent
from tests.outputs.driving import Training, drive


class Keeping:
    """A printer that keeps what it is given."""

    def __init__(self):
        self.lines, self.shown = [], []

    def say(self, text):
        self.lines.append(text)

    def progress(self, values):
        self.shown.append(dict(values))


def shown(folder, **options):
    printer = Keeping()
    training = drive(folder, 16, hot={5, 6}, printer=printer, verbose=True, **options)
    return training, printer


def test_the_bar_shows_the_phase_and_the_largest_ratio_since_the_last_log(tmp_path):
    training, printer = shown(tmp_path)
    worst = {}
    for m in training.measured:
        if m.probe == "distortion":
            worst[m.step] = max(worst.get(m.step, 0.0), m.values["critical_ratio"])
    ratios = [values["r"] for values in printer.shown if "r" in values]
    assert set(ratios) == {f"{ratio:.3g}" for ratio in worst.values()}
    assert printer.shown[-1] == {"phase": "breakdown", "r": f"{worst[16]:.3g}"}
    assert all(a != b for a, b in zip(printer.shown, printer.shown[1:], strict=False))


def test_every_event_has_its_line_and_the_run_its_summary(tmp_path):
    training, printer = shown(tmp_path / "topology", report=True)
    *lines, last = printer.lines
    assert lines == [event_line(event) for event in training.events] != []
    record = read_record(tmp_path / "topology")
    assert last.startswith("Topology: ")
    assert not last.startswith("Topology: Topology")
    assert last == f"{summary(record)}\n  look at   {tmp_path / 'topology' / 'report.html'}"
    assert (tmp_path / "topology" / "report.html").is_file()


def test_the_summary_is_the_records(tmp_path):
    training, _ = shown(tmp_path)
    text = summary(read_record(tmp_path))
    peak = max((m for m in training.measured if m.group), key=lambda m: m.values.get("critical_ratio", 0.0))
    assert f"worst     {peak.group}: r = {peak.values['critical_ratio']:.3g} at step {peak.step}" in text
    n = sum(event.name == "topology_breakdown" for event in training.events)
    assert f"{n} x topology_breakdown" in text
    spans = re.findall(r"([a-z ]+) (\d+)-(\d+)", text.split("phases")[1].splitlines()[0])
    assert {name.strip() for name, _, _ in spans} <= {phase.name.lower().replace("_", " ") for phase in Phase}
    assert [int(end) + 1 for _, _, end in spans[:-1]] == [int(start) for _, start, _ in spans[1:]]
    assert spans[-1][2] == "16"


def test_in_haste_one_line_says_where_to_look(tmp_path):
    _, printer = shown(tmp_path, in_haste=True)
    assert printer.lines[-1] == f"Topology: the record is closed\n  look at   {tmp_path}"


def test_the_verdict_of_a_page_that_is_older_than_the_record_is_not_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(terminal, "_MOST_BYTES_HERE", 0)
    _, printer = shown(tmp_path / "topology", report=True)
    assert "being written" not in printer.lines[-1]
    page, lines = tmp_path / "topology" / "report.html", tmp_path / "topology" / "measurements.jsonl"
    os.utime(page, ns=(0, lines.stat().st_mtime_ns - 1))
    told = terminal._told_by(page)
    assert told == "the page is being written"


def test_quiet_when_asked_and_logged_where_there_is_no_bar(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "lightning_topo"):
        drive(tmp_path / "a", 8, hot={3})
        assert not caplog.messages
        outputs = open_outputs(tmp_path / "b", report=False)
        Training(outputs, hot=frozenset({3})).run(8)
        outputs.end()
    assert any("topology_breakdown at step 3" in line for line in caplog.messages)


def test_lines_are_seen_where_nobody_has_set_up_logging(monkeypatch, capsys):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    LoggingPrinter()
    LoggingPrinter().say("net.0 broke down")
    assert capsys.readouterr().err == "net.0 broke down\n"


def test_lines_go_where_logging_is_set_up_and_nowhere_else(monkeypatch, capsys, caplog):
    monkeypatch.setattr(logging.getLogger(), "handlers", [caplog.handler])
    LoggingPrinter().say("net.0 broke down")
    assert [record.message for record in caplog.records] == ["net.0 broke down"]
    assert not capsys.readouterr().err


def test_of_what_needs_no_doing_the_first_sentence_is_shown():
    printer = Keeping()
    note = TopologyEvent(EventName.UNWATCHED_PARAMETERS, 1, 0, message="2 are in none. One: a.", remedy="Name it.")
    TerminalOutput(printer).event(note)
    assert printer.lines == ["unwatched_parameters at step 1: 2 are in none."]
