"""A run as a notebook shows it."""

from lightning_topo.outputs.page import recommendation, verdict
from lightning_topo.outputs.page._inline import inline_html
from lightning_topo.outputs.record import RunRecord


def test_a_notebook_shows_the_verdict_the_advice_and_pictures(demo: RunRecord, hostile: RunRecord) -> None:
    shown = inline_html(demo)
    assert verdict(demo) in shown
    assert recommendation(demo) in shown
    assert shown.count("data:image/png;base64,") == 4
    assert "<script" not in inline_html(hostile)


def test_what_was_not_measured_is_left_out(empty: RunRecord) -> None:
    assert "Nothing was measured yet" in inline_html(empty)
    assert "<img" not in inline_html(empty)
