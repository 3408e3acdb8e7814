"""The parts of the page that are text: every name in them stays text."""

from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from lightning_topo.measurement import Measurement
from lightning_topo.outputs.page._markup import about, comparison, events, head
from lightning_topo.outputs.page._model import Budget, RunView, run_view
from lightning_topo.outputs.record import Parent, RunRecord
from lightning_topo.phases import EventName, TopologyEvent
from tests.outputs.page.synthetic import HOSTILE
from tests.outputs.page.test_page import data_of


def test_names_never_become_markup(hostile: RunRecord, write: Callable[..., str]) -> None:
    page = write(hostile)
    assert "<script>alert" not in page
    assert "<img" not in page
    assert data_of(page)["runs"][0]["groups"][:2] == list(HOSTILE[:2])
    assert page.count("<script") == page.count("</script>") == 3


class Tags(HTMLParser):
    """The tags of a text in order, and the words between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.tags.append(f"/{tag}")

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def named(name: str) -> RunView:
    """A run in which everything has that name."""
    measured = Measurement(1, 0, "distortion", name, {"critical_ratio": 0.5})
    event = TopologyEvent(EventName.GAP, 1, 0, name, message=name, remedy=name)
    training = {"optimizer": name, "hparams": {name: name}}
    record = RunRecord(Path("run"), name, (measured,), (event,), about={"training": training})
    return run_view(replace(record, parent=Parent(name, 3)), name, Budget.of(1), detailed=False)


@given(st.text("<>&\"'/=!-ab \u202e\x00", min_size=1, max_size=100))
def test_no_name_adds_a_tag(name: str) -> None:
    """The same elements in the same order as with a plain name, and the event's words are to be read in its row."""
    plain, strange = named("plain"), named(name)
    for part in (
        head,
        lambda run: comparison([run, run]),
        lambda run: events(run, named=True),
        lambda run: about(run, named=True),
    ):
        assert Tags(part(strange)).tags == Tags(part(plain)).tags
    words = Tags(events(strange, named=False)).words
    assert sum(word == name.replace("\u202e", "\\u202e").replace("\x00", "\\x00") for word in words) >= 2


def test_a_remedy_that_was_said_is_pointed_at() -> None:
    told = tuple(TopologyEvent(EventName.GAP, step, 0, message=f"m{step}", remedy="Look.") for step in (3, 5, 1_009))
    text = events(replace(named("plain"), events=told), named=False)
    assert (text.count("Look."), text.count("As at step 3.")) == (1, 2)
    assert "1,009" in text
    assert "No events" in events(replace(named("plain"), events=()), named=False)


def test_events_that_are_not_shown_are_counted() -> None:
    run = named("plain")
    assert run.outcome.n_events == 1
    more = replace(run, outcome=replace(run.outcome, n_events=1_200))
    assert "Of 1,200 events 1 are shown" in events(more, named=False)
    assert "are shown" not in events(run, named=False)


def test_what_the_page_leaves_out_is_said_line_by_line() -> None:
    run = replace(named("plain"), parent=None)
    assert "Nothing is thinned out" in about(run, named=False)
    lossy = replace(run, n_unreadable=1_234, n_abandoned=5, n_lost_captures=6)
    lines = Tags(about(lossy, named=False)).words
    assert [line.split(" ")[0] for line in lines[-3:]] == ["5", "1,234", "6"]
    assert "Begun from the checkpoint of run other at step 3" in about(
        replace(run, parent=Parent("other", 3)), named=False
    )
