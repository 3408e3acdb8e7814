import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_topo.outputs.page import recommendation, render_page, verdict, write_report
from lightning_topo.outputs.page._page import run_labels
from lightning_topo.outputs.record import RunRecord


def data_of(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="page-data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_page_holds_the_record_and_its_verdict(demo: RunRecord, write: Callable[..., str]) -> None:
    page = write(demo)
    assert f">{verdict(demo)}</h1>" in re.sub("</?(small|span)( hidden)?>", "", page)
    assert recommendation(demo) in page
    data = data_of(page)
    assert (data["first_step"], data["last_step"]) == (0, 800)
    assert data["runs"][0]["run_id"] == demo.run_id
    losses = [m.values["loss"] for m in demo.measurements if m.probe == "training"]
    assert data["runs"][0]["curves"]["loss"]["columns"]["loss"] == pytest.approx(losses, rel=5.1e-4)


def test_the_page_needs_nothing_else(demo: RunRecord, write: Callable[..., str]) -> None:
    page = write(demo)
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=", page)
    assert "default-src 'none'" in page


def test_many_groups_and_captures_stay_under_3_mb(large: RunRecord, write: Callable[..., str]) -> None:
    page = write(large)
    assert len(page.encode()) < 3_000_000
    assert data_of(page)["runs"][0]["groups"] == list(large.groups)
    assert "Of 30 captures" in page


def test_a_page_that_would_be_too_large_is_thinned_further(
    demo: RunRecord, write: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = len(write(demo).encode()) - 20_000
    monkeypatch.setattr("lightning_topo.outputs.page._page.MAX_BYTES", limit)
    page = write(demo)
    assert len(page.encode()) <= limit
    assert "Contraction and expansion: each point is the extreme of up to" in page


def test_the_file_is_replaced_as_a_whole(demo: RunRecord, empty: RunRecord, tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    assert write_report([demo], path) == path
    write_report([empty], str(path))
    assert "Nothing was measured yet" in path.read_text(encoding="utf-8")
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_page_before_it(
    demo: RunRecord, empty: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_report([empty], tmp_path / "report.html")
    before = path.read_bytes()

    def full(self: Path, target: Path) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_report([demo], path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_page_of_no_run_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one record, got none"):
        render_page([])


@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        (["a/topology"], ("a/topology",)),
        (["x/a/topology", "x/b/topology"], ("a", "b")),
        (["x/topology", "x/topology-v1"], ("topology", "topology-v1")),
        (["x/topology", "x/topology"], ("x/topology", "x/topology (2)")),
        (["a/b", "a/b/c", "a/b"], ("b", "c", "b (3)")),
    ],
)
def test_runs_are_named_by_where_their_paths_differ(paths: list[str], labels: tuple[str, ...]) -> None:
    assert run_labels([Path(path) for path in paths]) == labels


def test_runs_side_by_side_share_one_axis(demo: RunRecord, control: RunRecord, write: Callable[..., str]) -> None:
    data = data_of(write(demo, control))
    assert (data["first_step"], data["last_step"]) == (0, 800)
    assert [run["outcome"]["last_step"] for run in data["runs"]] == [800, 400]
