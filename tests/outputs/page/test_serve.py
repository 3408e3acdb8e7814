"""A run's page served while the run goes on, to this machine alone."""

import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from lightning_topo.measurement import Measurement
from lightning_topo.outputs.page._serve import PageSource, page_server
from lightning_topo.outputs.record import RecordWriter, RunRecord, read_record


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of four quiet steps, that may go on."""
    writer = RecordWriter.open(tmp_path / "topology")
    for step in range(1, 5):
        writer.measurement(Measurement(step, 0, "distortion", "net.0", {"critical_ratio": 0.4}))
    writer.close()
    return writer.dirpath


def test_a_served_page_follows_the_run_and_answers_this_machine_alone(folder: Path) -> None:
    server = page_server(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        with urllib.request.urlopen(url) as answer:
            assert answer.headers["Refresh"] == "10"
            assert "Topology preserved over 4 steps" in answer.read().decode()
        for path, host in (("measurements.jsonl", "127.0.0.1"), ("", "evil.example")):
            with pytest.raises(urllib.error.HTTPError):
                urllib.request.urlopen(urllib.request.Request(url + path, headers={"Host": f"{host}:80"}))
    finally:
        server.shutdown()
        server.server_close()


def test_a_page_is_rendered_anew_where_the_record_has_grown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_topo.outputs.page._serve._REST", 0.0)
    source = PageSource(folder)
    first = source.page()
    assert source.page() is first
    writer = RecordWriter.open(folder, resume=(folder, read_record(folder).run_id), step=4)
    writer.measurement(Measurement(5, 0, "distortion", "net.0", {"critical_ratio": 1.5}))
    writer.close()
    assert "net.0 broke down" in source.page().decode()


def test_after_a_dear_page_the_next_one_waits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page took a second: for nine more the same one is shown, whatever has been written."""
    now = [100.0]
    monkeypatch.setattr("lightning_topo.outputs.page._serve.time.monotonic", lambda: now[0])
    rendered = []

    def render(records: list[RunRecord]) -> str:
        rendered.append(now[0])
        now[0] += 1.0
        return f"page {len(rendered)}"

    monkeypatch.setattr("lightning_topo.outputs.page._serve.render_page", render)
    source = PageSource(folder)
    for _ in range(30):
        source.page()
        with (folder / "events.jsonl").open("a") as file:
            file.write("{}\n")
        now[0] += 1.0
    assert rendered == [100.0, 110.0, 120.0, 130.0]


def test_what_cannot_be_served_is_refused_beforehand(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"at least 1 second, got 0\.5"):
        page_server(folder, every=0.5)
    with pytest.raises(FileNotFoundError, match="run folder"):
        page_server(folder.parent)
