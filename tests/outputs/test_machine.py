"""What an error's words, a name or a setting tell of the machine and its user, and where that is left out."""

import json
import shutil
from pathlib import Path

import pytest

from lightning_topo.neurons._coverage import ParameterCoverage
from lightning_topo.outputs import _machine as machine
from lightning_topo.outputs._leaving import plain
from lightning_topo.outputs._machine import impersonal
from lightning_topo.outputs._outputs import open_outputs
from lightning_topo.outputs.page._page import run_labels
from lightning_topo.outputs.record import read_record
from lightning_topo.outputs.record._parameters import read_parameters
from lightning_topo.outputs.trackers import Tracker
from lightning_topo.outputs.trackers import _output as tracker_output
from lightning_topo.phases import EventName, TopologyEvent
from tests.outputs.driving import Training

PRIVATE = ("someone", "node17", "/scratch", "hunter2")
WORDS = (
    "FileNotFoundError: [Errno 2] No such file: '/scratch/some one/someone/weights.npz'; host node17.example, "
    "see https://someone:hunter2@example.org/x and node17:/scratch/someone/data"
)


@pytest.fixture(autouse=True)
def somebody(monkeypatch):
    """The user and the machine have names that tell of them."""
    monkeypatch.setattr(machine.getpass, "getuser", lambda: "someone")
    monkeypatch.setattr(machine.socket, "gethostname", lambda: "node17.example")
    machine._names.cache_clear()
    yield
    machine._names.cache_clear()


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("'/scratch/a b/run/events.jsonl'", "'\u2026/events.jsonl'"),
        ("open(/data/t.txt): no", "open(\u2026/t.txt): no"),
        ("at node17:/export/home/x", "at \u2026:\u2026"),
        ("file:///home/x/y.npz", "\u2026/y.npz"),
        ("C:\\Users\\x\\y.csv and \\\\server\\share\\z", "\u2026/y.csv and \u2026"),
        ("~/data, ~friend/data.csv", "\u2026, \u2026/data.csv"),
        ("--data=/scratch/d --lr=0.1", "--data=\u2026 --lr=0.1"),
        ("Someone on NODE17", "\u2026 on \u2026"),
    ],
)
def test_what_tells_of_the_machine_is_left_out(text, left):
    assert impersonal(text) == left


@pytest.mark.parametrize(
    "text",
    [
        "Neurons of net.0 merged: r = 1.2 / 1.0 and 3/4 of both and/or none",
        "see https://example.org/a/b?c=d",
        "</b> in ../x/y, ./z and runs/version_0",
        "expected shape (3, 4) / 5 of \\w+ and r'\\d+'",
        "someones net.someone.weight, node170",
        "",
    ],
)
def test_other_words_stay_as_they_are(text):
    assert impersonal(text) == text


class Kept(Tracker):
    def __init__(self, logger):
        super().__init__(logger)
        self.told = []

    def events(self, events, step):
        self.told += events

    def row(self, values, step, known=()):
        """Nothing."""


def test_an_errors_words_reach_the_log_whole_and_record_page_and_trackers_without_the_machine(tmp_path, monkeypatch):
    kept, said = Kept(None), []

    class Printer:
        def say(self, line):
            said.append(line)

        def progress(self, values):
            """Nothing."""

    monkeypatch.setattr(tracker_output, "tracker_of", lambda logger: kept)
    outputs = open_outputs(tmp_path / "topology", loggers=[object()], printer=Printer())
    training = Training(outputs).run(2)
    outputs.event(TopologyEvent(EventName.PROBE_FAILED, 2, 0, message=WORDS, remedy=f"Look at it. {WORDS}"))
    outputs.record.parameters(training.groups, [ParameterCoverage("net.0.weight", 6, (), f"no: {WORDS}")])
    outputs.end()
    assert any(WORDS in line for line in said)
    folder = outputs.dirpath
    table = read_parameters(folder)
    texts = [event.message + event.remedy for event in (*kept.told, *read_record(folder).events)]
    assert len(texts) == 2
    assert all("FileNotFoundError: [Errno 2]" in text and "weights.npz" in text for text in texts)
    assert "weights.npz" in table.parameters[0].reason
    texts += [path.read_text() for path in folder.iterdir() if path.suffix in (".html", ".json", ".jsonl")]
    assert not [word for word in PRIVATE for text in texts if word in text.replace(str(tmp_path), "")]


def test_a_disk_or_a_folder_that_fails_tells_trackers_nothing_of_where_it_is(tmp_path):
    outputs = open_outputs(tmp_path / "someone" / "topology", verbose=False, report=False)
    training = Training(outputs).run(2)
    shutil.rmtree(outputs.dirpath)
    outputs.dirpath.write_text("x")
    with pytest.warns(UserWarning, match="cannot be written"):
        training.run(1)
    outputs.dirpath.unlink()
    with pytest.warns(UserWarning, match="are lost"):
        training.run(1)
    with pytest.warns(UserWarning, match="lacks"):
        outputs.end()
    (event,) = [event for event in read_record(outputs.dirpath).events if "cannot be written" in event.message]
    assert "someone" not in event.message
    assert str(tmp_path) not in event.message


def test_settings_name_no_user_host_or_secret():
    values = {"owner": "someone", "host": "node17", "api_key": "sk-1", "hf_token": "x", "n_tokens": 3, "key": 1}
    values |= {"run": "python t.py --data /scratch/x", "pad_token": None, "/scratch/x/y": 1, "tokens": "bpe"}
    assert plain(values) == {
        **dict.fromkeys(["owner", "host", "api_key", "hf_token", "run", "pad_token"]),
        "n_tokens": 3,
        "key": 1,
        "\u2026": 1,
        "tokens": "bpe",
    }
    assert "hunter2" not in json.dumps(plain({"a": {"db_password": "hunter2"}}))


def test_a_page_is_not_named_after_its_user():
    assert run_labels([Path("/scratch/someone/topology")]) == ("topology",)
    assert run_labels([Path("/scratch/version_0/topology")]) == ("version_0/topology",)
